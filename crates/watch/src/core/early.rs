//! What is known of a disk that is extended before it is full.

use std::time::Duration;

use super::headroom::Pace;
use super::room::{Kind, Measure};

/// Free space that moves is looked at again after that time at least: statfs(2) costs nothing.
const POLL_FREE: Duration = Duration::from_millis(100);
/// What a program has to be run for is looked at less often.
const POLL_PROGRAM: Duration = Duration::from_secs(1);

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Nothing is done: nobody wants it, or nothing can be.
    #[default]
    Off,
    /// It is measured.
    Measuring,
    /// The server tells when the node has grown beyond that.
    Armed(u64),
    /// The guest writes: it is measured again then.
    Moving {
        /// When.
        until: Duration,
    },
    /// It is extended.
    Extending,
    /// That has failed; it is tried again then.
    Waiting {
        /// When.
        until: Duration,
    },
}

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct Early {
    /// How far it is.
    pub stage: Stage,
    /// How fast it grows, how long an extension takes.
    pub pace: Pace,
    /// What was measured last.
    pub measure: Option<Measure>,
    /// How far a format on a device has come, at least: events tell it.
    pub reached: Option<u64>,
    /// When its growth was looked at last: how much was used, and what the guest had written, if that is known.
    pub sample: Option<(Duration, u64, Option<u64>)>,
    /// Whether it was told that the guest writes, and it is measured again and again.
    pub moves: bool,
    /// Whether the server tells nothing of growth.
    pub blind: bool,
    /// How much the head-room is, in bytes.
    pub head_room: u64,
    /// The time between the last two measurements.
    pub every: Duration,
    /// When the event came for which it is extended.
    pub since: Option<Duration>,
    /// Attempts that have failed in a row.
    pub failed: u32,
    /// Whether an incident waits for what goes on.
    pub awaited: bool,
    /// Whether it was said that nothing can be done.
    pub told: bool,
}

/// How growth is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// By thresholds: what they are compared with is what runs out.
    Threshold,
    /// By measuring, while the guest writes. A threshold tells when it begins to.
    Measuring,
}

impl Seen {
    /// That of what was measured.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Device | Kind::Quota => Self::Threshold,
            Kind::Filesystem | Kind::ThinPool | Kind::Dataset => Self::Measuring,
        }
    }
}

impl Early {
    /// So much was used at `at`, and the guest had written so much. What it has grown since the last time says how
    /// fast it grows: but never faster than the guest writes, as offsets jump over what was allocated before.
    pub fn saw(&mut self, at: Duration, used: u64, written: Option<u64>) {
        if let Some((before, from, then)) = self.sample {
            let mut grew = used.saturating_sub(from);
            if let (Some(written), Some(then)) = (written, then) {
                // Metadata is written, too.
                let wrote = written.saturating_sub(then);
                grew = grew.min(wrote.saturating_add(wrote / 8).saturating_add(1 << 20));
            }
            if !self.pace.grew(grew, at.saturating_sub(before)) {
                // Too near: the next one says more.
                return;
            }
        }
        self.sample = Some((at, used, written));
    }

    /// How much is free, if that is known.
    #[must_use]
    pub fn free(&self) -> Option<u64> {
        let measure = self.measure?;
        let below = || Some(measure.size.saturating_sub(self.reached?));
        measure.room().or_else(below)
    }

    /// What is known of it is of another node, or of before: forgotten, but how fast it grows.
    pub fn forget(&mut self) {
        *self = Self {
            pace: self.pace,
            head_room: self.head_room,
            failed: self.failed,
            told: self.told,
            ..Self::default()
        };
    }

    /// How long until the next measurement, if the last one has shown growth or not; none: it has come to rest.
    pub fn next_look(&mut self, grows: bool, at_most: Duration) -> Option<Duration> {
        let least = match self.measure.map(|measure| measure.kind) {
            Some(Kind::ThinPool | Kind::Dataset) => POLL_PROGRAM,
            _ => POLL_FREE,
        };
        let least = least.min(at_most);
        let by_pace = || self.pace.look_again(self.free()?, self.head_room);
        self.every = match grows {
            true => by_pace().unwrap_or(least),
            false => (self.every * 2).max(least),
        };
        if !grows && self.every > at_most {
            self.every = Duration::ZERO;
            return None;
        }
        self.every = self.every.clamp(least, at_most);
        Some(self.every)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn offsets_that_jump_are_no_growth() {
        let mut early = Early::default();
        early.saw(ms(0), 0, Some(0));
        // Over what was there before: the guest has written 8 MiB, not 8 GiB.
        early.saw(ms(1000), 8 << 30, Some(8 * MIB));
        assert_eq!(early.pace.rate(), 10 * MIB);
        early.saw(ms(1010), 9 << 30, Some(9 * MIB));
        assert_eq!(early.pace.rate(), 10 * MIB);
        // What was too near counts with the next.
        early.saw(ms(1500), 10 << 30, Some(108 * MIB));
        assert_eq!(early.pace.rate(), 2 * (100 + 100 / 8 + 1) * MIB + MIB);
        // Where it is not known what the guest has written, the growth counts.
        early.saw(ms(2500), 12 << 30, None);
        assert_eq!(early.pace.rate(), 2 << 30);
    }

    #[test]
    fn it_is_looked_at_less_and_less_where_nothing_moves() {
        let mut early = Early {
            head_room: 100 * MIB,
            ..Early::default()
        };
        let free = |free| Measure {
            kind: Kind::Filesystem,
            size: 1 << 40,
            free: Some(free),
            exhausted: false,
        };
        early.measure = Some(free(1 << 30));
        let most = ms(1000);
        let looks: Vec<_> = std::iter::from_fn(|| early.next_look(false, most)).collect();
        assert_eq!(looks, [100, 200, 400, 800].map(ms));
        // And again from the beginning.
        assert_eq!(early.next_look(false, most), Some(ms(100)));
        early.pace.grew(200 * MIB, ms(1000));
        early.measure = Some(free(300 * MIB));
        assert_eq!(early.next_look(true, most), Some(ms(500)));
        early.measure = Some(free(101 * MIB));
        assert_eq!(early.next_look(true, most), Some(ms(100)));
        early.measure = Some(free(1 << 40));
        assert_eq!(early.next_look(true, most), Some(most));
    }
}
