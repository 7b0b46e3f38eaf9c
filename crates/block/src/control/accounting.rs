//! Accounting: the counters of `query-blockstats`, and what goes beyond them.
//!
//! Each part of a backend counts on its own iothread, without locked instructions: one writer, any
//! number of readers. A request counts once, when it ends for its client; attempts and holds are
//! counted apart. Histograms and intervals ([`observed`]) are behind a lock, which is not looked at as long as
//! nobody wants them.

pub mod class;
pub mod histogram;
pub mod interval;
pub mod observed;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::words::request::Operation;
use crate::words::stats::BackendStats;

use self::class::Class;
use self::histogram::{Boundaries, Histogram};
use self::observed::{HistogramKind, Histograms, IntervalStats, Observed};

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

/// What of a request that has not succeeded is counted beside its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// All: its time, and that it was an access.
    All,
    /// That it was an access.
    Access,
    /// Its time, in histograms alone.
    Histogram,
    /// Nothing.
    Nothing,
}

/// What of it is counted is a matter of taste, as in QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountingOptions {
    /// Failed requests count in times and as accesses.
    pub failed: bool,
    /// Refused requests count as accesses.
    pub invalid: bool,
    /// Over which intervals there are averages, in seconds.
    pub intervals: Arc<[u32]>,
}

impl Default for AccountingOptions {
    fn default() -> Self {
        Self {
            failed: true,
            invalid: true,
            intervals: Arc::default(),
        }
    }
}

/// What is counted beside the counters, and how.
#[derive(Clone, Debug)]
pub struct Accounted {
    /// As it was told.
    pub options: AccountingOptions,
    /// Histograms, in the order of [`HistogramKind`].
    pub histograms: Histograms,
    /// Averages over intervals, in the order of the options.
    pub intervals: Vec<IntervalStats>,
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
    pub fn add(&self, op: Operation) {
        let count = &self.counts[Class::of(op) as usize];
        count.set(count.get() + 1);
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
    /// Failed requests count in full.
    count_failed: bool,
    /// Refused requests count as accesses.
    count_invalid: bool,
    /// There is something in `observed`.
    observes: AtomicBool,
    observed: Mutex<Observed>,
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl LocalStats {
    /// All zero, from `epoch` on; it observes what `observed` wants.
    fn new(epoch: Instant, options: &AccountingOptions, observed: Observed) -> Self {
        Self {
            classes: Default::default(),
            attempts: Counter::default(),
            holds: Counter::default(),
            hold_time_ns: Counter::default(),
            dropped: Counter::default(),
            lost: Counter::default(),
            last_access: Counter::default(),
            epoch,
            count_failed: options.failed,
            count_invalid: options.invalid,
            observes: AtomicBool::new(observed.is_wanted()),
            observed: Mutex::new(observed),
        }
    }

    fn moment(&self, now: Instant) -> u64 {
        nanoseconds(now.saturating_duration_since(self.epoch))
    }

    /// A request ended just now.
    pub fn accessed(&self, now: Instant) {
        let last = self.moment(now).max(1);
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
    pub fn done(&self, op: Operation, bytes: u64) {
        let class = self.class(op);
        class.bytes.add(bytes);
        class.operations.add(1);
    }

    /// A request ended with an error from storage.
    pub fn failed(&self, op: Operation) -> Counts {
        self.class(op).failed.add(1);
        match self.count_failed {
            true => Counts::All,
            false => Counts::Histogram,
        }
    }

    /// A request was refused because it made no sense.
    pub fn invalid(&self, op: Operation) -> Counts {
        self.class(op).invalid.add(1);
        match self.count_invalid {
            true => Counts::Access,
            false => Counts::Nothing,
        }
    }

    /// A request has ended `now`, which began at `started`.
    pub fn took(&self, op: Operation, started: Instant, now: Instant) {
        let time = nanoseconds(now.saturating_duration_since(started));
        self.class(op).total_time_ns.add(time);
        self.accessed(now);
        if self.observes() {
            self.observe(Class::of(op), time, 1, now);
        }
    }

    /// As [`Self::took`], where only histograms count it.
    pub fn took_unaccounted(&self, op: Operation, started: Instant, now: Instant) {
        if self.observes() {
            let time = nanoseconds(now.saturating_duration_since(started));
            self.observed.lock().took(Class::of(op), time, 1);
        }
    }

    /// The requests of `round`, which is empty then, have all ended `now`.
    pub fn settle(&self, round: &Round, now: Instant) {
        let Some(began) = round.began.take() else {
            return;
        };
        let each = nanoseconds(now.saturating_duration_since(began));
        for (class, count) in Class::ALL.into_iter().zip(&round.counts) {
            let count = count.take();
            if count > 0 {
                let total = each.saturating_mul(count);
                self.classes[class as usize].total_time_ns.add(total);
                if self.observes() {
                    self.observe(class, each, count, now);
                }
            }
        }
        self.accessed(now);
    }

    /// A plain load: what is wanted from now on need not begin with this very request.
    fn observes(&self) -> bool {
        self.observes.load(Ordering::Relaxed)
    }

    #[cold]
    fn observe(&self, class: Class, time: u64, count: u64, now: Instant) {
        let mut observed = self.observed.lock();
        observed.took(class, time, count);
        observed.ended(class, time, count, self.moment(now));
    }

    /// No memory is asked for, nor given back, while requests wait for the lock.
    fn set_histogram(&self, kind: HistogramKind, boundaries: Option<&Boundaries>) {
        let histogram = boundaries.cloned().map(Histogram::new);
        let mut observed = self.observed.lock();
        let former = observed.set_histogram(kind, histogram);
        self.observes.store(observed.is_wanted(), Ordering::Relaxed);
        drop(observed);
        drop(former);
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
    options: AccountingOptions,
    /// What is wanted, and what parts that have ended have observed.
    observed: Observed,
    live: Vec<Arc<LocalStats>>,
}

/// The accounting of a backend: its parts register here, and what they have counted stays when they end.
#[derive(Debug)]
pub struct Accounting {
    epoch: Instant,
    events_merged: AtomicU64,
    parts: Mutex<Parts>,
}

impl Default for Accounting {
    fn default() -> Self {
        Self::starting_from(BackendStats::default())
    }
}

impl Accounting {
    /// Goes on where a former daemon was. The idle time begins afresh, and what is observed, too.
    pub fn starting_from(before: BackendStats) -> Self {
        Self {
            epoch: Instant::now(),
            events_merged: AtomicU64::new(0),
            parts: Mutex::new(Parts {
                ended: before,
                ..Parts::default()
            }),
        }
    }

    /// Parts that register from now on count as `options` say.
    pub fn configure(&self, options: AccountingOptions) {
        let mut parts = self.parts.lock();
        parts.observed = Observed::with_intervals(&options.intervals);
        parts.options = options;
    }

    /// Counters for a new part.
    pub fn register(&self) -> Arc<LocalStats> {
        let mut parts = self.parts.lock();
        let observed = parts.observed.emptied();
        let stats = LocalStats::new(self.epoch, &parts.options, observed);
        let stats = Arc::new(stats);
        parts.live.push(Arc::clone(&stats));
        stats
    }

    /// The part that counts here has ended: what it counts from now on is lost.
    pub fn retire(&self, stats: &Arc<LocalStats>) {
        let now = nanoseconds(self.epoch.elapsed());
        let mut parts = self.parts.lock();
        let before = parts.live.len();
        parts.live.retain(|live| !Arc::ptr_eq(live, stats));
        if parts.live.len() < before {
            stats.add_to(&mut parts.ended);
            parts.last_access = parts.last_access.max(stats.last_access());
            parts.observed.merge(&stats.observed.lock(), now);
        }
    }

    /// From now on there are these histograms, empty ones, or none.
    pub fn set_histograms(&self, changes: &[(HistogramKind, Option<Boundaries>)]) {
        let mut parts = self.parts.lock();
        for (kind, boundaries) in changes {
            let histogram = boundaries.clone().map(Histogram::new);
            parts.observed.set_histogram(*kind, histogram);
            for local in &parts.live {
                local.set_histogram(*kind, boundaries.as_ref());
            }
        }
    }

    /// What is observed, of all parts.
    pub fn accounted(&self) -> Accounted {
        let now = nanoseconds(self.epoch.elapsed());
        let parts = self.parts.lock();
        let mut observed = parts.observed.clone();
        for local in &parts.live {
            observed.merge(&local.observed.lock(), now);
        }
        let options = parts.options.clone();
        drop(parts);
        let (histograms, intervals) = observed.read(now);
        Accounted {
            options,
            histograms,
            intervals,
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
mod tests;
