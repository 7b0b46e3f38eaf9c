//! The stored refcounts, and what was counted.

use super::finding::{Problem, Severity, Table};
use super::usage::Use;
use super::walk::{Block, Spot, Stop, Walk};
use crate::format::refcount::{self, RefcountTableEntry};
use crate::format::{HostCluster, HostOffset};

impl Walk<'_> {
    /// The refcount table, and where its blocks are.
    pub fn refcount_table(&mut self) -> Result<(), Stop> {
        let geometry = self.geometry();
        let header = &self.image.header;
        let offset = header.refcount_table_offset.0;
        let bytes = u64::from(header.refcount_table_clusters) << geometry.cluster_bits();
        let spot = Spot::whole(Table::Refcounts, HostOffset(offset));
        if !self.mark(spot, offset, bytes, Use::RefcountTable, 1)? {
            self.blocks_broken = true;
            return Ok(());
        }
        let Some(table) = self.read(spot, offset, bytes) else {
            self.blocks_broken = true;
            return Ok(());
        };
        for (word, index) in table.as_chunks().0.iter().zip(0..) {
            let entry = RefcountTableEntry(u64::from_be_bytes(*word));
            if entry.0 == 0 {
                continue;
            }
            let spot = Spot::entry(Table::Refcounts, offset, index, refcount::ENTRY_BYTES);
            self.refcount_block(entry, index, spot)?;
        }
        Ok(())
    }

    fn refcount_block(
        &mut self,
        entry: RefcountTableEntry,
        index: u64,
        spot: Spot,
    ) -> Result<(), Stop> {
        let geometry = self.geometry();
        if let Err(error) = entry.block(&geometry) {
            self.corrupt(spot, Problem::Entry(error));
            self.blocks_broken = true;
        }
        let offset = entry.offset();
        if offset.0 == 0 || !geometry.is_cluster_start(offset) {
            return Ok(());
        }
        let before = self.report.corruptions;
        let size = geometry.cluster_size();
        let inside = self.mark(spot, offset.0, size, Use::RefcountBlock, 1)?;
        // One that is something else, too, cannot be written.
        self.blocks_broken |= self.report.corruptions != before;
        if inside {
            let offset = offset.0;
            self.blocks.push(Block { index, offset });
        }
        Ok(())
    }

    /// Compares what is stored with what was counted.
    pub fn compare(&mut self) {
        for block in std::mem::take(&mut self.blocks) {
            if self.compare_block(block) {
                self.blocks.push(block);
            } else {
                self.blocks_broken = true;
            }
        }
        let missing: Vec<_> = (self.usage.referenced())
            .inspect(|(cluster, _)| self.used_end = self.used_end.max(cluster + 1))
            .filter(|(cluster, _)| !self.usage.is_stored(*cluster))
            .collect();
        for (cluster, counted) in missing {
            let spot = self.spot_of(cluster);
            let stored = 0;
            self.corrupt(
                spot,
                Problem::RefcountLow {
                    cluster,
                    stored,
                    counted,
                },
            );
        }
    }

    /// False: it cannot be read.
    fn compare_block(&mut self, block: Block) -> bool {
        let geometry = self.geometry();
        let spot = Spot::whole(Table::RefcountBlock(block.index), HostOffset(block.offset));
        let Some(content) = self.read(spot, block.offset, geometry.cluster_size()) else {
            return false;
        };
        if content.iter().all(|byte| *byte == 0) {
            return true;
        }
        let order = geometry.refcount_order();
        let first = block.index << geometry.refcount_block_bits();
        for index in 0..geometry.refcounts_per_block() {
            let stored = refcount::get(&content, index, order).unwrap_or(0);
            if stored == 0 {
                continue;
            }
            let cluster = first + index as u64;
            if cluster < self.clusters() {
                self.used_end = self.used_end.max(cluster + 1);
            }
            let counted = self.usage.count(cluster);
            self.usage.set_stored(cluster, stored);
            let spot = Spot {
                index: Some(index as u64),
                ..spot
            };
            let beyond = cluster >= self.clusters();
            if beyond && (self.report.hidden || self.blocks_broken) {
                // Perhaps somebody leads there, or it is no refcount.
                continue;
            }
            if stored > counted {
                let problem = Problem::Leaked {
                    cluster,
                    stored,
                    counted,
                };
                self.found(spot, Severity::Leak, problem);
            } else if stored < counted {
                self.corrupt(
                    spot,
                    Problem::RefcountLow {
                        cluster,
                        stored,
                        counted,
                    },
                );
            }
        }
        true
    }

    /// Where the refcount of a cluster would be.
    fn spot_of(&self, cluster: u64) -> Spot {
        let (index, within) = self.geometry().refcount_place(HostCluster(cluster));
        let block = self
            .blocks
            .binary_search_by_key(&index, |block| block.index);
        let block = block.ok().and_then(|at| self.blocks.get(at));
        match block {
            Some(block) => Spot {
                table: Table::RefcountBlock(index),
                index: Some(within as u64),
                offset: HostOffset(block.offset),
            },
            None => Spot::entry(
                Table::Refcounts,
                self.image.header.refcount_table_offset.0,
                index,
                refcount::ENTRY_BYTES,
            ),
        }
    }
}
