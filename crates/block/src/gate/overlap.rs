//! Requests that writes elsewhere have to wait behind: the overlap rule across iothreads.
//!
//! A request that has never been held waits behind whatever is held or replayed elsewhere. Among
//! those that have been held one order decides, on all iothreads: the arrival number, then the
//! iothread. Arrival numbers of different iothreads mean nothing to each other, but that does not
//! matter; what matters is that the order is total and agrees with the one within each iothread.
//! (By the time of the first hold, say, it would not: then A waits for B within one iothread, B for
//! C elsewhere, and C for A.)
//!
//! What is held or replayed is a copy of what the gates of all parts know: each part says here what its
//! own gate holds ([`super::Gate`]), before anything else can start, and when it has ended.
//!
//! When the connection of a part has ended, what it still writes is here too, held before or not: its
//! client is gone and may be back already on another connection, and must not find its new data under
//! old. It waits for nothing itself, so all others may wait for it, whatever the order says.
//!
//! Whoever has to wait is told when what it waits behind has ended: it is noted here, under the same
//! lock, what waits behind what. Each part has an index of its own, so that what is one's own is
//! never looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::gate::range_index::RangeIndex;
use crate::words::ids::LocalId;
use crate::words::request::Request;

/// A request of one part, by arrival number. On all iothreads the one with the smaller number, then
/// of the smaller part, goes first.
type Turn = (u64, LocalId);

/// What is known of one part.
#[derive(Debug, Default)]
struct LocalBlockers {
    /// What is held or replayed there.
    requests: BTreeMap<u64, Request>,
    ranges: RangeIndex<()>,
    /// What waits there, and behind what.
    waits: BTreeMap<u64, Turn>,
    /// What may go on; the part takes it when it is told.
    woken: Vec<u64>,
    /// The part has ended: what is left of it is in flight.
    ended: bool,
}

/// What is held or replayed of one backend. Pure.
#[derive(Debug, Default)]
pub struct Blockers {
    locals: BTreeMap<LocalId, LocalBlockers>,
    /// Who waits behind whom: the one in front first.
    behind: BTreeSet<(Turn, Turn)>,
    len: usize,
}

impl Blockers {
    /// The request with arrival number `order` of `local` is held.
    pub fn insert(&mut self, local: LocalId, order: u64, request: Request) {
        let part = self.locals.entry(local).or_default();
        if request.bytes > 0 && part.requests.insert(order, request).is_none() {
            (part.ranges).insert(request.offset, request.end(), order, ());
            self.len += 1;
        }
    }

    /// It has been completed or dropped, if it was held, and waits for nothing any more. Whoever
    /// has waited behind it may go on: `tell` is called with each part that has to be told so
    /// ([`Self::take_woken`]).
    pub fn remove(&mut self, local: LocalId, order: u64, mut tell: impl FnMut(LocalId)) {
        self.stop_waiting(local, order);
        let Some(part) = self.locals.get_mut(&local) else {
            return;
        };
        let Some(request) = part.requests.remove(&order) else {
            return;
        };
        part.ranges.remove(request.offset, order);
        self.len -= 1;
        let gone = (order, local);
        while let Some(&(front, waits)) = self.behind.range((gone, (0, LocalId(0)))..).next()
            && front == gone
        {
            self.behind.remove(&(front, waits));
            let (order, local) = waits;
            let part = self.locals.entry(local).or_default();
            part.waits.remove(&order);
            if part.woken.is_empty() {
                tell(local);
            }
            part.woken.push(order);
        }
    }

    /// The arrival numbers of those of `local` that may go on.
    pub fn take_woken(&mut self, local: LocalId) -> Vec<u64> {
        let part = self.locals.get_mut(&local);
        part.map(|part| std::mem::take(&mut part.woken))
            .unwrap_or_default()
    }

    /// Whether the request with arrival number `order` of `local`, which modifies its range, has to
    /// wait for one of another part. If so, its part is told when that one has ended.
    pub fn blocks(&mut self, local: LocalId, order: u64, request: &Request) -> bool {
        self.stop_waiting(local, order);
        let own = self.locals.get(&local);
        let was_held = own.is_some_and(|part| part.requests.contains_key(&order));
        let front = (self.locals.iter())
            .filter(|&(&other, _)| other != local)
            .filter_map(|(&other, part)| {
                // Those whose turn is before that of this one.
                let before = match was_held && !part.ended {
                    true => order + u64::from(other < local),
                    false => u64::MAX,
                };
                let (start, end) = (request.offset, request.end());
                let (turn, ()) = part.ranges.last_before(start, end, before)?;
                Some((turn, other))
            })
            .max();
        if let Some(front) = front {
            self.behind.insert((front, (order, local)));
            let part = self.locals.entry(local).or_default();
            part.waits.insert(order, front);
        }
        front.is_some()
    }

    /// The connection of the part has ended: of all that is held or replayed there, only what is in
    /// flight stays, and of what is in flight only what modifies its range is in anybody's way. Those are
    /// `writes`.
    pub fn end_local(
        &mut self,
        local: LocalId,
        writes: &[(u64, Request)],
        mut tell: impl FnMut(LocalId),
    ) {
        for &(order, request) in writes {
            self.insert(local, order, request);
        }
        let part = self.locals.entry(local).or_default();
        part.ended = true;
        let stay: BTreeSet<u64> = writes.iter().map(|&(order, _)| order).collect();
        let mut goes: Vec<u64> = part.requests.keys().copied().collect();
        goes.retain(|order| !stay.contains(order));
        for order in goes {
            self.remove(local, order, &mut tell);
        }
    }

    /// Nothing of the part is in flight any more; it has waited for nothing since it ended.
    pub fn remove_local(&mut self, local: LocalId) {
        debug_assert!(
            (self.locals.get(&local))
                .is_none_or(|part| part.requests.is_empty() && part.waits.is_empty())
        );
        self.locals.remove(&local);
    }

    /// Number of requests that block.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing blocks.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn stop_waiting(&mut self, local: LocalId, order: u64) {
        let part = self.locals.get_mut(&local);
        if let Some(front) = part.and_then(|part| part.waits.remove(&order)) {
            self.behind.remove(&(front, (order, local)));
        }
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

    /// As [`Blockers::remove`]. Returns the parts that have to be told.
    pub fn remove(&self, local: LocalId, order: u64) -> Vec<LocalId> {
        let mut tell = Vec::new();
        let mut blockers = self.lock();
        blockers.remove(local, order, |part| tell.push(part));
        self.len.store(blockers.len(), Ordering::Release);
        tell
    }

    /// As [`Blockers::end_local`]. Returns the parts that have to be told.
    pub fn end_local(&self, local: LocalId, writes: &[(u64, Request)]) -> Vec<LocalId> {
        let mut tell = Vec::new();
        let mut blockers = self.lock();
        blockers.end_local(local, writes, |part| tell.push(part));
        self.len.store(blockers.len(), Ordering::Release);
        tell
    }

    /// As [`Blockers::take_woken`].
    pub fn take_woken(&self, local: LocalId) -> Vec<u64> {
        self.lock().take_woken(local)
    }

    /// As [`Blockers::blocks`].
    #[inline]
    pub fn blocks(&self, local: LocalId, order: u64, request: &Request) -> bool {
        // A request that races with a failure elsewhere was in flight together with it: either
        // order is right.
        self.len.load(Ordering::Acquire) > 0 && self.look(local, order, request)
    }

    /// As [`Blockers::remove_local`].
    pub fn remove_local(&self, local: LocalId) {
        self.lock().remove_local(local);
    }

    #[cold]
    fn look(&self, local: LocalId, order: u64, request: &Request) -> bool {
        request.op.modifies() && self.lock().blocks(local, order, request)
    }

    fn lock(&self) -> MutexGuard<'_, Blockers> {
        self.blockers.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::request::{Operation, Tag};

    const A: LocalId = LocalId(1);
    const B: LocalId = LocalId(2);

    fn request(offset: u64) -> Request {
        Request {
            tag: Tag { queue: 0, head: 0 },
            op: Operation::Write,
            offset,
            bytes: 10,
        }
    }

    fn remove(blockers: &mut Blockers, local: LocalId, order: u64) -> Vec<LocalId> {
        let mut told = Vec::new();
        blockers.remove(local, order, |part| told.push(part));
        told
    }

    #[test]
    fn one_order_decides_on_all_iothreads() {
        let mut blockers = Blockers::default();
        blockers.insert(B, 1, request(5));
        blockers.insert(A, 5, request(0));
        blockers.insert(A, 5, request(0));
        assert_eq!(blockers.len(), 2);
        assert!(!blockers.blocks(B, 1, &request(5)), "arrived earlier");
        assert!(blockers.blocks(A, 5, &request(0)));
        assert!(
            blockers.blocks(B, 0, &request(5)),
            "never held: waits behind whatever is held elsewhere"
        );
        assert!(blockers.blocks(A, 9, &request(5)));
        assert!(!blockers.blocks(B, 9, &request(100)));
        assert_eq!(remove(&mut blockers, B, 1), [A]);
        assert_eq!(blockers.take_woken(A), [5, 9]);
        assert!(!blockers.blocks(A, 5, &request(0)));
        assert_eq!(remove(&mut blockers, B, 1), []);
        blockers.insert(B, 5, request(5));
        assert!(blockers.blocks(B, 5, &request(5)) && !blockers.blocks(A, 5, &request(0)));
    }

    #[test]
    fn a_part_is_told_once_and_of_what_waits_only() {
        let mut blockers = Blockers::default();
        for order in 0..3 {
            blockers.insert(A, order, request(order * 10));
        }
        for order in 0..3 {
            assert!(blockers.blocks(B, order, &request(order * 10)));
            assert!(blockers.blocks(B, order, &request(order * 10)), "again");
        }
        // One is dropped while it waits.
        assert_eq!(remove(&mut blockers, B, 1), []);
        assert_eq!(remove(&mut blockers, A, 1), []);
        assert_eq!(remove(&mut blockers, A, 0), [B]);
        assert_eq!(remove(&mut blockers, A, 2), [], "it has been told");
        assert_eq!(blockers.take_woken(B), [0, 2]);
        assert!(blockers.take_woken(B).is_empty());
        assert!(blockers.is_empty() && blockers.behind.is_empty());
        blockers.remove_local(A);
        blockers.remove_local(B);
    }

    /// The order among what was held lets an older one pass a newer one. What a client has left in
    /// flight is in everybody's way.
    #[test]
    fn what_a_client_has_left_in_flight_is_in_the_way_of_all() {
        let mut blockers = Blockers::default();
        let (held, replayed, new) = (7, 8, 9);
        blockers.insert(B, held, request(100));
        blockers.insert(B, replayed, request(200));
        blockers.insert(A, 0, request(0));
        blockers.insert(A, 1, request(200));
        assert!(blockers.blocks(A, 5, &request(100)), "behind what is held");
        assert!(!blockers.blocks(A, 1, &request(200)), "it is older");
        assert!(!blockers.blocks(A, 0, &request(0)), "nobody knows of it");
        let writes = [(replayed, request(200)), (new, request(0))];
        let mut told = Vec::new();
        blockers.end_local(B, &writes, |part| told.push(part));
        assert_eq!((told, blockers.take_woken(A)), (vec![A], vec![5]));
        assert!(!blockers.blocks(A, 5, &request(100)), "it was dropped");
        assert!(blockers.blocks(A, 0, &request(0)), "held before or not");
        assert!(blockers.blocks(A, 1, &request(200)), "in flight");
        assert!(blockers.blocks(A, 6, &request(5)), "new");
        assert_eq!(remove(&mut blockers, B, replayed), [A]);
        assert_eq!(remove(&mut blockers, B, new), [], "it has been told");
        assert_eq!(blockers.take_woken(A), [1, 0, 6]);
        blockers.remove_local(B);
        for order in [0, 1] {
            assert_eq!(remove(&mut blockers, A, order), []);
        }
        assert!(blockers.is_empty() && blockers.behind.is_empty());
    }

    /// Writes of one sector, from two iothreads in turn: for each that ended, all that were known
    /// were looked at, twice, under a lock that both need, and all that waited were woken.
    #[test]
    fn each_wakes_the_next_one_only() {
        let n = 1 << 15;
        let mut blockers = Blockers::default();
        for order in 0..n {
            blockers.insert(A, order, request(0));
            blockers.insert(B, order, request(0));
        }
        for order in 0..n {
            assert_eq!(blockers.blocks(A, order, &request(0)), order > 0);
            assert!(blockers.blocks(B, order, &request(0)));
        }
        for order in 0..n {
            assert_eq!(remove(&mut blockers, A, order), [B]);
            assert_eq!(blockers.take_woken(B), [order]);
            assert!(!blockers.blocks(B, order, &request(0)));
            let next = remove(&mut blockers, B, order);
            if order + 1 < n {
                assert_eq!((next, blockers.take_woken(A)), (vec![A], vec![order + 1]));
                assert!(!blockers.blocks(A, order + 1, &request(0)));
            }
        }
        assert!(blockers.is_empty());
    }
}
