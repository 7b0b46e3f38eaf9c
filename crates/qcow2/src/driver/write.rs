//! Writing.
//!
//! What is stored already, and in nobody else's image, is written where it is: the child's request, without a lock. All else
//! changes entries: under a lock on its guest clusters, data and padding are written first, and then the entries point to them.

use std::sync::Arc;

use arc_swap::ArcSwap;

use block::driver::park;
use block::range_lock::Mode;
use block::{Io, IoFuture, Joined, OwnedBuffer, Result};
use futures_util::future::join;

use super::alloc;
use super::base::Base;
use super::cache::Miss;
use super::corrupt;
use super::entry::{self, Target};
use super::prepare::prepare;
use super::read;
use super::rounds;
use super::slices;
use super::state::State;
use super::tables::Why;
use crate::format::{Cluster, GuestOffset, HostOffset, L2Entry};

/// Padding of zeroes that is longer is not written as data, but as zeroes.
const PADDING_MAX: u64 = 64 << 10;

/// Starts a write.
pub fn submit<'a>(base: &'a Base, state: &ArcSwap<State>, io: Io<'a>) -> IoFuture<'a> {
    if io.bytes == 0 {
        return IoFuture::ready(Ok(()));
    }
    let now = state.load();
    if now.writer.is_prepared() {
        let token = now.writer.epochs.enter();
        let guest = GuestOffset(io.offset);
        let host = now.stored(guest, io.bytes, true).or_else(|| {
            let (host, bytes) = now.in_place(base, guest, io.bytes).ok()??;
            (bytes == io.bytes).then_some(host)
        });
        if let Some(host) = host
            && !(io.fua && now.writer.is_unclean())
        {
            let below = Io {
                offset: host.0,
                ..io
            };
            return base.data().submit_keeping(below, Some(token));
        }
    }
    let state = Arc::clone(&now);
    // Several operations: what waits in one of them is in flight.
    IoFuture::new(async move { Box::pin(park::never(write(base, &state, io))).await })
}

async fn write(base: &Base, state: &State, io: Io<'_>) -> Result<()> {
    state.writer.accept(io.losses_accepted);
    prepare(base, state).await?;
    let geometry = &state.rules.geometry;
    let mut done = 0;
    let mut has_freed = false;
    while done < io.bytes {
        let rest = Io {
            fua: false,
            ..io.slice(done..io.bytes)
        };
        let guest = GuestOffset(rest.offset);
        {
            let _token = state.writer.epochs.enter();
            if let Some((host, bytes)) = state.in_place(base, guest, rest.bytes)? {
                let part = rest.slice(0..bytes);
                let below = Io {
                    offset: host.0,
                    ..part
                };
                base.data().submit(below).await?;
                done += bytes;
                continue;
            }
        }
        let place = geometry.place(guest);
        let entries = state.cache.slice_bytes() / geometry.l2_entry_bytes();
        let left = (entries - place.l2 % entries) as u64 * geometry.cluster_size() - place.within;
        let left = left.min(slices::CHANGES_MAX * geometry.cluster_size());
        let part = rest.slice(0..rest.bytes.min(left));
        let clusters = guest.0 >> geometry.cluster_bits()
            ..(part.offset + part.bytes).div_ceil(geometry.cluster_size());
        let _held = state.writer.clusters.lock(clusters, Mode::Exclusive).await;
        if state.in_place(base, guest, rest.bytes)?.is_some() {
            // Somebody has stored it meanwhile. Held, each of the small writes of a stream would wait for the one before.
            continue;
        }
        match first(base, state, part).await {
            Ok(bytes) => done += bytes,
            // What the guest has given back may not be free yet.
            Err(error)
                if error.cause().is_enospc()
                    && !std::mem::replace(&mut has_freed, true)
                    && state.writer.tables().frees_something() =>
            {
                rounds::write_back(base, state).await?;
            }
            Err(error) => return Err(error),
        }
    }
    if io.fua {
        rounds::flush(base, state, io.losses_accepted).await?;
    }
    Ok(())
}

/// Clusters of one slice, one after the other, that are written at once.
struct Batch {
    /// Guest offset of the first cluster.
    start: u64,
    /// What they were.
    before: Vec<Cluster>,
    /// The cluster that the first one has.
    kept: Option<HostOffset>,
    /// From which byte of the first cluster on they are stored, to which byte behind it.
    stored: std::ops::Range<u64>,
}

/// Writes a beginning of `io`, which lies in one slice, whose clusters are locked. Returns how much: at least a byte.
///
/// # Errors
/// The storage's; nothing points to what has been written then.
pub async fn first(base: &Base, state: &State, io: Io<'_>) -> Result<u64> {
    let geometry = &state.rules.geometry;
    let place = geometry.place(GuestOffset(io.offset));
    let index = usize::try_from(place.l1).unwrap_or(usize::MAX);
    let table = alloc::own_table(base, state, index).await?;
    let miss = state.slice_of(table, &place);
    let slice = slices::sound(base, state, miss).await?;
    let entries = state.cache.slice_bytes() / geometry.l2_entry_bytes();
    let decode = |number: usize| {
        let entry = L2Entry::read(&slice.bytes, place.l2 % entries + number, geometry);
        entry.unwrap_or_default().decode(&state.rules)
    };
    let end = io.offset + io.bytes;
    let start = io.offset - place.within;
    let first = match decode(0) {
        Ok(first) => first,
        Err(error) => {
            let what = format!("L2 table at {table}, entry {}: {error}", place.l2);
            return Err(corrupt::fatal(base, state, 0, &what).await);
        }
    };
    let size = geometry.cluster_size();
    let part = geometry.subcluster_size();
    let wanted = entry::subclusters_of(&state.rules, place.within, (end - start).min(size));
    let target = Target::of(&first);
    if let Target::InPlace { host, .. } | Target::Kept { host } = target {
        state.check_inside(base, GuestOffset(start), host, size)?;
    }
    let (kept, whole) = match target {
        Target::InPlace { host, allocated } if wanted & !allocated == 0 => {
            // Somebody has stored it meanwhile, or it was not known.
            let bytes = (end - start).min(size) - place.within;
            let below = Io {
                offset: host.0 + place.within,
                ..io.slice(0..bytes)
            };
            let _token = state.writer.epochs.enter();
            base.data().submit(below).await?;
            return Ok(bytes);
        }
        Target::InPlace { host, .. } => (Some(host), false),
        Target::Kept { host } => (Some(host), true),
        Target::New { whole } => (None, whole),
    };
    let down = |at: u64, whole: bool| {
        at / if whole { size } else { part } * if whole { size } else { part }
    };
    let up = |at: u64, whole: bool| at.next_multiple_of(if whole { size } else { part });
    // What is stored already is not written again: others may be writing to it where it is.
    let is_stored = |at: u64| match (kept, first) {
        (Some(_), Cluster::Subclusters { allocated, .. }) => {
            allocated & entry::subclusters_of(&state.rules, at, at + 1) != 0
        }
        _ => false,
    };
    let (from, to) = (place.within, (end - start).min(size));
    let mut stored = down(from, whole)..up(to, whole);
    if is_stored(from) {
        stored.start = from;
    }
    if is_stored(to - 1) {
        stored.end = to;
    }
    let mut before = vec![first];
    while kept.is_none() && start + (before.len() as u64) * size < end {
        let at = before.len() as u64 * size;
        match decode(before.len()) {
            Ok(next) => match Target::of(&next) {
                Target::New { whole } => {
                    before.push(next);
                    stored.end = at + up((end - start - at).min(size), whole);
                }
                _ => break,
            },
            Err(_) => break,
        }
    }
    let batch = Batch {
        start,
        before,
        kept,
        stored,
    };
    store(base, state, io, batch, miss).await
}

/// Stores a batch, and makes its entries point to it.
async fn store(
    base: &Base,
    state: &State,
    io: Io<'_>,
    mut batch: Batch,
    miss: Miss,
) -> Result<u64> {
    let geometry = &state.rules.geometry;
    let size = geometry.cluster_size();
    // In an external data file a cluster is where the guest has it, and nobody counts it.
    let is_external = state.rules.external_data;
    batch.kept = batch
        .kept
        .or_else(|| is_external.then_some(HostOffset(batch.start)));
    let room = match batch.kept {
        Some(_) => None,
        None => Some(alloc::allocate(base, state, batch.before.len() as u64, false).await?),
    };
    if let Some(room) = &room {
        let count = usize::try_from(room.count()).unwrap_or(usize::MAX);
        if count < batch.before.len() {
            batch.before.truncate(count);
            batch.stored.end = room.count() * size;
        }
    }
    let Some(host) = batch
        .kept
        .or_else(|| room.as_ref().map(alloc::Allocated::offset))
    else {
        return Ok(0);
    };
    if let Some(room) = &room {
        reserve(base, state, host.0 + room.count() * size).await;
    }
    let within = io.offset - batch.start;
    let end = (within + io.bytes).min(batch.stored.end);
    let data = io.slice(0..end - within);
    // What begins a cluster is mostly followed by the rest of it: one write that has the zeroes makes the file longer once.
    let begins = batch.stored.start == within;
    let is_fresh = !begins && room.as_ref().is_some_and(alloc::Allocated::is_fresh);
    let head = batch.stored.start..within;
    let head = padding(base, state, &batch, head, is_fresh).await?;
    let last = match is_external {
        // Nor does it become longer than the disk.
        true => state.length.saturating_sub(batch.start).max(end),
        false => batch.stored.end,
    };
    let tail = end..batch.stored.end.min(last);
    let tail = padding(base, state, &batch, tail, is_fresh).await?;
    let at = |within: u64| host.0 + within;
    put(
        base,
        (at(batch.stored.start), head),
        (at(within), data),
        (at(end), tail),
    )
    .await?;

    let rules = &state.rules;
    let first = geometry.place(GuestOffset(batch.start)).l2;
    let entries = state.cache.slice_bytes() / geometry.l2_entry_bytes();
    slices::change(base, state, miss, |bytes| {
        let mut all = Vec::new();
        for (number, before) in batch.before.iter().enumerate() {
            let from = number as u64 * size;
            let stored = entry::subclusters_of(
                rules,
                batch.stored.start.saturating_sub(from),
                (batch.stored.end - from).min(size),
            );
            let after = entry::written(before, rules, HostOffset(host.0 + from), stored);
            if let Some(entry) = L2Entry::encode(&after, geometry) {
                entry.write(bytes, first % entries + number, geometry);
            }
            all.extend(entry::unused(before, &after, rules, Why::Other));
        }
        Ok(all)
    })
    .await?;
    if let Some(room) = room {
        room.linked();
    }
    Ok(data.bytes)
}

/// The file is to reach to `end`, for all that are about to write there: one asks for it.
async fn reserve(base: &Base, state: &State, end: u64) {
    if base.file.length() < end {
        let _turn = state.writer.reserving.lock(0..1, Mode::Exclusive).await;
        base.file.reserve(end).await;
    }
}

/// What the guest has not written itself of the clusters that it writes.
enum Padding {
    Nothing,
    Bytes(OwnedBuffer),
    Zeroes(u64),
}

/// What bytes of a batch are before it is written. Where nothing has ever been in the file (`is_fresh`), zeroes are there.
async fn padding(
    base: &Base,
    state: &State,
    batch: &Batch,
    range: std::ops::Range<u64>,
    is_fresh: bool,
) -> Result<Padding> {
    let bytes = range.end - range.start;
    if bytes == 0 {
        return Ok(Padding::Nothing);
    }
    let number = usize::try_from(range.start / state.rules.geometry.cluster_size());
    let before = number.ok().and_then(|number| batch.before.get(number));
    let is_hidden = base.behind(batch.start + range.start, bytes).is_none();
    let is_zero = match before {
        Some(Cluster::Zero { .. }) => true,
        Some(Cluster::Unallocated | Cluster::Subclusters { allocated: 0, .. }) => is_hidden,
        _ => false,
    };
    if is_zero && is_fresh {
        return Ok(Padding::Nothing);
    }
    if is_zero && bytes > PADDING_MAX {
        return Ok(Padding::Zeroes(bytes));
    }
    let mut buffer = OwnedBuffer::new(usize::try_from(bytes).unwrap_or(usize::MAX))?;
    match is_zero {
        true => buffer.fill(0),
        false => {
            let _token = state.writer.epochs.enter();
            let io = Io::read(batch.start + range.start, buffer.lend());
            read::in_runs(base, state, io).await?;
        }
    }
    Ok(Padding::Bytes(buffer))
}

/// Writes data between two paddings.
async fn put(
    base: &Base,
    (head_at, mut head): (u64, Padding),
    (at, data): (u64, Io<'_>),
    (tail_at, mut tail): (u64, Padding),
) -> Result<()> {
    let zeroes = |at: u64, padding: &Padding| match padding {
        Padding::Zeroes(bytes) => Some(Io::write_zeroes(at, *bytes, false)),
        _ => None,
    };
    let zeroes = (zeroes(head_at, &head), zeroes(tail_at, &tail));
    let mut all = Joined::new();
    let mut from = at;
    if let Padding::Bytes(buffer) = &mut head {
        all.push(buffer.lend());
        from = head_at;
    }
    all.push(data.buffers);
    if let Padding::Bytes(buffer) = &mut tail {
        all.push(buffer.lend());
    }
    let joined = all.buffers();
    let io = Io {
        offset: from,
        bytes: joined.len() as u64,
        buffers: joined,
        ..data
    };
    let zeroing = async {
        if let Some(io) = zeroes.0 {
            base.data().submit(io).await?;
        }
        if let Some(io) = zeroes.1 {
            base.data().submit(io).await?;
        }
        Ok(())
    };
    // Both are waited for: nothing is under way where something else may be next.
    let (written, zeroed) = join(base.data().submit(io), zeroing).await;
    written.and(zeroed)
}
