//! Which job a worker takes next: one line per lane, and no lane takes all workers. Pure.

use std::collections::{HashMap, VecDeque};

use crate::lane::LaneId;

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
}

#[derive(Debug)]
struct Line<J> {
    /// Less than all lanes may have.
    cap: Option<usize>,
    running: usize,
    waiting: VecDeque<J>,
}

impl<J> Line<J> {
    /// Whether it may have one more of the workers that are free. Its first one is always granted. After
    /// that it leaves to all others as many as it has: each lane that hangs takes half of what those
    /// before it have left, and something is left for long.
    ///
    /// `most`: what all lanes may have.
    fn may_start(&self, free: usize, most: usize) -> bool {
        let cap = self.cap.map_or(most, |cap| cap.clamp(1, most));
        self.running < cap && (self.running == 0 || self.running < free)
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
        }
    }

    /// The most workers that one lane gets.
    fn cap(&self) -> usize {
        (self.workers / 2).max(1)
    }

    /// A job comes to the end of its lane's line. Less than the `cap` that all lanes have counts.
    pub(super) fn push(&mut self, lane: LaneId, cap: Option<usize>, job: J) {
        let line = self.lines.entry(lane).or_insert_with(|| Line {
            cap,
            running: 0,
            waiting: VecDeque::new(),
        });
        line.cap = cap;
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

    fn free(&self) -> usize {
        self.workers.saturating_sub(self.busy)
    }

    /// Whether a worker would find a job.
    pub(super) fn may_start(&self) -> bool {
        let (free, most) = (self.free(), self.cap());
        let mut lanes = self.turns.iter();
        free > 0 && lanes.any(|lane| self.lines[lane].may_start(free, most))
    }

    /// How many jobs wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// A worker takes a job: lanes take turns.
    pub(super) fn take(&mut self) -> Option<(LaneId, J)> {
        let (free, most) = (self.free(), self.cap());
        if free == 0 {
            return None;
        }
        let at = (self.turns.iter()).position(|lane| self.lines[lane].may_start(free, most))?;
        let lane = self.turns.remove(at)?;
        let line = self.lines.get_mut(&lane)?;
        let job = line.waiting.pop_front()?;
        line.running += 1;
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
            self.forget_if_unused(lane);
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

    #[test]
    fn a_lane_is_served_in_order() {
        let mut lines = Lines::new(8);
        for job in 0..10 {
            lines.push(1, None, job);
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
            lines.push(1, None, job);
        }
        lines.push(2, None, 10);
        lines.push(3, None, 20);
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
                lines.push(lane, None, job);
            }
            let taken = take_all(&mut lines);
            assert_eq!(taken.len(), 1, "{taken:?}");
            had.push(taken[&lane]);
        }
        assert_eq!(had, [32, 16, 8, 4, 2, 1, 1]);
        assert_eq!(lines.free(), 0);
        lines.push(8, None, 0);
        assert_eq!((lines.may_start(), lines.take()), (false, None));
        // An end of one of them frees a worker, and it is the one that has none that is served.
        lines.ended(1);
        assert_eq!(lines.take(), Some((8, 0)));
    }

    #[test]
    fn a_cap_of_its_own_counts_if_it_is_less() {
        let mut lines = Lines::new(8);
        for job in 0..10 {
            lines.push(1, Some(2), job);
            lines.push(2, Some(100), job);
        }
        assert_eq!(take_all(&mut lines), HashMap::from([(1, 2), (2, 3)]));
    }

    #[test]
    fn the_smallest_pools_serve_everybody() {
        for workers in [1, 2] {
            let mut lines = Lines::new(workers);
            for lane in 1..=3 {
                lines.push(lane, None, 0);
                lines.push(lane, None, 1);
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
            lines.push(1, None, job);
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
        lines.push(1, None, 5);
        lines.push(2, None, 6);
        assert_eq!(lines.take(), Some((1, 5)));
        assert_eq!(lines.take_all_back(), [6]);
        assert_eq!((lines.waiting(), lines.busy), (0, 1));
        lines.ended(1);
        assert!(lines.lines.is_empty());
    }
}
