//! What a throttle group allows: plain numbers, and what they have to be to make sense. Pure.

/// The largest rate.
pub const VALUE_MAX: u64 = 1_000_000_000_000_000;

/// One rate, in units (bytes or operations) per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The rate in the long run; 0: none.
    pub average: u64,
    /// The rate of bursts; 0: there are none to speak of.
    pub max: u64,
    /// How long a burst may last, in seconds.
    pub max_length: u32,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            average: 0,
            max: 0,
            max_length: 1,
        }
    }
}

/// The limits of a group (QEMU's `ThrottleLimits`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThrottleLimits {
    /// Bytes.
    pub bps_total: Rate,
    /// Of those, read.
    pub bps_read: Rate,
    /// Of those, written.
    pub bps_write: Rate,
    /// Operations.
    pub iops_total: Rate,
    /// Of those, reads.
    pub iops_read: Rate,
    /// Of those, writes.
    pub iops_write: Rate,
    /// A larger operation counts as several of so many bytes; 0: as one.
    pub iops_size: u64,
}

impl ThrottleLimits {
    /// Whether they make sense.
    ///
    /// # Errors
    /// What does not, in QEMU's words.
    pub fn check(&self) -> Result<(), String> {
        for [total, read, write] in [
            [self.bps_total, self.bps_read, self.bps_write],
            [self.iops_total, self.iops_read, self.iops_write],
        ] {
            let both = |of: fn(&Rate) -> u64| of(&total) > 0 && (of(&read) > 0 || of(&write) > 0);
            if both(|rate| rate.average) || both(|rate| rate.max) {
                return Err(
                    "bps/iops/max total values and read/write values cannot be used at the same time"
                        .to_owned(),
                );
            }
        }
        let iops = [self.iops_total, self.iops_read, self.iops_write];
        if self.iops_size > 0 && iops.iter().all(|rate| rate.average == 0) {
            return Err("iops size requires an iops value to be set".to_owned());
        }
        self.rates().iter().try_for_each(check_rate)
    }

    /// All rates.
    pub fn rates(&self) -> [Rate; 6] {
        [
            self.bps_total,
            self.bps_read,
            self.bps_write,
            self.iops_total,
            self.iops_read,
            self.iops_write,
        ]
    }
}

fn check_rate(rate: &Rate) -> Result<(), String> {
    if rate.average > VALUE_MAX || rate.max > VALUE_MAX {
        return Err(format!(
            "bps/iops/max values must be within [0, {VALUE_MAX}]"
        ));
    }
    let length = u64::from(rate.max_length);
    let wrong = match rate {
        Rate { max_length: 0, .. } => "the burst length cannot be 0",
        Rate { max: 0, .. } if length > 1 => "burst length set without burst rate",
        Rate { max: 0, .. } => return Ok(()),
        Rate { max, .. } if length > VALUE_MAX / max => "burst length too high for this burst rate",
        Rate { average: 0, .. } => "bps_max/iops_max require corresponding bps/iops values",
        Rate { average, max, .. } if max < average => {
            "bps_max/iops_max cannot be lower than bps/iops"
        }
        _ => return Ok(()),
    };
    Err(wrong.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(average: u64, max: u64, max_length: u32) -> Rate {
        Rate {
            average,
            max,
            max_length,
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let none = ThrottleLimits::default();
        let total = |bps_total| ThrottleLimits { bps_total, ..none };
        let (two, one) = (rate(2, 0, 1), rate(1, 0, 1));
        let mixed =
            "bps/iops/max total values and read/write values cannot be used at the same time";
        let within = "bps/iops/max values must be within [0, 1000000000000000]";
        for (limits, expected) in [
            (none, None),
            (total(two), None),
            (total(rate(VALUE_MAX, 0, 1)), None),
            (total(rate(VALUE_MAX + 1, 0, 1)), Some(within)),
            (total(rate(1, VALUE_MAX + 1, 1)), Some(within)),
            (total(rate(u64::MAX, 0, 1)), Some(within)),
            (
                ThrottleLimits {
                    bps_read: one,
                    ..total(two)
                },
                Some(mixed),
            ),
            (
                ThrottleLimits {
                    bps_total: rate(0, 5, 1),
                    bps_write: rate(1, 5, 1),
                    ..none
                },
                Some(mixed),
            ),
            (
                ThrottleLimits {
                    iops_total: one,
                    iops_write: one,
                    ..none
                },
                Some(mixed),
            ),
            (
                ThrottleLimits {
                    bps_read: one,
                    bps_write: two,
                    iops_total: one,
                    iops_size: 4096,
                    ..none
                },
                None,
            ),
            (
                ThrottleLimits {
                    iops_size: 4096,
                    ..total(two)
                },
                Some("iops size requires an iops value to be set"),
            ),
            (total(rate(2, 0, 0)), Some("the burst length cannot be 0")),
            (
                total(rate(2, 0, 10)),
                Some("burst length set without burst rate"),
            ),
            (total(rate(2, 3, 10)), None),
            (
                total(rate(2, VALUE_MAX / 2, 3)),
                Some("burst length too high for this burst rate"),
            ),
            (
                total(rate(0, 3, 1)),
                Some("bps_max/iops_max require corresponding bps/iops values"),
            ),
            (
                total(rate(4, 3, 1)),
                Some("bps_max/iops_max cannot be lower than bps/iops"),
            ),
        ] {
            assert_eq!(limits.check().err().as_deref(), expected, "{limits:?}");
        }
    }
}
