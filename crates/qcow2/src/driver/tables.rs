//! What has been changed of an image and is not on disk, and what waits until it is. Behind one lock, under which nothing
//! waits for storage.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cache::{L2Cache, Slice};
use super::overlap::{Metadata, OverlapCheck};
use super::redo::recorder::Redo;
use super::refcounts::{Piece, Refcounts};
use super::sector::{BYTES, Sector};
use crate::format::l1::ENTRY_BYTES;
use crate::format::{CompressedCluster, Geometry, Header, HostCluster, HostOffset};

/// Why a cluster is not used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The guest has discarded it, or has zeroed it and lets it go.
    Request,
    /// Something else is in its place.
    Other,
}

/// A use of a cluster that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freed {
    /// Which one.
    pub cluster: HostCluster,
    /// Why.
    pub why: Why,
}

impl Freed {
    /// The clusters in which compressed data lies.
    pub fn compressed(
        data: &CompressedCluster,
        geometry: &Geometry,
        why: Why,
    ) -> impl Iterator<Item = Self> {
        let first = geometry.cluster_of(data.offset).0;
        let last = geometry.cluster_of(HostOffset(data.end() - 1)).0;
        (first..=last).map(move |cluster| Self {
            cluster: HostCluster(cluster),
            why,
        })
    }
}

/// An L2 table that was written as it came.
#[derive(Clone, Copy, Debug)]
pub struct NewTable {
    /// Where it is.
    pub at: HostOffset,
    /// What it is the copy of: nothing is written there as long as this exists. None: it came empty.
    pub former: Option<HostOffset>,
    /// How many flushes had failed before it was written.
    pub failed: u32,
}

#[derive(Debug, Default)]
struct Loading {
    readers: usize,
    /// It has been changed since somebody began to read it.
    stale: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Tables {
    /// What is counted.
    pub refcounts: Refcounts,
    /// Slices of L2 tables that are not on disk as they are.
    dirty: HashMap<HostOffset, Arc<Slice>>,
    loading: HashMap<HostOffset, Loading>,
    /// Sectors of the L1 table.
    l1: BTreeSet<usize>,
    /// The L1 table, and where it is: of rounds, which may have begun before it was another one.
    l1_at: HostOffset,
    l1_entries: Arc<[AtomicU64]>,
    /// L2 tables that are linked in memory, and may not be durable.
    pub new_tables: Vec<NewTable>,
    /// Nothing points to them in memory; on disk something may.
    pub unlinked: Vec<Freed>,
    /// Not counted any more in memory; on disk they may be.
    pub lowered: Vec<Freed>,
    /// On disk nobody knows of them any more, but somebody may still read them, since this epoch.
    pub leaving: Vec<(u64, Freed)>,
    /// The beginning of the file, as it is on disk.
    pub sector: Sector,
    /// It may be another one: the one above has to be written again before anything else, and then these are free.
    pub unsettled: Option<Vec<Freed>>,
    /// Clusters of the header and the tables, which no guest has.
    metadata: HashMap<HostCluster, Metadata>,
    /// Of them L2 tables of snapshots, which the disk may have, too.
    inactive: HashSet<HostCluster>,
    /// How often there were new ones.
    made: Arc<AtomicU64>,
    /// Which of them are looked for.
    overlap: OverlapCheck,
    /// What is recorded of what changes.
    pub redo: Redo,
}

impl Tables {
    /// Of an image in which nothing has been changed.
    pub fn new(refcounts: Refcounts, sector: Sector, overlap: OverlapCheck) -> Self {
        Self {
            refcounts,
            dirty: HashMap::new(),
            loading: HashMap::new(),
            l1: BTreeSet::new(),
            l1_at: HostOffset(0),
            l1_entries: Arc::default(),
            new_tables: Vec::new(),
            unlinked: Vec::new(),
            lowered: Vec::new(),
            leaving: Vec::new(),
            sector,
            unsettled: None,
            metadata: HashMap::new(),
            inactive: HashSet::new(),
            made: Arc::default(),
            overlap,
            redo: Redo::Off,
        }
    }

    /// Learns where header and tables are: those of the disk, `others`, and L2 tables of snapshots.
    ///
    /// # Errors
    /// Two of them lie in the same cluster: the image is corrupt.
    pub fn learn_metadata(
        &mut self,
        header: &Header,
        l2_tables: impl Iterator<Item = HostOffset>,
        others: Vec<(Range<u64>, Metadata)>,
        inactive_l2: Vec<HostOffset>,
    ) -> Result<(), String> {
        let geometry = &header.geometry;
        let l1 = u64::from(header.l1_entries) * ENTRY_BYTES as u64;
        let refcounts = u64::from(header.refcount_table_clusters) * geometry.cluster_size();
        let run = |at: HostOffset, bytes: u64| {
            let first = geometry.cluster_of(at).0;
            first..first + geometry.clusters_for(bytes)
        };
        let blocks = self.refcounts.block_clusters();
        let blocks: Vec<_> = blocks.map(|HostCluster(at)| at..at + 1).collect();
        let tables = [
            (run(HostOffset(0), 1), Metadata::MainHeader),
            (run(header.l1_offset, l1), Metadata::ActiveL1),
            (
                run(header.refcount_table_offset, refcounts),
                Metadata::RefcountTable,
            ),
        ];
        let blocks = blocks
            .into_iter()
            .map(|block| (block, Metadata::RefcountBlock));
        let l2 = l2_tables.map(|at| (run(at, 1), Metadata::ActiveL2));
        let all = tables.into_iter().chain(blocks).chain(l2).chain(others);
        for (clusters, kind) in all {
            for cluster in clusters {
                if let Some(other) = self.metadata.insert(HostCluster(cluster), kind) {
                    return Err(format!(
                        "cluster {cluster} of the file is both of the {} and of the {}",
                        other.title(),
                        kind.title()
                    ));
                }
            }
        }
        for at in inactive_l2 {
            let cluster = geometry.cluster_of(at);
            let known = self.metadata.entry(cluster).or_insert(Metadata::InactiveL2);
            if !matches!(known, Metadata::ActiveL2 | Metadata::InactiveL2) {
                return Err(format!(
                    "cluster {} of the file is both of the {} and of the {}",
                    cluster.0,
                    known.title(),
                    Metadata::InactiveL2.title()
                ));
            }
            self.inactive.insert(cluster);
        }
        Ok(())
    }

    /// The disk does not have this L2 table any more; a snapshot may.
    pub fn leave_l2(&mut self, cluster: u64) {
        if self.inactive.contains(&HostCluster(cluster)) {
            self.metadata
                .insert(HostCluster(cluster), Metadata::InactiveL2);
        } else {
            self.metadata.remove(&HostCluster(cluster));
        }
    }

    /// These are tables from now on. What has been looked at before may point to them, if the image is wrong.
    pub fn add_metadata(&mut self, clusters: Range<u64>, kind: Metadata) {
        let all = clusters.map(|cluster| (HostCluster(cluster), kind));
        self.metadata.extend(all);
        self.made.fetch_add(1, Ordering::AcqRel);
    }

    /// How often tables have been made: what was looked at before is looked at again.
    pub fn made(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.made)
    }

    /// These are not any more.
    pub fn remove_metadata(&mut self, clusters: Range<u64>) {
        for cluster in clusters {
            self.metadata.remove(&HostCluster(cluster));
        }
    }

    /// The clusters of the header and of all tables but those that are snapshots' alone, which nobody writes.
    pub fn written_metadata(&self) -> Vec<HostCluster> {
        let is_written = |kind: &Metadata| match kind {
            Metadata::MainHeader
            | Metadata::ActiveL1
            | Metadata::ActiveL2
            | Metadata::RefcountBlock
            | Metadata::RefcountTable
            | Metadata::BitmapDirectory => true,
            Metadata::SnapshotTable | Metadata::InactiveL1 | Metadata::InactiveL2 => false,
        };
        let all = self.metadata.iter().filter(|(_, kind)| is_written(kind));
        all.map(|(cluster, _)| *cluster).collect()
    }

    /// Whether a table lies in a cluster, or the header.
    pub fn is_table(&self, cluster: HostCluster) -> bool {
        self.metadata.contains_key(&cluster)
    }

    /// What lies in one of these clusters that is none of the guest's, if that is looked for.
    pub fn metadata_in(&self, mut clusters: Range<u64>) -> Option<Metadata> {
        if self.overlap.is_none() {
            return None;
        }
        clusters.find_map(|cluster| {
            let found = self.metadata.get(&HostCluster(cluster)).copied();
            found.filter(|kind| self.overlap.has(*kind))
        })
    }

    /// A slice that is not on disk as it is.
    pub fn dirty(&self, offset: HostOffset) -> Option<&Arc<Slice>> {
        self.dirty.get(&offset)
    }

    /// How many slices are not.
    pub fn dirty_slices(&self) -> usize {
        self.dirty.len()
    }

    /// A slice is to be as `slice` from now on.
    pub fn change(&mut self, slice: Arc<Slice>, cache: &L2Cache) {
        let offset = slice.offset;
        if let Some(loading) = self.loading.get_mut(&offset) {
            loading.stale = true;
        }
        self.dirty.insert(offset, Arc::clone(&slice));
        cache.put(slice);
    }

    /// An entry of the L1 table has been changed.
    pub fn change_l1(&mut self, index: usize) {
        self.l1.insert(index * ENTRY_BYTES / BYTES);
    }

    /// Somebody begins to read a slice.
    pub fn begin_to_load(&mut self, offset: HostOffset) {
        self.loading.entry(offset).or_default().readers += 1;
    }

    /// He has read it, or has given up.
    pub fn end_to_load(&mut self, offset: HostOffset) {
        if let Some(loading) = self.loading.get_mut(&offset) {
            loading.readers -= 1;
            if loading.readers == 0 {
                self.loading.remove(&offset);
            }
        }
    }

    /// Whether what was read since is not what it is now.
    pub fn is_stale(&self, offset: HostOffset) -> bool {
        let loading = self.loading.get(&offset);
        loading.is_none_or(|loading| loading.stale)
    }

    /// Whether something is going to be free when there have been more rounds.
    pub fn frees_something(&self) -> bool {
        !(self.unlinked.is_empty() && self.lowered.is_empty() && self.leaving.is_empty())
    }

    /// Whether all that was changed is on disk.
    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty()
            && self.l1.is_empty()
            && self.unlinked.is_empty()
            && self.lowered.is_empty()
            && self.unsettled.is_none()
            && !self.refcounts.is_dirty()
    }

    /// How much is not on disk.
    pub fn unwritten_bytes(&self) -> u64 {
        let slices = self.dirty.values().map(|slice| slice.bytes.len() as u64);
        slices.sum::<u64>() + (self.l1.len() * BYTES) as u64 + self.refcounts.dirty_bytes()
    }

    /// The slices that are to be written.
    pub fn dirty_all(&self) -> Vec<Arc<Slice>> {
        let mut all: Vec<_> = self.dirty.values().cloned().collect();
        all.sort_by_key(|slice| slice.offset);
        all
    }

    /// These are on disk as they were: clean, unless they have been changed since.
    pub fn written(&mut self, slices: &[Arc<Slice>]) {
        for slice in slices {
            let now = self.dirty.get(&slice.offset);
            if now.is_some_and(|now| Arc::ptr_eq(now, slice)) {
                self.dirty.remove(&slice.offset);
            }
        }
    }

    /// There is another L1 table, all of which is on disk.
    pub fn set_l1(&mut self, at: HostOffset, entries: Arc<[AtomicU64]>) {
        (self.l1_at, self.l1_entries) = (at, entries);
        self.l1.clear();
    }

    /// Takes the sectors of the L1 table that are to be written. Those are that are given back ([`Self::l1_failed`]).
    pub fn take_l1(&mut self) -> Vec<(usize, Piece)> {
        let per_sector = BYTES / ENTRY_BYTES;
        let sectors = std::mem::take(&mut self.l1).into_iter();
        let entry = |index: usize| {
            let entry = self.l1_entries.get(index);
            entry.map_or(0, |entry| entry.load(Ordering::Acquire))
        };
        let pieces = sectors.map(|sector| {
            let entries = sector * per_sector..(sector + 1) * per_sector;
            let piece = Piece {
                offset: HostOffset(self.l1_at.0 + (sector * BYTES) as u64),
                bytes: entries
                    .flat_map(|index| entry(index).to_be_bytes())
                    .collect(),
            };
            (sector, piece)
        });
        pieces.collect()
    }

    /// These sectors are not on disk.
    pub fn l1_failed(&mut self, sectors: &[(usize, Piece)]) {
        self.l1.extend(sectors.iter().map(|(sector, _)| *sector));
    }
}
