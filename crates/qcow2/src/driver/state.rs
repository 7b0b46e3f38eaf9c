//! What was read of an image.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{Image, Result};

use super::base::Base;
use super::bitmaps::Bitmaps;
use super::cache::{L2Cache, Miss};
use super::map::{self, Kind, Mapped, Question};
use super::snapshots::Snapshots;
use super::writer::Writer;
use crate::format::geometry::Place;
use crate::format::l1::L1Entry;
use crate::format::l2::EntryRules;
use crate::format::{CompressionType, GuestOffset, Header, HostOffset, L2Entry};

/// What was read of an image.
#[derive(Clone, Debug)]
pub struct State {
    /// The header.
    pub header: Header,
    /// What L2 entries may say.
    pub rules: EntryRules,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
    /// Length of the disk in bytes, in whole sectors.
    pub length: u64,
    /// The active L1 table.
    pub l1: Arc<[AtomicU64]>,
    /// Slices of L2 tables.
    pub cache: Arc<L2Cache>,
    /// What it takes to change the image.
    pub writer: Arc<Writer>,
    /// Internal snapshots.
    pub snapshots: Arc<Snapshots>,
    /// Persistent bitmaps.
    pub bitmaps: Arc<Bitmaps>,
    /// What the file was.
    pub image: Image,
    /// The external data file is to be an image of its own.
    pub raw_data: bool,
    /// How long the file was when somebody asked.
    pub file_length: Arc<AtomicU64>,
    /// The same of where the guest's data are: an external data file has zeroes behind its end.
    pub data_length: Arc<AtomicU64>,
}

/// What is known at once of some guest bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// All.
    Known(Mapped),
    /// A slice has to be read.
    Unknown(Miss),
}

impl State {
    /// Entry `index` of the L1 table; behind its end there is nothing.
    #[inline]
    pub fn l1_entry(&self, index: usize) -> L1Entry {
        let entry = self
            .l1
            .get(index)
            .map(|entry| entry.load(Ordering::Acquire));
        L1Entry(entry.unwrap_or(0))
    }

    /// Changes it.
    pub fn set_l1(&self, index: usize, entry: L1Entry) {
        if let Some(place) = self.l1.get(index) {
            place.store(entry.0, Ordering::Release);
        }
    }

    /// The L2 table that L1 entry `index` points to.
    ///
    /// # Errors
    /// The entry says what cannot be.
    #[inline]
    fn table(&self, base: &Base, index: usize, at: GuestOffset) -> Result<Option<HostOffset>> {
        let table = self.l1_entry(index).table(&self.rules.geometry);
        table.map_err(|error| {
            let what = format!(
                "L1 table at {}, entry {index}: {error}",
                self.header.l1_offset
            );
            base.corrupt(at, 1, what)
        })
    }

    /// The same, if that table may be written where it is.
    ///
    /// # Errors
    /// As [`Self::table`].
    pub fn own_table(&self, base: &Base, index: usize) -> Result<Option<HostOffset>> {
        let table = self.table(base, index, GuestOffset(0))?;
        Ok(table.filter(|_| self.l1_entry(index).is_copied()))
    }

    /// Nothing is remembered any more of a table that was there, for L1 entry `index`.
    pub fn forget(&self, table: HostOffset, index: usize) {
        let entries = self.rules.geometry.l2_entries();
        for entry in (0..entries).step_by(1 << self.slice_entry_bits()) {
            let place = Place {
                l1: index as u64,
                l2: entry,
                within: 0,
            };
            self.cache.forget(self.slice_of(table, &place));
        }
    }

    /// Entries of a slice, as a power of two.
    #[inline]
    pub fn slice_entry_bits(&self) -> u32 {
        let entry_bits = if self.rules.geometry.extended_l2() {
            4
        } else {
            3
        };
        self.cache.slice_bits() - entry_bits
    }

    /// Whether the file is so long, now.
    pub fn reaches(&self, base: &Base, end: u64) -> bool {
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
    /// The file ends before the cluster of the last of them begins. One that ends later is short of zeroes that nobody has written.
    #[inline]
    pub fn check_inside(
        &self,
        base: &Base,
        guest: GuestOffset,
        host: HostOffset,
        bytes: u64,
    ) -> Result<()> {
        let end = host.0.saturating_add(bytes);
        if end <= self.data_length.load(Ordering::Relaxed) || self.reaches(base, end) {
            return Ok(());
        }
        let last = end.saturating_sub(1) & !(self.rules.geometry.cluster_size() - 1);
        if self.reaches(base, last.saturating_add(1)) {
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
        let Some(table) = self.table(base, index, guest)? else {
            let coverage = geometry.l2_coverage();
            let left = coverage - (guest.0 & (coverage - 1));
            return Ok(Lookup::Known(Mapped {
                kind: Kind::Unallocated,
                bytes: wanted.min(left),
            }));
        };
        let miss = self.slice_of(table, &place);
        let Some(found) = self.cache.find(miss) else {
            return Ok(Lookup::Unknown(miss));
        };
        let mapped = self.ask(base, guest, wanted, table, found.bytes())?;
        Ok(Lookup::Known(mapped))
    }

    /// Where in the file `bytes` from `guest` on are, if they are stored in one cluster, that is known, and nothing is to be
    /// said against it; `to_write`: and if they may be written there without any change of a table. That is the usual case,
    /// in one look. What it is not is looked up ([`Self::lookup`], [`Self::in_place`]).
    #[inline]
    pub fn stored(&self, guest: GuestOffset, bytes: u64, to_write: bool) -> Option<HostOffset> {
        let geometry = &self.rules.geometry;
        let place = geometry.place(guest);
        let entry = self.l1_entry(usize::try_from(place.l1).ok()?);
        let table = entry.plain(geometry)?;
        let found = self.cache.find(self.slice_of(table, &place))?;
        let at = place.l2 & ((1 << self.slice_entry_bits()) - 1);
        let (host, copied) = map::plain(found.bytes(), at, geometry)?;
        let is_own = || copied && entry.is_copied() && found.is_sound(self.writer.made());
        let host = host.0 + place.within;
        let is_usual = place.within + bytes <= geometry.cluster_size()
            && host + bytes <= self.file_length.load(Ordering::Relaxed)
            && !self.rules.external_data;
        (is_usual && (!to_write || is_own())).then_some(HostOffset(host))
    }

    /// The slice of the table at `table` in which the entry at `place` is.
    #[inline]
    pub fn slice_of(&self, table: HostOffset, place: &Place) -> Miss {
        let entry_bits = self.slice_entry_bits();
        let within = (place.l2 >> entry_bits) as u64;
        let tables = self.rules.geometry.l2_bits().saturating_sub(entry_bits);
        Miss {
            table,
            slice: HostOffset(table.0 + (within << self.cache.slice_bits())),
            number: (place.l1 << tables) | within,
        }
    }

    /// What of the `wanted` bytes (at least one, inside the disk) from `guest` on may be written where it is, without any
    /// change of a table: the first of the file, and how many.
    #[inline]
    pub fn in_place(
        &self,
        base: &Base,
        guest: GuestOffset,
        wanted: u64,
    ) -> Result<Option<(HostOffset, u64)>> {
        let geometry = &self.rules.geometry;
        let place = geometry.place(guest);
        let index = usize::try_from(place.l1).unwrap_or(usize::MAX);
        let Some(table) = self.own_table(base, index)? else {
            return Ok(None);
        };
        let found = self.cache.find(self.slice_of(table, &place));
        // What nobody has looked at yet may point anywhere.
        let Some(found) = found.filter(|found| found.is_sound(self.writer.made())) else {
            return Ok(None);
        };
        let entry_bits = self.slice_entry_bits();
        let at = place.l2 & ((1 << entry_bits) - 1);
        if place.within + wanted <= geometry.cluster_size()
            && let Some((host, copied)) = map::plain(found.bytes(), at, geometry)
        {
            let host = HostOffset(host.0 + place.within);
            self.check_inside(base, guest, host, wanted)?;
            return Ok(copied.then_some((host, wanted)));
        }
        let mapped = self.ask(base, guest, wanted, table, found.bytes())?;
        let Kind::Data(host) = mapped.kind else {
            return Ok(None);
        };
        self.check_inside(base, guest, host, mapped.bytes)?;
        let within = geometry.cluster_size() - place.within;
        let mut bytes = 0;
        for entry in at.. {
            let is_own = L2Entry::read(found.bytes(), entry, geometry)
                .is_some_and(|entry| entry.is_copied());
            if !is_own || bytes >= mapped.bytes {
                break;
            }
            bytes += match bytes {
                0 => within,
                _ => geometry.cluster_size(),
            };
        }
        let bytes = bytes.min(mapped.bytes);
        Ok((bytes > 0).then_some((host, bytes)))
    }

    /// What a slice of the table at `table` says of them.
    #[inline]
    pub fn ask(
        &self,
        base: &Base,
        guest: GuestOffset,
        wanted: u64,
        table: HostOffset,
        slice: &[u8],
    ) -> Result<Mapped> {
        let place = self.rules.geometry.place(guest);
        let question = Question {
            guest,
            entry: place.l2 & ((1 << self.slice_entry_bits()) - 1),
            within: place.within,
            wanted,
        };
        map::run(slice, &self.rules, question).map_err(|error| {
            let what = format!("L2 table at {table}, entry {}: {error}", place.l2);
            base.corrupt(guest, wanted, what)
        })
    }
}
