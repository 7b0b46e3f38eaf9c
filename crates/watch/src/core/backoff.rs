//! How long to wait before the next attempt.

use std::time::Duration;

/// Exponential, with jitter, so that machines which failed together do not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Before the second attempt.
    pub first: Duration,
    /// At most.
    pub max: Duration,
}

impl Backoff {
    /// The delay after so many attempts that failed, 1 or more: `first` doubled with each, up to `max`, and
    /// of that three quarters to all of it, as `chance` says.
    #[must_use]
    pub fn delay(self, failed: u32, chance: u64) -> Duration {
        let doubled = 1_u32.checked_shl(failed.saturating_sub(1));
        let whole = doubled.and_then(|factor| self.first.checked_mul(factor));
        let whole = whole.map_or(self.max, |delay| delay.min(self.max));
        // 768 to 1024 of 1024 parts.
        let parts = 768 + u32::try_from(chance % 257).unwrap_or(256);
        whole.saturating_mul(parts) / 1024
    }
}

/// Chance, from a seed: SplitMix64. Good enough to spread attempts in time, and for nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Chance(u64);

impl Chance {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[must_use]
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_greatest_and_differ() {
        let backoff = Backoff {
            first: Duration::from_secs(1),
            max: Duration::from_secs(300),
        };
        let mut chance = Chance::new(1);
        for (failed, whole) in [
            (0, 1),
            (1, 1),
            (2, 2),
            (3, 4),
            (9, 256),
            (10, 300),
            (u32::MAX, 300),
        ] {
            let whole = Duration::from_secs(whole);
            for _ in 0..100 {
                let delay = backoff.delay(failed, chance.draw());
                assert!(
                    delay <= whole && delay >= whole * 3 / 4,
                    "{failed}: {delay:?}"
                );
            }
        }
        assert_ne!(
            backoff.delay(5, chance.draw()),
            backoff.delay(5, chance.draw())
        );
    }
}
