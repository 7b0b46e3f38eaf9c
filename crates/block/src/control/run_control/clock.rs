//! The clock of run control: what is due when, and of which backend. Pure: the time is told and never
//! read, so that tests can let it pass.
//!
//! There is one deadline at most for each kind and backend; what has several moments of a kind to wait
//! for sets the first of them. To set, move or take one back takes O(log n).
//!
//! Whoever handles a deadline may set others, or the same one again, for a time that has passed, too:
//! each is handled once at most for each time that the clock is asked. So neither a clock that stands
//! still nor an interval of nothing keeps anybody in a loop.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::words::ids::BackendId;

/// What a deadline is for. Of those of one backend that are due at the same moment, the first one
/// here comes first: what has run out of time is not tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Timer {
    /// The event of the last failure that was reported or ignored.
    Report,
    /// What is held waits no longer.
    Deadline,
    /// What is held is tried again.
    Retry,
    /// One request of those that are held is tried again.
    Probe,
}

impl Timer {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Report, Self::Deadline, Self::Retry, Self::Probe];
    /// Those that are for what is held, and go with it.
    pub const OF_HELD: [Self; 3] = [Self::Deadline, Self::Retry, Self::Probe];
}

/// When something is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    /// When.
    pub at: Instant,
    /// Of which backend.
    pub backend: BackendId,
    /// What.
    pub timer: Timer,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Clock {
    /// In the order in which they come due.
    due: BTreeSet<Due>,
    times: BTreeMap<(BackendId, Timer), Instant>,
}

impl Clock {
    /// Without any deadline.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on `timer` of `backend` is due `at`, whenever it was before. None: never; that is
    /// also a time so late that an [`Instant`] cannot say it.
    pub fn set(&mut self, backend: BackendId, timer: Timer, at: Option<Instant>) {
        let key = (backend, timer);
        let former = match at {
            Some(at) => self.times.insert(key, at),
            None => self.times.remove(&key),
        };
        if former == at {
            return;
        }
        let due = |at| Due { at, backend, timer };
        if let Some(former) = former {
            self.due.remove(&due(former));
        }
        self.due.extend(at.map(due));
    }

    /// When `timer` of `backend` is due, if it is set.
    pub fn get(&self, backend: BackendId, timer: Timer) -> Option<Instant> {
        self.times.get(&(backend, timer)).copied()
    }

    /// The backend is gone: nothing of it is ever due.
    pub fn forget(&mut self, backend: BackendId) {
        for timer in Timer::ALL {
            self.set(backend, timer, None);
        }
    }

    /// When the first of them is due: the clock is to be asked then.
    pub fn wake_at(&self) -> Option<Instant> {
        self.due.first().map(|first| first.at)
    }

    /// What is due at `now`, in its order. Each is to be taken ([`Self::take`]) before it is handled.
    pub fn due(&self, now: Instant) -> Vec<Due> {
        let due = self.due.iter().take_while(|due| due.at <= now);
        due.copied().collect()
    }

    /// Takes a deadline off, to handle it. False: it has been moved or taken back meanwhile.
    pub fn take(&mut self, due: Due) -> bool {
        let as_it_was = self.due.remove(&due);
        if as_it_was {
            self.times.remove(&(due.backend, due.timer));
        }
        as_it_was
    }

    /// Number of deadlines that are set.
    pub fn len(&self) -> usize {
        self.due.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.due.is_empty()
    }
}

#[cfg(test)]
mod tests;
