//! Accounting: the counters of `query-blockstats`, and what goes beyond them.
//!
//! Each part of a backend counts on its own iothread, without locked instructions: one writer, any
//! number of readers. A request counts once, when it ends for its client; attempts and holds are
//! counted apart.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::words::request::Operation;
use crate::words::stats::BackendStats;

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owning thread may.
    fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The accounting class of an operation, as QEMU has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Reads.
    Rd,
    /// Writes and write-zeroes.
    Wr,
    /// Flushes.
    Flush,
    /// Discards.
    Unmap,
}

impl Class {
    /// The class of an operation.
    pub const fn of(op: Operation) -> Self {
        match op {
            Operation::Read => Self::Rd,
            Operation::Write | Operation::WriteZeroes { .. } => Self::Wr,
            Operation::Flush => Self::Flush,
            Operation::Discard => Self::Unmap,
        }
    }
}

/// Whether the time that a request has taken is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// It was executed.
    Yes,
    /// It was refused.
    No,
}

/// Requests that began and ended in the same round: all have taken as long as the round.
#[derive(Debug, Default)]
pub struct Round {
    counts: [Cell<u64>; 4],
    /// When the first one began.
    began: Cell<Option<Instant>>,
}

impl Round {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.began.get().is_none()
    }

    /// The first one begins.
    pub fn begin(&self, now: Instant) {
        self.began.set(Some(now));
    }

    /// One more has ended.
    pub fn add(&self, op: Operation, timed: Timed) {
        if timed == Timed::Yes {
            let count = &self.counts[Class::of(op) as usize];
            count.set(count.get() + 1);
        }
    }
}

#[derive(Debug, Default)]
struct ClassCounters {
    bytes: Counter,
    operations: Counter,
    total_time_ns: Counter,
    failed: Counter,
    invalid: Counter,
}

/// What one part of a backend counts.
#[derive(Debug)]
pub struct LocalStats {
    classes: [ClassCounters; 4],
    attempts: Counter,
    holds: Counter,
    hold_time_ns: Counter,
    dropped: Counter,
    lost: Counter,
    /// Nanoseconds after `epoch`; 0: no access yet.
    last_access: Counter,
    epoch: Instant,
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl LocalStats {
    /// All zero.
    pub fn new() -> Self {
        Self {
            classes: Default::default(),
            attempts: Counter::default(),
            holds: Counter::default(),
            hold_time_ns: Counter::default(),
            dropped: Counter::default(),
            lost: Counter::default(),
            last_access: Counter::default(),
            epoch: Instant::now(),
        }
    }

    /// A request ended just now.
    pub fn accessed(&self, now: Instant) {
        let last = nanoseconds(now.saturating_duration_since(self.epoch)).max(1);
        self.last_access.0.store(last, Ordering::Relaxed);
    }

    /// A request was submitted to storage.
    pub fn attempt(&self) {
        self.attempts.add(1);
    }

    /// A request that was submitted has not come to storage: it was taken back before.
    pub fn not_attempted(&self) {
        self.attempts.add(1_u64.wrapping_neg());
    }

    /// A request ended with success (also one whose error was ignored).
    pub fn done(&self, op: Operation, bytes: u64) -> Timed {
        let class = self.class(op);
        class.bytes.add(bytes);
        class.operations.add(1);
        Timed::Yes
    }

    /// A request ended with an error from storage.
    pub fn failed(&self, op: Operation) -> Timed {
        self.class(op).failed.add(1);
        Timed::Yes
    }

    /// A request was refused because it made no sense.
    pub fn invalid(&self, op: Operation) -> Timed {
        self.class(op).invalid.add(1);
        Timed::No
    }

    /// How long a request has taken.
    pub fn took(&self, op: Operation, time: Duration) {
        self.class(op).total_time_ns.add(nanoseconds(time));
    }

    /// The requests of `round`, which is empty then, have all ended `now`.
    pub fn settle(&self, round: &Round, now: Instant) {
        let Some(began) = round.began.take() else {
            return;
        };
        let each = nanoseconds(now.saturating_duration_since(began));
        for (class, count) in self.classes.iter().zip(&round.counts) {
            let count = count.take();
            if count > 0 {
                class.total_time_ns.add(each.saturating_mul(count));
            }
        }
        self.accessed(now);
    }

    fn class(&self, op: Operation) -> &ClassCounters {
        &self.classes[Class::of(op) as usize]
    }

    /// A request is held (each time it fails counts).
    pub fn held(&self) {
        self.holds.add(1);
    }

    /// A request will never be completed: its device was reset, removed or given up.
    pub fn dropped(&self) {
        self.dropped.add(1);
    }

    /// A request was lost in the daemon itself.
    pub fn lost(&self) {
        self.lost.add(1);
    }

    /// A request is no longer held; it was for this long.
    pub fn unheld(&self, duration: Duration) {
        self.hold_time_ns.add(nanoseconds(duration));
    }
}

impl Default for LocalStats {
    fn default() -> Self {
        Self::new()
    }
}

impl LocalStats {
    fn add_to(&self, sum: &mut BackendStats) {
        let [rd, wr, flush, unmap] = &self.classes;
        for (of_class, class) in [
            (&mut sum.rd, rd),
            (&mut sum.wr, wr),
            (&mut sum.flush, flush),
            (&mut sum.unmap, unmap),
        ] {
            of_class.bytes = of_class.bytes.saturating_add(class.bytes.get());
            of_class.operations = of_class.operations.saturating_add(class.operations.get());
            of_class.total_time_ns = of_class
                .total_time_ns
                .saturating_add(class.total_time_ns.get());
            of_class.failed = of_class.failed.saturating_add(class.failed.get());
            of_class.invalid = of_class.invalid.saturating_add(class.invalid.get());
        }
        sum.attempts = sum.attempts.saturating_add(self.attempts.get());
        sum.holds = sum.holds.saturating_add(self.holds.get());
        sum.hold_time_ns = sum.hold_time_ns.saturating_add(self.hold_time_ns.get());
        sum.dropped = sum.dropped.saturating_add(self.dropped.get());
        sum.lost = sum.lost.saturating_add(self.lost.get());
    }

    fn last_access(&self) -> Option<Instant> {
        let last = self.last_access.get();
        (last > 0).then(|| self.epoch + Duration::from_nanos(last))
    }
}

/// What is counted: by parts that have ended, and by those that have not.
#[derive(Debug, Default)]
struct Parts {
    /// What has been counted for good. Its idle time says nothing.
    ended: BackendStats,
    last_access: Option<Instant>,
    live: Vec<Arc<LocalStats>>,
}

/// The accounting of a backend: its parts register here, and what they have counted stays when they end.
#[derive(Debug, Default)]
pub struct Accounting {
    events_merged: AtomicU64,
    parts: Mutex<Parts>,
}

impl Accounting {
    /// Goes on where a former daemon was. The idle time begins afresh.
    pub fn starting_from(before: BackendStats) -> Self {
        Self {
            events_merged: AtomicU64::new(0),
            parts: Mutex::new(Parts {
                ended: before,
                ..Parts::default()
            }),
        }
    }

    /// Counters for a new part.
    pub fn register(&self) -> Arc<LocalStats> {
        let stats = Arc::new(LocalStats::new());
        self.parts.lock().live.push(Arc::clone(&stats));
        stats
    }

    /// The part that counts here has ended: what it counts from now on is lost.
    pub fn retire(&self, stats: &Arc<LocalStats>) {
        let mut parts = self.parts.lock();
        let before = parts.live.len();
        parts.live.retain(|live| !Arc::ptr_eq(live, stats));
        if parts.live.len() < before {
            stats.add_to(&mut parts.ended);
            parts.last_access = parts.last_access.max(stats.last_access());
        }
    }

    /// How many parts count.
    pub fn live(&self) -> usize {
        self.parts.lock().live.len()
    }

    /// `number` events have become one with others.
    pub fn merged(&self, number: u64) {
        if number > 0 {
            self.events_merged.fetch_add(number, Ordering::Relaxed);
        }
    }

    /// The sum.
    pub fn read(&self) -> BackendStats {
        let parts = self.parts.lock();
        let (mut sum, mut last) = (parts.ended, parts.last_access);
        for local in &parts.live {
            local.add_to(&mut sum);
            last = last.max(local.last_access());
        }
        drop(parts);
        let merged = self.events_merged.load(Ordering::Relaxed);
        sum.events_merged = sum.events_merged.saturating_add(merged);
        sum.idle = last.map(|last| last.elapsed());
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_parts_and_classes() {
        let accounting = Accounting::default();
        assert_eq!(
            accounting.read().idle,
            None,
            "idle time is absent before the first access"
        );
        let (a, b) = (accounting.register(), accounting.register());
        let round = Round::default();
        let timed = a.done(Operation::Write, 4096);
        let start = Instant::now();
        round.begin(start);
        round.add(Operation::Write, timed);
        round.add(Operation::Write, timed);
        round.add(Operation::Read, a.invalid(Operation::Read));
        let end = start + Duration::from_nanos(250);
        a.settle(&round, end);
        assert!(round.is_empty());
        a.settle(&round, end);
        let unmap = Operation::WriteZeroes { unmap: true };
        assert_eq!(b.done(unmap, 512), Timed::Yes);
        b.took(unmap, Duration::from_nanos(500));
        assert_eq!(b.failed(Operation::Discard), Timed::Yes);
        b.accessed(Instant::now());
        a.held();
        a.unheld(Duration::from_nanos(70));
        let sum = accounting.read();
        assert_eq!(
            (sum.wr.bytes, sum.wr.operations, sum.wr.total_time_ns),
            (4608, 2, 1000),
            "write-zeroes count as writes"
        );
        assert_eq!((sum.unmap.failed, sum.unmap.operations), (1, 0));
        assert_eq!((sum.rd.invalid, sum.rd.operations), (1, 0));
        assert_eq!((sum.holds, sum.hold_time_ns), (1, 70));
        assert!(sum.idle.is_some());
    }

    #[test]
    fn what_has_ended_stays_counted_once() {
        let accounting = Accounting::default();
        let start = Instant::now();
        let (a, b) = (accounting.register(), accounting.register());
        a.done(Operation::Read, 512);
        a.held();
        let late = start + Duration::from_secs(3600);
        a.accessed(late);
        b.done(Operation::Read, 1024);
        b.accessed(start);
        for live in [1, 1, 0] {
            let before = accounting.read();
            // Twice: the second time nothing is left to count.
            accounting.retire(if live == 1 { &a } else { &b });
            assert_eq!(accounting.live(), live);
            let after = accounting.read();
            assert_eq!((before.rd, before.holds), (after.rd, after.holds));
            assert_eq!((after.rd.bytes, after.rd.operations), (1536, 2));
            assert_eq!(after.idle, Some(Duration::ZERO), "the last access of all");
        }
        accounting.register().attempt();
        assert_eq!((accounting.read().attempts, accounting.live()), (1, 1));
    }

    #[test]
    fn counting_goes_on_where_a_former_daemon_was() {
        let before = BackendStats {
            attempts: 7,
            holds: u64::MAX,
            idle: Some(Duration::ZERO),
            ..BackendStats::default()
        };
        let accounting = Accounting::starting_from(before);
        assert_eq!(accounting.read().idle, None);
        let local = accounting.register();
        local.attempt();
        local.held();
        let sum = accounting.read();
        assert_eq!((sum.attempts, sum.holds), (8, u64::MAX));
    }
}
