//! The header, snapshots, bitmaps, the header of the encryption.

use std::collections::HashSet;

use super::finding::{Problem, Severity, Table};
use super::usage::Use;
use super::walk::{Spot, Stop, Walk};
use crate::format::bitmap::{self, BitmapCluster, BitmapTableEntry};
use crate::format::{BitmapEntry, BitmapsExtension, HostOffset, SnapshotEntry, extension};
use crate::format::{l1, snapshot};

/// Longest table of a bitmap in entries, as QEMU has it.
const BITMAP_ENTRIES_MAX: u64 = 0x800_0000;

impl Walk<'_> {
    pub fn header(&mut self) -> Result<(), Stop> {
        let spot = Spot::whole(Table::Header, HostOffset(0));
        self.mark(spot, 0, self.geometry().cluster_size(), Use::Header, 1)?;
        Ok(())
    }

    /// The snapshots' table, and their L1 tables.
    pub fn snapshots(&mut self) -> Result<(), Stop> {
        let header = &self.image.header;
        let (number, table) = (header.snapshots, header.snapshots_offset.0);
        let whole = Spot::whole(Table::Snapshots, HostOffset(table));
        let mut at = table;
        for index in 0..number {
            let spot = Spot {
                table: Table::Snapshots,
                index: Some(u64::from(index)),
                offset: HostOffset(at),
            };
            let Some(entry) = self.snapshot_entry(spot, table, &mut at) else {
                break;
            };
            if self.image.header.version > 2 && entry.extra.len() < snapshot::EXTRA_BYTES_V3 {
                let text = "the entry lacks the length of the disk, which version 3 must have";
                self.corrupt(spot, Problem::Rule(text));
            }
            let (l1, entries) = (entry.l1_offset, entry.l1_entries);
            let max = l1::TABLE_BYTES_MAX / l1::ENTRY_BYTES as u64;
            if !self.geometry().is_cluster_start(l1) {
                self.corrupt_way(spot, Problem::Unaligned(l1));
            } else if u64::from(entries) > max {
                let entries = u64::from(entries);
                self.corrupt_way(spot, Problem::TooLong { entries, max });
            } else {
                self.l1_table(Table::SnapshotL1(index), l1.0, entries)?;
            }
        }
        let bytes = at.saturating_sub(table);
        self.mark(whole, table, bytes, Use::SnapshotTable, 1)?;
        Ok(())
    }

    /// The entry at `at`, which moves behind it; none: it is told why.
    fn snapshot_entry(&mut self, spot: Spot, table: u64, at: &mut u64) -> Option<SnapshotEntry> {
        let fixed = self.read(spot, *at, snapshot::ENTRY_BYTES as u64)?;
        let length = SnapshotEntry::length(&fixed)?;
        let end = at.saturating_add(length);
        if end - table > snapshot::TABLE_BYTES_MAX || !self.is_inside(*at, length) {
            let text = "the entry is longer than the table may be, or than the file";
            self.report.hidden = true;
            self.found(spot, Severity::Error, Problem::Rule(text));
            return None;
        }
        let content = self.read(spot, *at, length)?;
        let (entry, _) = SnapshotEntry::parse(&content).ok()?;
        *at = end;
        Some(entry)
    }

    /// The bitmaps, if they are consistent.
    pub fn bitmaps(&mut self) -> Result<(), Stop> {
        let header = &self.image.header;
        let extension = header.extension(extension::BITMAPS);
        let bitmaps = extension.and_then(|data| BitmapsExtension::parse(data).ok());
        let Some(bitmaps) = bitmaps.filter(|_| header.features.has_bitmaps()) else {
            return Ok(());
        };
        let (offset, bytes) = (bitmaps.directory_offset.0, bitmaps.directory_size);
        let whole = Spot::whole(Table::BitmapDirectory, bitmaps.directory_offset);
        if !self.mark(whole, offset, bytes, Use::BitmapDirectory, 1)? {
            return Ok(());
        }
        let Some(directory) = self.read(whole, offset, bytes) else {
            return Ok(());
        };
        let mut rest = directory.as_slice();
        let mut names = HashSet::new();
        let mut number = 0;
        while !rest.is_empty() {
            let spot = Spot {
                table: Table::BitmapDirectory,
                index: Some(u64::from(number)),
                offset: HostOffset(offset + (directory.len() - rest.len()) as u64),
            };
            let (entry, used) = match BitmapEntry::parse(rest) {
                Ok(parsed) => parsed,
                Err(error) => {
                    self.corrupt_way(spot, Problem::Bitmap(error));
                    return Ok(());
                }
            };
            rest = rest.get(used..).unwrap_or_default();
            self.bitmap(number, &entry, spot)?;
            if !names.insert(entry.name) {
                self.corrupt(spot, Problem::Rule("two bitmaps have this name"));
            }
            number += 1;
        }
        if number != bitmaps.bitmaps {
            let text = "the directory has another number of bitmaps than the header says";
            self.corrupt_way(whole, Problem::Rule(text));
        }
        Ok(())
    }

    fn bitmap(&mut self, number: u32, entry: &BitmapEntry, spot: Spot) -> Result<(), Stop> {
        const ENTRY_BYTES: usize = 8;
        let geometry = self.geometry();
        let (table, entries) = (entry.table_offset, u64::from(entry.table_entries));
        if !geometry.is_cluster_start(table) {
            self.corrupt_way(spot, Problem::Unaligned(table));
            return Ok(());
        }
        if entries > BITMAP_ENTRIES_MAX {
            let max = BITMAP_ENTRIES_MAX;
            self.corrupt_way(spot, Problem::TooLong { entries, max });
            return Ok(());
        }
        // One that was not closed may be of another length of the disk.
        let wanted = geometry.clusters_for(entry.bytes_for(self.image.header.size));
        if entries != wanted && entry.flags & bitmap::IN_USE == 0 {
            self.corrupt(spot, Problem::BitmapLength { entries, wanted });
        }
        let bytes = entries * ENTRY_BYTES as u64;
        if !self.mark(spot, table.0, bytes, Use::BitmapTable, 1)? {
            return Ok(());
        }
        let whole = Spot::whole(Table::Bitmap(number), table);
        let Some(content) = self.read(whole, table.0, bytes) else {
            return Ok(());
        };
        for (word, index) in content.as_chunks().0.iter().zip(0..) {
            let spot = Spot::entry(Table::Bitmap(number), table.0, index, ENTRY_BYTES);
            let size = geometry.cluster_size();
            match BitmapTableEntry(u64::from_be_bytes(*word)).decode(&geometry) {
                Ok(BitmapCluster::Stored(host)) => {
                    self.mark(spot, host.0, size, Use::BitmapData, 1)?;
                }
                Ok(_) => {}
                Err(error) => self.corrupt_way(spot, Problem::Entry(error)),
            }
        }
        Ok(())
    }

    /// The header of LUKS.
    pub fn encryption(&mut self) -> Result<(), Stop> {
        let Some(pointer) = self.image.header.extension(extension::ENCRYPTION) else {
            return Ok(());
        };
        let ([offset, length, ..], _) = pointer.as_chunks() else {
            let spot = Spot::whole(Table::Header, HostOffset(0));
            let text = "the pointer to the encryption header is too short";
            self.corrupt_way(spot, Problem::Rule(text));
            return Ok(());
        };
        let (offset, length) = (u64::from_be_bytes(*offset), u64::from_be_bytes(*length));
        let spot = Spot::whole(Table::Encryption, HostOffset(offset));
        if !self.geometry().is_cluster_start(HostOffset(offset)) {
            self.corrupt(spot, Problem::Unaligned(HostOffset(offset)));
        }
        self.mark(spot, offset, length, Use::Encryption, 1)?;
        Ok(())
    }
}
