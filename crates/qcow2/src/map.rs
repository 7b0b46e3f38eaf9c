//! What is where, as `qemu-img map` tells it, in one image: whoever has the backing file asks it, too.

use std::collections::VecDeque;
use std::io;

use crate::format::EntryError;
use crate::format::l2::{SubclusterKind, subcluster, subclusters_alike};
use crate::format::{Cluster, Geometry, GuestOffset, HostOffset, L2Entry};
use crate::format::{L1Entry, RefcountTableEntry, l1, refcount};
use crate::image::Image;
use crate::storage::{ReadAt, read_table};

/// Why it cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The storage fails.
    #[error("{0}")]
    Storage(#[from] io::Error),
    /// A table is corrupt.
    #[error("the entry for guest offset {guest} is corrupt: {error}")]
    Corrupt {
        /// For which part of the disk.
        guest: GuestOffset,
        /// What is wrong.
        error: EntryError,
    },
    /// An L2 table that is not in the file.
    #[error("the L2 table for guest offset {guest}, at {host}, is not in the file")]
    BeyondEnd {
        /// For which part of the disk.
        guest: GuestOffset,
        /// Where it is said to be.
        host: HostOffset,
    },
}

/// A part of the disk that is all of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its first byte.
    pub start: u64,
    /// Its bytes.
    pub length: u64,
    /// This image says what is there, and not its backing file.
    pub present: bool,
    /// It reads as zeroes.
    pub zero: bool,
    /// It is stored.
    pub data: bool,
    /// Where in the file, or in the external data file; it may be kept for what reads as zeroes, too.
    pub offset: Option<u64>,
}

impl Extent {
    /// Appends `next`, which begins where this one ends, if both are of one kind.
    #[must_use]
    pub fn append(&mut self, next: &Self) -> bool {
        let kind = |one: &Self| (one.present, one.zero, one.data, one.offset.is_some());
        let follows = self.offset.and_then(|at| at.checked_add(self.length)) == next.offset;
        let fits = kind(self) == kind(next) && (self.offset.is_none() || follows);
        if fits {
            self.length += next.length;
        }
        fits
    }
}

/// Puts extents together as they come.
pub struct Merger<'a> {
    last: Option<Extent>,
    tell: &'a mut dyn FnMut(Extent),
}

impl std::fmt::Debug for Merger<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Merger")
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

impl<'a> Merger<'a> {
    /// Tells `tell` of each that is whole.
    pub fn new(tell: &'a mut dyn FnMut(Extent)) -> Self {
        Self { last: None, tell }
    }

    /// The next one.
    pub fn add(&mut self, next: Extent) {
        if next.length == 0 {
            return;
        }
        if !self.last.as_mut().is_some_and(|last| last.append(&next)) {
            self.finish();
            self.last = Some(next);
        }
    }

    /// Tells of the last one.
    pub fn finish(&mut self) {
        if let Some(last) = self.last.take() {
            (self.tell)(last);
        }
    }
}

/// Tells what is where, from the beginning of the disk to its end.
///
/// # Errors
/// If the storage fails, or a table is corrupt.
pub fn map(image: &Image<'_>, tell: &mut dyn FnMut(Extent)) -> Result<(), MapError> {
    let mut walk = Walk::new(image)?;
    let mut merger = Merger::new(tell);
    while let Some(extent) = walk.next()? {
        merger.add(extent);
    }
    merger.finish();
    Ok(())
}

/// What is where, one piece after the other, from the beginning of the disk to its end.
pub struct Walk<'a> {
    image: &'a Image<'a>,
    geometry: Geometry,
    /// What is stored may lie in holes of the file.
    holes: bool,
    /// The L1 table, and how many of its entries have been looked at.
    l1: Vec<u8>,
    looked: usize,
    found: VecDeque<Extent>,
}

impl std::fmt::Debug for Walk<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk")
            .field("looked", &self.looked)
            .finish_non_exhaustive()
    }
}

impl<'a> Walk<'a> {
    /// Reads the L1 table.
    ///
    /// # Errors
    /// If the storage fails.
    pub fn new(image: &'a Image<'a>) -> Result<Self, MapError> {
        let header = &image.header;
        let geometry = header.geometry;
        let needed = geometry.l1_entries_for(header.size);
        // The header has as many, and not more than 2^22.
        let bytes = usize::try_from(needed).unwrap_or(0) * l1::ENTRY_BYTES;
        Ok(Self {
            image,
            geometry,
            holes: !header.features.has_external_data() && has_preallocated_metadata(image)?,
            l1: read_table(image.storage, header.l1_offset.0, bytes)?,
            looked: 0,
            found: VecDeque::new(),
        })
    }

    /// The next piece; neighbours may be alike.
    ///
    /// # Errors
    /// If the storage fails, or a table is corrupt.
    #[expect(
        clippy::should_implement_trait,
        reason = "it ends with its first error"
    )]
    pub fn next(&mut self) -> Result<Option<Extent>, MapError> {
        loop {
            if let Some(extent) = self.found.pop_front() {
                return Ok(Some(extent));
            }
            let Some(word) = self.l1.as_chunks().0.get(self.looked) else {
                return Ok(None);
            };
            let (entry, index) = (L1Entry(u64::from_be_bytes(*word)), self.looked as u64);
            self.looked += 1;
            self.l2_table(entry, index)?;
        }
    }

    fn l2_table(&mut self, entry: L1Entry, index: u64) -> Result<(), MapError> {
        let geometry = self.geometry;
        let start = index.saturating_mul(geometry.l2_coverage());
        let guest = GuestOffset(start);
        let corrupt = |error| MapError::Corrupt { guest, error };
        let Some(host) = entry.table(&geometry).map_err(corrupt)? else {
            self.add(start, geometry.l2_coverage(), (false, false, false), None)?;
            return Ok(());
        };
        if host.0 >= self.image.length {
            return Err(MapError::BeyondEnd { guest, host });
        }
        let table = read_table(self.image.storage, host.0, geometry.cluster_bytes())?;
        for number in 0..geometry.l2_entries() {
            let at = start.saturating_add(number as u64 * geometry.cluster_size());
            if at >= self.image.header.size {
                break;
            }
            let entry = L2Entry::read(&table, number, &geometry).unwrap_or_default();
            self.cluster(entry, at)?;
        }
        Ok(())
    }

    fn cluster(&mut self, entry: L2Entry, start: u64) -> Result<(), MapError> {
        let size = self.geometry.cluster_size();
        let guest = GuestOffset(start);
        let decoded = entry.decode(&self.image.rules());
        let cluster = decoded.map_err(|error| MapError::Corrupt { guest, error })?;
        match cluster {
            Cluster::Unallocated => self.add(start, size, (false, false, false), None),
            Cluster::Zero { preallocated, .. } => self.add(
                start,
                size,
                (true, true, false),
                preallocated.map(|host| host.0),
            ),
            Cluster::Data { host, .. } => self.add(start, size, (true, false, true), Some(host.0)),
            Cluster::Compressed(_) => self.add(start, size, (true, false, true), None),
            Cluster::Subclusters {
                host,
                allocated,
                zero,
                ..
            } => {
                let mut index = 0;
                let small = self.geometry.subcluster_size();
                while index < self.geometry.subclusters() {
                    let alike = subclusters_alike(allocated, zero, index);
                    let within = u64::from(index) * small;
                    let kind = match subcluster(allocated, zero, index) {
                        SubclusterKind::Unallocated => (false, false, false),
                        SubclusterKind::Zero => (true, true, false),
                        SubclusterKind::Data => (true, false, true),
                    };
                    let offset = host.map(|host| host.0 + within);
                    self.add(start + within, u64::from(alike) * small, kind, offset)?;
                    index += alike;
                }
                Ok(())
            }
        }
    }

    /// `kind`: present, zero, data.
    fn add(
        &mut self,
        start: u64,
        length: u64,
        (present, zero, data): (bool, bool, bool),
        offset: Option<u64>,
    ) -> Result<(), MapError> {
        let length = length.min(self.image.header.size.saturating_sub(start));
        // Without a backing file nothing is behind it.
        let zero = zero || (!present && self.image.header.backing_name.is_none());
        let extent = Extent {
            start,
            length,
            present,
            zero,
            data,
            offset,
        };
        match offset {
            Some(offset) if data && self.holes => self.with_holes(extent, offset)?,
            _ => self.put(extent),
        }
        Ok(())
    }

    fn put(&mut self, extent: Extent) {
        let alike = self
            .found
            .back_mut()
            .is_some_and(|last| last.append(&extent));
        if !alike && extent.length > 0 {
            self.found.push_back(extent);
        }
    }

    fn with_holes(&mut self, whole: Extent, offset: u64) -> Result<(), MapError> {
        let mut done = 0;
        while done < whole.length {
            let (length, zero) = next_run(self.image.storage, offset + done)?;
            let length = length.min(whole.length - done);
            self.put(Extent {
                start: whole.start + done,
                length,
                zero,
                offset: Some(offset + done),
                ..whole
            });
            done += length;
        }
        Ok(())
    }
}

/// How many bytes from `at` on are alike, 1 at least, and whether they are in a hole; so is all beyond the end.
///
/// # Errors
/// If the storage fails.
pub fn next_run(storage: &dyn ReadAt, at: u64) -> io::Result<(u64, bool)> {
    let length = storage.length()?;
    if at >= length {
        return Ok((u64::MAX - at, true));
    }
    let data = storage.data_from(at)?;
    Ok(match data > at {
        // A hole at the end goes on beyond it.
        true if data >= length => (u64::MAX - at, true),
        true => (data - at, true),
        false => (storage.hole_from(at)?.saturating_sub(at).max(1), false),
    })
}

/// Whether clusters have refcounts that take no space: QEMU's own rule of thumb, and so the same answers.
fn has_preallocated_metadata(image: &Image<'_>) -> Result<bool, MapError> {
    let Some(allocated) = image.storage.allocated() else {
        return Ok(false);
    };
    let geometry = image.header.geometry;
    let real = allocated / geometry.cluster_size();
    let threshold = (real.saturating_mul(10) / 9).max(real + 2);
    let clusters = geometry.clusters_for(image.length);
    if clusters < threshold {
        return Ok(false);
    }
    let table = u64::from(image.header.refcount_table_clusters) << geometry.cluster_bits();
    let wanted = geometry.refcount_blocks_for(clusters) * refcount::ENTRY_BYTES as u64;
    let bytes = usize::try_from(table.min(wanted)).unwrap_or(0);
    let table = read_table(image.storage, image.header.refcount_table_offset.0, bytes)?;
    let mut used = 0;
    for word in table.as_chunks().0 {
        let entry = RefcountTableEntry(u64::from_be_bytes(*word));
        let Ok(Some(block)) = entry.block(&geometry) else {
            continue;
        };
        let block = read_table(image.storage, block.0, geometry.cluster_bytes())?;
        for index in 0..geometry.refcounts_per_block() {
            let count = refcount::get(&block, index, geometry.refcount_order());
            used += u64::from(count.unwrap_or(0) != 0);
        }
        if used >= threshold {
            return Ok(true);
        }
    }
    Ok(false)
}
