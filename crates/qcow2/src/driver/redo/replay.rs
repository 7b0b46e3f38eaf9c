//! Making again what the log has, in an image that nobody else has written since, before anything else is done with it.
//!
//! First all is looked at: each entry must be what it was, or what it has become, at some time in the log; and what it is to point to
//! must be nobody else's. If anything is different the image is not the one that the log is of, and nothing at all is done.
//!
//! Then in memory, as requests change it: all counts, then entries. What is written, and when, is up to the rounds, and so
//! are failures. The log stays as it is until a round has succeeded: whoever is killed before leaves it to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use block::Result;

use super::log::Log;
use super::record::{Change, Record, Which};
use super::recorder::Redo;
use crate::check::{self, Limits};
use crate::driver::alloc;
use crate::driver::base::Base;
use crate::driver::cache::Miss;
use crate::driver::counted::{self, Raised};
use crate::driver::entry;
use crate::driver::errand;
use crate::driver::new_table;
use crate::driver::overlap::Metadata;
use crate::driver::prepare::prepare;
use crate::driver::repair::Below;
use crate::driver::rounds;
use crate::driver::slices;
use crate::driver::state::State;
use crate::driver::tables::Why;
use crate::format::{Cluster, GuestOffset, HostCluster, HostOffset, L1Entry, L2Entry};
use crate::image::Image;

/// What has come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// All is in memory, or on disk.
    Done,
    /// The log is not of this image.
    Refused,
}

/// What is done, or why not.
type Judged<T> = std::result::Result<T, String>;

/// Makes again what `log` has.
///
/// # Errors
/// The storage's, before anything was changed but counts: the log stays.
pub fn replay(base: &Arc<Base>, state: &Arc<State>, mut log: Box<Log>) -> Result<Replayed> {
    let name = Arc::clone(&base.name);
    let changes = log.live_changes();
    match plan(base, state, log.live()) {
        Err(error) => Err(error),
        Ok(Err(why)) => {
            tracing::warn!(
                "node '{name}': {changes} changes of '{}' that a former daemon had acknowledged, and not written, are not made \
                 again, because the image is not what it was: {why}",
                state.image
            );
            log.forget();
            Ok(Replayed::Refused)
        }
        Ok(Ok(plan)) => {
            tracing::info!(
                "node '{name}': {changes} changes of '{}' that a former daemon had acknowledged, and not written, are made again",
                state.image
            );
            let (base, state) = (Arc::clone(base), Arc::clone(state));
            let nodes = base.nodes();
            errand::wait(nodes, move || apply(base, state, plan, log))??;
            Ok(Replayed::Done)
        }
    }
}

/// What an entry has been.
#[derive(Debug)]
struct Life {
    first: L2Entry,
    between: Vec<L2Entry>,
    last: L2Entry,
}

impl Life {
    fn has_been(&self, entry: L2Entry) -> bool {
        self.first == entry || self.last == entry || self.between.contains(&entry)
    }
}

/// Entries, by table and place.
type Lives = BTreeMap<(Which, u64), Life>;

/// Pure.
fn lives(records: Vec<Record>, cluster: u64) -> Judged<Lives> {
    let mut all = Lives::new();
    let changes = records
        .into_iter()
        .flat_map(|record| record.changes(cluster));
    for Change {
        which,
        at,
        before,
        after,
    } in changes
    {
        let life = all.entry((which, at)).or_insert(Life {
            first: before,
            between: Vec::new(),
            last: before,
        });
        if life.last != before {
            return Err(format!("changes of entry {at} do not follow each other"));
        }
        if life.last != life.first {
            life.between.push(life.last);
        }
        life.last = after;
    }
    Ok(all)
}

/// What is to be done.
#[derive(Debug, Default)]
struct Plan {
    /// L1 entries that change.
    l1: Vec<(usize, HostOffset)>,
    /// L2 entries that change: where, and what they are then.
    l2: Vec<(Miss, usize, L2Entry)>,
    /// Clusters that are counted nowhere.
    uncounted: Vec<HostCluster>,
    /// Those that are: a round had begun.
    counted: Vec<HostCluster>,
}

fn plan(base: &Arc<Base>, state: &Arc<State>, records: Vec<Record>) -> Result<Judged<Plan>> {
    let lives = match lives(records, state.rules.geometry.cluster_size()) {
        Ok(lives) => lives,
        Err(why) => return Ok(Err(why)),
    };
    let nodes = base.nodes();
    let looked = {
        let (base, state) = (Arc::clone(base), Arc::clone(state));
        errand::wait(
            nodes,
            move || async move { look(&base, &state, &lives).await },
        )??
    };
    let plan = match looked {
        Ok(plan) => plan,
        Err(why) => return Ok(Err(why)),
    };
    if plan.counted.is_empty() {
        return Ok(Ok(plan));
    }
    let storage = Below::new(base)?;
    let clusters: Vec<_> = plan.counted.iter().map(|cluster| cluster.0).collect();
    let used = match Image::open(&storage) {
        Ok(image) => check::users(&image, &Limits::default(), &clusters),
        Err(error) => return Ok(Err(error.to_string())),
    };
    if let Some(failure) = storage.into_failure() {
        return Err(failure);
    }
    Ok(match used {
        None => Err("not all of its tables can be followed".to_owned()),
        Some(used) => match used.first() {
            None => Ok(plan),
            Some(cluster) => Err(format!("cluster {cluster} of the file is something else's")),
        },
    })
}

/// Looks at what there is, and changes nothing.
async fn look(base: &Base, state: &State, lives: &Lives) -> Result<Judged<Plan>> {
    let mut plan = Plan::default();
    let mut claimed = BTreeSet::new();
    // Tables that the disk has only when all is done.
    let mut tables = BTreeMap::new();
    for (&(which, at), life) in lives {
        let judged = match which {
            Which::L1 => match of_l1(base, state, at, life) {
                Ok((index, table, changes)) => {
                    tables.insert(index, table);
                    match changes {
                        false => Ok(None),
                        true => is_that_table(base, state, lives, index, table)
                            .await?
                            .map(|()| {
                                plan.l1.push((index, table));
                                Some(state.rules.geometry.cluster_of(table))
                            }),
                    }
                }
                Err(why) => Err(why),
            },
            Which::L2 => of_l2(base, state, &tables, at, life).await?.map(|changed| {
                let (change, claims) = changed?;
                plan.l2.push(change);
                claims
            }),
        };
        let claims = match judged {
            Ok(claims) => claims,
            Err(why) => return Ok(Err(why)),
        };
        let Some(cluster) = claims else { continue };
        if !claimed.insert(cluster) {
            return Ok(Err(format!(
                "cluster {} of the file would be used twice",
                cluster.0
            )));
        }
    }
    for cluster in claimed {
        let at = cluster.0;
        let start = state.rules.geometry.start_of(cluster);
        // It may end within it.
        if !start.is_some_and(|start| state.reaches(base, start.0.saturating_add(1))) {
            return Ok(Err(format!("cluster {at} is behind the end of the file")));
        }
        if state.writer.tables().is_table(cluster) {
            return Ok(Err(format!("cluster {at} of the file is a table's")));
        }
        match counted::count(base, state, cluster).await? {
            Some(0) => plan.uncounted.push(cluster),
            Some(1) => plan.counted.push(cluster),
            Some(_) => return Ok(Err(format!("cluster {at} of the file is used by several"))),
            None => return Ok(Err(format!("nothing can count cluster {at} of the file"))),
        }
    }
    Ok(Ok(plan))
}

fn is_another(at: u64, what: &str) -> String {
    format!("{what} {at} is none of what it has been")
}

/// The table that an L1 entry points to in the end; true: it does not yet.
fn of_l1(base: &Base, state: &State, at: u64, life: &Life) -> Judged<(usize, HostOffset, bool)> {
    let index = usize::try_from(at).unwrap_or(usize::MAX);
    let now = state.l1_entry(index);
    let is = L2Entry {
        descriptor: now.0,
        bitmap: 0,
    };
    if index >= state.l1.len() || !life.has_been(is) {
        return Err(is_another(at, "L1 entry"));
    }
    let last = L1Entry(life.last.descriptor);
    let table = last.table(&state.rules.geometry).ok().flatten();
    let table = table.filter(|table| {
        let end = table.0.saturating_add(state.rules.geometry.cluster_size());
        last.is_copied() && state.reaches(base, end)
    });
    let table = table.ok_or_else(|| format!("L1 entry {at} would be {:#x}", last.0))?;
    Ok((index, table, now != last))
}

/// Whether in a table to which nothing points yet is what was there: all that has not changed since is as in the table in whose
/// place it comes, if there is one.
async fn is_that_table(
    base: &Base,
    state: &State,
    lives: &Lives,
    index: usize,
    table: HostOffset,
) -> Result<Judged<()>> {
    let geometry = &state.rules.geometry;
    let bytes = geometry.cluster_bytes();
    let former = state.l1_entry(index).table(geometry).ok().flatten();
    let before = match former {
        Some(former) => Some(base.read(former, bytes).await?),
        None => None,
    };
    let after = base.read(table, bytes).await?;
    for entry in 0..geometry.l2_entries() {
        let guest = geometry.guest_offset(index as u64, entry);
        let guest = guest.map(|guest| guest.0 >> geometry.cluster_bits());
        if guest.is_some_and(|guest| lives.contains_key(&(Which::L2, guest))) {
            continue;
        }
        let of = |bytes: &[u8]| L2Entry::read(bytes, entry, geometry).unwrap_or_default();
        let was = before.as_deref().map_or_else(L2Entry::default, of);
        if of(&after) != was {
            return Ok(Err(format!("at {table} there is none of its tables")));
        }
    }
    Ok(Ok(()))
}

/// An entry that changes, and the cluster that it gets; none: it is what it is to be.
type Changed = Option<((Miss, usize, L2Entry), Option<HostCluster>)>;

async fn of_l2(
    base: &Base,
    state: &State,
    tables: &BTreeMap<usize, HostOffset>,
    at: u64,
    life: &Life,
) -> Result<Judged<Changed>> {
    let geometry = &state.rules.geometry;
    let Some(guest) = at.checked_mul(geometry.cluster_size()) else {
        return Ok(Err(is_another(at, "guest cluster")));
    };
    let place = geometry.place(GuestOffset(guest));
    let index = usize::try_from(place.l1).unwrap_or(usize::MAX);
    let table = match tables.get(&index) {
        Some(table) => Some(*table),
        None => state.own_table(base, index)?,
    };
    let Some(table) = table.filter(|_| index < state.l1.len()) else {
        return Ok(Err(format!("guest cluster {at} has no table of its own")));
    };
    let miss = state.slice_of(table, &place);
    let slice = slices::current(base, state, miss).await?;
    let number = place.l2 % (slice.bytes.len() / geometry.l2_entry_bytes()).max(1);
    let is = L2Entry::read(&slice.bytes, number, geometry).unwrap_or_default();
    if !life.has_been(is) {
        return Ok(Err(is_another(at, "the entry of guest cluster")));
    }
    let decoded = (is.decode(&state.rules), life.last.decode(&state.rules));
    let (before, after) = match decoded {
        (Ok(before), Ok(after)) if !matches!(after, Cluster::Compressed(_)) => (before, after),
        _ => {
            return Ok(Err(format!(
                "the entry of guest cluster {at} would be {:#x}",
                life.last.descriptor
            )));
        }
    };
    if is == life.last {
        return Ok(Ok(None));
    }
    if state.rules.external_data {
        // Nobody counts what is there; it is where the guest has it.
        let place = entry::host_of(&after).map(|host| host.0);
        return Ok(match place.is_none_or(|host| host == guest) {
            true => Ok(Some(((miss, number, life.last), None))),
            false => Err(format!("guest cluster {at} would be elsewhere")),
        });
    }
    let has =
        entry::clusters_of(&before, geometry).filter(|_| !matches!(before, Cluster::Compressed(_)));
    let gets = entry::clusters_of(&after, geometry);
    let keeps = gets.is_some() && gets == has;
    // What it has may be a snapshot's, too, and stays that.
    let is_owner = if keeps {
        is.is_copied()
    } else {
        gets.is_some()
    };
    if is_owner != life.last.is_copied() {
        return Ok(Err(format!(
            "guest cluster {at} would have another's cluster"
        )));
    }
    let gets = gets.filter(|_| !keeps);
    let claims = gets.map(|gets| HostCluster(gets.start));
    Ok(Ok(Some(((miss, number, life.last), claims))))
}

/// In memory, and as far as possible on disk.
async fn apply(base: Arc<Base>, state: Arc<State>, plan: Plan, log: Box<Log>) -> Result<()> {
    let (base, state) = (&*base, &*state);
    let writer = &state.writer;
    {
        let mut tables = writer.change();
        tables.redo = Redo::Replaying(log);
        // None of them is given to anybody else, whatever is needed for the others.
        tables.refcounts.hold(&plan.uncounted);
    }
    let applied = make(base, state, plan).await;
    {
        let mut tables = writer.tables();
        tables.redo = match std::mem::take(&mut tables.redo) {
            Redo::Replaying(log) if applied.is_ok() => Redo::Open(log),
            // It waits for the next attempt.
            _ => Redo::Off,
        };
    }
    applied?;
    if let Err(error) = rounds::write_back(base, state).await {
        tracing::warn!(
            "node '{}': what was made again is not on disk: {error}; it is kept, and tried again at the next flush, stop or drain",
            base.name
        );
    }
    Ok(())
}

async fn make(base: &Base, state: &State, plan: Plan) -> Result<()> {
    let writer = &state.writer;
    let geometry = &state.rules.geometry;
    prepare(base, state).await?;
    for cluster in plan.uncounted {
        raise(base, state, cluster).await?;
    }
    {
        let mut tables = writer.change();
        for (index, table) in plan.l1 {
            let former = state.l1_entry(index).table(geometry).ok().flatten();
            let new = new_table::new(base, table, former);
            alloc::link_table(state, &mut tables, index, new);
        }
    }
    let slice = |(miss, _, _): &(Miss, usize, L2Entry)| *miss;
    for same in plan.l2.chunk_by(|one, other| slice(one) == slice(other)) {
        let Some(miss) = same.first().map(slice) else {
            continue;
        };
        slices::change(base, state, miss, |bytes| {
            let mut all = Vec::new();
            for (_, number, last) in same {
                let is = L2Entry::read(bytes, *number, geometry).unwrap_or_default();
                // Both have been decoded before.
                let (Ok(before), Ok(after)) = (is.decode(&state.rules), last.decode(&state.rules))
                else {
                    continue;
                };
                last.write(bytes, *number, geometry);
                let why = match entry::clusters_of(&after, geometry) {
                    None => Why::Request,
                    Some(_) => Why::Other,
                };
                if !state.rules.external_data {
                    all.extend(entry::unused(&before, &after, &state.rules, why));
                }
            }
            Ok(all)
        })
        .await?;
    }
    Ok(())
}

/// Counts a cluster that is held, and that nothing counts.
async fn raise(base: &Base, state: &State, cluster: HostCluster) -> Result<()> {
    loop {
        match counted::raise(base, state, cluster).await? {
            Raised::Done => return Ok(()),
            Raised::NoRoom => rounds::make_room(base, state).await?,
            Raised::NoBlock(index) => {
                let place = state.writer.tables().refcounts.place_for_block(index);
                if let Some(place) = place {
                    alloc::make_block(base, state, index, place).await?;
                    continue;
                }
                // All that it counts is spoken for.
                let room = alloc::allocate(base, state, 1, true).await?;
                let mut tables = state.writer.change();
                if tables.refcounts.has_block(index) {
                    continue;
                }
                let place = state.rules.geometry.cluster_of(room.offset()).0;
                tables.refcounts.make_block(index, place);
                tables.add_metadata(place..place + 1, Metadata::RefcountBlock);
                drop(tables);
                room.linked();
            }
        }
    }
}
