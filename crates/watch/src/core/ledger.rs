//! How much is extended in all: guards against a watcher, or a disk, that wants ever more.

use std::collections::VecDeque;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What all machines together may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Extensions within an hour.
    pub per_hour: u32,
    /// Bytes within 24 hours.
    pub bytes_per_day: u64,
}

/// What was begun within the last day. As long as [`Limits::per_hour`] times 24 at most.
#[derive(Debug, Default)]
pub struct Ledger {
    begun: VecDeque<(Duration, u64)>,
}

/// Why an extension is not begun now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overdrawn {
    /// Too many.
    #[error("{0} extensions within an hour are the limit (limits.extensions-per-hour)")]
    Hour(u32),
    /// Too much.
    #[error("{0} bytes within a day are the limit (limits.bytes-per-day)")]
    Day(u64),
}

impl Ledger {
    /// Begins an extension by `bytes`, and counts it, whatever becomes of it.
    ///
    /// # Errors
    /// If there were too many.
    pub fn begin(&mut self, now: Duration, bytes: u64, limits: Limits) -> Result<(), Overdrawn> {
        while self
            .begun
            .front()
            .is_some_and(|(at, _)| now.saturating_sub(*at) >= DAY)
        {
            self.begun.pop_front();
        }
        let within_hour = (self.begun.iter().rev())
            .take_while(|(at, _)| now.saturating_sub(*at) < HOUR)
            .count();
        if within_hour >= usize::try_from(limits.per_hour).unwrap_or(usize::MAX) {
            return Err(Overdrawn::Hour(limits.per_hour));
        }
        let today = (self.begun.iter()).fold(bytes, |sum, (_, bytes)| sum.saturating_add(*bytes));
        if today > limits.bytes_per_day {
            return Err(Overdrawn::Day(limits.bytes_per_day));
        }
        self.begun.push_back((now, bytes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        per_hour: 3,
        bytes_per_day: 100,
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn so_many_within_an_hour() {
        let mut ledger = Ledger::default();
        for second in [0, 10, 20] {
            assert_eq!(ledger.begin(at(second), 1, LIMITS), Ok(()));
        }
        assert_eq!(ledger.begin(at(3599), 1, LIMITS), Err(Overdrawn::Hour(3)));
        assert_eq!(ledger.begin(at(3600), 1, LIMITS), Ok(()));
        assert_eq!(ledger.begin(at(3601), 1, LIMITS), Err(Overdrawn::Hour(3)));
        assert_eq!(ledger.begin(at(3610), 1, LIMITS), Ok(()));
    }

    #[test]
    fn so_much_within_a_day() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.begin(at(0), 101, LIMITS), Err(Overdrawn::Day(100)));
        assert_eq!(
            ledger.begin(at(0), u64::MAX, LIMITS),
            Err(Overdrawn::Day(100))
        );
        assert_eq!(ledger.begin(at(0), 60, LIMITS), Ok(()));
        assert_eq!(ledger.begin(at(1), 41, LIMITS), Err(Overdrawn::Day(100)));
        assert_eq!(ledger.begin(at(2), 40, LIMITS), Ok(()));
        assert_eq!(
            ledger.begin(at(24 * 3600 - 1), 1, LIMITS),
            Err(Overdrawn::Day(100))
        );
        assert_eq!(ledger.begin(at(24 * 3600), 60, LIMITS), Ok(()));
        assert_eq!(
            ledger.begin(at(24 * 3600), 1, LIMITS),
            Err(Overdrawn::Day(100))
        );
    }
}
