//! Writing tables: rounds, each of which brings to disk what the tables were when it began, in the order in which nothing can
//! be lost, and lets go what nothing points to any more.
//!
//! 1. Refcount blocks are written, L2 tables that have come since, if they may be lost, and all is flushed, an external data file
//!    too: the data, copies and padding of everything that is linked in memory, and what counts it. What was counted down is so on disk now.
//! 2. Entries of the refcount table that point to new blocks are written and flushed.
//! 3. L2 and L1 entries are written and flushed. What was unlinked is so on disk now, and is counted down in memory, for the next
//!    round.
//! 4. What was counted down before is discarded below, if nobody can be using it any more, and is free.
//!
//! Whatever fails, all is as dirty as it was: a table is clean after a flush that began after its write, and succeeded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::range_lock::Mode;
use block::{Io, Result};
use futures_util::future::{join, join_all};

use super::base::Base;
use super::cache::Slice;
use super::counted::{self, Lowered};
use super::data_file;
use super::new_table;
use super::refcounts::{DirtyBlock, Piece};
use super::state::State;
use super::switch::settle;
use super::tables::{Freed, NewTable, Why};
use super::writer::{Writer, put, sync};

/// How many writes are under way at once.
const AT_ONCE: usize = 32;
/// Most rounds that are made for one call: what is unlinked is counted down in the next, and free after it.
const ROUNDS_MAX: usize = 4;

/// What a round writes. Dropped before it is done, all of it is as dirty as before.
struct Job<'a> {
    writer: &'a Writer,
    blocks: Vec<DirtyBlock>,
    entries: (Vec<usize>, Vec<Piece>),
    slices: Vec<Arc<Slice>>,
    l1: Vec<(usize, Piece)>,
    new_tables: Vec<NewTable>,
    unlinked: Vec<Freed>,
    lowered: Vec<Freed>,
    /// All that was recorded before this record is in it.
    redo: u64,
}

impl<'a> Job<'a> {
    fn take(writer: &'a Writer) -> Self {
        let mut tables = writer.tables();
        Self {
            writer,
            blocks: tables.refcounts.dirty_blocks(),
            entries: tables.refcounts.new_entries(),
            slices: tables.dirty_all(),
            l1: tables.take_l1(),
            new_tables: std::mem::take(&mut tables.new_tables),
            unlinked: std::mem::take(&mut tables.unlinked),
            lowered: std::mem::take(&mut tables.lowered),
            redo: tables.redo.next(),
        }
    }

    /// All of it is durable.
    fn done(mut self, epoch: u64) -> Vec<Freed> {
        let mut tables = self.writer.tables();
        for block in &self.blocks {
            tables.refcounts.written(block);
        }
        tables.refcounts.entries_written(&self.entries.0);
        tables.written(&self.slices);
        self.l1.clear();
        self.new_tables.clear();
        let leaving = self.lowered.drain(..).map(|freed| (epoch, freed));
        tables.leaving.extend(leaving);
        // Before any of what was let go is used again.
        tables.redo.void_before(self.redo);
        drop(tables);
        std::mem::take(&mut self.unlinked)
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        let mut tables = self.writer.tables();
        tables.l1_failed(&self.l1);
        tables.new_tables.append(&mut self.new_tables);
        tables.unlinked.append(&mut self.unlinked);
        tables.lowered.append(&mut self.lowered);
    }
}

/// A flush: what has been acknowledged until now is durable afterwards.
///
/// # Errors
/// The storage's.
pub async fn flush(base: &Base, state: &State, losses_accepted: u32) -> Result<()> {
    let writer = &state.writer;
    writer.accept(losses_accepted);
    let before = writer.begun.load(Ordering::SeqCst);
    let _turn = writer.rounds.lock(0..1, Mode::Exclusive).await;
    // One that others have made meanwhile is good enough, if it has accepted no loss that this one has not.
    if writer.has_succeeded_since(before, losses_accepted) {
        return Ok(());
    }
    round(base, state, losses_accepted).await
}

/// Rounds until all is on disk, and what can be is free.
///
/// # Errors
/// The storage's.
pub async fn write_back(base: &Base, state: &State) -> Result<()> {
    let writer = &state.writer;
    let _turn = writer.rounds.lock(0..1, Mode::Exclusive).await;
    for _ in 0..ROUNDS_MAX {
        round(base, state, writer.accepted()).await?;
        if !writer.is_unclean() {
            break;
        }
    }
    Ok(())
}

/// There are more changes than can be remembered: one round.
///
/// # Errors
/// The storage's.
pub async fn make_room(base: &Base, state: &State) -> Result<()> {
    let writer = &state.writer;
    let before = writer.begun.load(Ordering::SeqCst);
    let _turn = writer.rounds.lock(0..1, Mode::Exclusive).await;
    if writer.has_succeeded_since(before, u32::MAX) {
        return Ok(());
    }
    round(base, state, writer.accepted()).await
}

/// One round. Whoever calls it has its turn.
async fn round(base: &Base, state: &State, accepted: u32) -> Result<()> {
    let writer = &state.writer;
    settle(base, state, accepted).await?;
    let number = writer.begun.fetch_add(1, Ordering::SeqCst) + 1;
    let failed = base.failed_flushes.load(Ordering::SeqCst);
    let mut job = Job::take(writer);
    for new in &mut job.new_tables {
        new_table::put_again(new, base, state).await?;
    }
    // Both are waited for: nothing may be under way when this ends.
    let blocks = put_blocks(base, writer, &job.blocks, accepted);
    let (data, blocks) = join(data_file::sync(base, accepted), blocks).await;
    data.and(blocks)?;
    if !job.entries.1.is_empty() {
        put_all(base, job.entries.1.iter()).await?;
        sync(base, writer, accepted).await?;
    }
    if !(job.slices.is_empty() && job.l1.is_empty()) {
        put_slices(base, &job.slices).await?;
        put_all(base, job.l1.iter().map(|(_, piece)| piece)).await?;
        sync(base, writer, accepted).await?;
    }
    let unlinked = job.done(writer.epochs.now());
    if base.failed_flushes.load(Ordering::SeqCst) == failed {
        writer.all_is_durable();
    }
    writer.round_succeeded(number, accepted);
    count_down(base, state, unlinked, accepted).await;
    let_go(base, state).await;
    writer.look(&writer.tables());
    Ok(())
}

async fn put_blocks(
    base: &Base,
    writer: &Writer,
    blocks: &[DirtyBlock],
    accepted: u32,
) -> Result<()> {
    put_all(base, blocks.iter().map(|block| &block.piece)).await?;
    sync(base, writer, accepted).await
}

/// Brings refcount blocks to disk between two rounds, so that they may leave. None of them counts too little there: whatever was
/// counted down is unlinked on disk.
async fn write_blocks(base: &Base, writer: &Writer, accepted: u32) -> Result<()> {
    let blocks = writer.tables().refcounts.dirty_blocks();
    put_blocks(base, writer, &blocks, accepted).await?;
    let mut tables = writer.tables();
    for block in &blocks {
        tables.refcounts.written(block);
    }
    Ok(())
}

async fn put_all<'a>(base: &Base, pieces: impl Iterator<Item = &'a Piece>) -> Result<()> {
    let pieces: Vec<_> = pieces.collect();
    for some in pieces.chunks(AT_ONCE) {
        let writes = some.iter().map(|piece| put(base, piece));
        // All are waited for: nothing may be under way when this ends.
        join_all(writes).await.into_iter().collect::<Result<()>>()?;
    }
    Ok(())
}

async fn put_slices(base: &Base, slices: &[Arc<Slice>]) -> Result<()> {
    for some in slices.chunks(AT_ONCE) {
        let writes = some.iter().map(async |slice| {
            let mut buffer = block::OwnedBuffer::new(slice.bytes.len())?;
            buffer.copy_from_slice(&slice.bytes);
            let io = Io::write(slice.offset.0, buffer.lend());
            base.file.submit(io).await
        });
        join_all(writes).await.into_iter().collect::<Result<()>>()?;
    }
    Ok(())
}

/// Nothing on disk points to these any more.
async fn count_down(base: &Base, state: &State, mut unlinked: Vec<Freed>, accepted: u32) {
    let writer = &*state.writer;
    // Each block is needed once.
    unlinked.sort_by_key(|freed| freed.cluster);
    let mut left = Left {
        writer,
        clusters: unlinked.into(),
    };
    let (mut uncounted, mut of_tables) = (Several::default(), Several::default());
    let failed = loop {
        let Some(&freed) = left.clusters.front() else {
            break None;
        };
        match counted::lower(base, state, freed.cluster).await {
            Ok(Lowered::To(0)) => {
                let mut tables = writer.change();
                let cluster = freed.cluster.0;
                match tables.metadata_in(cluster..cluster + 1) {
                    None => tables.lowered.push(freed),
                    // It stays held: it is neither discarded nor used again.
                    Some(kind) => of_tables.add((freed.cluster, kind)),
                }
            }
            Ok(Lowered::To(_)) => {}
            Ok(Lowered::Uncounted) => uncounted.add(freed.cluster),
            Ok(Lowered::NoRoom) => match write_blocks(base, writer, accepted).await {
                Ok(()) => continue,
                Err(error) => break Some(error),
            },
            Err(error) => break Some(error),
        }
        left.clusters.pop_front();
    };
    let name = &base.name;
    if let Some(error) = failed {
        // They are counted for nothing until that works: the next round tries again.
        let clusters = left.clusters.len();
        tracing::warn!("node '{name}': {clusters} clusters cannot be freed yet: {error}");
    }
    if let Some((first, clusters)) = uncounted.0 {
        tracing::warn!(
            "node '{name}': {clusters} clusters were used, and not counted, {first} first: qemu-img check -r all repairs \
             the image"
        );
    }
    if let Some(((first, kind), clusters)) = of_tables.0 {
        tracing::warn!(
            "node '{name}': {clusters} clusters are of tables, and were not counted as that, {first}, of the {}, first: \
             qemu-img check -r all repairs the image",
            kind.title()
        );
    }
}

/// The first of several, and how many they are: an image may be full of what is wrong, and one line tells of all.
struct Several<T>(Option<(T, u64)>);

impl<T> Default for Several<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Several<T> {
    fn add(&mut self, one: T) {
        self.0.get_or_insert((one, 0)).1 += 1;
    }
}

/// Clusters that are still to be counted down. Dropped, they are for the next round.
struct Left<'a> {
    writer: &'a Writer,
    clusters: VecDeque<Freed>,
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        if !self.clusters.is_empty() {
            self.writer.change().unlinked.extend(&self.clusters);
        }
    }
}

/// Clusters that are about to be free. Dropped before they are, they wait on.
struct Gone<'a> {
    writer: &'a Writer,
    clusters: Vec<(u64, Freed)>,
}

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.writer.tables().leaving.append(&mut self.clusters);
    }
}

/// Discards what nobody uses any more, and then it is free.
async fn let_go(base: &Base, state: &State) {
    let writer = &*state.writer;
    let mut gone = {
        let ended = |(epoch, _): &mut (u64, Freed)| writer.epochs.has_ended(*epoch);
        let mut clusters: Vec<_> = writer.tables().leaving.extract_if(.., ended).collect();
        clusters.sort_by_key(|(_, freed)| freed.cluster);
        Gone { writer, clusters }
    };
    let passed = |why: Why| match why {
        Why::Request => base.discards.request,
        Why::Other => base.discards.other,
    };
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (_, freed) in gone.clusters.iter().filter(|(_, freed)| passed(freed.why)) {
        let at = freed.cluster.0;
        match runs.last_mut() {
            Some((first, count)) if *first + *count == at => *count += 1,
            _ => runs.push((at, 1)),
        }
    }
    let size = state.rules.geometry.cluster_size();
    for some in runs.chunks(AT_ONCE) {
        let discards = some.iter().map(|(first, count)| {
            let io = Io::discard(first * size, count * size);
            base.file.submit(io)
        });
        // Where that fails the space cannot be given back, and it is used again as it is.
        let _ended = join_all(discards).await;
    }
    let mut tables = writer.tables();
    for (_, freed) in gone.clusters.drain(..) {
        tables.refcounts.release(freed.cluster);
    }
}
