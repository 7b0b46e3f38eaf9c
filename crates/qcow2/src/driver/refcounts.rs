//! Refcounts in memory: the refcount table, the blocks that were looked at, and what is free. Pure.
//!
//! A block is read when it is needed, and leaves memory only when it is clean; whoever needs one more than there is room for
//! ([`Refcounts::has_room`]) has the others written first. Free is what has the count 0 and is not
//! *held*: what was freed a moment ago may still be read, or be discarded.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use block::CacheUse;

use crate::format::refcount::{self, ENTRY_BYTES, RefcountTableEntry};
use crate::format::{EntryError, Geometry, HostCluster, HostOffset};

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

/// What a search for free clusters has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Search {
    /// These are free.
    Found(Range<u64>),
    /// This block has to be read before.
    Load(usize),
    /// This block is not there: it has to be made, in this cluster.
    Make(usize, u64),
    /// The table has no room for more blocks.
    Full,
}

/// What somebody looks for, and how far he has come.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// So many clusters, one after the other.
    pub clusters: u64,
    /// All of them, or else as many as there are where there are any.
    pub whole: bool,
    /// Where to go on: what is before it was looked at. It makes no difference that some of the blocks have left memory since.
    from: u64,
    /// Free ones have been passed over.
    skipped: bool,
    /// It has begun from the beginning again.
    is_again: bool,
}

impl Wanted {
    /// Nobody has looked yet.
    pub const fn new(clusters: u64, whole: bool) -> Self {
        Self {
            clusters,
            whole,
            from: 0,
            skipped: false,
            is_again: false,
        }
    }

    /// From the beginning again. False: that was done already.
    pub fn again(&mut self) -> bool {
        (self.from, self.skipped) = (0, false);
        !std::mem::replace(&mut self.is_again, true)
    }
}

/// A longer refcount table, with what counts it.
#[derive(Debug)]
pub struct Growth {
    /// Where its first block is; the others and the table follow.
    first: u64,
    /// The blocks by their index, in the order in which they lie there.
    blocks: Vec<(usize, Box<[u8]>)>,
    table: Vec<u64>,
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

    /// Looks for free clusters, which stay free. What it has to wait for is done in between, and then it goes on.
    pub fn search(&mut self, wanted: &mut Wanted) -> Search {
        let order = self.geometry.refcount_order();
        let per_block = self.geometry.refcounts_per_block();
        // All that count a run have to be there at once.
        let needed = match wanted.whole {
            true => wanted.clusters.div_ceil(per_block as u64) + 1,
            false => 0,
        };
        self.blocks_now = self.blocks_max.max(index(needed));
        let begin = self.hint.max(wanted.from);
        let mut run = begin..begin;
        loop {
            let (index, first) = self.place(run.end);
            let has_some = !run.is_empty() && !wanted.whole;
            if run.end - run.start >= wanted.clusters {
                return Search::Found(run);
            }
            let entry = self.table.get(index).copied();
            let block = match entry {
                Some(0) | None => None,
                Some(_) => self.blocks.get(&index),
            };
            let Some(block) = block else {
                if has_some {
                    return Search::Found(run);
                }
                wanted.from = run.start;
                if !wanted.skipped {
                    self.hint = self.hint.max(run.start);
                }
                return match entry {
                    None => Search::Full,
                    // A run goes on behind it, if it does not lie in its middle.
                    Some(0) if run.is_empty() => match self.place_for_block(index) {
                        Some(place) => Search::Make(index, place),
                        None => {
                            wanted.skipped = true;
                            let next = self.first_of(index + 1);
                            run = next..next;
                            continue;
                        }
                    },
                    Some(0) => Search::Make(index, run.start),
                    Some(_) => Search::Load(index),
                };
            };
            for within in first..per_block {
                if run.end - run.start >= wanted.clusters {
                    break;
                }
                let is_free = refcount::get(&block.bytes, within, order) == Some(0)
                    && (self.held.is_empty() || !self.held.contains(&run.end));
                if is_free {
                    run.end += 1;
                } else if !run.is_empty() && !wanted.whole {
                    return Search::Found(run);
                } else {
                    wanted.skipped |= !run.is_empty();
                    run = run.end + 1..run.end + 1;
                }
            }
        }
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

    /// Counts clusters that [`Self::search`] has just found. True: nothing has ever been there.
    pub fn take(&mut self, run: &Range<u64>, wanted: &Wanted) -> bool {
        let is_fresh = run.start >= self.untouched;
        self.touch(run.end);
        for cluster in run.clone() {
            self.set(cluster, 1);
        }
        if !wanted.skipped || run.start == self.hint {
            self.hint = run.end;
        }
        is_fresh
    }

    /// Nobody uses these after all, and nobody ever has: they are free at once, but for those whose block has left memory, which are
    /// still counted.
    pub fn give_back(&mut self, run: &Range<u64>) -> Vec<u64> {
        let counted = run.clone().filter(|cluster| !self.set(*cluster, 0));
        let counted = counted.collect();
        self.hint = self.hint.min(run.start);
        counted
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

#[cfg(test)]
mod tests;
