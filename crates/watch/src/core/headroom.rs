//! How much has to be free so that an extension comes in time: what is written while one goes on, by what was
//! measured, and some more.

use std::time::Duration;

/// How much head-room is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadRoom {
    /// In bytes, however little is written.
    pub min: u64,
    /// In bytes, however much is.
    pub max: u64,
    /// So much of what is written during an extension, in percent.
    pub safety: u32,
}

/// How long an extension takes as long as none was seen.
const TOOK_AT_FIRST: Duration = Duration::from_secs(1);
/// What is written within less says nothing.
const SAMPLE_MIN: Duration = Duration::from_millis(20);
/// Between two events about the growth of one disk, in bytes.
const GAP_MIN: u64 = 256 << 10;

/// What was measured of one disk: both rise at once and fall slowly, as too little head-room stops a machine and
/// too much costs space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    rate: u64,
    took: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            rate: 0,
            took: TOOK_AT_FIRST,
        }
    }
}

impl Pace {
    /// So many bytes were allocated within that time. Returns whether that was long enough to count.
    pub fn grew(&mut self, bytes: u64, within: Duration) -> bool {
        if within < SAMPLE_MIN {
            return false;
        }
        let rate = u128::from(bytes) * 1_000_000 / within.as_micros().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        self.rate = match rate >= self.rate {
            true => rate,
            false => self.rate - (self.rate - rate) / 4,
        };
        true
    }

    /// An extension took so long, from what made it necessary to its verification.
    pub fn extended(&mut self, took: Duration) {
        // The guess of the beginning is no measurement.
        self.took = match took >= self.took || self.took == TOOK_AT_FIRST {
            true => took,
            false => self.took - (self.took - took) / 4,
        };
    }

    /// Bytes per second.
    #[must_use]
    pub fn rate(self) -> u64 {
        self.rate
    }

    /// How long an extension takes.
    #[must_use]
    pub fn took(self) -> Duration {
        self.took
    }

    /// So many bytes must be free, or it is extended.
    #[must_use]
    pub fn head_room(self, wanted: HeadRoom) -> u64 {
        let written = u128::from(self.rate).saturating_mul(self.took.as_micros()) / 1_000_000;
        let safe = written.saturating_mul(wanted.safety.into()) / 100;
        let safe = u64::try_from(safe).unwrap_or(u64::MAX);
        safe.max(wanted.min).min(wanted.max)
    }

    /// When free space that now is `free` has to be looked at again, so that it does not get less than
    /// `head_room` unseen; none: nothing was written yet.
    #[must_use]
    pub fn look_again(self, free: u64, head_room: u64) -> Option<Duration> {
        let slack = u128::from(free.saturating_sub(head_room));
        let micros = (slack * 500_000).checked_div(u128::from(self.rate))?;
        Some(Duration::from_micros(
            u64::try_from(micros).unwrap_or(u64::MAX),
        ))
    }
}

/// By how much storage is extended at once: what is configured, or twice the head-room, so that the next extension
/// is not due at once: in whole MiB, as no device has a part of a sector.
#[must_use]
pub fn step(configured: u64, head_room: u64) -> u64 {
    const WHOLE: u64 = 1 << 20;
    let twice = head_room.saturating_mul(2).div_ceil(WHOLE);
    configured.max(twice.saturating_mul(WHOLE))
}

/// Where the next event is wanted, as an offset below `size`; never 0, which would be none. Where the head-room
/// begins, and before that half-way there again and again: what is seen on the way says how fast it comes.
#[must_use]
pub fn mark(size: u64, used: u64, head_room: u64) -> u64 {
    let end = size.saturating_sub(head_room);
    let slack = end.saturating_sub(used);
    let gap = (head_room / 4).max(GAP_MIN);
    let mark = match slack / 2 >= gap {
        true => used + slack / 2,
        false => end,
    };
    mark.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const WANTED: HeadRoom = HeadRoom {
        min: 64 * MIB,
        max: 1024 * MIB,
        safety: 200,
    };

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn head_room_is_rate_by_time_by_safety_within_its_bounds() {
        for (mib_per_s, took, expected) in [
            (0, 200, 64),
            (100, 200, 64),
            (500, 200, 200),
            (500, 1000, 1000),
            (500, 3000, 1024),
            (u64::MAX / MIB, u64::MAX, 1024),
        ] {
            let pace = Pace {
                rate: mib_per_s * MIB,
                took: ms(took),
            };
            assert_eq!(pace.head_room(WANTED) / MIB, expected, "{mib_per_s} {took}");
        }
        let fixed = HeadRoom {
            min: 7,
            max: 7,
            safety: 200,
        };
        let mut pace = Pace::default();
        assert!(pace.grew(1 << 40, ms(1000)));
        assert_eq!(pace.head_room(fixed), 7);
    }

    #[test]
    fn it_rises_at_once_and_falls_slowly() {
        let mut pace = Pace::default();
        assert_eq!((pace.rate(), pace.took()), (0, ms(1000)));
        assert!(!pace.grew(100 * MIB, ms(19)) && pace.grew(100 * MIB, ms(500)));
        assert_eq!(pace.rate(), 200 * MIB);
        assert!(pace.grew(0, ms(1000)));
        assert_eq!(pace.rate(), 150 * MIB);
        assert!(pace.grew(300 * MIB, ms(1000)));
        assert_eq!(pace.rate(), 300 * MIB);
        // The first measurement replaces the guess, whatever it is.
        pace.extended(ms(200));
        assert_eq!(pace.took(), ms(200));
        pace.extended(ms(100));
        assert_eq!(pace.took(), ms(175));
        pace.extended(ms(600));
        assert_eq!(pace.took(), ms(600));
    }

    #[test]
    fn marks_come_nearer() {
        let (size, head_room) = (4096 * MIB, 512 * MIB);
        let mut used = 512 * MIB;
        let mut marks = Vec::new();
        while used < size - head_room {
            used = mark(size, used, head_room);
            marks.push(used / MIB);
        }
        assert_eq!(marks, [2048, 2816, 3200, 3392, 3584]);
        assert_eq!(mark(10, 0, 100), 1);
        assert_eq!(step(4 * MIB, 2 * MIB), 4 * MIB);
        assert_eq!(step(4 * MIB, 2 * MIB + 1), 5 * MIB);
        assert_eq!((step(4, 0), step(4, u64::MAX)), (4, u64::MAX));
    }

    #[test]
    fn free_space_is_looked_at_before_half_of_it_is_gone() {
        let mut pace = Pace::default();
        assert_eq!(pace.look_again(100, 10), None);
        pace.grew(100 * MIB, ms(1000));
        assert_eq!(pace.look_again(300 * MIB, 100 * MIB), Some(ms(1000)));
        assert_eq!(pace.look_again(10, 100), Some(Duration::ZERO));
    }

    proptest! {
        /// Whatever was measured: within the bounds, and an event comes before the head-room is used.
        #[test]
        fn never_beyond(
            grew in prop::collection::vec((any::<u64>(), 0..u64::MAX / 2_000), 0..20),
            took in any::<u32>(), min in 1..1_u64 << 50, more in 0..1_u64 << 50,
            safety in 100..1000_u32, size in any::<u64>(), used in any::<u64>(),
        ) {
            let mut pace = Pace::default();
            for (bytes, millis) in grew {
                pace.grew(bytes, ms(millis));
            }
            pace.extended(ms(took.into()));
            let wanted = HeadRoom { min, max: min + more, safety };
            let head_room = pace.head_room(wanted);
            prop_assert!(head_room >= min && head_room <= min + more);
            let mark = mark(size, used, head_room);
            prop_assert!(mark >= 1 && (mark == 1 || mark <= size - head_room));
            prop_assert!(mark > used || mark == 1 || mark == size - head_room);
        }

        /// What the head-room is for: whoever writes no faster than was measured, and an extension that takes no
        /// longer, never meet the end.
        #[test]
        fn an_extension_comes_in_time(rate in 1..1_u64 << 33, took in 1..10_000_u64, step_mib in 1..4096_u64) {
            let mut pace = Pace::default();
            pace.grew(rate, ms(1000));
            pace.extended(ms(took));
            let wanted = HeadRoom { min: MIB, max: u64::MAX, safety: 100 };
            let head_room = pace.head_room(wanted);
            let written = u128::from(rate) * u128::from(took) / 1000;
            prop_assert!(u128::from(head_room) + 1 >= written);
            // And then there is room before the next one is due.
            prop_assert!(step(step_mib * MIB, head_room) >= 2 * head_room);
        }
    }
}
