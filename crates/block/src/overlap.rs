//! Requests that writes elsewhere have to wait behind: the overlap rule across iothreads.
//!
//! Within one iothread the gate compares arrival numbers. Between iothreads there is no common
//! order of arrival, and none is needed: a request that has never been held waits behind whatever
//! is held or replayed elsewhere, and among those that have been held the first hold decides. So
//! nobody waits for somebody who waits for him.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::request::Request;
use crate::run_control::LocalId;

#[derive(Clone, Copy, Debug)]
struct Blocker {
    local: LocalId,
    order: u64,
    turn: u64,
    request: Request,
}

/// What is held or replayed of one backend. Pure.
#[derive(Debug, Default)]
pub struct Blockers {
    entries: Vec<Blocker>,
    last_turn: u64,
}

impl Blockers {
    /// The request with arrival number `order` of `local` is held. Known already: keeps its turn.
    pub fn insert(&mut self, local: LocalId, order: u64, request: Request) {
        if request.bytes == 0 || self.turn(local, order).is_some() {
            return;
        }
        self.last_turn += 1;
        let turn = self.last_turn;
        self.entries.push(Blocker {
            local,
            order,
            turn,
            request,
        });
    }

    /// It has been completed or dropped. True if it was known.
    pub fn remove(&mut self, local: LocalId, order: u64) -> bool {
        let before = self.entries.len();
        self.entries
            .retain(|entry| (entry.local, entry.order) != (local, order));
        self.entries.len() != before
    }

    /// Whether the request with arrival number `order` of `local` has to wait for one of another
    /// part.
    pub fn blocks(&self, local: LocalId, order: u64, request: &Request) -> bool {
        let turn = self.turn(local, order).unwrap_or(u64::MAX);
        self.entries.iter().any(|entry| {
            entry.local != local && entry.turn < turn && entry.request.overlaps(request)
        })
    }

    /// Number of requests that block.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing blocks.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn turn(&self, local: LocalId, order: u64) -> Option<u64> {
        let found = self
            .entries
            .iter()
            .find(|entry| (entry.local, entry.order) == (local, order));
        found.map(|entry| entry.turn)
    }
}

/// The blockers of one backend, for all its iothreads. As long as nothing is held, a look costs one
/// load.
#[derive(Debug, Default)]
pub struct SharedBlockers {
    len: AtomicUsize,
    blockers: Mutex<Blockers>,
}

impl SharedBlockers {
    /// As [`Blockers::insert`].
    pub fn insert(&self, local: LocalId, order: u64, request: Request) {
        let mut blockers = self.lock();
        blockers.insert(local, order, request);
        self.len.store(blockers.len(), Ordering::Release);
    }

    /// As [`Blockers::remove`].
    pub fn remove(&self, local: LocalId, order: u64) -> bool {
        let mut blockers = self.lock();
        let removed = blockers.remove(local, order);
        self.len.store(blockers.len(), Ordering::Release);
        removed
    }

    /// As [`Blockers::blocks`].
    pub fn blocks(&self, local: LocalId, order: u64, request: &Request) -> bool {
        // A request that races with a failure elsewhere was in flight together with it: either
        // order is right.
        self.len.load(Ordering::Acquire) > 0 && self.lock().blocks(local, order, request)
    }

    fn lock(&self) -> MutexGuard<'_, Blockers> {
        self.blockers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Operation, Tag};

    fn request(offset: u64) -> Request {
        Request {
            tag: Tag { queue: 0, head: 0 },
            op: Operation::Write,
            offset,
            bytes: 10,
        }
    }

    #[test]
    fn first_hold_decides_and_nobody_waits_in_a_circle() {
        let (a, b) = (LocalId(1), LocalId(2));
        let mut blockers = Blockers::default();
        blockers.insert(a, 5, request(0));
        blockers.insert(b, 1, request(5));
        blockers.insert(a, 5, request(0));
        assert!(!blockers.blocks(a, 5, &request(0)), "held first");
        assert!(blockers.blocks(b, 1, &request(5)));
        assert!(
            blockers.blocks(b, 9, &request(5)),
            "never held: waits behind both"
        );
        assert!(blockers.blocks(a, 9, &request(5)));
        assert!(!blockers.blocks(b, 9, &request(100)));
        assert!(blockers.remove(a, 5));
        assert!(!blockers.blocks(b, 1, &request(5)));
        assert!(!blockers.remove(a, 5));
    }
}
