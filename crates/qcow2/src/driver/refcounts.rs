//! Refcounts in memory: the refcount table, the blocks that were looked at, and what is free. Pure.
//!
//! A block is read when it is needed, and leaves memory only when it is clean; whoever needs one more than there is room for
//! ([`Refcounts::has_room`]) has the others written first. Free is what has the count 0 and is not
//! *held*: what was freed a moment ago may still be read, or be discarded.

mod growth;
mod search;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use block::CacheUse;

use crate::format::refcount::{self, ENTRY_BYTES, RefcountTableEntry};
use crate::format::{EntryError, Geometry, HostCluster, HostOffset};

pub use self::search::{Search, Wanted};

/// What is written of a block at a time, at least: what storage takes without reading first.
const UNIT: usize = 4096;
/// Sectors of the refcount table, which are written whole.
const SECTOR: usize = 512;

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// A block of refcounts.
#[derive(Debug)]
struct Block {
    bytes: Box<[u8]>,
    /// What is not on disk.
    dirty: Option<Range<usize>>,
    /// Counts its changes.
    version: u64,
    /// When it was looked at.
    used: u64,
}

/// Bytes that are to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where.
    pub offset: HostOffset,
    /// What.
    pub bytes: Vec<u8>,
}

/// What has to be written of one block.
#[derive(Debug)]
pub struct DirtyBlock {
    index: usize,
    version: u64,
    /// The bytes.
    pub piece: Piece,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Refcounts {
    geometry: Geometry,
    /// Where the blocks are, as on disk; 0: all their counts are 0.
    table: Vec<u64>,
    /// Where the table is.
    table_at: HostOffset,
    /// Entries of the table that are not on disk.
    new: BTreeSet<usize>,
    blocks: HashMap<usize, Block>,
    /// How many are kept: of clean ones; of others before there has to be a round.
    blocks_max: usize,
    /// The same as long as somebody looks for a run that more of them count.
    blocks_now: usize,
    /// All before it are used or held.
    hint: u64,
    /// From here on the file has nothing, and nobody has ever been given a cluster: what is stored there in part reads as
    /// zeroes for the rest.
    untouched: u64,
    held: HashSet<u64>,
    clock: u64,
    /// How many blocks have left memory.
    evicted: u64,
    /// How many have been read.
    misses: u64,
}

impl Refcounts {
    /// Those that the bytes of a table point to.
    pub fn new(geometry: Geometry, table_at: HostOffset, table: &[u8], blocks_max: usize) -> Self {
        let entries = table.as_chunks::<ENTRY_BYTES>().0.iter();
        Self {
            geometry,
            table: entries.map(|entry| u64::from_be_bytes(*entry)).collect(),
            table_at,
            new: BTreeSet::new(),
            blocks: HashMap::new(),
            blocks_max: blocks_max.max(2),
            blocks_now: blocks_max.max(2),
            hint: 0,
            untouched: u64::MAX,
            held: HashSet::new(),
            clock: 0,
            evicted: 0,
            misses: 0,
        }
    }

    /// All clusters that the table points to.
    pub fn block_clusters(&self) -> impl Iterator<Item = HostCluster> {
        let offsets = self.table.iter().filter(|entry| **entry != 0);
        offsets.map(|entry| {
            let offset = RefcountTableEntry(*entry).offset();
            self.geometry.cluster_of(offset)
        })
    }

    /// From this cluster on there is nothing in the file, and what it has when it becomes longer are zeroes.
    pub fn set_untouched(&mut self, cluster: u64) {
        self.untouched = cluster;
    }

    /// Somebody may write to what is before `end`.
    fn touch(&mut self, end: u64) {
        if self.untouched != u64::MAX {
            self.untouched = self.untouched.max(end);
        }
    }

    /// Where block `index` is.
    ///
    /// # Errors
    /// What cannot be in an entry.
    pub fn block_at(&self, index: usize) -> Result<Option<HostOffset>, EntryError> {
        let entry = self.table.get(index).copied().unwrap_or(0);
        RefcountTableEntry(entry).block(&self.geometry)
    }

    fn place(&self, cluster: u64) -> (usize, usize) {
        let (index, within) = self.geometry.refcount_place(HostCluster(cluster));
        (self::index(index), within)
    }

    /// Whoever reads a block notes this before.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// A block was read, since `evicted` blocks had left memory. One that is there stays as it is. False: it may have been there,
    /// and have been changed, and have left, so that what was read is not what it is.
    pub fn loaded(&mut self, index: usize, bytes: Box<[u8]>, evicted: u64) -> bool {
        if self.blocks.contains_key(&index) {
            return true;
        }
        if self.evicted != evicted {
            return false;
        }
        self.misses += 1;
        self.insert(index, bytes);
        true
    }

    /// Whether another block may come: there are not as many as may be, or one of them can leave. If not, those that are there have
    /// to be written first, so that what is in memory is bounded.
    pub fn has_room(&self) -> bool {
        self.blocks.len() < self.blocks_now
            || self.blocks.values().any(|block| block.dirty.is_none())
    }

    /// What of them is in memory.
    pub fn cache_use(&self) -> CacheUse {
        let bytes = |blocks: usize| (blocks as u64).saturating_mul(self.geometry.cluster_size());
        CacheUse {
            size: bytes(self.blocks_max),
            used: bytes(self.blocks.len()),
            misses: self.misses,
        }
    }

    fn insert(&mut self, index: usize, bytes: Box<[u8]>) {
        while self.blocks.len() >= self.blocks_now {
            let blocks = self.blocks.iter();
            let clean = blocks.filter(|(_, block)| block.dirty.is_none());
            let oldest = clean.min_by_key(|(_, block)| block.used);
            let Some(oldest) = oldest.map(|(index, _)| *index) else {
                break;
            };
            self.blocks.remove(&oldest);
            self.evicted += 1;
        }
        self.clock += 1;
        let block = Block {
            bytes,
            dirty: None,
            version: 0,
            used: self.clock,
        };
        self.blocks.insert(index, block);
    }

    /// The count of a cluster; none: block [`Self::block_of`] has to be read before.
    pub fn count(&mut self, cluster: HostCluster) -> Option<u64> {
        let (index, within) = self.place(cluster.0);
        if self.table.get(index).copied().unwrap_or(0) == 0 {
            return Some(0);
        }
        self.clock += 1;
        let block = self.blocks.get_mut(&index)?;
        block.used = self.clock;
        refcount::get(&block.bytes, within, self.geometry.refcount_order())
    }

    /// The block that counts a cluster.
    pub fn block_of(&self, cluster: HostCluster) -> usize {
        self.place(cluster.0).0
    }

    /// Sets a count, of a block that is there. False if it does not fit.
    fn set(&mut self, cluster: u64, count: u64) -> bool {
        let (index, within) = self.place(cluster);
        let order = self.geometry.refcount_order();
        let Some(block) = self.blocks.get_mut(&index) else {
            return false;
        };
        if !refcount::set(&mut block.bytes, within, order, count) {
            return false;
        }
        let unit = UNIT.min(self.geometry.cluster_bytes());
        let start = ((within << order) / 8) & !(unit - 1);
        let dirty = block.dirty.get_or_insert(start..start + unit);
        dirty.start = dirty.start.min(start);
        dirty.end = dirty.end.max(start + unit);
        block.version += 1;
        true
    }

    /// Whether there is such a block.
    pub fn has_block(&self, index: usize) -> bool {
        self.table.get(index).is_none_or(|entry| *entry != 0)
    }

    /// Whether a cluster is free, as far as that is known without reading.
    pub fn counts_nothing(&mut self, cluster: HostCluster) -> bool {
        self.count(cluster) == Some(0) && !self.held.contains(&cluster.0)
    }

    /// Where block `index`, which is not there, can be among what it counts; none: all of that is held.
    pub fn place_for_block(&self, index: usize) -> Option<u64> {
        let mut all = self.first_of(index)..self.first_of(index + 1);
        all.find(|cluster| !self.held.contains(cluster))
    }

    /// Whether the table has an entry for the block that counts a cluster.
    pub fn covers(&self, cluster: HostCluster) -> bool {
        self.place(cluster.0).0 < self.table.len()
    }

    /// These are not free, although nobody counts them.
    pub fn hold(&mut self, clusters: &[HostCluster]) {
        self.held.extend(clusters.iter().map(|cluster| cluster.0));
        let end = clusters.iter().map(|cluster| cluster.0 + 1).max();
        self.touch(end.unwrap_or(0));
    }

    /// One of those is counted once.
    pub fn count_held(&mut self, cluster: HostCluster) {
        self.held.remove(&cluster.0);
        self.set(cluster.0, 1);
    }

    /// The first of the clusters that a block counts.
    fn first_of(&self, index: usize) -> u64 {
        (index as u64) << self.geometry.refcount_block_bits()
    }

    /// A new block in a cluster that [`Self::search`] has just found free.
    pub fn make_block(&mut self, index: usize, cluster: u64) {
        if let Some(entry) = self.table.get_mut(index) {
            *entry = cluster << self.geometry.cluster_bits();
        }
        self.new.insert(index);
        self.touch(cluster + 1);
        let bytes = vec![0; self.geometry.cluster_bytes()].into_boxed_slice();
        let dirty = Some(0..bytes.len());
        self.insert(index, bytes);
        if let Some(block) = self.blocks.get_mut(&index) {
            block.dirty = dirty;
        }
        self.set(cluster, 1);
    }

    /// Counts one use less of a cluster whose block is there, and says how many are left; what is not used any more is held. None:
    /// it had none.
    pub fn lower(&mut self, cluster: HostCluster) -> Option<u64> {
        let left = self.count(cluster)?.checked_sub(1)?;
        if left == 0 {
            self.held.insert(cluster.0);
        }
        self.set(cluster.0, left);
        Some(left)
    }

    /// It may be used again.
    pub fn release(&mut self, cluster: HostCluster) {
        self.held.remove(&cluster.0);
        self.hint = self.hint.min(cluster.0);
    }

    /// Whether something is not on disk.
    pub fn is_dirty(&self) -> bool {
        !self.new.is_empty() || self.blocks.values().any(|block| block.dirty.is_some())
    }

    /// What is not on disk, in bytes.
    pub fn dirty_bytes(&self) -> u64 {
        let blocks = self.blocks.values();
        blocks
            .filter_map(|block| block.dirty.as_ref())
            .map(|dirty| (dirty.end - dirty.start) as u64)
            .sum()
    }

    /// What has to be written of the blocks.
    pub fn dirty_blocks(&self) -> Vec<DirtyBlock> {
        let mut all = Vec::new();
        for (&index, block) in &self.blocks {
            let Some(dirty) = &block.dirty else { continue };
            let offset = self.table.get(index).copied().unwrap_or(0);
            all.push(DirtyBlock {
                index,
                version: block.version,
                piece: Piece {
                    offset: HostOffset(offset + dirty.start as u64),
                    bytes: block.bytes.get(dirty.clone()).unwrap_or_default().to_vec(),
                },
            });
        }
        all.sort_by_key(|block| block.piece.offset);
        all
    }

    /// It is durable: it is clean, unless it has been changed since.
    pub fn written(&mut self, dirty: &DirtyBlock) {
        if let Some(block) = self.blocks.get_mut(&dirty.index)
            && block.version == dirty.version
        {
            block.dirty = None;
        }
    }

    /// Entries of the table that are not on disk: their numbers, and the sectors of the table.
    pub fn new_entries(&self) -> (Vec<usize>, Vec<Piece>) {
        let per_sector = SECTOR / ENTRY_BYTES;
        let sectors: BTreeSet<usize> = self.new.iter().map(|index| index / per_sector).collect();
        let pieces = sectors.into_iter().map(|sector| {
            let entries = sector * per_sector..(sector + 1) * per_sector;
            let entries = entries.map(|index| self.table.get(index).copied().unwrap_or(0));
            Piece {
                offset: HostOffset(self.table_at.0 + (sector * SECTOR) as u64),
                bytes: entries.flat_map(u64::to_be_bytes).collect(),
            }
        });
        (self.new.iter().copied().collect(), pieces.collect())
    }

    /// These entries are durable.
    pub fn entries_written(&mut self, indexes: &[usize]) {
        for index in indexes {
            self.new.remove(index);
        }
    }

    /// The clusters of the table.
    pub fn table_clusters(&self) -> Range<u64> {
        let first = self.geometry.cluster_of(self.table_at).0;
        let bytes = (self.table.len() * ENTRY_BYTES) as u64;
        first..first + self.geometry.clusters_for(bytes)
    }

    /// Whether all entries of the table are on disk.
    pub fn is_table_clean(&self) -> bool {
        self.new.is_empty()
    }
}

#[cfg(test)]
mod tests;
