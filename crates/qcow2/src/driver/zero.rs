//! Zeroing and discarding: entries say it, where they can, and nothing is written.

use block::range_lock::Mode;
use block::{Child, Io, OwnedBuffer, Result};

use super::alloc;
use super::base::Base;
use super::corrupt;
use super::data_file;
use super::entry::{self, Clear};
use super::prepare::prepare;
use super::rounds;
use super::slices;
use super::state::State;
use super::tables::Why;
use super::write;
use crate::format::l2::EntryRules;
use crate::format::{Cluster, EntryError, GuestOffset, HostOffset, L2Entry};

/// What is unlinked waits for a flush; so much does not wait for one that the guest sends.
const WAITING_MAX: usize = 16384;

/// Makes the bytes of `io` read as zeroes (`clear`), or, of a discard, those of them for which that costs nothing.
///
/// # Errors
/// The storage's.
pub async fn submit(
    base: &Base,
    state: &State,
    io: Io<'_>,
    clear: Clear,
    discard: bool,
) -> Result<()> {
    state.writer.accept(io.losses_accepted);
    prepare(base, state).await?;
    range(base, state, io.offset..io.offset + io.bytes, clear, discard).await?;
    if io.fua {
        rounds::flush(base, state, io.losses_accepted).await?;
    }
    let waiting = state.writer.tables().unlinked.len();
    if waiting > WAITING_MAX {
        // It is done, whatever becomes of that: the next flush tells.
        let _written = rounds::write_back(base, state).await;
    }
    Ok(())
}

/// The same for bytes that may lie behind the end of the disk.
///
/// # Errors
/// The storage's.
pub async fn range(
    base: &Base,
    state: &State,
    range: std::ops::Range<u64>,
    clear: Clear,
    discard: bool,
) -> Result<()> {
    let geometry = &state.rules.geometry;
    let size = geometry.cluster_size();
    let clusters = range.start / size..range.end.div_ceil(size);
    let _held = state.writer.clusters.lock(clusters, Mode::Exclusive).await;
    let entries = state.cache.slice_bytes() / geometry.l2_entry_bytes();
    let mut at = range.start;
    while at < range.end {
        let place = geometry.place(GuestOffset(at));
        let index = usize::try_from(place.l1).unwrap_or(usize::MAX);
        let coverage = geometry.l2_coverage();
        let next = (at / coverage + 1).saturating_mul(coverage);
        let shows = clear != Clear::Forget && base.behind(at, next - at).is_some();
        if state.l1_entry(index).0 == 0 && !shows {
            // Nothing is there, and nothing is behind it.
            at = next;
            continue;
        }
        let left = (entries - place.l2 % entries) as u64 * size - place.within;
        let left = left.min(slices::CHANGES_MAX * size);
        let end = range.end.min(at.saturating_add(left));
        slice(base, state, at..end, clear, discard).await?;
        at = end;
    }
    Ok(())
}

/// Bytes of a cluster that are written as zeroes.
enum Written {
    /// Where they are stored.
    Stored(HostOffset, u64),
    /// From this byte of the guest on: their cluster cannot be written where it is.
    Copied(u64, u64),
}

/// The same in one slice.
async fn slice(
    base: &Base,
    state: &State,
    range: std::ops::Range<u64>,
    clear: Clear,
    discard: bool,
) -> Result<()> {
    let geometry = &state.rules.geometry;
    let place = geometry.place(GuestOffset(range.start));
    let index = usize::try_from(place.l1).unwrap_or(usize::MAX);
    let table = alloc::own_table(base, state, index).await?;
    let miss = state.slice_of(table, &place);
    let entries = state.cache.slice_bytes() / geometry.l2_entry_bytes();
    let current = slices::sound(base, state, miss).await?;
    let behind = base.backing.as_ref().map_or(0, Child::length);
    let cleared = plan(state, behind, &current.bytes, &range, clear, discard);
    let plan = match cleared {
        Ok(plan) => plan,
        Err((entry, error)) => {
            let entry = place.l2 / entries * entries + entry;
            let what = format!("L2 table at {table}, entry {entry}: {error}");
            return Err(corrupt::fatal(base, state, 0, &what).await);
        }
    };
    for written in plan.written {
        match written {
            Written::Stored(host, bytes) => {
                let cluster = geometry.cluster_of(host).0 * geometry.cluster_size();
                let (guest, cluster) = (GuestOffset(range.start), HostOffset(cluster));
                state.check_inside(base, guest, cluster, geometry.cluster_size())?;
                let _token = state.writer.epochs.enter();
                let io = Io::write_zeroes(host.0, bytes, clear != Clear::Keep);
                base.data().submit(io).await?;
            }
            Written::Copied(guest, bytes) => {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                let mut zeroes = OwnedBuffer::zeroed(bytes)?;
                write::first(base, state, Io::write(guest, zeroes.lend())).await?;
            }
        }
    }
    if plan.flagged.is_empty() {
        return Ok(());
    }
    let mut emptied = Vec::new();
    slices::change(base, state, miss, |bytes| {
        let mut all = Vec::new();
        emptied.clear();
        for flagged in &plan.flagged {
            // As it is now: a part of the cluster may just have been copied.
            let entry = L2Entry::read(bytes, flagged.number, geometry).unwrap_or_default();
            let Ok(before) = entry.decode(&state.rules) else {
                continue;
            };
            let Some(after) = flagged.after(&before, &state.rules) else {
                continue;
            };
            if let Some(entry) = L2Entry::encode(&after, geometry) {
                entry.write(bytes, flagged.number, geometry);
            }
            match state.rules.external_data {
                false => all.extend(entry::unused(&before, &after, &state.rules, Why::Request)),
                true if discard || clear != Clear::Keep => {
                    emptied.extend(entry::emptied(&before, &after));
                }
                true => {}
            }
        }
        Ok(all)
    })
    .await?;
    data_file::give_back(base, state, &emptied, discard).await;
    Ok(())
}

/// An entry that is to say of subclusters that they are zeroes, or nothing.
struct Flagged {
    /// Its index into the slice.
    number: usize,
    clear: Clear,
    /// What is behind the image may show.
    shows: bool,
    subclusters: u32,
}

impl Flagged {
    fn after(&self, before: &Cluster, rules: &EntryRules) -> Option<Cluster> {
        entry::cleared(before, rules, self.clear, self.shows, self.subclusters)
    }
}

#[derive(Default)]
struct Plan {
    flagged: Vec<Flagged>,
    written: Vec<Written>,
}

/// What has to be done. The first `behind` bytes of the disk show what is behind the image where it has nothing. Pure.
fn plan(
    state: &State,
    behind: u64,
    slice: &[u8],
    range: &std::ops::Range<u64>,
    clear: Clear,
    discard: bool,
) -> std::result::Result<Plan, (usize, EntryError)> {
    let rules = &state.rules;
    let geometry = &rules.geometry;
    let (size, part) = (geometry.cluster_size(), geometry.subcluster_size());
    let entries = slice.len() / geometry.l2_entry_bytes();
    let mut plan = Plan::default();
    let mut at = range.start;
    while at < range.end {
        let number = geometry.place(GuestOffset(at)).l2 % entries.max(1);
        let start = at / size * size;
        let end = range.end.min(start + size);
        let (from, to) = (at - start, end - start);
        at = end;
        // Behind the end of the disk there is nothing to keep.
        let to_end = end >= state.length && state.length > start;
        let whole_to = if to_end { size } else { to };
        let entry = L2Entry::read(slice, number, geometry).unwrap_or_default();
        let before = entry.decode(rules).map_err(|error| (number, error))?;
        let (first, last) = (from.next_multiple_of(part), whole_to / part * part);
        let shows = start < behind;
        // No entry could say so.
        let clear = match clear {
            Clear::Free if rules.version < 3 && shows => Clear::Keep,
            clear => clear,
        };
        let whole = from == 0 && whole_to == size;
        let flagged = match before {
            // There is no flag for it.
            Cluster::Data { .. } if rules.version < 3 && clear == Clear::Keep => false,
            Cluster::Unallocated | Cluster::Compressed(_)
                if rules.version < 3 && clear == Clear::Keep && shows =>
            {
                false
            }
            // Those are copied first, if something is left of them.
            Cluster::Compressed(_)
            | Cluster::Subclusters {
                host: Some(_),
                copied: false,
                ..
            } => whole,
            _ => first < last,
        };
        let flagged = flagged.then_some((first.min(last), last));
        if let Some((first, last)) = flagged {
            let flagged = Flagged {
                number,
                clear,
                shows,
                subclusters: entry::subclusters_of(rules, first, last),
            };
            if flagged.after(&before, rules).is_some() {
                plan.flagged.push(flagged);
            }
        }
        if discard {
            continue;
        }
        let rests = match flagged {
            None => [(from, to), (0, 0)],
            Some((first, last)) => [(from, first), (last.min(to), to)],
        };
        for (from, to) in rests.into_iter().filter(|(from, to)| from < to) {
            plan.written
                .extend(zeroed(&before, rules, shows, start, from, to));
        }
    }
    Ok(plan)
}

/// How bytes of a cluster become zeroes that are less than can be said by an entry: at most two parts of subclusters.
fn zeroed(
    before: &Cluster,
    rules: &EntryRules,
    shows: bool,
    start: u64,
    from: u64,
    to: u64,
) -> Option<Written> {
    let copied = Some(Written::Copied(start + from, to - from));
    match *before {
        Cluster::Unallocated => copied.filter(|_| shows),
        Cluster::Zero { .. } => None,
        Cluster::Data { host, copied: true } => {
            Some(Written::Stored(HostOffset(host.0 + from), to - from))
        }
        Cluster::Data { copied: false, .. } | Cluster::Compressed(_) => copied,
        Cluster::Subclusters {
            host,
            copied: is_own,
            allocated,
            zero,
        } => {
            let mask = entry::subclusters_of(rules, from, to);
            let stored = allocated & mask != 0;
            if shows && mask & !(allocated | zero) != 0 {
                return copied;
            }
            match host.filter(|_| stored) {
                None => None,
                Some(host) if is_own => Some(Written::Stored(HostOffset(host.0 + from), to - from)),
                Some(_) => copied,
            }
        }
    }
}
