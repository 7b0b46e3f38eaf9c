//! Which job a worker takes next: one line per lane, and no lane takes all workers, nor all lanes of one
//! storage. Pure.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use crate::lane::{LaneId, Share};

/// The jobs that wait, and how many workers each lane has.
#[derive(Debug)]
pub(super) struct Lines<J> {
    /// How many workers there may be.
    workers: usize,
    /// How many of them make a call.
    busy: usize,
    waiting: usize,
    /// Of lanes with something in line or a worker; the others have none.
    lines: HashMap<LaneId, Line<J>>,
    /// The lanes with something in line; whose turn is next comes first.
    turns: VecDeque<LaneId>,
    /// How many workers each storage has that is named; the others have none.
    storages: HashMap<u64, usize>,
}

#[derive(Debug)]
struct Line<J> {
    share: Share,
    running: usize,
    waiting: VecDeque<J>,
}

/// How many workers there are to be shared out.
#[derive(Debug, Clone, Copy)]
struct Workers {
    free: usize,
    /// The most that one lane gets.
    most: usize,
}

/// What all lanes of a storage have is at most so many times what they leave to all others.
const STORAGE_TO_OTHERS: usize = 3;

impl<J> Line<J> {
    /// Whether it may have one more of the workers that are free. Its first one is granted as long as its
    /// storage leaves to all others a third of what it has. After that it leaves to them as many as it has,
    /// and as its storage has: each lane, and each storage, that hangs takes a part of what those before it
    /// have left, and something is left for long.
    ///
    /// `on_storage`: how many all lanes of its storage have, if that is named.
    fn may_start(&self, Workers { free, most }: Workers, on_storage: usize) -> bool {
        let cap = self
            .share
            .workers_max
            .map_or(most, |max| most.min(max.get()));
        let leaves = match self.running {
            0 => on_storage == 0 || on_storage < free.saturating_mul(STORAGE_TO_OTHERS),
            running => running.max(on_storage) < free,
        };
        self.running < cap && leaves
    }
}

impl<J> Lines<J> {
    /// For a pool of at most `workers`.
    pub(super) fn new(workers: usize) -> Lines<J> {
        Lines {
            workers,
            busy: 0,
            waiting: 0,
            lines: HashMap::new(),
            turns: VecDeque::new(),
            storages: HashMap::new(),
        }
    }

    /// A job comes to the end of its lane's line. A lane has the same `share` all the time.
    pub(super) fn push(&mut self, lane: LaneId, share: Share, job: J) {
        let line = self.lines.entry(lane).or_insert_with(|| Line {
            share,
            running: 0,
            waiting: VecDeque::new(),
        });
        if line.waiting.is_empty() {
            self.turns.push_back(lane);
        }
        line.waiting.push_back(job);
        self.waiting += 1;
    }

    /// The pool has another size from now on. More workers than that may still be busy.
    pub(super) fn resize(&mut self, workers: usize) {
        self.workers = workers;
    }

    fn shared_out(&self) -> Workers {
        Workers {
            free: self.workers.saturating_sub(self.busy),
            most: (self.workers / 2).max(1),
        }
    }

    fn lane_may_start(&self, lane: LaneId, workers: Workers) -> bool {
        let line = &self.lines[&lane];
        let storage = line.share.storage.and_then(|name| self.storages.get(&name));
        workers.free > 0 && line.may_start(workers, storage.copied().unwrap_or(0))
    }

    /// Whether a worker would find a job.
    pub(super) fn may_start(&self) -> bool {
        let workers = self.shared_out();
        let mut lanes = self.turns.iter();
        lanes.any(|&lane| self.lane_may_start(lane, workers))
    }

    /// How many jobs wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// A worker takes a job: lanes take turns.
    pub(super) fn take(&mut self) -> Option<(LaneId, J)> {
        let workers = self.shared_out();
        let at = (self.turns.iter()).position(|&lane| self.lane_may_start(lane, workers))?;
        let lane = self.turns.remove(at)?;
        let line = self.lines.get_mut(&lane)?;
        let job = line.waiting.pop_front()?;
        line.running += 1;
        if let Some(storage) = line.share.storage {
            *self.storages.entry(storage).or_default() += 1;
        }
        if !line.waiting.is_empty() {
            self.turns.push_back(lane);
        }
        self.waiting -= 1;
        self.busy += 1;
        Some((lane, job))
    }

    /// A job that was taken has ended.
    pub(super) fn ended(&mut self, lane: LaneId) {
        self.busy -= 1;
        if let Some(line) = self.lines.get_mut(&lane) {
            line.running -= 1;
            let storage = line.share.storage;
            self.forget_if_unused(lane);
            self.leave(storage);
        }
    }

    /// A worker of this storage is free.
    fn leave(&mut self, storage: Option<u64>) {
        let Some(Entry::Occupied(mut has)) = storage.map(|name| self.storages.entry(name)) else {
            return;
        };
        *has.get_mut() -= 1;
        if *has.get() == 0 {
            has.remove();
        }
    }

    fn forget_if_unused(&mut self, lane: LaneId) {
        let unused = |line: &Line<J>| line.running == 0 && line.waiting.is_empty();
        if self.lines.get(&lane).is_some_and(unused) {
            self.lines.remove(&lane);
        }
    }

    /// Takes a job of `lane` back that no worker has taken.
    pub(super) fn take_back(&mut self, lane: LaneId, is_it: impl Fn(&J) -> bool) -> Option<J> {
        let line = self.lines.get_mut(&lane)?;
        let at = line.waiting.iter().position(is_it)?;
        let job = line.waiting.remove(at);
        if line.waiting.is_empty() {
            self.turns.retain(|&other| other != lane);
        }
        self.waiting -= 1;
        self.forget_if_unused(lane);
        job
    }

    /// Takes all jobs back that no worker has taken.
    pub(super) fn take_all_back(&mut self) -> Vec<J> {
        self.turns.clear();
        self.waiting = 0;
        let lines = self.lines.values_mut();
        let jobs = lines.flat_map(|line| line.waiting.drain(..)).collect();
        self.lines.retain(|_, line| line.running > 0);
        jobs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes all there is to take; who got how many.
    fn take_all(lines: &mut Lines<u32>) -> HashMap<LaneId, usize> {
        let mut taken = HashMap::new();
        while lines.may_start() {
            let (lane, _) = lines.take().unwrap();
            *taken.entry(lane).or_default() += 1;
        }
        assert!(lines.take().is_none());
        taken
    }

    fn at_most(workers: usize) -> Share {
        Share {
            workers_max: std::num::NonZeroUsize::new(workers),
            ..Share::default()
        }
    }

    fn on(storage: u64) -> Share {
        Share {
            storage: Some(storage),
            ..Share::default()
        }
    }

    #[test]
    fn a_lane_is_served_in_order() {
        let mut lines = Lines::new(8);
        for job in 0..10 {
            lines.push(1, Share::default(), job);
        }
        for job in 0..4 {
            assert_eq!(lines.take(), Some((1, job)));
        }
        assert_eq!((lines.take(), lines.may_start()), (None, false));
        for job in 4..10 {
            lines.ended(1);
            assert_eq!(lines.take(), Some((1, job)));
        }
        assert_eq!((lines.waiting(), lines.busy), (0, 4));
        for _ in 0..4 {
            lines.ended(1);
        }
        assert!(lines.lines.is_empty() && lines.turns.is_empty());
    }

    #[test]
    fn lanes_take_turns() {
        let mut lines = Lines::new(64);
        for job in 0..3 {
            lines.push(1, Share::default(), job);
        }
        lines.push(2, Share::default(), 10);
        lines.push(3, Share::default(), 20);
        let order: Vec<_> = std::iter::from_fn(|| lines.take()).collect();
        assert_eq!(order, [(1, 0), (2, 10), (3, 20), (1, 1), (1, 2)]);
    }

    /// Six lanes that hang, one after the other, leave the seventh served. If that hangs, too, all workers
    /// are taken, and the eighth waits until one comes back.
    #[test]
    fn six_lanes_that_hang_leave_something_to_others() {
        let mut lines = Lines::new(64);
        let mut had = Vec::new();
        for lane in 1..=7 {
            for job in 0..200 {
                lines.push(lane, Share::default(), job);
            }
            let taken = take_all(&mut lines);
            assert_eq!(taken.len(), 1, "{taken:?}");
            had.push(taken[&lane]);
        }
        assert_eq!(had, [32, 16, 8, 4, 2, 1, 1]);
        assert_eq!(lines.shared_out().free, 0);
        lines.push(8, Share::default(), 0);
        assert_eq!((lines.may_start(), lines.take()), (false, None));
        // An end of one of them frees a worker, and it is the one that has none that is served.
        lines.ended(1);
        assert_eq!(lines.take(), Some((8, 0)));
    }

    /// Seven openings of one server that hung took all workers, and nobody else was served.
    #[test]
    fn a_storage_that_hangs_leaves_something_to_others() {
        for nodes in [1, 2, 7, 16, 17, 100] {
            let mut lines = Lines::new(64);
            let mut had = Vec::new();
            for lane in 1..=nodes {
                for job in 0..200 {
                    lines.push(lane, on(1), job);
                }
                had.push(take_all(&mut lines).get(&lane).copied().unwrap_or(0));
            }
            // One has half; beyond that each has one, which is served if it is not the server that hangs.
            let expected = (0..nodes).map(|number| match number {
                0 => 32,
                1..=16 => 1,
                _ => 0,
            });
            assert!(had.iter().copied().eq(expected), "{nodes}: {had:?}");
            // Another one has what it would have if these were one lane, or half of that.
            lines.push(1000, on(2), 0);
            for job in 0..200 {
                lines.push(1000, on(2), job);
            }
            let taken = take_all(&mut lines);
            let left = lines.shared_out().free;
            assert!(
                taken.len() == 1 && taken[&1000] >= 8 && left >= 8,
                "{nodes}: {taken:?}, {left}"
            );
        }
    }

    /// However many storages hang, each with many nodes, each takes three quarters of what those before it
    /// have left.
    #[test]
    fn storages_that_hang_leave_less_and_less() {
        let mut lines = Lines::new(64);
        let mut had = Vec::new();
        for storage in 0..4 {
            for lane in 0..100 {
                for job in 0..10 {
                    lines.push(1 + 100 * storage + lane, on(storage), job);
                }
            }
            had.push(take_all(&mut lines).values().sum::<usize>());
        }
        assert_eq!(had, [48, 12, 3, 1]);
    }

    /// What ends gives its place back to its storage, whoever of it comes next; and nothing is kept of what
    /// has no worker.
    #[test]
    fn a_storage_has_back_what_has_ended() {
        let mut lines = Lines::new(4);
        for job in 0..4 {
            lines.push(1, on(7), job);
            lines.push(2, on(7), job);
        }
        assert_eq!(take_all(&mut lines), HashMap::from([(1, 1), (2, 1)]));
        lines.ended(2);
        let next: Vec<_> = std::iter::from_fn(|| lines.take()).collect();
        assert_eq!(next, [(1, 1), (2, 1)]);
        for lane in [1, 1, 2] {
            lines.ended(lane);
        }
        lines.take_all_back();
        assert!(lines.storages.is_empty() && lines.lines.is_empty());
    }

    #[test]
    fn a_cap_of_its_own_counts_if_it_is_less() {
        let mut lines = Lines::new(8);
        for job in 0..10 {
            lines.push(1, at_most(2), job);
            lines.push(2, at_most(100), job);
        }
        assert_eq!(take_all(&mut lines), HashMap::from([(1, 2), (2, 3)]));
    }

    #[test]
    fn the_smallest_pools_serve_everybody() {
        for workers in [1, 2] {
            let mut lines = Lines::new(workers);
            for lane in 1..=3 {
                lines.push(lane, Share::default(), 0);
                lines.push(lane, Share::default(), 1);
            }
            for _ in 0..6 {
                let (lane, _) = lines.take().unwrap();
                lines.ended(lane);
            }
            assert!(lines.take().is_none() && lines.waiting() == 0);
        }
    }

    #[test]
    fn what_is_taken_back_is_gone_and_the_order_stays() {
        let mut lines = Lines::new(2);
        for job in 0..4 {
            lines.push(1, Share::default(), job);
        }
        assert_eq!(lines.take(), Some((1, 0)));
        assert_eq!(lines.take_back(1, |&job| job == 0), None);
        assert_eq!(lines.take_back(2, |_| true), None);
        assert_eq!(lines.take_back(1, |&job| job == 2), Some(2));
        assert_eq!(lines.waiting(), 2);
        lines.ended(1);
        assert_eq!(lines.take(), Some((1, 1)));
        assert_eq!(lines.take_back(1, |&job| job == 3), Some(3));
        lines.ended(1);
        assert!(lines.lines.is_empty() && lines.turns.is_empty());
        lines.push(1, Share::default(), 5);
        lines.push(2, Share::default(), 6);
        assert_eq!(lines.take(), Some((1, 5)));
        assert_eq!(lines.take_all_back(), [6]);
        assert_eq!((lines.waiting(), lines.busy), (0, 1));
        lines.ended(1);
        assert!(lines.lines.is_empty());
    }
}
