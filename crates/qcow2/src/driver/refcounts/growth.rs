//! A longer refcount table.

use std::ops::Range;

use super::{Piece, Refcounts};
use crate::format::refcount::{self, ENTRY_BYTES};
use crate::format::{Geometry, HostOffset};

/// A longer refcount table, with what counts it.
#[derive(Debug)]
pub struct Growth {
    /// Where its first block is; the others and the table follow.
    first: u64,
    /// The blocks by their index, in the order in which they lie there.
    blocks: Vec<(usize, Box<[u8]>)>,
    table: Vec<u64>,
}

impl Refcounts {
    /// A longer table, behind all that the one there is can count. None: it would be longer than one may be.
    pub fn growth(&self) -> Option<Growth> {
        let geometry = &self.geometry;
        let per_cluster = geometry.cluster_bytes() / ENTRY_BYTES;
        let per_block = geometry.refcounts_per_block() as u64;
        let first = self.table.len() as u64 * per_block;
        let mut blocks = 1;
        let most = usize::try_from(refcount::TABLE_BYTES_MAX).ok()? / ENTRY_BYTES;
        let mut entries = (self.table.len() * 2).min(most);
        let clusters = loop {
            entries = entries
                .max(self.table.len() + blocks)
                .next_multiple_of(per_cluster);
            let clusters = (blocks + entries / per_cluster) as u64;
            let needed = usize::try_from(clusters.div_ceil(per_block)).ok()?;
            if needed <= blocks {
                break clusters;
            }
            blocks = needed;
        };
        let end = first
            .checked_add(clusters)?
            .checked_mul(geometry.cluster_size())?;
        let bytes = (entries * ENTRY_BYTES) as u64;
        if bytes > refcount::TABLE_BYTES_MAX || end > crate::format::geometry::HOST_OFFSET_END {
            return None;
        }
        let mut table = self.table.clone();
        table.resize(entries, 0);
        let mut all = Vec::new();
        for number in 0..blocks as u64 {
            let index = self.table.len() + usize::try_from(number).ok()?;
            let mut block = vec![0; geometry.cluster_bytes()].into_boxed_slice();
            let counted =
                (number * per_block).min(clusters)..((number + 1) * per_block).min(clusters);
            for cluster in counted {
                let within = usize::try_from(cluster % per_block).ok()?;
                refcount::set(&mut block, within, geometry.refcount_order(), 1);
            }
            *table.get_mut(index)? = (first + number) << geometry.cluster_bits();
            all.push((index, block));
        }
        Some(Growth {
            first,
            blocks: all,
            table,
        })
    }

    /// The longer table is the table now, on disk.
    pub fn grown(&mut self, growth: Growth) {
        self.touch(growth.clusters(&self.geometry).end);
        self.table_at = growth.table_at(&self.geometry);
        let mut table = growth.table;
        for (new, now) in table.iter_mut().zip(&self.table) {
            *new = *now;
        }
        self.table = table;
        for (index, bytes) in growth.blocks {
            self.insert(index, bytes);
        }
    }
}

impl Growth {
    /// Where the new table is.
    pub fn table_at(&self, geometry: &Geometry) -> HostOffset {
        HostOffset((self.first + self.blocks.len() as u64) << geometry.cluster_bits())
    }

    /// How many clusters that has.
    pub fn table_clusters(&self, geometry: &Geometry) -> u32 {
        let clusters = (self.table.len() * ENTRY_BYTES).div_ceil(geometry.cluster_bytes());
        u32::try_from(clusters).unwrap_or(u32::MAX)
    }

    /// The clusters of all that is new.
    pub fn clusters(&self, geometry: &Geometry) -> Range<u64> {
        let all = self.blocks.len() as u64 + u64::from(self.table_clusters(geometry));
        self.first..self.first + all
    }

    /// All that is new, as one piece. Of entries of the former table those that were not on disk are among it.
    pub fn bytes(&self, geometry: &Geometry) -> Piece {
        let mut bytes: Vec<u8> = Vec::new();
        for (_, block) in &self.blocks {
            bytes.extend_from_slice(block);
        }
        bytes.extend(self.table.iter().flat_map(|entry| entry.to_be_bytes()));
        Piece {
            offset: HostOffset(self.first << geometry.cluster_bits()),
            bytes,
        }
    }
}
