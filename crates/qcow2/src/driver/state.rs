//! What an opened image is: what stays, and what was read of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{BlockError, Child, Corruption, CorruptionReport, NodeInfo, OwnedBuffer, Result};

use super::cache::{L2Cache, Slice};
use super::map::{self, Kind, Mapped, Question};
use super::options::{CacheSizes, Needs, Qcow2Options};
use crate::format::l1::L1Entry;
use crate::format::l2::EntryRules;
use crate::format::{BitmapEntry, CompressionType, GuestOffset, Header, HostOffset};

/// What an image is opened with.
#[derive(Debug)]
pub struct Base {
    /// Name of the node.
    pub name: Arc<str>,
    /// The node with the image.
    pub file: Child,
    /// How much may be remembered.
    pub caches: CacheSizes,
    /// What an image must be for the options.
    pub needs: Needs,
    /// What was found of the image that cannot be.
    pub corruption: Corruption,
    /// How the node is opened.
    pub info: NodeInfo,
}

impl Base {
    pub fn new(options: Qcow2Options) -> Self {
        Self {
            needs: options.needs(),
            corruption: Corruption::default(),
            file: Child::of(&options.node_name, "file", options.file),
            name: options.node_name,
            caches: options.caches,
            info: options.info,
        }
    }

    /// Reads `bytes` at `offset` of the file, to look at them. What lies behind its end is zeroes.
    pub async fn read(&self, offset: HostOffset, bytes: usize) -> Result<OwnedBuffer> {
        let mut buffer = OwnedBuffer::new(bytes)?;
        let io = block::Io::read(offset.0, buffer.lend());
        self.file.submit(io).await?;
        Ok(buffer)
    }

    /// EIO, because the image says something that cannot be: `what` names the table.
    #[cold]
    pub fn corrupt(&self, at: GuestOffset, bytes: u64, what: String) -> BlockError {
        self.corruption.report(CorruptionReport {
            msg: what.clone(),
            offset: None,
            bytes: None,
            fatal: false,
        });
        let text = format!("the image is corrupt: {what}");
        BlockError::new(libc::EIO, text).at(&self.name, at.0, bytes)
    }
}

/// What was read of an image.
#[derive(Debug)]
pub struct State {
    /// The header.
    pub header: Header,
    /// What L2 entries may say.
    pub rules: EntryRules,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
    /// Length of the disk in bytes, in whole sectors.
    pub length: u64,
    /// The active L1 table, as far as the disk goes.
    pub l1: Box<[L1Entry]>,
    /// Slices of L2 tables.
    pub cache: L2Cache,
    /// Persistent bitmaps, by their names.
    pub bitmaps: Vec<BitmapEntry>,
    /// How long the file was when somebody asked.
    pub file_length: AtomicU64,
}

/// What is known at once of some guest bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// All.
    Known(Mapped),
    /// A slice has to be read.
    Unknown(Miss),
}

/// A slice that is not remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    table: HostOffset,
    slice: HostOffset,
}

impl State {
    /// Whether the file is so long, now.
    fn reaches(&self, base: &Base, end: u64) -> bool {
        if end <= self.file_length.load(Ordering::Relaxed) {
            return true;
        }
        let length = base.file.length();
        self.file_length.store(length, Ordering::Relaxed);
        end <= length
    }

    /// Where in the file `bytes` from a guest cluster are.
    ///
    /// # Errors
    /// The file ends before they begin. One that ends in between is short of zeroes that nobody has written.
    #[inline]
    pub fn check_inside(
        &self,
        base: &Base,
        guest: GuestOffset,
        host: HostOffset,
        bytes: u64,
    ) -> Result<()> {
        let end = host.0.saturating_add(bytes);
        if self.reaches(base, end) || self.reaches(base, host.0.saturating_add(1)) {
            return Ok(());
        }
        let what = format!(
            "what the guest has at {guest} is to be at {host} of the file, which ends before that ({:#x})",
            base.file.length()
        );
        Err(base.corrupt(guest, bytes, what))
    }

    /// What `wanted` guest bytes (at least one, inside the disk) from `guest` on are, or a beginning of them.
    ///
    /// # Errors
    /// The image says what cannot be.
    #[inline]
    pub fn lookup(&self, base: &Base, guest: GuestOffset, wanted: u64) -> Result<Lookup> {
        let geometry = &self.rules.geometry;
        let place = geometry.place(guest);
        let index = usize::try_from(place.l1).unwrap_or(usize::MAX);
        let entry = self.l1.get(index).copied().unwrap_or_default();
        let table = entry.table(geometry).map_err(|error| {
            let what = format!(
                "L1 table at {}, entry {index}: {error}",
                self.header.l1_offset
            );
            base.corrupt(guest, wanted, what)
        })?;
        let Some(table) = table else {
            let coverage = geometry.l2_coverage();
            let left = coverage - (guest.0 & (coverage - 1));
            return Ok(Lookup::Known(Mapped {
                kind: Kind::Unallocated,
                bytes: wanted.min(left),
            }));
        };
        let slice_bytes = self.cache.slice_bytes();
        let entries = slice_bytes / geometry.l2_entry_bytes();
        let begin = HostOffset(table.0 + (place.l2 / entries * slice_bytes) as u64);
        let Some(found) = self.cache.find(begin) else {
            return Ok(Lookup::Unknown(Miss {
                table,
                slice: begin,
            }));
        };
        let mapped = self.ask(base, guest, wanted, table, found.bytes())?;
        Ok(Lookup::Known(mapped))
    }

    /// What a slice of the table at `table` says of them.
    #[inline]
    fn ask(
        &self,
        base: &Base,
        guest: GuestOffset,
        wanted: u64,
        table: HostOffset,
        slice: &[u8],
    ) -> Result<Mapped> {
        let place = self.rules.geometry.place(guest);
        let entries = self.cache.slice_bytes() / self.rules.geometry.l2_entry_bytes();
        let question = Question {
            entry: place.l2 % entries,
            within: place.within,
            wanted,
        };
        map::run(slice, &self.rules, question).map_err(|error| {
            let what = format!("L2 table at {table}, entry {}: {error}", place.l2);
            base.corrupt(guest, wanted, what)
        })
    }

    /// Reads what [`Self::lookup`] has missed, for the sake of the bytes from `guest` on.
    ///
    /// # Errors
    /// The storage's, and a table that does not lie inside the file.
    async fn read_slice(&self, base: &Base, guest: GuestOffset, miss: Miss) -> Result<Arc<Slice>> {
        let cluster = self.rules.geometry.cluster_size();
        if !self.reaches(base, miss.table.0.saturating_add(cluster)) {
            let what = format!(
                "L2 table at {}: the file ends before the table does",
                miss.table
            );
            return Err(base.corrupt(guest, 1, what));
        }
        let bytes = base.read(miss.slice, self.cache.slice_bytes()).await?;
        let slice = Slice::new(miss.slice, bytes.to_vec().into());
        self.cache.put(Arc::clone(&slice));
        Ok(slice)
    }

    /// [`Self::lookup`], after reading what is not remembered.
    ///
    /// # Errors
    /// As there, and the storage's.
    pub async fn map(&self, base: &Base, guest: GuestOffset, wanted: u64) -> Result<Mapped> {
        match self.lookup(base, guest, wanted)? {
            Lookup::Known(mapped) => Ok(mapped),
            Lookup::Unknown(miss) => {
                let slice = self.read_slice(base, guest, miss).await?;
                self.ask(base, guest, wanted, miss.table, &slice.bytes)
            }
        }
    }
}
