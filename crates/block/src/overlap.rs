//! Requests that writes elsewhere have to wait behind: the overlap rule across iothreads.
//!
//! A request that has never been held waits behind whatever is held or replayed elsewhere. Among
//! those that have been held one order decides, on all iothreads: the arrival number, then the
//! iothread. Arrival numbers of different iothreads mean nothing to each other, but that does not
//! matter; what matters is that the order is total and agrees with the one within each iothread.
//! (By the time of the first hold, say, it would not: then A waits for B within one iothread, B for
//! C elsewhere, and C for A.)

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::request::Request;
use crate::run_control::LocalId;

#[derive(Clone, Copy, Debug)]
struct Blocker {
    local: LocalId,
    order: u64,
    request: Request,
}

impl Blocker {
    fn turn(&self) -> (u64, LocalId) {
        (self.order, self.local)
    }
}

/// What is held or replayed of one backend. Pure.
#[derive(Debug, Default)]
pub struct Blockers {
    entries: Vec<Blocker>,
}

impl Blockers {
    /// The request with arrival number `order` of `local` is held.
    pub fn insert(&mut self, local: LocalId, order: u64, request: Request) {
        if request.bytes > 0 && !self.contains(local, order) {
            self.entries.push(Blocker {
                local,
                order,
                request,
            });
        }
    }

    /// It has been completed or dropped. True if it was known.
    pub fn remove(&mut self, local: LocalId, order: u64) -> bool {
        let before = self.entries.len();
        self.entries
            .retain(|entry| (entry.local, entry.order) != (local, order));
        self.entries.len() != before
    }

    /// Whether the request with arrival number `order` of `local`, which modifies its range, has to
    /// wait for one of another part.
    pub fn blocks(&self, local: LocalId, order: u64, request: &Request) -> bool {
        let held_before = self.contains(local, order);
        self.entries.iter().any(|entry| {
            entry.local != local
                && (!held_before || entry.turn() < (order, local))
                && entry.request.overlaps(request)
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

    fn contains(&self, local: LocalId, order: u64) -> bool {
        let known = (local, order);
        self.entries
            .iter()
            .any(|entry| (entry.local, entry.order) == known)
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
    #[inline]
    pub fn blocks(&self, local: LocalId, order: u64, request: &Request) -> bool {
        // A request that races with a failure elsewhere was in flight together with it: either
        // order is right.
        self.len.load(Ordering::Acquire) > 0 && self.look(local, order, request)
    }

    #[cold]
    fn look(&self, local: LocalId, order: u64, request: &Request) -> bool {
        request.op.modifies() && self.lock().blocks(local, order, request)
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
    fn one_order_decides_on_all_iothreads() {
        let (a, b) = (LocalId(1), LocalId(2));
        let mut blockers = Blockers::default();
        blockers.insert(b, 1, request(5));
        blockers.insert(a, 5, request(0));
        blockers.insert(a, 5, request(0));
        assert!(!blockers.blocks(b, 1, &request(5)), "arrived earlier");
        assert!(blockers.blocks(a, 5, &request(0)));
        assert!(
            blockers.blocks(b, 0, &request(5)),
            "never held: waits behind whatever is held elsewhere"
        );
        assert!(blockers.blocks(a, 9, &request(5)));
        assert!(!blockers.blocks(b, 9, &request(100)));
        assert!(blockers.remove(b, 1));
        assert!(!blockers.blocks(a, 5, &request(0)));
        assert!(!blockers.remove(b, 1));
        blockers.insert(b, 5, request(5));
        assert!(blockers.blocks(b, 5, &request(5)) && !blockers.blocks(a, 5, &request(0)));
    }
}
