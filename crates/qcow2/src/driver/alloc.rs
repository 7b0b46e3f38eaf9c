//! Clusters that nobody uses, and tables in them.

use std::ops::Range;
use std::sync::Arc;

use block::range_lock::Mode;
use block::{BlockError, Result};

use super::base::Base;
use super::corrupt;
use super::counted::{Unread, load};
use super::new_table;
use super::overlap::Metadata;
use super::redo::{self, Change, Which};
use super::refcounts::{Search, Wanted};
use super::rounds;
use super::state::State;
use super::switch;
use super::tables::{Freed, NewTable, Tables, Why};
use super::writer::{Writer, put, sync};
use crate::format::geometry::HOST_OFFSET_END;
use crate::format::l1::L1Entry;
use crate::format::refcount;
use crate::format::{Geometry, HostCluster, HostOffset, L2Entry};

/// Clusters that are counted, and to which nothing points yet. Dropped before something does, they are free again.
#[derive(Debug)]
pub struct Allocated {
    writer: Arc<Writer>,
    clusters: Range<u64>,
    offset: HostOffset,
    fresh: bool,
}

impl Allocated {
    /// Where they begin.
    pub fn offset(&self) -> HostOffset {
        self.offset
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.clusters.end - self.clusters.start
    }

    /// Nothing has ever been there: the file has zeroes.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Something points to them.
    pub fn linked(mut self) {
        self.clusters.start = self.clusters.end;
    }

    /// Something may point to them on disk, though nothing does in memory: they are free when that is settled.
    pub fn doubtful(mut self) -> Vec<Freed> {
        let clusters = std::mem::take(&mut self.clusters);
        other(clusters).collect()
    }
}

/// These clusters, which something else has taken the place of.
pub fn other(clusters: Range<u64>) -> impl Iterator<Item = Freed> {
    clusters.map(freed)
}

fn freed(cluster: u64) -> Freed {
    Freed {
        cluster: HostCluster(cluster),
        why: Why::Other,
    }
}

impl Drop for Allocated {
    fn drop(&mut self) {
        if !self.clusters.is_empty() {
            let mut tables = self.writer.change();
            let counted = tables.refcounts.give_back(&self.clusters);
            tables.unlinked.extend(counted.into_iter().map(freed));
        }
    }
}

/// Takes clusters that are free, one after the other: `clusters` at most, or exactly as many if `whole` is set.
///
/// # Errors
/// The storage's; EFBIG: the image is as large as one can be.
pub async fn allocate(base: &Base, state: &State, clusters: u64, whole: bool) -> Result<Allocated> {
    let writer = &state.writer;
    let geometry = &state.rules.geometry;
    let mut wanted = Wanted::new(clusters, whole);
    loop {
        let (search, overlapped) = {
            let mut tables = writer.change();
            let search = tables.refcounts.search(&mut wanted);
            let mut overlapped = None;
            if let Search::Found(run) = &search {
                let end = run.end.checked_mul(geometry.cluster_size());
                if end.is_none_or(|end| end > HOST_OFFSET_END) {
                    return Err(too_large(base, geometry));
                }
                overlapped = tables.metadata_in(run.clone());
                if overlapped.is_none() {
                    let fresh = tables.refcounts.take(run, &wanted);
                    let offset = HostOffset(run.start * geometry.cluster_size());
                    return Ok(Allocated {
                        writer: Arc::clone(writer),
                        clusters: run.clone(),
                        offset,
                        fresh,
                    });
                }
            }
            (search, overlapped)
        };
        match search {
            Search::Found(run) => {
                let kind = overlapped.unwrap_or(Metadata::MainHeader);
                return Err(corrupt::overlaps(base, state, run.start, kind).await);
            }
            Search::Load(_) | Search::Make(..) if !writer.tables().refcounts.has_room() => {
                rounds::make_room(base, state).await?;
            }
            Search::Load(index) => match load(base, state, index).await {
                Ok(()) => {}
                Err(Unread::Failed(error)) => return Err(error),
                Err(Unread::Corrupt(what)) => {
                    return Err(corrupt::fatal(base, state, 0, &what).await);
                }
            },
            Search::Make(index, cluster) => make_block(base, state, index, cluster).await?,
            // What was behind may be free again.
            Search::Full if wanted.again() => {}
            Search::Full => grow(base, state, &mut wanted).await?,
        }
    }
}

/// Makes a refcount block, unless the image is wrong: what nobody counts may be in use all the same.
///
/// # Errors
/// The image turns out to be corrupt.
pub async fn make_block(base: &Base, state: &State, index: usize, cluster: u64) -> Result<()> {
    let kind = {
        let mut tables = state.writer.change();
        let place = HostCluster(cluster);
        let end = (cluster + 1).checked_mul(state.rules.geometry.cluster_size());
        let is_taken = !tables.refcounts.counts_nothing(place);
        if tables.refcounts.has_block(index) || is_taken {
            // Others have made it meanwhile, or have been given the place.
            return Ok(());
        }
        match tables.metadata_in(cluster..cluster + 1) {
            // Offset 0 says that there is none.
            None if cluster > 0 && end.is_some_and(|end| end <= HOST_OFFSET_END) => {
                tables.refcounts.make_block(index, cluster);
                tables.add_metadata(cluster..cluster + 1, Metadata::RefcountBlock);
                return Ok(());
            }
            kind => kind.unwrap_or(Metadata::MainHeader),
        }
    };
    Err(corrupt::overlaps(base, state, cluster, kind).await)
}

#[cold]
fn too_large(base: &Base, geometry: &Geometry) -> BlockError {
    let text = format!(
        "the image is as large as its format lets it be: with clusters of {} bytes and refcounts of {} bits it has {} bytes at most",
        geometry.cluster_size(),
        geometry.refcount_bits(),
        refcount::bytes_max(geometry)
    );
    BlockError::new(libc::EFBIG, text).at(&base.name, 0, 0)
}

/// Makes the refcount table longer: the new one is written behind all that the old one can count, with the blocks that count it;
/// then the header is switched.
async fn grow(base: &Base, state: &State, wanted: &mut Wanted) -> Result<()> {
    let writer = &*state.writer;
    let geometry = &state.rules.geometry;
    let _turn = writer.growing.lock(0..1, Mode::Exclusive).await;
    // Blocks that the old table does not know of yet could be lost with it.
    while !writer.tables().refcounts.is_table_clean() {
        rounds::make_room(base, state).await?;
    }
    let growth = {
        let mut tables = writer.tables();
        if tables.refcounts.search(wanted) != Search::Full {
            return Ok(());
        }
        tables
            .refcounts
            .growth()
            .ok_or_else(|| too_large(base, geometry))?
    };
    let overlapped = writer.tables().metadata_in(growth.clusters(geometry));
    if let Some(kind) = overlapped {
        let cluster = growth.clusters(geometry).start;
        return Err(corrupt::overlaps(base, state, cluster, kind).await);
    }
    let _round = writer.rounds.lock(0..1, Mode::Exclusive).await;
    switch::settle(base, state, writer.accepted()).await?;
    put(base, &growth.bytes(geometry)).await?;
    sync(base, writer, writer.accepted()).await?;
    let (at, clusters) = (growth.table_at(geometry), growth.table_clusters(geometry));
    let sector = writer.tables().sector.clone();
    // What is written of it counts itself, and nothing that the old table counts: nothing is to be freed if this fails.
    switch::switch(
        base,
        state,
        sector.with_refcount_table(at, clusters),
        Vec::new,
    )
    .await?;
    let mut tables = writer.change();
    let former = tables.refcounts.table_clusters();
    let new = growth.clusters(geometry);
    let table = geometry.cluster_of(at).0;
    tables.add_metadata(new.start..table, Metadata::RefcountBlock);
    tables.add_metadata(table..new.end, Metadata::RefcountTable);
    tables.remove_metadata(former.clone());
    tables.refcounts.grown(growth);
    tables.unlinked.extend(other(former));
    Ok(())
}

/// The L2 table that maps what L1 entry `index` maps, in this image alone; makes one if there is none.
///
/// # Errors
/// The storage's.
pub async fn own_table(base: &Base, state: &State, index: usize) -> Result<HostOffset> {
    let geometry = &state.rules.geometry;
    let own = || {
        state
            .own_table(base, index)
            .map_err(BlockError::beyond_repair)
    };
    if let Some(table) = own()? {
        return Ok(table);
    }
    let writer = &state.writer;
    let _turn = writer.making.lock(0..1, Mode::Exclusive).await;
    if let Some(table) = own()? {
        return Ok(table);
    }
    let room = allocate(base, state, 1, true).await?;
    let table = room.offset();
    let former = state.l1_entry(index).table(geometry).ok().flatten();
    let new = new_table::new(base, table, former);
    new_table::put(&new, base, state).await?;
    loop {
        let lack = {
            let mut tables = writer.change();
            let entry = |entry: L1Entry| L2Entry {
                descriptor: entry.0,
                bitmap: 0,
            };
            let records = tables.redo.records([Change {
                which: Which::L1,
                at: index as u64,
                before: entry(state.l1_entry(index)),
                after: entry(L1Entry::new(table, true)),
            }]);
            match tables.redo.lack(&records) {
                Some(lack) => lack,
                None => {
                    tables.redo.push(&records);
                    link_table(state, &mut tables, index, new);
                    break;
                }
            }
        };
        redo::supply(base, state, lack).await?;
    }
    room.linked();
    Ok(table)
}

/// L1 entry `index` points to the table `new`, which is this image's alone, instead of to the former one.
pub fn link_table(state: &State, tables: &mut Tables, index: usize, new: NewTable) {
    let geometry = &state.rules.geometry;
    let table = new.at;
    tables.new_tables.push(new);
    let cluster = geometry.cluster_of(table).0;
    // What was remembered of a table that was there before.
    state.forget(table, index);
    state.set_l1(index, L1Entry::new(table, true));
    tables.change_l1(index);
    tables.add_metadata(cluster..cluster + 1, Metadata::ActiveL2);
    if let Some(former) = new.former {
        let former = geometry.cluster_of(former).0;
        tables.leave_l2(former);
        tables.unlinked.extend(other(former..former + 1));
    }
}
