//! External data files that are *raw*: images of their own, without looking at any table, which show what the guest sees at any
//! instant. So zeroes are written there, discards are passed there as they are, and no entry says of what is stored
//! that it is zeroes; nothing is behind such an image.

use block::range_lock::Mode;
use block::{Io, Operation, Result};

use super::alloc;
use super::base::Base;
use super::entry;
use super::prepare::prepare;
use super::rounds;
use super::slices;
use super::state::State;
use crate::format::{Cluster, GuestOffset, HostOffset, L2Entry};

/// Zeroes and discards, where the data file is an image of its own: they are its own. What entries say stays as it is: what
/// is stored is zeroes then, and all else reads as zeroes already.
///
/// # Errors
/// The storage's.
pub async fn clear(base: &Base, state: &State, io: Io<'_>) -> Result<()> {
    let is_discard = io.op == Operation::Discard;
    let is_passed = base.discard && base.discards.request;
    if is_discard && !is_passed {
        return Ok(());
    }
    state.writer.accept(io.losses_accepted);
    prepare(base, state).await?;
    let op = match io.op {
        Operation::WriteZeroes { unmap } => Operation::WriteZeroes {
            unmap: unmap && base.discard,
        },
        op => op,
    };
    {
        let size = state.rules.geometry.cluster_size();
        let clusters = io.offset / size..(io.offset + io.bytes).div_ceil(size);
        // Whoever copies something writes what he has read before.
        let _held = state.writer.clusters.lock(clusters, Mode::Exclusive).await;
        let fua = false;
        base.data().submit(Io { op, fua, ..io }).await?;
    }
    if io.fua {
        rounds::flush(base, state, io.losses_accepted).await?;
    }
    Ok(())
}

/// Makes bytes of a raw data file, from the end of the disk to `length`, a part of the disk: they become zeroes there, as far
/// as there may be anything else (up to `stale`), and entries point to them, as if the guest had written them.
///
/// # Errors
/// The storage's.
pub async fn show(base: &Base, state: &State, length: u64, stale: u64) -> Result<()> {
    let geometry = &state.rules.geometry;
    let size = geometry.cluster_size();
    let (from, end) = (state.length, stale.min(length));
    if from < end {
        let zeroes = Io::write_zeroes(from, end - from, true);
        base.data().submit(zeroes).await?;
    }
    let entries = state.cache.slice_bytes() / geometry.l2_entry_bytes();
    let mut at = from.next_multiple_of(size);
    while at < length {
        let place = geometry.place(GuestOffset(at));
        let index = usize::try_from(place.l1).unwrap_or(usize::MAX);
        let table = alloc::own_table(base, state, index).await?;
        let miss = state.slice_of(table, &place);
        slices::sound(base, state, miss).await?;
        let first = place.l2 % entries;
        let wanted = usize::try_from((length - at).div_ceil(size)).unwrap_or(usize::MAX);
        let most = usize::try_from(slices::CHANGES_MAX).unwrap_or(usize::MAX);
        let count = wanted.min(entries - first).min(most);
        slices::change(base, state, miss, |bytes| {
            for number in 0..count {
                let host = HostOffset(at + number as u64 * size);
                let shown = entry::written(&Cluster::Unallocated, &state.rules, host, u32::MAX);
                if let Some(entry) = L2Entry::encode(&shown, geometry) {
                    entry.write(bytes, first + number, geometry);
                }
            }
            Ok(Vec::new())
        })
        .await?;
        at += count as u64 * size;
    }
    Ok(())
}
