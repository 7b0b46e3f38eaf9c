//! Locks on byte ranges, and the order between overlapping writes of one node that is made of them;
//! across iothreads.
//!
//! A write that does not fit the storage's blocks reads the blocks around it and writes them back.
//! Whatever another request writes to these blocks in between would be lost. So such a write is
//! *exclusive* on its blocks, all others are *shared*.
//!
//! Most nodes never see an exclusive one. Until the first, shared requests only count themselves,
//! in a cache line of their own thread.

use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::driver::lines::{self, LINES};

/// How a request stands to others that overlap it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only exclusive ones are kept away.
    Shared,
    /// All are kept away.
    Exclusive,
}

/// Locks on byte ranges, first come first served, for tasks on any threads.
#[derive(Debug, Default)]
pub struct RangeLock {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Who holds or waits, in the order of arrival.
    entries: Vec<Entry>,
    next_id: u64,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    range: Range<u64>,
    mode: Mode,
    /// Whoever waits.
    waker: Option<Waker>,
}

impl Entry {
    fn conflicts(&self, other: &Self) -> bool {
        (self.mode == Mode::Exclusive || other.mode == Mode::Exclusive)
            && self.range.start < other.range.end
            && other.range.start < self.range.end
    }
}

impl Table {
    /// Whether the entry at `index` has nobody to wait for.
    fn is_free(&self, index: usize) -> bool {
        let (before, rest) = self.entries.split_at(index);
        !before.iter().any(|entry| entry.conflicts(&rest[0]))
    }
}

impl RangeLock {
    /// Waits until the range is free of all who came before and conflict.
    pub fn lock(&self, range: Range<u64>, mode: Mode) -> Locking<'_> {
        let mut table = self.table();
        let id = table.next_id;
        table.next_id += 1;
        table.entries.push(Entry {
            id,
            range,
            mode,
            waker: None,
        });
        Locking {
            held: Some(Held { lock: self, id }),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is consistent wherever a change might stop.
        self.table.lock()
    }
}

/// The future of [`RangeLock::lock`]. Its place in the queue counts from its creation; dropping it
/// gives the place up.
#[derive(Debug)]
pub struct Locking<'a> {
    /// None once it has been handed out.
    held: Option<Held<'a>>,
}

impl<'a> Future for Locking<'a> {
    type Output = Held<'a>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Held<'a>> {
        let held = self.held.as_ref().expect("polled after it was ready");
        let mut table = held.lock.table();
        let index = table
            .entries
            .iter()
            .position(|entry| entry.id == held.id)
            .expect("an entry stays until its holder is dropped");
        if !table.is_free(index) {
            table.entries[index].waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        table.entries[index].waker = None;
        drop(table);
        Poll::Ready(self.held.take().expect("checked above"))
    }
}

/// A range that is held; dropping it lets the next ones go on.
#[derive(Debug)]
pub struct Held<'a> {
    lock: &'a RangeLock,
    id: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut table = self.lock.table();
        table.entries.retain(|entry| entry.id != self.id);
        let wakers: Vec<Waker> = (0..table.entries.len())
            .filter(|&index| table.entries[index].waker.is_some() && table.is_free(index))
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|index| table.entries[index].waker.take())
            .collect();
        drop(table);
        for waker in wakers {
            waker.wake();
        }
    }
}

/// A counter with a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct OwnLine(AtomicUsize);

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Serialiser {
    /// Shared requests under way that are not in `ranges`, by thread.
    uncounted: [OwnLine; LINES],
    /// Whether there has been an exclusive request: from then on all are in `ranges`.
    engaged: AtomicBool,
    ranges: RangeLock,
}

/// A request under way; dropping it ends it.
#[derive(Debug)]
pub enum Entered<'a> {
    /// Counted only.
    Counted {
        /// Held for its drop.
        _count: Counted<'a>,
    },
    /// In the table.
    Held {
        /// Held for its drop.
        _range: Held<'a>,
    },
}

/// See [`Entered`].
#[derive(Debug)]
pub struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Serialiser {
    /// Enters a shared request without waiting, if there has never been an exclusive one.
    pub fn try_enter_shared(&self) -> Option<Entered<'_>> {
        if self.engaged.load(Ordering::Relaxed) {
            return None;
        }
        let counted = Counted(&self.uncounted[lines::of_this_thread()].0);
        counted.0.fetch_add(1, Ordering::SeqCst);
        // Either this load sees the flag, or whoever set it sees the count.
        if self.engaged.load(Ordering::SeqCst) {
            return None;
        }
        Some(Entered::Counted { _count: counted })
    }

    /// Enters a request, waiting for those before it that it must not overlap.
    pub async fn enter(&self, range: Range<u64>, mode: Mode) -> Entered<'_> {
        if mode == Mode::Shared
            && let Some(entered) = self.try_enter_shared()
        {
            return entered;
        }
        let held = self.ranges.lock(range, mode).await;
        if mode == Mode::Exclusive {
            self.engage();
            // Once in the life of a node there may be somebody to wait for here; each is a request
            // at the storage, so it ends.
            while self.has_counted() {
                iothread::time::sleep(Duration::from_micros(100)).await;
            }
        }
        Entered::Held { _range: held }
    }

    /// From now on nobody is only counted.
    fn engage(&self) {
        self.engaged.store(true, Ordering::SeqCst);
    }

    /// Whether somebody is under way that is only counted.
    fn has_counted(&self) -> bool {
        let mut lines = self.uncounted.iter();
        lines.any(|line| line.0.load(Ordering::SeqCst) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::UnsafeCell;
    use std::pin::pin;
    use std::thread;

    fn try_now<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn conflicts_wait_in_order_and_others_pass() {
        let lock = RangeLock::default();
        let first = try_now(pin!(lock.lock(0..4096, Mode::Shared))).expect("nobody there");
        let also = try_now(pin!(lock.lock(0..4096, Mode::Shared))).expect("shared");
        let mut exclusive = pin!(lock.lock(4095..5000, Mode::Exclusive));
        assert!(try_now(exclusive.as_mut()).is_none());
        let mut later = pin!(lock.lock(4999..6000, Mode::Shared));
        assert!(
            try_now(later.as_mut()).is_none(),
            "must not overtake the exclusive one for ever"
        );
        let elsewhere = try_now(pin!(lock.lock(6000..7000, Mode::Exclusive))).expect("free");
        drop(first);
        assert!(try_now(exclusive.as_mut()).is_none());
        drop(also);
        let exclusive = try_now(exclusive.as_mut()).expect("free now");
        assert!(try_now(later.as_mut()).is_none());
        drop((exclusive, elsewhere));
        assert!(try_now(later.as_mut()).is_some());
        assert!(lock.table().entries.is_empty());
    }

    #[test]
    fn a_waiter_that_gives_up_wakes_those_behind_it() {
        let lock = RangeLock::default();
        let held = try_now(pin!(lock.lock(0..10, Mode::Shared))).expect("free");
        let mut waiting = Box::pin(lock.lock(0..10, Mode::Exclusive));
        assert!(try_now(waiting.as_mut()).is_none());
        let mut behind = pin!(lock.lock(0..10, Mode::Shared));
        assert!(try_now(behind.as_mut()).is_none());
        drop(waiting);
        assert!(try_now(behind.as_mut()).is_some());
        drop(held);
    }

    #[test]
    fn counted_until_the_first_exclusive() {
        let serialiser = Serialiser::default();
        let counted = try_now(pin!(serialiser.enter(0..512, Mode::Shared))).expect("free");
        assert!(matches!(counted, Entered::Counted { .. }));
        drop(counted);
        let exclusive = try_now(pin!(serialiser.enter(0..512, Mode::Exclusive))).expect("free");
        assert!(serialiser.try_enter_shared().is_none());
        let mut overlapping = pin!(serialiser.enter(0..512, Mode::Shared));
        assert!(try_now(overlapping.as_mut()).is_none());
        drop(exclusive);
        assert!(try_now(overlapping.as_mut()).is_some());
        assert!(!serialiser.has_counted());
    }

    const CELLS: usize = 4;

    /// Memory that nothing but a lock keeps from being read and written at once. Miri sees if it does not.
    #[derive(Default)]
    struct Plain([UnsafeCell<u64>; CELLS]);

    // SAFETY: the locks under test see to it that it is never written to by one thread while another uses it.
    unsafe impl Sync for Plain {}

    impl Plain {
        fn sum(&self, range: Range<usize>) -> u64 {
            let cells = self.0[range].iter();
            // SAFETY: whoever calls this has a shared lock on the range at least.
            cells.map(|cell| unsafe { *cell.get() }).sum()
        }

        fn add(&self, range: Range<usize>) {
            for cell in &self.0[range] {
                // SAFETY: whoever calls this is alone in the range.
                unsafe { *cell.get() += 1 };
            }
        }
    }

    #[test]
    fn threads_keep_out_of_each_others_ranges() {
        const STEPS: usize = if cfg!(miri) { 8 } else { 3000 };
        let (lock, plain) = (RangeLock::default(), Plain::default());
        let run = &|number: usize| {
            let mut added = 0;
            for step in 0..STEPS {
                let start = (number + step) % CELLS;
                let range = start..(start + 1 + step % 3).min(CELLS);
                let bytes = range.start as u64..range.end as u64;
                let mode = match (number + step / 2) % 2 {
                    0 => Mode::Shared,
                    _ => Mode::Exclusive,
                };
                let _held = pollster::block_on(lock.lock(bytes, mode));
                if mode == Mode::Exclusive {
                    added += range.len() as u64;
                    plain.add(range);
                } else {
                    assert!(plain.sum(range) <= (3 * STEPS * CELLS) as u64);
                }
            }
            added
        };
        let added: u64 = thread::scope(|scope| {
            let threads = [0, 1, 2].map(|number| scope.spawn(move || run(number)));
            threads
                .map(|thread| thread.join().expect("it ends"))
                .iter()
                .sum()
        });
        assert_eq!(plain.sum(0..CELLS), added);
        assert!(lock.table().entries.is_empty());
    }

    /// Either a shared request sees that there is an exclusive one, or that one waits for it.
    #[test]
    fn the_first_exclusive_one_overlooks_nobody() {
        const ROUNDS: usize = if cfg!(miri) { 2 } else { 300 };
        for _ in 0..ROUNDS {
            let (serialiser, plain) = (Serialiser::default(), Plain::default());
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        while let Some(_entered) = serialiser.try_enter_shared() {
                            assert_eq!(plain.sum(0..CELLS), 0, "it must be alone");
                            thread::yield_now();
                        }
                    });
                }
                scope.spawn(|| {
                    thread::yield_now();
                    serialiser.engage();
                    while serialiser.has_counted() {
                        thread::yield_now();
                    }
                    plain.add(0..CELLS);
                });
            });
            assert_eq!(plain.sum(0..CELLS), CELLS as u64);
        }
    }
}
