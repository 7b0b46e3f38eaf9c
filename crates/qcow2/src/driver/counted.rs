//! Counts that have to be read before they are known.

use block::{BlockError, Result};

use super::base::Base;
use super::state::State;
use crate::format::HostCluster;

/// Why a refcount block is not there.
pub enum Unread {
    /// It could not be read.
    Failed(BlockError),
    /// It is nowhere.
    Corrupt(String),
}

/// Reads a refcount block that is not in memory.
///
/// # Errors
/// The storage's, and an image that is corrupt.
pub async fn load(base: &Base, state: &State, index: usize) -> std::result::Result<(), Unread> {
    let at = state.writer.tables().refcounts.block_at(index);
    let at =
        at.map_err(|error| Unread::Corrupt(format!("refcount table, entry {index}: {error}")))?;
    let Some(at) = at else { return Ok(()) };
    let bytes = state.rules.geometry.cluster_bytes();
    if !state.reaches(base, at.0.saturating_add(bytes as u64)) {
        let what = format!("refcount block {index} at {at}: the file ends before the block does");
        return Err(Unread::Corrupt(what));
    }
    loop {
        let evicted = state.writer.tables().refcounts.evicted();
        let block = base.read(at, bytes).await.map_err(Unread::Failed)?;
        let mut tables = state.writer.tables();
        if tables
            .refcounts
            .loaded(index, block.to_vec().into(), evicted)
        {
            return Ok(());
        }
    }
}

/// How often a cluster is counted; none: nothing can count it.
///
/// # Errors
/// Its count could not be read.
pub async fn count(base: &Base, state: &State, cluster: HostCluster) -> Result<Option<u64>> {
    loop {
        let index = {
            let mut tables = state.writer.tables();
            if !tables.refcounts.covers(cluster) {
                return Ok(None);
            }
            if let Some(count) = tables.refcounts.count(cluster) {
                return Ok(Some(count));
            }
            tables.refcounts.block_of(cluster)
        };
        fetch(base, state, index).await?;
    }
}

async fn fetch(base: &Base, state: &State, index: usize) -> Result<()> {
    let loaded = load(base, state, index).await;
    loaded.map_err(|unread| match unread {
        Unread::Failed(error) => error,
        Unread::Corrupt(what) => base.broken(0, &what),
    })
}

/// What has become of a count that was to be raised from 0.
pub enum Raised {
    /// It is 1, and the cluster is not held any more.
    Done,
    /// There is no room for the block that counts it.
    NoRoom,
    /// This block would count it, and is not there.
    NoBlock(usize),
}

/// Counts a cluster that is held, and that nobody counts.
///
/// # Errors
/// Its block could not be read.
pub async fn raise(base: &Base, state: &State, cluster: HostCluster) -> Result<Raised> {
    loop {
        let index = {
            let mut tables = state.writer.change();
            let index = tables.refcounts.block_of(cluster);
            if !tables.refcounts.has_block(index) {
                return Ok(match tables.refcounts.has_room() {
                    true => Raised::NoBlock(index),
                    false => Raised::NoRoom,
                });
            }
            if tables.refcounts.count(cluster).is_some() {
                tables.refcounts.count_held(cluster);
                return Ok(Raised::Done);
            }
            if !tables.refcounts.has_room() {
                return Ok(Raised::NoRoom);
            }
            index
        };
        fetch(base, state, index).await?;
    }
}

/// What has become of a count that was to be lowered.
pub enum Lowered {
    /// So many uses are left.
    To(u64),
    /// It was not counted.
    Uncounted,
    /// There is no room for the block that counts it.
    NoRoom,
}

/// Counts one use less of a cluster.
///
/// # Errors
/// Its count could not be read.
pub async fn lower(base: &Base, state: &State, cluster: HostCluster) -> Result<Lowered> {
    loop {
        let index = {
            let mut tables = state.writer.change();
            if tables.refcounts.count(cluster).is_some() {
                let left = tables.refcounts.lower(cluster);
                return Ok(left.map_or(Lowered::Uncounted, Lowered::To));
            }
            if !tables.refcounts.has_room() {
                return Ok(Lowered::NoRoom);
            }
            tables.refcounts.block_of(cluster)
        };
        fetch(base, state, index).await?;
    }
}
