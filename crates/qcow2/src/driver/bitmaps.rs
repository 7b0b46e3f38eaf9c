//! Persistent bitmaps. Nobody here follows writes with them: before the first write those that should have followed it are marked
//! as being in use, so that everybody knows that they do not. What was disabled says what it said before, and stays valid.
//!
//! The mark is one bit of the bitmap's entry in the directory, and lies in one sector: it is set there where it is.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use block::{BlockError, Qcow2Bitmap, Result};

use super::base::Base;
use super::overlap::Metadata;
use super::refcounts::Piece;
use super::sector::BYTES;
use super::writer::{Writer, put, sync};
use crate::format::bitmap::{self, AUTO, IN_USE};
use crate::format::{BitmapEntry, BitmapsExtension, Geometry, Header, HostOffset, extension};

/// Where the flags are in an entry.
const FLAGS_AT: usize = 12;
/// Longest table of a bitmap in entries, as QEMU has it.
const TABLE_ENTRIES_MAX: u32 = 0x800_0000;
/// Bytes of an entry of such a table.
const TABLE_ENTRY_BYTES: u64 = 8;
/// Most clusters of tables of bitmaps that are kept in mind.
const CLUSTERS_MAX: u64 = 1 << 20;

/// The bitmaps of an image.
#[derive(Debug, Default)]
pub struct Bitmaps {
    /// With the place in the file at which each entry begins.
    entries: Vec<(u64, BitmapEntry)>,
    /// Where the directory is, in bytes of the file.
    directory: Range<u64>,
    /// Those are marked that have to be.
    marked: AtomicBool,
}

/// Where the directory is, and how many entries it has; none: the image has no valid bitmaps.
///
/// # Errors
/// What it cannot be, in words.
pub fn extension(header: &Header) -> std::result::Result<Option<BitmapsExtension>, String> {
    let extension = header.extension(extension::BITMAPS);
    let Some(extension) = extension.filter(|_| header.features.has_bitmaps()) else {
        return Ok(None);
    };
    let extension = BitmapsExtension::parse(extension).map_err(|error| error.to_string())?;
    if extension.bitmaps > bitmap::BITMAPS_MAX {
        return Err(format!("there are {} of them", extension.bitmaps));
    }
    Ok(Some(extension))
}

impl Bitmaps {
    /// Those of a directory, which has been read.
    ///
    /// # Errors
    /// What it cannot be, in words.
    pub fn parse(
        extension: &BitmapsExtension,
        directory: &[u8],
    ) -> std::result::Result<Self, String> {
        let start = extension.directory_offset.0;
        let mut rest = directory;
        let mut entries = Vec::new();
        for _ in 0..extension.bitmaps {
            let at = start + (directory.len() - rest.len()) as u64;
            let (entry, used) = BitmapEntry::parse(rest).map_err(|error| error.to_string())?;
            entries.push((at, entry));
            rest = rest.get(used..).unwrap_or_default();
        }
        if !rest.is_empty() {
            return Err("the directory has more entries than the header says".to_owned());
        }
        Ok(Self {
            entries,
            directory: start..start + directory.len() as u64,
            marked: AtomicBool::new(false),
        })
    }

    /// Those that have to be marked before the first write.
    fn to_mark(&self) -> impl Iterator<Item = &(u64, BitmapEntry)> {
        let follows = |entry: &BitmapEntry| entry.flags & (AUTO | IN_USE) == AUTO;
        self.entries.iter().filter(move |(_, entry)| follows(entry))
    }

    /// Their names; none if all is marked.
    pub fn becoming_inconsistent(&self) -> Vec<String> {
        self.to_mark().map(|(_, entry)| name(entry)).collect()
    }

    /// Whether nothing is left to be marked.
    pub fn is_marked(&self) -> bool {
        self.marked.load(Ordering::Acquire) || self.to_mark().next().is_none()
    }

    /// What queries show.
    pub fn shown(&self) -> Vec<Qcow2Bitmap> {
        let marked = self.marked.load(Ordering::Acquire);
        let shown = |(_, entry): &(u64, BitmapEntry)| {
            let auto = entry.flags & AUTO != 0;
            Qcow2Bitmap {
                name: name(entry),
                granularity: 1 << (entry.granularity_bits % 64),
                in_use: entry.flags & IN_USE != 0 || marked && auto,
                auto,
            }
        };
        self.entries.iter().map(shown).collect()
    }

    /// Whether the disk can get another length: what is valid would not fit it any more.
    ///
    /// # Errors
    /// In QEMU's words: it cannot.
    pub fn check_resize(&self) -> Result<()> {
        let refused = |text: String| Err(BlockError::new(libc::ENOTSUP, text));
        for (_, entry) in &self.entries {
            if entry.flags & IN_USE != 0 {
                return refused(format!(
                    "Bitmap '{}' is inconsistent and cannot be used (qemu-img bitmap --remove deletes it)",
                    name(entry)
                ));
            }
            if entry.flags & AUTO == 0 {
                return refused(format!(
                    "Cannot resize qcow2 with persistent bitmaps that were not loaded into memory ('{}'; qemu-img bitmap \
                     --remove deletes it)",
                    name(entry)
                ));
            }
        }
        Ok(())
    }

    /// The clusters of directory and tables, of an image that is to be written.
    ///
    /// # Errors
    /// A table that cannot be one, in words.
    pub fn clusters(
        &self,
        geometry: &Geometry,
        file_length: u64,
    ) -> std::result::Result<Vec<(Range<u64>, Metadata)>, String> {
        let run = |at: u64, bytes: u64| {
            let first = geometry.cluster_of(HostOffset(at)).0;
            first..first + geometry.clusters_for(bytes)
        };
        let mut all = Vec::new();
        let Range { start, end } = self.directory;
        if start < end {
            all.push((run(start, end - start), Metadata::BitmapDirectory));
        }
        let mut left = CLUSTERS_MAX;
        for (_, entry) in &self.entries {
            let bytes = u64::from(entry.table_entries) * TABLE_ENTRY_BYTES;
            let at = entry.table_offset;
            let end = at.0.checked_add(bytes);
            let inside = end.is_some_and(|end| end <= file_length);
            if bytes == 0 {
                continue;
            }
            if entry.table_entries > TABLE_ENTRIES_MAX || !geometry.is_cluster_start(at) || !inside
            {
                return Err(format!(
                    "the table of bitmap '{}' cannot be {bytes} bytes at {at} of the file",
                    name(entry)
                ));
            }
            let clusters = run(at.0, bytes);
            left = left
                .checked_sub(clusters.end - clusters.start)
                .ok_or_else(|| {
                    format!("its bitmaps have more than {CLUSTERS_MAX} clusters of tables")
                })?;
            all.push((clusters, Metadata::BitmapDirectory));
        }
        Ok(all)
    }

    /// Marks, durably, those that should follow the writes that are to come.
    ///
    /// # Errors
    /// The storage's. Some may be marked then, which does no harm; all are when it is tried again.
    pub async fn mark(&self, base: &Base, writer: &Writer, accepted: u32) -> Result<()> {
        let mut sectors: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (at, _) in self.to_mark() {
            let flags = at + FLAGS_AT as u64;
            let sector = flags / BYTES as u64 * BYTES as u64;
            // Less than a sector.
            let within = usize::try_from(flags - sector).unwrap_or(0);
            sectors.entry(sector).or_default().push(within);
        }
        for (sector, places) in sectors {
            let mut bytes = base.read(HostOffset(sector), BYTES).await?.to_vec();
            for within in places {
                // The last of four bytes has the flag.
                if let Some(flags) = bytes.get_mut(within + 3) {
                    *flags |= IN_USE.to_be_bytes()[3];
                }
            }
            let offset = HostOffset(sector);
            put(base, &Piece { offset, bytes }).await?;
        }
        sync(base, writer, accepted).await?;
        self.marked.store(true, Ordering::Release);
        Ok(())
    }
}

fn name(entry: &BitmapEntry) -> String {
    String::from_utf8_lossy(&entry.name).into_owned()
}
