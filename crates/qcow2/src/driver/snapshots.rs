//! Internal snapshots: their table, and where the tables are that they have. Nothing of it changes while the image is open;
//! what a snapshot has is counted more than once, or by it alone, so that no write meets it.

use std::ops::Range;

use block::{BlockError, Result};

use super::base::Base;
use super::overlap::Metadata;
use crate::format::l1::{self, L1Entry};
use crate::format::{Header, HostOffset, SnapshotEntry, snapshot};

/// How much of the table is read at a time, in bytes.
const PIECE: u64 = 64 << 10;
/// Most clusters of L1 tables of snapshots that are kept in mind.
const CLUSTERS_MAX: u64 = 1 << 20;
/// Most L2 tables of snapshots that are (`overlap-check.inactive-l2`).
const TABLES_MAX: usize = 1 << 20;

/// The internal snapshots of an image.
#[derive(Debug, Default)]
pub struct Snapshots {
    /// In the order of the table.
    pub entries: Vec<SnapshotEntry>,
    /// Bytes of the table.
    bytes: u64,
}

/// Reads the table.
///
/// # Errors
/// The storage's; EIO: an entry that does not fit.
pub async fn read(base: &Base, header: &Header, file_length: u64) -> Result<Snapshots> {
    let at = header.snapshots_offset.0;
    let most = file_length
        .saturating_sub(at)
        .min(snapshot::TABLE_BYTES_MAX);
    let mut all = Snapshots::default();
    let mut known: Vec<u8> = Vec::new();
    let mut used = 0;
    for number in 0..header.snapshots {
        let (entry, bytes) = loop {
            if let Ok(parsed) = SnapshotEntry::parse(known.get(used..).unwrap_or_default()) {
                break parsed;
            }
            let from = known.len() as u64;
            if from >= most {
                let text = format!("entry {number} does not fit into the table or the file");
                return Err(BlockError::new(libc::EIO, text).at(&base.name, at, 0));
            }
            // At most 64 KiB.
            let piece = usize::try_from(PIECE.min(most - from)).unwrap_or(0);
            known.extend_from_slice(&base.read(HostOffset(at + from), piece).await?);
        };
        // What pads the last one may be missing.
        used += bytes;
        all.entries.push(entry);
    }
    all.bytes = used as u64;
    Ok(all)
}

impl Snapshots {
    /// The clusters of their tables, of an image that is to be written.
    ///
    /// # Errors
    /// A table that cannot be one, in words.
    pub fn clusters(
        &self,
        header: &Header,
        file_length: u64,
    ) -> std::result::Result<Vec<(Range<u64>, Metadata)>, String> {
        let geometry = &header.geometry;
        let run = |at: HostOffset, bytes: u64| {
            let first = geometry.cluster_of(at).0;
            first..first + geometry.clusters_for(bytes)
        };
        let mut all = Vec::new();
        if self.bytes > 0 {
            let table = run(header.snapshots_offset, self.bytes);
            all.push((table, Metadata::SnapshotTable));
        }
        // No two lie in each other.
        let most = CLUSTERS_MAX.min(geometry.clusters_for(file_length));
        let mut left = most;
        for (number, entry) in self.entries.iter().enumerate() {
            let bytes = u64::from(entry.l1_entries) * l1::ENTRY_BYTES as u64;
            let at = entry.l1_offset;
            if bytes == 0 {
                continue;
            }
            let end = at.0.checked_add(bytes);
            let inside = end.is_some_and(|end| end <= file_length);
            if bytes > l1::TABLE_BYTES_MAX || !geometry.is_cluster_start(at) || !inside {
                return Err(format!(
                    "the L1 table of snapshot {number} cannot be {bytes} bytes at {at} of the file"
                ));
            }
            let clusters = run(at, bytes);
            left = left
                .checked_sub(clusters.end - clusters.start)
                .ok_or_else(|| {
                    format!("its snapshots have more than {most} clusters of L1 tables")
                })?;
            all.push((clusters, Metadata::InactiveL1));
        }
        Ok(all)
    }

    /// The L2 tables of all of them, each as often as there is a snapshot that has it. Their L1 tables are where they can be
    /// ([`Self::clusters`]).
    ///
    /// # Errors
    /// The storage's; E2BIG: there are too many to be kept in mind.
    pub async fn l2_tables(&self, base: &Base) -> Result<Vec<HostOffset>> {
        let mut all = Vec::new();
        for entry in &self.entries {
            let bytes = u64::from(entry.l1_entries) * l1::ENTRY_BYTES as u64;
            let mut done = 0;
            while done < bytes {
                // At most 64 KiB.
                let piece = usize::try_from(PIECE.min(bytes - done)).unwrap_or(0);
                let table = base
                    .read(HostOffset(entry.l1_offset.0 + done), piece)
                    .await?;
                let entries = table.as_chunks::<{ l1::ENTRY_BYTES }>().0.iter();
                let tables = entries.map(|entry| L1Entry(u64::from_be_bytes(*entry)).offset());
                all.extend(tables.filter(|table| table.0 != 0));
                done += piece as u64;
            }
            all.sort_unstable();
            all.dedup();
            if all.len() > TABLES_MAX {
                let text = format!(
                    "its snapshots have more than {TABLES_MAX} L2 tables, which cannot be compared with each write: set \
                     overlap-check.inactive-l2=off"
                );
                return Err(BlockError::new(libc::E2BIG, text));
            }
        }
        Ok(all)
    }
}
