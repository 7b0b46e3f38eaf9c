//! Datasets of ZFS, as `zfs get` reports them.

use crate::settings::ZfsProperty;

/// What is asked for.
const PROPERTIES: &str = "volsize,volblocksize,refquota,quota,used,referenced,available";

/// What an error of the kernel for a quota that is used up is called.
const QUOTA_EXCEEDED: &str = "Disk quota exceeded";

/// A dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dataset {
    /// Its name.
    pub name: String,
    /// The size of a volume; none: it is none.
    pub volsize: Option<u64>,
    /// That is a multiple of this.
    pub volblocksize: u64,
    /// What it may refer to itself; none: there is no limit.
    pub refquota: Option<u64>,
    /// What it may use with all below; none: there is no limit.
    pub quota: Option<u64>,
    /// What it uses with all below.
    pub used: u64,
    /// What it refers to itself.
    pub referenced: u64,
    /// What can still be written to it, by all limits.
    pub available: u64,
}

/// Arguments of `zfs` that report about a dataset, by its name or by a path on it.
#[must_use]
pub fn report(target: &str) -> Vec<String> {
    [
        "get",
        "-Hp",
        "-o",
        "name,property,value",
        PROPERTIES,
        target,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Arguments of `zfs` that tell what the pool of a dataset has free.
#[must_use]
pub fn pool_report(dataset: &str) -> Vec<String> {
    let pool = dataset.split('/').next().unwrap_or(dataset);
    ["get", "-Hp", "-o", "value", "available", pool]
        .map(str::to_owned)
        .to_vec()
}

/// The dataset of a volume, by the path of its device.
#[must_use]
pub fn of_device(path: &str) -> Option<&str> {
    path.strip_prefix("/dev/zvol/")
        .filter(|name| !name.is_empty())
}

/// Whether an error that is called so is one of a quota: QEMU takes it for a failure like any other.
#[must_use]
pub fn is_quota(reason: &str) -> bool {
    reason.starts_with(QUOTA_EXCEEDED)
}

impl Dataset {
    /// From a report.
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn parse(report: &str) -> Result<Self, String> {
        let mut dataset = Self::default();
        for line in report.lines() {
            let mut fields = line.split('\t');
            let (Some(name), Some(property), Some(value)) =
                (fields.next(), fields.next(), fields.next())
            else {
                return Err(format!("zfs reports '{line}'"));
            };
            if !dataset.name.is_empty() && dataset.name != name {
                return Err("zfs reports more than one dataset".to_owned());
            }
            name.clone_into(&mut dataset.name);
            let number = match value {
                // It has no such property.
                "-" => None,
                "none" => Some(0),
                value => Some(
                    value
                        .parse::<u64>()
                        .map_err(|_| format!("zfs reports '{value}' as {property}"))?,
                ),
            };
            let limit = number.filter(|limit| *limit > 0);
            match property {
                "volsize" => dataset.volsize = limit,
                "volblocksize" => dataset.volblocksize = number.unwrap_or(0),
                "refquota" => dataset.refquota = limit,
                "quota" => dataset.quota = limit,
                "used" => dataset.used = number.unwrap_or(0),
                "referenced" => dataset.referenced = number.unwrap_or(0),
                "available" => dataset.available = number.unwrap_or(0),
                _ => {}
            }
        }
        match dataset.name.is_empty() {
            true => Err("zfs reports nothing".to_owned()),
            false => Ok(dataset),
        }
    }

    /// What that property limits: its size, and what of it is free; of a volume that is not known.
    ///
    /// # Errors
    /// If there is no such limit.
    pub fn limit(&self, property: ZfsProperty) -> Result<(u64, Option<u64>), String> {
        let (limit, used) = match property {
            ZfsProperty::Volsize => (self.volsize, None),
            ZfsProperty::Refquota => (self.refquota, Some(self.referenced)),
            ZfsProperty::Quota => (self.quota, Some(self.used)),
        };
        let limit = limit.ok_or_else(|| {
            format!(
                "dataset '{}' has no {}: nothing can be raised",
                self.name,
                property.name()
            )
        })?;
        // What others leave of the pool, or another limit, may be less.
        let free = used.map(|used| limit.saturating_sub(used).min(self.available));
        Ok((limit, free))
    }

    /// So much of `by` as can be given; none: it is less than a block.
    #[must_use]
    pub fn whole_blocks(&self, property: ZfsProperty, by: u64) -> Option<u64> {
        let grain = match property {
            ZfsProperty::Volsize => self.volblocksize.max(512),
            ZfsProperty::Refquota | ZfsProperty::Quota => 1,
        };
        let whole = by - by % grain;
        (whole > 0).then_some(whole)
    }

    /// Arguments of `zfs` that raise it.
    #[must_use]
    pub fn raise(&self, property: ZfsProperty, to: u64) -> Vec<String> {
        let value = format!("{}={to}", property.name());
        vec!["set".to_owned(), value, self.name.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// In the form of zfs-get(8).
    const VOLUME: &str = "tank/vm1\tvolsize\t10737418240\ntank/vm1\tvolblocksize\t16384\ntank/vm1\trefquota\t-\n\
        tank/vm1\tquota\t-\ntank/vm1\tused\t11081154560\ntank/vm1\treferenced\t4294967296\ntank/vm1\tavailable\t96636764160\n";
    const FILESYSTEM: &str = "tank/images\tvolsize\t-\ntank/images\tvolblocksize\t-\ntank/images\trefquota\t4294967296\n\
        tank/images\tquota\t0\ntank/images\tused\t5368709120\ntank/images\treferenced\t3221225472\ntank/images\tavailable\t1073741824\n";

    #[test]
    fn what_zfs_reports() {
        let volume = Dataset::parse(VOLUME).unwrap();
        assert_eq!(
            (volume.volsize, volume.volblocksize),
            (Some(10 * GIB), 16 << 10)
        );
        assert_eq!(volume.limit(ZfsProperty::Volsize), Ok((10 * GIB, None)));
        assert!(
            volume
                .limit(ZfsProperty::Quota)
                .unwrap_err()
                .contains("has no quota")
        );
        let images = Dataset::parse(FILESYSTEM).unwrap();
        assert_eq!(
            images.limit(ZfsProperty::Refquota),
            Ok((4 * GIB, Some(GIB)))
        );
        assert!(images.limit(ZfsProperty::Quota).is_err());
        // The pool is nearly full: what a quota leaves is not there.
        let full = Dataset {
            available: 7,
            ..images
        };
        assert_eq!(full.limit(ZfsProperty::Refquota), Ok((4 * GIB, Some(7))));
        for nonsense in [
            "",
            "x",
            "a\tquota\tmuch",
            "a\tquota\t1\nb\tquota\t1",
            "a\tquota\t-1",
        ] {
            assert!(Dataset::parse(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn what_is_raised() {
        let volume = Dataset::parse(VOLUME).unwrap();
        assert_eq!(
            volume.whole_blocks(ZfsProperty::Volsize, 16 << 10),
            Some(16 << 10)
        );
        assert_eq!(
            volume.whole_blocks(ZfsProperty::Volsize, (16 << 10) - 1),
            None
        );
        assert_eq!(volume.whole_blocks(ZfsProperty::Quota, 5), Some(5));
        assert_eq!(
            volume.raise(ZfsProperty::Volsize, 11 * GIB),
            ["set", "volsize=11811160064", "tank/vm1"]
        );
        assert_eq!(pool_report("tank/a/b").last().unwrap(), "tank");
        assert_eq!(report("/srv").last().unwrap(), "/srv");
        assert_eq!(of_device("/dev/zvol/tank/vm1"), Some("tank/vm1"));
        assert_eq!(of_device("/dev/zd0"), None);
        assert!(is_quota("Disk quota exceeded") && !is_quota("No space left on device"));
    }
}
