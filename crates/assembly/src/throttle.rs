//! Throttle groups: objects of which nodes are members.

use std::collections::BTreeMap;
use std::sync::Arc;

use drivers::ThrottleGroup;
use drivers::throttle::{Rate, ThrottleLimits};
use parking_lot::Mutex;
use qapi::options::{self as wire, ThrottleGroupOptions};

use crate::setup_error::SetupError;

/// All groups, by name.
#[derive(Debug, Default)]
pub struct Groups(Mutex<BTreeMap<String, Arc<ThrottleGroup>>>);

impl Groups {
    /// Adds one, whose name is not taken.
    ///
    /// # Errors
    /// In QEMU's words: limits that make no sense.
    pub fn add(&self, id: &str, options: &ThrottleGroupOptions) -> Result<(), SetupError> {
        let mut limits = ThrottleLimits::default();
        for said in options.limits()? {
            apply(&mut limits, &said);
        }
        let group = ThrottleGroup::new(id, limits).map_err(SetupError::new)?;
        self.0.lock().insert(id.to_owned(), group);
        Ok(())
    }

    /// The group that a node is to be a member of.
    ///
    /// # Errors
    /// If there is none of such a name.
    pub fn get(&self, id: &str) -> Result<Arc<ThrottleGroup>, SetupError> {
        let found = self.0.lock().get(id).map(Arc::clone);
        found.ok_or_else(|| SetupError::new(format!("Throttle group '{id}' does not exist")))
    }

    /// Takes one out that has no members. False: there is none of such a name.
    ///
    /// # Errors
    /// If it has.
    pub fn remove(&self, id: &str) -> Result<bool, SetupError> {
        let mut groups = self.0.lock();
        match groups.get(id) {
            None => Ok(false),
            Some(group) if Arc::strong_count(group) > 1 => Err(SetupError::object_in_use(id)),
            Some(_) => Ok(groups.remove(id).is_some()),
        }
    }

    /// The limits of a group; none: there is none of such a name.
    pub fn limits(&self, id: &str) -> Option<wire::ThrottleLimits> {
        let limits = self.0.lock().get(id)?.limits();
        Some(shown(&limits))
    }

    /// Changes the limits of a group, as far as `said` says something of them. Returns all of them.
    ///
    /// # Errors
    /// In QEMU's words: no such group, limits that make no sense; nothing has changed then.
    pub fn set_limits(
        &self,
        id: &str,
        said: &wire::ThrottleLimits,
    ) -> Result<wire::ThrottleLimits, SetupError> {
        said.check()?;
        let groups = self.0.lock();
        let group = groups.get(id).ok_or_else(|| SetupError::no_object(id))?;
        let mut limits = group.limits();
        apply(&mut limits, said);
        group.set_limits(limits).map_err(SetupError::new)?;
        Ok(shown(&limits))
    }
}

fn rates(limits: &mut ThrottleLimits) -> [&mut Rate; 6] {
    [
        &mut limits.bps_total,
        &mut limits.bps_read,
        &mut limits.bps_write,
        &mut limits.iops_total,
        &mut limits.iops_read,
        &mut limits.iops_write,
    ]
}

/// What is negative becomes very large, and is refused.
fn apply(limits: &mut ThrottleLimits, said: &wire::ThrottleLimits) {
    let pairs = rates(limits).into_iter().zip(said.rates());
    for (rate, (_, [average, max, length])) in pairs {
        rate.average = average.map_or(rate.average, i64::cast_unsigned);
        rate.max = max.map_or(rate.max, i64::cast_unsigned);
        let length = length.map(|length| u32::try_from(length).unwrap_or(u32::MAX));
        rate.max_length = length.unwrap_or(rate.max_length);
    }
    let size = said.iops_size.map(i64::cast_unsigned);
    limits.iops_size = size.unwrap_or(limits.iops_size);
}

fn shown(limits: &ThrottleLimits) -> wire::ThrottleLimits {
    let some = |units: u64| Some(units.cast_signed());
    let length = |rate: &Rate| Some(i64::from(rate.max_length));
    let ThrottleLimits {
        bps_total,
        bps_read,
        bps_write,
        iops_total,
        iops_read,
        iops_write,
        iops_size,
    } = limits;
    wire::ThrottleLimits {
        bps_total: some(bps_total.average),
        bps_total_max: some(bps_total.max),
        bps_total_max_length: length(bps_total),
        bps_read: some(bps_read.average),
        bps_read_max: some(bps_read.max),
        bps_read_max_length: length(bps_read),
        bps_write: some(bps_write.average),
        bps_write_max: some(bps_write.max),
        bps_write_max_length: length(bps_write),
        iops_total: some(iops_total.average),
        iops_total_max: some(iops_total.max),
        iops_total_max_length: length(iops_total),
        iops_read: some(iops_read.average),
        iops_read_max: some(iops_read.max),
        iops_read_max_length: length(iops_read),
        iops_write: some(iops_write.average),
        iops_write_max: some(iops_write.max),
        iops_write_max_length: length(iops_write),
        iops_size: some(*iops_size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qapi::options::{ObjectOptions, ObjectVariant};

    fn options(text: &str) -> ThrottleGroupOptions {
        let options = ObjectOptions::parse(&format!("throttle-group,id=g,{text}")).unwrap();
        match options.variant {
            ObjectVariant::ThrottleGroup(group) => *group,
            other => panic!("{other:?}"),
        }
    }

    fn said(limits: serde_json::Value) -> wire::ThrottleLimits {
        serde_json::from_value(limits).unwrap()
    }

    #[test]
    fn limits_are_changed_as_far_as_something_is_said_of_them() {
        let groups = Groups::default();
        let text = "limits.bps-total=1000000,limits.bps-total-max=2000000,\
                    limits.bps-total-max-length=5,x-iops-read=7";
        groups.add("g", &options(text)).unwrap();
        for (limits, desc) in [
            (
                serde_json::json!({ "bps-read": 5 }),
                "bps/iops/max total values and read/write values cannot be used at the same time",
            ),
            (
                serde_json::json!({ "bps-read": 5, "bps-total": 0 }),
                "bps_max/iops_max require corresponding bps/iops values",
            ),
            (
                serde_json::json!({ "bps-total": -1 }),
                "bps/iops/max values must be within [0, 1000000000000000]",
            ),
            (
                serde_json::json!({ "bps-total-max-length": -1 }),
                "bps-total-max-length value must be in the range [0, 4294967295]",
            ),
        ] {
            let error = groups.set_limits("g", &said(limits)).unwrap_err();
            assert_eq!(error.desc, desc);
        }
        let limits = serde_json::json!({ "bps-total-max": 3_000_000, "iops-size": 512 });
        groups.set_limits("g", &said(limits)).unwrap();
        let shown = groups.limits("g").unwrap();
        assert_eq!(
            (shown.bps_total, shown.bps_total_max),
            (Some(1_000_000), Some(3_000_000))
        );
        assert_eq!(
            (shown.bps_total_max_length, shown.iops_read),
            (Some(5), Some(7))
        );
        assert_eq!(
            (shown.iops_size, shown.bps_write_max_length),
            (Some(512), Some(1))
        );
        let none = groups.set_limits("h", &said(serde_json::json!({})));
        assert_eq!(none.unwrap_err().desc, "object 'h' not found");
        assert_eq!(groups.limits("h"), None);
    }

    #[test]
    fn a_group_with_members_stays() {
        let groups = Groups::default();
        groups.add("g", &options("x-bps-total=5")).unwrap();
        let member = groups.get("g").unwrap();
        let error = groups.remove("g").unwrap_err();
        assert_eq!(error.desc, "object 'g' is in use, can not be deleted");
        drop(member);
        assert!(groups.remove("g").unwrap() && !groups.remove("g").unwrap());
        let error = groups.get("g").unwrap_err();
        assert_eq!(error.desc, "Throttle group 'g' does not exist");
        let bad = groups.add("g", &options("x-bps-total=1,x-bps-read=2"));
        assert!(bad.is_err() && groups.get("g").is_err());
    }
}
