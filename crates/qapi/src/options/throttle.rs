//! Throttle groups: what `--object throttle-group`, `object-add` and `qom-set` take.

use crate::QmpError;
use serde::{Deserialize, Serialize};

/// Properties of `throttle-group`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ThrottleGroupOptions {
    /// What the members may do together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<ThrottleLimits>,
    /// Bytes per second; 0: no limit. As all of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_bps_total: Option<i64>,
    /// The rate of bursts of `bps-total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_bps_total_max: Option<i64>,
    /// How long a burst of `bps-total` may last, in seconds. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_bps_total_max_length: Option<i64>,
    /// Of those, bytes read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_bps_read: Option<i64>,
    /// The rate of bursts of `bps-read`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_bps_read_max: Option<i64>,
    /// How long a burst of `bps-read` may last, in seconds. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_bps_read_max_length: Option<i64>,
    /// Of those, bytes written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_bps_write: Option<i64>,
    /// The rate of bursts of `bps-write`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_bps_write_max: Option<i64>,
    /// How long a burst of `bps-write` may last, in seconds. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_bps_write_max_length: Option<i64>,
    /// Operations per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_iops_total: Option<i64>,
    /// The rate of bursts of `iops-total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_iops_total_max: Option<i64>,
    /// How long a burst of `iops-total` may last, in seconds. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_iops_total_max_length: Option<i64>,
    /// Of those, reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_iops_read: Option<i64>,
    /// The rate of bursts of `iops-read`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_iops_read_max: Option<i64>,
    /// How long a burst of `iops-read` may last, in seconds. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_iops_read_max_length: Option<i64>,
    /// Of those, writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_iops_write: Option<i64>,
    /// The rate of bursts of `iops-write`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_iops_write_max: Option<i64>,
    /// How long a burst of `iops-write` may last, in seconds. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_iops_write_max_length: Option<i64>,
    /// A larger operation counts as several of so many bytes; 0: as one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_iops_size: Option<i64>,
}

/// The limits of a throttle group. What is left out stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ThrottleLimits {
    /// Bytes per second; 0: no limit. As all of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_total: Option<i64>,
    /// The rate of bursts of `bps-total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_total_max: Option<i64>,
    /// How long a burst of `bps-total` may last, in seconds. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_total_max_length: Option<i64>,
    /// Of those, bytes read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_read: Option<i64>,
    /// The rate of bursts of `bps-read`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_read_max: Option<i64>,
    /// How long a burst of `bps-read` may last, in seconds. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_read_max_length: Option<i64>,
    /// Of those, bytes written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_write: Option<i64>,
    /// The rate of bursts of `bps-write`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_write_max: Option<i64>,
    /// How long a burst of `bps-write` may last, in seconds. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_write_max_length: Option<i64>,
    /// Operations per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_total: Option<i64>,
    /// The rate of bursts of `iops-total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_total_max: Option<i64>,
    /// How long a burst of `iops-total` may last, in seconds. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_total_max_length: Option<i64>,
    /// Of those, reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_read: Option<i64>,
    /// The rate of bursts of `iops-read`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_read_max: Option<i64>,
    /// How long a burst of `iops-read` may last, in seconds. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_read_max_length: Option<i64>,
    /// Of those, writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_write: Option<i64>,
    /// The rate of bursts of `iops-write`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_write_max: Option<i64>,
    /// How long a burst of `iops-write` may last, in seconds. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_write_max_length: Option<i64>,
    /// A larger operation counts as several of so many bytes; 0: as one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_size: Option<i64>,
}

impl ThrottleLimits {
    /// The rates, with their names, and of each the average, the maximum and the length of bursts.
    pub fn rates(&self) -> [(&'static str, [Option<i64>; 3]); 6] {
        [
            (
                "bps-total",
                [
                    self.bps_total,
                    self.bps_total_max,
                    self.bps_total_max_length,
                ],
            ),
            (
                "bps-read",
                [self.bps_read, self.bps_read_max, self.bps_read_max_length],
            ),
            (
                "bps-write",
                [
                    self.bps_write,
                    self.bps_write_max,
                    self.bps_write_max_length,
                ],
            ),
            (
                "iops-total",
                [
                    self.iops_total,
                    self.iops_total_max,
                    self.iops_total_max_length,
                ],
            ),
            (
                "iops-read",
                [
                    self.iops_read,
                    self.iops_read_max,
                    self.iops_read_max_length,
                ],
            ),
            (
                "iops-write",
                [
                    self.iops_write,
                    self.iops_write_max,
                    self.iops_write_max_length,
                ],
            ),
        ]
    }
}

impl From<ThrottleLimits> for ThrottleGroupOptions {
    /// A group with these limits, in both forms.
    fn from(limits: ThrottleLimits) -> Self {
        Self {
            limits: Some(limits),
            x_bps_total: limits.bps_total,
            x_bps_total_max: limits.bps_total_max,
            x_bps_total_max_length: limits.bps_total_max_length,
            x_bps_read: limits.bps_read,
            x_bps_read_max: limits.bps_read_max,
            x_bps_read_max_length: limits.bps_read_max_length,
            x_bps_write: limits.bps_write,
            x_bps_write_max: limits.bps_write_max,
            x_bps_write_max_length: limits.bps_write_max_length,
            x_iops_total: limits.iops_total,
            x_iops_total_max: limits.iops_total_max,
            x_iops_total_max_length: limits.iops_total_max_length,
            x_iops_read: limits.iops_read,
            x_iops_read_max: limits.iops_read_max,
            x_iops_read_max_length: limits.iops_read_max_length,
            x_iops_write: limits.iops_write,
            x_iops_write_max: limits.iops_write_max,
            x_iops_write_max_length: limits.iops_write_max_length,
            x_iops_size: limits.iops_size,
        }
    }
}

impl ThrottleGroupOptions {
    /// What the members may do together, in whichever form it was said.
    ///
    /// # Errors
    /// A number that there is not.
    pub fn limits(&self) -> Result<[ThrottleLimits; 2], QmpError> {
        let flat = ThrottleLimits {
            bps_total: self.x_bps_total,
            bps_total_max: self.x_bps_total_max,
            bps_total_max_length: self.x_bps_total_max_length,
            bps_read: self.x_bps_read,
            bps_read_max: self.x_bps_read_max,
            bps_read_max_length: self.x_bps_read_max_length,
            bps_write: self.x_bps_write,
            bps_write_max: self.x_bps_write_max,
            bps_write_max_length: self.x_bps_write_max_length,
            iops_total: self.x_iops_total,
            iops_total_max: self.x_iops_total_max,
            iops_total_max_length: self.x_iops_total_max_length,
            iops_read: self.x_iops_read,
            iops_read_max: self.x_iops_read_max,
            iops_read_max_length: self.x_iops_read_max_length,
            iops_write: self.x_iops_write,
            iops_write_max: self.x_iops_write_max,
            iops_write_max_length: self.x_iops_write_max_length,
            iops_size: self.x_iops_size,
        };
        for (name, [average, max, length]) in flat.rates() {
            if [average, max, length]
                .iter()
                .flatten()
                .any(|value| *value < 0)
            {
                return Err(QmpError::generic("Property values cannot be negative"));
            }
            // Written so by QEMU, too.
            check_length(length, || {
                format!("x-{name}-max-length value must be in the")
            })?;
        }
        if self.x_iops_size.is_some_and(|size| size < 0) {
            return Err(QmpError::generic("Property values cannot be negative"));
        }
        let limits = self.limits.unwrap_or_default();
        limits.check()?;
        Ok([flat, limits])
    }
}

impl ThrottleLimits {
    /// Checks the lengths of bursts.
    ///
    /// # Errors
    /// A number that there is not.
    pub fn check(&self) -> Result<(), QmpError> {
        for (name, [_, _, length]) in self.rates() {
            check_length(length, || {
                format!("{name}-max-length value must be in the ")
            })?;
        }
        Ok(())
    }
}

fn check_length(length: Option<i64>, what: impl Fn() -> String) -> Result<(), QmpError> {
    match length.map(u32::try_from) {
        None | Some(Ok(_)) => Ok(()),
        Some(Err(_)) => Err(QmpError::generic(format!(
            "{}range [0, {}]",
            what(),
            u32::MAX
        ))),
    }
}

#[cfg(test)]
mod tests {
    use crate::options::{ObjectOptions, ObjectVariant};

    fn limits(text: &str) -> Result<[super::ThrottleLimits; 2], String> {
        let options = ObjectOptions::parse(&format!("throttle-group,id=g,{text}"));
        match options.map_err(|error| error.desc)?.variant {
            ObjectVariant::ThrottleGroup(group) => group.limits().map_err(|error| error.desc),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn numbers_that_there_are_not() {
        for (text, desc) in [
            ("x-bps-total=-1", "Property values cannot be negative"),
            ("x-iops-size=-1", "Property values cannot be negative"),
            (
                "x-bps-total-max-length=99999999999",
                "x-bps-total-max-length value must be in therange [0, 4294967295]",
            ),
            (
                "limits.iops-read-max-length=99999999999",
                "iops-read-max-length value must be in the range [0, 4294967295]",
            ),
            (
                "limits.iops-total=1M",
                "Parameter 'limits.iops-total' expects integer",
            ),
            ("limits.nosuch=1", "Parameter 'limits.nosuch' is unexpected"),
        ] {
            assert_eq!(limits(text), Err(desc.to_owned()), "{text}");
        }
    }

    #[test]
    fn both_forms_say_the_same() {
        let [flat, none] = limits("x-bps-read=5,x-bps-read-max=7,x-iops-size=512").unwrap();
        let [no, limits] =
            limits("limits.bps-read=5,limits.bps-read-max=7,limits.iops-size=512").unwrap();
        assert_eq!((flat, none), (limits, no));
        assert_eq!(flat.rates()[1], ("bps-read", [Some(5), Some(7), None]));
    }
}
