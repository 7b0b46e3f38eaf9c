//! Another length of the disk. The header is switched by one write; what lies behind the new end is let go after that, or at
//! the latest before the disk becomes longer again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::range_lock::Mode;
use block::{BlockError, Result};

use super::alloc;
use super::base::Base;
use super::entry::Clear;
use super::overlap::Metadata;
use super::prepare::prepare;
use super::raw_data;
use super::refcounts::Piece;
use super::rounds;
use super::state::State;
use super::switch;
use super::writer::put;
use super::zero;
use crate::format::l1;
use crate::format::{Geometry, HostOffset};

/// What lengths of disks are multiples of, in bytes.
const SECTOR: u64 = 512;

/// Whether the disk can become `length` bytes long.
///
/// # Errors
/// EINVAL, EFBIG, ENOTSUP: it cannot.
pub fn check(state: &State, length: u64) -> Result<()> {
    fits(&state.rules.geometry, length)?;
    // Their tables do not say how long the disk was.
    if state.header.snapshots > 0 && state.header.version < 3 {
        let text = "Can't resize a v2 image which has snapshots";
        return Err(BlockError::new(libc::ENOTSUP, text));
    }
    state.bitmaps.check_resize()
}

/// Whether an image with such clusters can have a disk of `length` bytes.
fn fits(geometry: &Geometry, length: u64) -> Result<()> {
    if !length.is_multiple_of(SECTOR) {
        let text = format!("The new size must be a multiple of {SECTOR}");
        return Err(BlockError::new(libc::EINVAL, text));
    }
    let bytes = geometry
        .l1_entries_for(length)
        .saturating_mul(l1::ENTRY_BYTES as u64);
    if i64::try_from(length).is_err() || bytes > l1::TABLE_BYTES_MAX {
        let most = l1::TABLE_BYTES_MAX / l1::ENTRY_BYTES as u64 * geometry.l2_coverage();
        let text = format!(
            "The image size is too large: with clusters of {} bytes it is {most} bytes at most",
            geometry.cluster_size()
        );
        return Err(BlockError::new(libc::EFBIG, text));
    }
    Ok(())
}

/// Makes the L1 table long enough for a disk of `length` bytes. Nothing is in flight.
///
/// # Errors
/// The storage's; all is what it was then.
pub async fn longer_l1(base: &Base, state: &State, length: u64) -> Result<State> {
    let geometry = &state.rules.geometry;
    check(state, length)?;
    prepare(base, state).await?;
    if length > state.length && base.behind(state.length, length - state.length).is_some() {
        hides(state)?;
    }
    let mut new = state.clone();
    let needed = geometry.l1_entries_for(length);
    if needed > state.l1.len() as u64 {
        move_l1(base, state, &mut new, needed).await?;
    }
    Ok(new)
}

/// What is behind an image must not show when the disk becomes longer.
fn hides(state: &State) -> Result<()> {
    if state.rules.version >= 3 {
        return Ok(());
    }
    let text = "The backing file is longer than the disk, and would show behind its end: in version 2 of the format \
                nothing can hide it (qemu-img amend -o compat=1.1 makes it version 3)";
    Err(BlockError::new(libc::ENOTSUP, text))
}

/// Makes the disk `length` bytes long, for which the L1 table is long enough, and the data file, which may have anything up to `stale`. Nothing
/// is in flight.
///
/// # Errors
/// The storage's; the length is what it was then.
pub async fn resize(base: &Base, state: &State, length: u64, stale: u64) -> Result<State> {
    match length >= state.length {
        true => longer(base, state, length, stale).await,
        false => shorter(base, state, length).await,
    }
}

fn up(state: &State, length: u64) -> u64 {
    length.next_multiple_of(state.rules.geometry.cluster_size())
}

async fn longer(base: &Base, state: &State, length: u64, stale: u64) -> Result<State> {
    // What is there has never been the guest's, or is not any more.
    let behind = state.length..up(state, state.length);
    if !state.raw_data {
        zero::range(base, state, behind.clone(), Clear::Keep, false).await?;
    }
    let rest = behind.end..up(state, length).max(behind.end);
    zero::range(base, state, rest.clone(), Clear::Forget, true).await?;
    let shown = base.behind(rest.start, rest.end - rest.start);
    if let Some((_, shown)) = shown {
        let shown = rest.start..up(state, rest.start + shown);
        zero::range(base, state, shown, Clear::Keep, false).await?;
    }
    if state.raw_data {
        raw_data::show(base, state, length, stale).await?;
    }
    rounds::write_back(base, state).await?;
    switch_size(base, state, length).await?;
    let mut new = state.clone();
    new.length = length;
    new.header.size = length;
    finish(base, &new).await;
    Ok(new)
}

async fn switch_size(base: &Base, state: &State, length: u64) -> Result<()> {
    let writer = &*state.writer;
    let _turn = writer.rounds.lock(0..1, Mode::Exclusive).await;
    switch::settle(base, state, writer.accepted()).await?;
    let sector = writer.tables().sector.clone().with_size(length);
    switch::switch(base, state, sector, Vec::new).await
}

/// Writes an L1 table of `needed` entries, and switches to it.
async fn move_l1(base: &Base, state: &State, new: &mut State, needed: u64) -> Result<()> {
    let geometry = &state.rules.geometry;
    let writer = &*state.writer;
    let clusters = geometry.clusters_for(needed * l1::ENTRY_BYTES as u64);
    let room = alloc::allocate(base, state, clusters, true).await?;
    let mut entries: Vec<u64> = state
        .l1
        .iter()
        .map(|entry| entry.load(Ordering::Acquire))
        .collect();
    entries.resize(usize::try_from(needed).unwrap_or(usize::MAX), 0);
    let mut bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry.to_be_bytes())
        .collect();
    bytes.resize(bytes.len().next_multiple_of(geometry.cluster_bytes()), 0);
    let offset = room.offset();
    put(base, &Piece { offset, bytes }).await?;
    // The table is durable with what counts it.
    rounds::write_back(base, state).await?;
    new.header.l1_offset = offset;
    new.header.l1_entries = u32::try_from(needed).unwrap_or(u32::MAX);
    new.l1 = entries
        .into_iter()
        .map(AtomicU64::new)
        .collect::<Arc<[_]>>();
    let turn = writer.rounds.lock(0..1, Mode::Exclusive).await;
    switch::settle(base, state, writer.accepted()).await?;
    let sector = writer.tables().sector.clone();
    let sector = sector.with_l1(offset, new.header.l1_entries);
    let mut room = Some(room);
    let doubtful = || {
        room.take()
            .map(alloc::Allocated::doubtful)
            .unwrap_or_default()
    };
    switch::switch(base, state, sector, doubtful).await?;
    writer.tables().set_l1(offset, Arc::clone(&new.l1));
    drop(turn);
    if let Some(room) = room {
        room.linked();
    }
    let run = |at: HostOffset, entries: u64| {
        let first = geometry.cluster_of(at).0;
        first..first + geometry.clusters_for(entries * l1::ENTRY_BYTES as u64)
    };
    let mut tables = writer.change();
    let former = run(state.header.l1_offset, u64::from(state.header.l1_entries));
    tables.add_metadata(run(offset, needed), Metadata::ActiveL1);
    tables.remove_metadata(former.clone());
    tables.unlinked.extend(alloc::other(former));
    Ok(())
}

async fn shorter(base: &Base, state: &State, length: u64) -> Result<State> {
    rounds::write_back(base, state).await?;
    switch_size(base, state, length).await?;
    let mut new = state.clone();
    new.length = length;
    new.header.size = length;
    let behind = up(state, length)..up(state, state.length);
    if let Err(error) = zero::range(base, &new, behind, Clear::Forget, true).await {
        tracing::warn!(
            "node '{}': what was behind the new end still takes space: {error}",
            base.name
        );
    }
    finish(base, &new).await;
    Ok(new)
}

/// The length is what it was to be: what else there is to do can be done later.
async fn finish(base: &Base, state: &State) {
    if let Err(error) = rounds::write_back(base, state).await {
        tracing::warn!(
            "node '{}': tables could not be written after the change of its length: {error}",
            base.name
        );
    }
}
