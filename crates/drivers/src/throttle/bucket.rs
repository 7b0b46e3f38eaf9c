//! The budget of a throttle group, as leaky buckets. Pure: the time is told.
//!
//! What is done fills a bucket, and time empties it, at the average rate. A request may begin while the bucket
//! holds no more than it is large: so the last one may fill it to more than that, and its successors wait for
//! what was too much to leak out. The size of a bucket is thus what may be done at once after a rest: a tenth of
//! a second's worth of the average rate; or, where bursts are allowed, `max` for `max_length` seconds. So that
//! a burst that lasts longer than a second is no faster than `max`, a second bucket leaks at that rate, and is a tenth
//! of a second large.

use std::time::{Duration, Instant};

use super::limits::{Rate, ThrottleLimits};

/// What of a second's worth may be done at once.
const AT_ONCE: f64 = 0.1;

/// Which limits count for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read.
    Read,
    /// Anything that is written: also zeroes and discards.
    Write,
}

/// One rate and what has been done. Units are bytes or operations.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    average: f64,
    max: f64,
    /// Whether bursts last longer than a second.
    long: bool,
    size: f64,
    level: f64,
    burst_level: f64,
}

impl Bucket {
    fn new(rate: &Rate) -> Self {
        let (average, max) = (as_float(rate.average), as_float(rate.max));
        Self {
            average,
            max,
            long: rate.max_length > 1,
            size: match rate.max {
                0 => average * AT_ONCE,
                _ => max * f64::from(rate.max_length),
            },
            level: 0.0,
            burst_level: 0.0,
        }
    }

    fn leak(&mut self, seconds: f64) {
        self.level = (self.level - self.average * seconds).max(0.0);
        self.burst_level = (self.burst_level - self.max * seconds).max(0.0);
    }

    /// In how many seconds the next request may begin.
    fn wait(&self) -> f64 {
        if self.average == 0.0 {
            return 0.0;
        }
        let wait = (self.level - self.size) / self.average;
        match self.long {
            false => wait,
            true => wait.max((self.burst_level - self.max * AT_ONCE) / self.max),
        }
    }

    fn fill(&mut self, units: f64) {
        self.level = (self.level + units).max(0.0);
        if self.long {
            self.burst_level = (self.burst_level + units).max(0.0);
        }
    }
}

/// What the requests of a group may do, and have done.
#[derive(Clone, Debug)]
pub struct Budget {
    limits: ThrottleLimits,
    /// As in [`ThrottleLimits::rates`].
    buckets: [Bucket; 6],
    /// As of when the buckets are.
    now: Instant,
}

impl Budget {
    /// Nothing was done yet.
    pub fn new(limits: ThrottleLimits, now: Instant) -> Self {
        Self {
            buckets: limits.rates().each_ref().map(Bucket::new),
            limits,
            now,
        }
    }

    /// What is allowed.
    pub fn limits(&self) -> &ThrottleLimits {
        &self.limits
    }

    /// Whether there is any limit for requests of this kind.
    pub fn is_limited(&self, kind: Kind) -> bool {
        self.of(kind).any(|bucket| bucket.average > 0.0)
    }

    /// How long the next request of this kind has to wait; none: it may begin.
    pub fn wait(&mut self, kind: Kind, now: Instant) -> Option<Duration> {
        let seconds = now.saturating_duration_since(self.now).as_secs_f64();
        self.now = self.now.max(now);
        self.buckets
            .iter_mut()
            .for_each(|bucket| bucket.leak(seconds));
        let wait = self.of(kind).map(Bucket::wait).fold(0.0, f64::max);
        // Never too early by what a number of seconds cannot say; and a clock counts nanoseconds.
        (wait > 0.0).then(|| {
            Duration::try_from_secs_f64(wait)
                .unwrap_or(Duration::MAX)
                .saturating_add(Duration::from_nanos(1))
        })
    }

    /// A request begins.
    pub fn take(&mut self, kind: Kind, bytes: u64) {
        self.fill(kind, bytes, 1.0);
    }

    /// A request that had begun was not done.
    pub fn give_back(&mut self, kind: Kind, bytes: u64) {
        self.fill(kind, bytes, -1.0);
    }

    fn fill(&mut self, kind: Kind, bytes: u64, sign: f64) {
        let operations = match self.limits.iops_size {
            0 => 1.0,
            size => (as_float(bytes) / as_float(size)).max(1.0),
        };
        let [total, own] = places(kind);
        for place in [total, own] {
            self.buckets[place].fill(sign * as_float(bytes));
            self.buckets[place + OPERATIONS].fill(sign * operations);
        }
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &Bucket> {
        let [total, own] = places(kind);
        [total, own, total + OPERATIONS, own + OPERATIONS]
            .into_iter()
            .map(|place| &self.buckets[place])
    }
}

/// Behind the buckets of bytes.
const OPERATIONS: usize = 3;

/// The buckets of bytes that count.
fn places(kind: Kind) -> [usize; 2] {
    match kind {
        Kind::Read => [0, 1],
        Kind::Write => [0, 2],
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "rates are below 2^53, and of a request that long nobody misses a byte"
)]
fn as_float(units: u64) -> f64 {
    units as f64
}

#[cfg(test)]
mod tests;
