//! What the guest may find, sector by sector: pure, from what it has asked and been told.
//!
//! Each sector has a list of what may be there, with the time at which whoever wrote it began and ended. What has been
//! acknowledged supersedes whatever was over before it began; after a cut it does so only if a flush covers it.

use std::collections::BTreeMap;

use crate::event::{Ask, Guest, Request};
use crate::sector::{Value, index};

/// The number of what a change of the length writes.
const RESIZE: u32 = 0;

/// How sure an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// In flight.
    Open,
    /// Acknowledged: what was there before is there no more.
    Sure,
    /// Failed, or a discard: perhaps.
    Perhaps,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: u32,
    value: Value,
    begun: usize,
    ended: usize,
    kind: Kind,
    /// The operator has accepted that it may be lost.
    forgotten: bool,
    /// A flush has covered it.
    durable: bool,
    /// A flush has covered what came after it: no cut brings it back. A read that began before may still find it.
    buried: bool,
}

/// What may be in one sector.
#[derive(Clone, Debug, Default)]
struct Sector {
    entries: Vec<Entry>,
    /// Reads may find anything: so it was found after a loss that had been accepted.
    unknown: bool,
    /// After a cut anything may be there: a loss has been accepted, of what its cluster was to become.
    lost: bool,
}

impl From<Entry> for Sector {
    fn from(entry: Entry) -> Self {
        Self {
            entries: vec![entry],
            ..Self::default()
        }
    }
}

impl Sector {
    fn superseded(&self, by: impl Fn(&Entry) -> bool) -> Option<usize> {
        let sure = self
            .entries
            .iter()
            .filter(|one| one.kind == Kind::Sure && by(one));
        sure.map(|one| one.begun).max()
    }

    /// What a read may find that began at `since`.
    fn now(&self, since: usize) -> impl Iterator<Item = &Entry> {
        let begun = self.superseded(|one| one.ended <= since);
        let left = move |one: &&Entry| {
            one.kind == Kind::Open || begun.is_none_or(|begun| one.ended > begun)
        };
        self.entries.iter().filter(left)
    }

    /// What was over before what is durable by now began is not found any more.
    fn durable(&mut self, covers: impl Fn(&Entry) -> bool) {
        if let Some(begun) = self.superseded(|one| !one.forgotten && covers(one)) {
            for one in &mut self.entries {
                one.buried |= one.kind != Kind::Open && one.ended <= begun;
            }
            let sure = self.entries.iter_mut().filter(|one| one.kind == Kind::Sure);
            for one in sure.filter(|one| !one.forgotten && covers(one)) {
                // What is written anew, as a whole, is lost no more.
                self.lost &= one.durable;
                one.durable = true;
            }
        }
    }

    /// What is buried, and found by none of the reads that there are, which began at `since` at the earliest.
    fn forget(&mut self, since: usize) {
        let begun = self.superseded(|one| one.ended <= since);
        self.entries
            .retain(|one| !one.buried || begun.is_none_or(|begun| one.ended > begun));
    }

    fn may(&self) -> String {
        let entries = self.entries.iter();
        let texts: Vec<_> = entries
            .map(|one| {
                let Entry {
                    value,
                    kind,
                    begun,
                    ended,
                    forgotten,
                    ..
                } = one;
                let ended = match kind {
                    Kind::Open => "in flight".to_owned(),
                    _ => format!("ended at {ended}"),
                };
                let forgotten = if *forgotten { ", forgotten" } else { "" };
                format!("{value:?} ({kind:?}, began at {begun}, {ended}{forgotten})")
            })
            .collect();
        let lost = if self.lost {
            ", or anything after a cut"
        } else {
            ""
        };
        texts.join(", ") + lost
    }
}

/// A sector in which is what may not be there.
#[derive(Clone, Debug)]
pub struct Wrong {
    /// Which.
    pub sector: u64,
    /// What may be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Model {
    sectors: Vec<Sector>,
    /// Sectors of a cluster of the format.
    cluster: u64,
    /// Lengths that may be found after a cut, in sectors; the last one is that of now.
    lengths: Vec<(u64, usize)>,
    open: BTreeMap<u32, (u32, Request, usize)>,
}

impl Model {
    /// A disk on which `initial` is, durable; none: anything. What a format writes at a time is `cluster` sectors.
    pub fn new(initial: &[Option<Value>], cluster: u64) -> Self {
        let sector = |value: &Option<Value>| Sector {
            unknown: value.is_none(),
            lost: value.is_none(),
            ..Sector::from(Entry {
                id: 0,
                value: value.unwrap_or(Value::Zero),
                begun: 0,
                ended: 1,
                kind: Kind::Sure,
                forgotten: false,
                durable: true,
                buried: false,
            })
        };
        Self {
            sectors: initial.iter().map(sector).collect(),
            cluster: cluster.max(1),
            lengths: vec![(initial.len() as u64, 0)],
            open: BTreeMap::new(),
        }
    }

    /// How long it is, in sectors.
    pub fn length(&self) -> u64 {
        self.lengths.last().map_or(0, |&(length, _)| length)
    }

    /// The event at `time` has happened.
    ///
    /// # Errors
    /// A read has found what may not be there.
    pub fn apply(&mut self, time: usize, event: &Guest) -> Result<(), Wrong> {
        let time = moment(time);
        match event {
            Guest::Began { id, stamp, request } => {
                self.open.insert(*id, (*stamp, *request, time));
                let value = match request.ask {
                    Ask::Read | Ask::Flush => return Ok(()),
                    Ask::Write => Value::Stamp(*stamp),
                    Ask::Zeroes { .. } | Ask::Discard => Value::Zero,
                };
                self.add(
                    request.first,
                    request.sectors,
                    Entry {
                        id: *id,
                        value,
                        begun: time,
                        ended: time,
                        kind: Kind::Open,
                        forgotten: false,
                        durable: false,
                        buried: false,
                    },
                );
            }
            Guest::Ended { id, failed, seen } => {
                if let Some((_, request, begun)) = self.open.remove(id) {
                    return self.ended(time, *id, request, begun, failed.is_some(), seen);
                }
            }
            Guest::Resizing { from, to } => {
                let zero = Entry {
                    id: RESIZE,
                    value: Value::Zero,
                    begun: time,
                    ended: time,
                    kind: Kind::Open,
                    forgotten: false,
                    durable: false,
                    buried: false,
                };
                self.add(*to, from.saturating_sub(*to), zero);
                if self.sectors.len() < index(*to) {
                    let (begun, ended, kind) = (0, 1, Kind::Sure);
                    let sure = Entry {
                        begun,
                        ended,
                        kind,
                        ..zero
                    };
                    self.sectors.resize(index(*to), Sector::from(sure));
                }
                self.lengths.insert(0, (*to, time));
            }
            Guest::Resized { to, failed, .. } => {
                let kind = if *failed { Kind::Perhaps } else { Kind::Sure };
                for sector in self.sectors.iter_mut().skip(index(*to)) {
                    for entry in sector
                        .entries
                        .iter_mut()
                        .filter(|entry| entry.kind == Kind::Open)
                    {
                        (entry.kind, entry.ended) = (kind, time);
                    }
                }
                if !failed {
                    self.lengths.push((*to, time));
                }
            }
            Guest::LossAccepted => self.loss_accepted(),
            Guest::Found(sectors) if *sectors == self.length() => {}
            Guest::Found(sectors) => {
                let may_be = self.lengths.iter().any(|(length, _)| length == sectors);
                if !may_be {
                    return Err(Wrong {
                        sector: 0,
                        expected: format!("a length of {:?} sectors", self.lengths),
                        found: format!("{sectors} sectors"),
                    });
                }
                self.lengths.push((*sectors, time));
            }
            Guest::Stopped { .. } | Guest::Killed => {}
        }
        Ok(())
    }

    /// What no flush has covered may be lost; and so may what was written around it, to fill a cluster.
    fn loss_accepted(&mut self) {
        for cluster in self.sectors.chunks_mut(index(self.cluster)) {
            let mut lost = false;
            let entries = cluster.iter_mut().flat_map(|sector| &mut sector.entries);
            for entry in entries.filter(|entry| !entry.buried) {
                entry.forgotten |= !entry.durable;
                lost |= !entry.durable;
            }
            cluster.iter_mut().for_each(|sector| sector.lost |= lost);
        }
    }

    fn add(&mut self, first: u64, sectors: u64, entry: Entry) {
        let range = self.sectors.iter_mut().skip(index(first));
        range
            .take(index(sectors))
            .for_each(|sector| sector.entries.push(entry));
    }

    fn ended(
        &mut self,
        time: usize,
        id: u32,
        request: Request,
        begun: usize,
        failed: bool,
        seen: &[Result<Value, String>],
    ) -> Result<(), Wrong> {
        match request.ask {
            Ask::Flush if failed => {}
            Ask::Flush => {
                let since = self.oldest_read(time);
                for sector in &mut self.sectors {
                    sector.durable(|one| one.ended <= begun);
                    sector.forget(since);
                }
                let last = self.lengths.iter().rposition(|&(_, since)| since <= begun);
                self.lengths.drain(..last.unwrap_or(0));
            }
            Ask::Read if failed => {}
            Ask::Read => {
                for (sector, found) in (request.first..).zip(seen) {
                    self.has_read(time, id, begun, sector, found)?;
                }
            }
            Ask::Write | Ask::Zeroes { .. } | Ask::Discard => {
                let kind = match failed || request.ask == Ask::Discard {
                    true => Kind::Perhaps,
                    false => Kind::Sure,
                };
                let range = self.sectors.iter_mut().skip(index(request.first));
                for sector in range.take(index(request.sectors)) {
                    for entry in sector.entries.iter_mut().filter(|entry| entry.id == id) {
                        (entry.kind, entry.ended) = (kind, time);
                    }
                    if request.fua {
                        sector.durable(|one| one.id == id);
                    }
                }
            }
        }
        Ok(())
    }

    /// When the first one of the reads in flight has begun; now, if there is none.
    fn oldest_read(&self, now: usize) -> usize {
        let reads = self
            .open
            .values()
            .filter(|(_, request, _)| request.ask == Ask::Read);
        reads.map(|&(_, _, begun)| begun).min().unwrap_or(now)
    }

    /// What was read stays there, if nobody has changed it meanwhile.
    fn has_read(
        &mut self,
        time: usize,
        id: u32,
        begun: usize,
        number: u64,
        found: &Result<Value, String>,
    ) -> Result<(), Wrong> {
        let Some(sector) = self.sectors.get_mut(index(number)) else {
            return Ok(());
        };
        let value = found.as_ref().ok();
        if sector.unknown {
            // Until it is written as a whole.
            let sure = |one: &Entry| one.kind == Kind::Sure && one.begun > 0 && one.ended <= begun;
            sector.unknown = !sector.entries.iter().any(sure);
            if sector.unknown {
                return Ok(());
            }
        }
        if !sector.now(begun).any(|one| Some(&one.value) == value) {
            return Err(wrong(number, sector, found));
        }
        let quiet = |one: &Entry| one.kind != Kind::Open && one.ended <= begun;
        if let Some(&value) = value
            && sector.entries.iter().all(quiet)
            && sector.now(begun).any(|one| one.value != value)
        {
            let forgotten = sector.entries.iter().any(|one| one.forgotten);
            sector.entries.push(Entry {
                id,
                value,
                begun,
                ended: time,
                kind: Kind::Sure,
                forgotten,
                durable: false,
                buried: false,
            });
        }
        Ok(())
    }

    /// Compares what an image has that was cut now.
    ///
    /// # Errors
    /// What may not be there.
    pub fn after_cut(&self, found: &[Result<Value, String>]) -> Result<(), Wrong> {
        let lengths: Vec<u64> = self.lengths.iter().map(|&(length, _)| length).collect();
        if !lengths.contains(&(found.len() as u64)) {
            return Err(Wrong {
                sector: 0,
                expected: format!("a length of {lengths:?} sectors"),
                found: format!("{} sectors", found.len()),
            });
        }
        self.compare(found, |sector, value| {
            let entries = sector.entries.iter().filter(|one| !one.buried);
            sector.lost || entries.map(|one| one.value).any(|one| Some(one) == value)
        })
    }

    /// Compares what an image has that was stopped at `time`.
    ///
    /// # Errors
    /// What may not be there.
    pub fn stopped(&self, time: usize, found: &[Result<Value, String>]) -> Result<(), Wrong> {
        if self.length() != found.len() as u64 {
            return Err(Wrong {
                sector: 0,
                expected: format!("a length of {} sectors", self.length()),
                found: format!("{} sectors", found.len()),
            });
        }
        self.compare(found, |sector, value| {
            sector.unknown || sector.now(moment(time)).any(|one| Some(one.value) == value)
        })
    }

    fn compare(
        &self,
        found: &[Result<Value, String>],
        may: impl Fn(&Sector, Option<Value>) -> bool,
    ) -> Result<(), Wrong> {
        for (number, (sector, found)) in (0..).zip(self.sectors.iter().zip(found)) {
            if !may(sector, found.as_ref().ok().copied()) {
                return Err(wrong(number, sector, found));
            }
        }
        Ok(())
    }
}

/// Each event has two moments, so that what is done at once has a beginning and an end, in this order.
fn moment(event: usize) -> usize {
    2 * event + 2
}

fn wrong(number: u64, sector: &Sector, found: &Result<Value, String>) -> Wrong {
    Wrong {
        sector: number,
        expected: sector.may(),
        found: match found {
            Ok(value) => format!("{value:?}"),
            Err(text) => text.clone(),
        },
    }
}

#[cfg(test)]
mod tests;
