//! New refcounts, where the old ones cannot be mended.

use std::collections::BTreeMap;

use super::counted::{Counted, RepairError, put};
use crate::check::report::Limits;
use crate::check::walk::Walk;
use crate::format::refcount;
use crate::image::Image;
use crate::storage::{WriteAt, read_table};

/// Offset of the refcount table's place and length in the header.
const TABLE_AT: u64 = 48;

/// Where new tables go: blocks first, then the table, all behind each other.
struct Plan {
    /// Index in the table -> number of the block, from 0 on.
    blocks: BTreeMap<u64, u64>,
    table_clusters: u64,
    /// The first cluster.
    start: u64,
}

impl Plan {
    /// How many clusters it takes.
    fn clusters(&self) -> u64 {
        self.blocks.len() as u64 + self.table_clusters
    }
}

/// Writes new refcounts and takes them into use by one write.
pub fn rebuild(
    storage: &mut dyn WriteAt,
    counted: &Counted,
    limits: &Limits,
) -> Result<(), RepairError> {
    let geometry = counted.geometry();
    // Without references to the old ones.
    let usage = {
        let image = Image::open(storage)?;
        let mut walk = Walk::new(&image, limits);
        // What stops it has stopped the check before.
        let _ = walk.run_without_refcounts();
        walk.usage
    };
    let referenced = usage.referenced();
    let mut counts: BTreeMap<u64, u64> = referenced.collect();
    let mut start = counts.keys().next_back().map_or(1, |last| last + 1);
    if counted.hidden {
        // What is not known to be free is not touched, and keeps the refcount that it has.
        start = counted.clusters.max(counted.used_end).max(start);
        keep_stored(storage, counted, &mut counts)?;
    }
    let plan = plan(counted, &counts, start)?;
    for cluster in plan.start..plan.start + plan.clusters() {
        counts.insert(cluster, 1);
    }
    let bits = geometry.cluster_bits();
    let mut table = vec![0; usize::try_from(plan.table_clusters << bits).unwrap_or(0)];
    for (index, number) in &plan.blocks {
        let mut block = vec![0; geometry.cluster_bytes()];
        let first = index << geometry.refcount_block_bits();
        let last = first + (geometry.refcounts_per_block() as u64 - 1);
        for (cluster, count) in counts.range(first..=last) {
            let within = usize::try_from(cluster - first).unwrap_or(0);
            put(&mut block, within, *count, *cluster, &geometry)?;
        }
        let offset = (plan.start + number) << bits;
        storage.write_at(offset, &block)?;
        let at = usize::try_from(*index).unwrap_or(0) * refcount::ENTRY_BYTES;
        if let Some(entry) = table.get_mut(at..at + refcount::ENTRY_BYTES) {
            entry.copy_from_slice(&offset.to_be_bytes());
        }
    }
    let offset = (plan.start + plan.blocks.len() as u64) << bits;
    storage.write_at(offset, &table)?;
    storage.flush()?;
    let mut switch = Vec::from(offset.to_be_bytes());
    let length = u32::try_from(plan.table_clusters).unwrap_or(0);
    switch.extend(length.to_be_bytes());
    storage.write_at(TABLE_AT, &switch)?;
    storage.flush()?;
    Ok(())
}

/// Takes over what is stored, where that is more.
fn keep_stored(
    storage: &mut dyn WriteAt,
    counted: &Counted,
    counts: &mut BTreeMap<u64, u64>,
) -> Result<(), RepairError> {
    let geometry = counted.geometry();
    for block in &counted.blocks {
        let content = read_table(storage, block.offset, geometry.cluster_bytes())?;
        let first = block.index << geometry.refcount_block_bits();
        for index in 0..geometry.refcounts_per_block() {
            let stored = refcount::get(&content, index, geometry.refcount_order()).unwrap_or(0);
            let cluster = first + index as u64;
            if stored > 0 && cluster < counted.clusters {
                let count = counts.entry(cluster).or_default();
                *count = (*count).max(stored);
            }
        }
    }
    Ok(())
}

/// How many blocks there are to be, which count themselves, too.
fn plan(counted: &Counted, counts: &BTreeMap<u64, u64>, start: u64) -> Result<Plan, RepairError> {
    let geometry = counted.geometry();
    let index_of = |cluster: u64| cluster >> geometry.refcount_block_bits();
    let mut indexes: Vec<_> = counts.keys().map(|cluster| index_of(*cluster)).collect();
    indexes.dedup();
    let mut plan = Plan {
        blocks: indexes.into_iter().zip(0..).collect(),
        table_clusters: 1,
        start,
    };
    loop {
        let before = plan.clusters();
        for index in index_of(start)..=index_of(start + before - 1) {
            let number = plan.blocks.len() as u64;
            plan.blocks.entry(index).or_insert(number);
        }
        let last = plan.blocks.keys().next_back().copied().unwrap_or(0);
        let bytes = (last + 1).saturating_mul(refcount::ENTRY_BYTES as u64);
        plan.table_clusters = geometry.clusters_for(bytes);
        if plan.table_clusters << geometry.cluster_bits() > refcount::TABLE_BYTES_MAX {
            return Err(RepairError::Table);
        }
        if plan.clusters() == before {
            return Ok(plan);
        }
    }
}
