//! Averages over the last moments. Pure: the time is told, as nanoseconds since some moment that is the same
//! for all that are added up.
//!
//! As in QEMU there are two windows, which begin anew every 4/3 of the interval, half of that apart. Everything
//! goes into both; what is told is of the older one, which is between 2/3 and 4/3 of the interval old. Since
//! windows begin at fixed moments, those of several parts can be added up.

/// What ended in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    min: u64,
    max: u64,
    sum: u64,
    count: u64,
    /// When it begins anew.
    expires: u64,
}

impl Window {
    fn new(expires: u64) -> Self {
        Self {
            min: u64::MAX,
            max: 0,
            sum: 0,
            count: 0,
            expires,
        }
    }

    fn add(&mut self, value: u64, count: u64) {
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.sum = self.sum.saturating_add(value.saturating_mul(count));
        self.count = self.count.saturating_add(count);
    }

    fn merge(&mut self, other: &Self) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum = self.sum.saturating_add(other.sum);
        self.count = self.count.saturating_add(other.count);
    }
}

/// Latencies of the requests that ended in an interval; 0, if none did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latencies {
    /// The shortest, in nanoseconds.
    pub min_ns: u64,
    /// The longest, in nanoseconds.
    pub max_ns: u64,
    /// Their average, in nanoseconds.
    pub average_ns: u64,
    /// How many requests there were at once, on average.
    pub queue_depth: f64,
}

/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimedAverage {
    /// How long a window lasts, in nanoseconds; at least 1.
    period: u64,
    windows: [Window; 2],
}

impl TimedAverage {
    /// Of an interval of that many nanoseconds, from 0 on.
    pub fn new(interval_ns: u64) -> Self {
        let period = u64::try_from(u128::from(interval_ns) * 4 / 3).unwrap_or(u64::MAX);
        let period = period.max(1);
        Self {
            period,
            windows: [Window::new(period / 2), Window::new(period)],
        }
    }

    /// `count` requests have ended at `now`, and have taken `value` nanoseconds each.
    pub fn add(&mut self, value: u64, count: u64, now: u64) {
        self.renew(now);
        for window in &mut self.windows {
            window.add(value, count);
        }
    }

    /// Adds what another one of the same interval has counted.
    pub fn merge(&mut self, other: &Self, now: u64) {
        let mut other = other.clone();
        other.renew(now);
        self.renew(now);
        if other.period == self.period {
            for (window, more) in self.windows.iter_mut().zip(&other.windows) {
                window.merge(more);
            }
        }
    }

    /// What there is at `now`.
    pub fn read(&mut self, now: u64) -> Latencies {
        self.renew(now);
        let [a, b] = &self.windows;
        let older = if a.expires < b.expires { a } else { b };
        let elapsed = self
            .period
            .saturating_sub(older.expires.saturating_sub(now));
        Latencies {
            min_ns: if older.count == 0 { 0 } else { older.min },
            max_ns: older.max,
            average_ns: older.sum.checked_div(older.count).unwrap_or(0),
            queue_depth: match elapsed {
                0 => 0.0,
                #[expect(clippy::cast_precision_loss, reason = "an average, for people")]
                elapsed => older.sum as f64 / elapsed as f64,
            },
        }
    }

    /// Windows that have expired begin anew, where they would have if somebody had looked all the time.
    fn renew(&mut self, now: u64) {
        for window in &mut self.windows {
            if window.expires <= now {
                let over = (now - window.expires) % self.period;
                *window = Window::new(now.saturating_add(self.period - over));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An interval of 75 has windows of 100: [0, 50), [50, 150), [150, 250)... and [0, 100), [100, 200)...
    #[test]
    fn the_older_window_is_told() {
        let mut average = TimedAverage::new(75);
        let mut at = |now, added: &[u64], expected: (u64, u64, u64), depth: f64| {
            for value in added {
                average.add(*value, 1, now);
            }
            let told = average.read(now);
            assert_eq!(
                (told.min_ns, told.max_ns, told.average_ns),
                expected,
                "{now}"
            );
            assert!((told.queue_depth - depth).abs() < 1e-9, "{now}: {told:?}");
        };
        // The first window of 50 began half a period ago, as if there had been something before.
        at(0, &[], (0, 0, 0), 0.0);
        at(10, &[20, 40], (20, 40, 30), 60.0 / 60.0);
        // From 50 on that of [0, 100) is the older one.
        at(50, &[], (20, 40, 30), 60.0 / 50.0);
        at(60, &[6], (6, 40, 22), 66.0 / 60.0);
        at(99, &[], (6, 40, 22), 66.0 / 99.0);
        // From 100 on that of [50, 150), which knows of one.
        at(100, &[], (6, 6, 6), 6.0 / 50.0);
        at(149, &[8], (6, 8, 7), 14.0 / 99.0);
        // From 150 on that of [100, 200).
        at(150, &[], (8, 8, 8), 8.0 / 50.0);
        // Nothing for long: both have begun anew, at 1050 and 1000.
        at(1060, &[], (0, 0, 0), 0.0);
        at(1070, &[5], (5, 5, 5), 5.0 / 70.0);
        at(1100, &[], (5, 5, 5), 5.0 / 50.0);
        at(1150, &[], (0, 0, 0), 0.0);
    }

    #[test]
    fn parts_are_added_up_as_if_they_were_one() {
        let mut all = TimedAverage::new(75);
        let mut parts = [all.clone(), all.clone(), all.clone()];
        // The third one has been idle since the beginning: its windows are of the past.
        for (part, value, count, now) in [
            (0, 10, 2, 5),
            (1, 30, 1, 60),
            (0, 50, 1, 120),
            (1, 4, 4, 130),
        ] {
            parts[part].add(value, count, now);
            all.add(value, count, now);
            let mut sum = TimedAverage::new(75);
            for part in &parts {
                sum.merge(part, now + 3);
            }
            assert_eq!(sum.read(now + 3), all.read(now + 3), "{now}");
        }
        assert_eq!(all.read(140).average_ns, (30 + 50 + 16) / 6);
        // Others are left alone.
        all.merge(&TimedAverage::new(76), 140);
        assert_eq!(all.read(140).average_ns, 16);
    }

    #[test]
    fn the_longest_and_the_shortest_interval() {
        for interval in [0, 1, u64::from(u32::MAX) * 1_000_000_000, u64::MAX] {
            let mut average = TimedAverage::new(interval);
            average.add(u64::MAX, u64::MAX, 7);
            average.add(1, 1, u64::MAX);
            let _ = average.read(u64::MAX);
        }
    }
}
