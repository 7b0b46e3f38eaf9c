//! The pending timers of one iothread: a binary heap whose entries can be removed in place.

use std::{task::Waker, time::Instant};

use slab::Slab;

#[derive(Default)]
pub(crate) struct Timers {
    /// Keys into `entries`, earliest first.
    heap: Vec<usize>,
    entries: Slab<Entry>,
    next_seq: u64,
}

struct Entry {
    deadline: Instant,
    /// Timers with the same deadline fire in the order they were set.
    seq: u64,
    /// Where the heap has this entry; `FIRED` once it left the heap.
    position: usize,
    waker: Option<Waker>,
}

const FIRED: usize = usize::MAX;

impl Timers {
    pub(crate) fn insert(&mut self, deadline: Instant, waker: Waker) -> usize {
        let position = self.heap.len();
        let key = self.entries.insert(Entry {
            deadline,
            seq: self.next_seq,
            position,
            waker: Some(waker),
        });
        self.next_seq = self.next_seq.wrapping_add(1);
        self.heap.push(key);
        self.sift_up(position);
        key
    }

    /// Whether the timer has fired; if not, `waker` is stored and the old one comes back, to be
    /// dropped outside any borrow.
    pub(crate) fn poll(&mut self, key: usize, waker: &Waker) -> (bool, Option<Waker>) {
        let entry = &mut self.entries[key];
        match &entry.waker {
            _ if entry.position == FIRED => (true, None),
            Some(stored) if stored.will_wake(waker) => (false, None),
            _ => (false, entry.waker.replace(waker.clone())),
        }
    }

    /// Forgets a timer, fired or not. Every key is removed once.
    pub(crate) fn remove(&mut self, key: usize) -> Option<Waker> {
        let position = self.entries[key].position;
        if position != FIRED {
            self.unlink(position);
        }
        self.entries.remove(key).waker
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.heap.first().map(|&key| self.entries[key].deadline)
    }

    /// Fires one timer that is due at `now`.
    pub(crate) fn fire(&mut self, now: Instant) -> Option<Waker> {
        let &key = self.heap.first()?;
        if self.entries[key].deadline > now {
            return None;
        }
        self.unlink(0);
        let entry = &mut self.entries[key];
        entry.position = FIRED;
        entry.waker.take()
    }

    /// Takes an entry out of the heap.
    fn unlink(&mut self, position: usize) {
        self.heap.swap_remove(position);
        if let Some(&moved) = self.heap.get(position) {
            self.entries[moved].position = position;
            let position = self.sift_up(position);
            self.sift_down(position);
        }
    }

    fn before(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.entries[self.heap[a]], &self.entries[self.heap[b]]);
        (a.deadline, a.seq) < (b.deadline, b.seq)
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.entries[self.heap[a]].position = a;
        self.entries[self.heap[b]].position = b;
    }

    fn sift_up(&mut self, mut position: usize) -> usize {
        while position > 0 {
            let parent = (position - 1) / 2;
            if !self.before(position, parent) {
                break;
            }
            self.swap(position, parent);
            position = parent;
        }
        position
    }

    fn sift_down(&mut self, mut position: usize) {
        loop {
            let left = 2 * position + 1;
            if left >= self.heap.len() {
                return;
            }
            let right = left + 1;
            let child = if right < self.heap.len() && self.before(right, left) {
                right
            } else {
                left
            };
            if !self.before(child, position) {
                return;
            }
            self.swap(child, position);
            position = child;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;

    /// Random inserts, removals and expiries against a sorted map.
    #[test]
    fn agrees_with_a_sorted_map() {
        let start = Instant::now();
        let mut timers = Timers::default();
        let mut model = BTreeMap::new();
        let mut random: u64 = 1;
        for step in 0..20_000u64 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let choice = random >> 33;
            match choice % 4 {
                0 | 1 => {
                    let deadline = start + Duration::from_millis(choice / 4 % 50);
                    let key = timers.insert(deadline, Waker::noop().clone());
                    model.insert((deadline, step), key);
                }
                2 => {
                    let count = u64::try_from(model.len()).unwrap();
                    let Some(index) = (choice / 4).checked_rem(count) else {
                        continue;
                    };
                    let index = usize::try_from(index).unwrap();
                    let (&at, &key) = model.iter().nth(index).unwrap();
                    model.remove(&at);
                    assert!(timers.remove(key).is_some());
                }
                _ => {
                    assert_eq!(
                        timers.next_deadline(),
                        model.keys().next().map(|&(deadline, _)| deadline)
                    );
                    let Some((&at, &key)) = model.iter().next() else {
                        continue;
                    };
                    let early = at.0.checked_sub(Duration::from_nanos(1)).unwrap();
                    assert!(timers.fire(early).is_none());
                    assert!(timers.fire(at.0).is_some());
                    model.remove(&at);
                    assert!(timers.poll(key, Waker::noop()).0, "the earliest fired");
                    assert!(timers.remove(key).is_none());
                }
            }
        }
        assert_eq!(timers.heap.len(), model.len());
        assert_eq!(timers.entries.len(), model.len());
    }
}
