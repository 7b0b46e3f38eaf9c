//! Logical volumes, as `lvs` reports them, and what may be done with them.

use qapi::Value;

use super::room::Spare;

/// What is asked of `lvs`.
pub const FIELDS: &str = "vg_name,lv_name,segtype,lv_size,pool_lv,data_percent,metadata_percent,\
                          lv_metadata_size,vg_free,vg_extent_size,vg_lock_type";

/// The metadata of a pool is extended when less than a fifth of it is free: a pool whose metadata is full is read-only.
const METADATA_FREE_PERCENT: u64 = 20;
/// Device mapper takes no more metadata, in bytes.
const METADATA_MAX: u64 = 16_978_542_592;

/// A logical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its volume group.
    pub group: String,
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The pool that a thin volume is in.
    pub pool: Option<String>,
    /// What is free of the data and of the metadata of a pool that is active.
    pub usage: Option<Usage>,
    /// What is free in the volume group, in bytes.
    pub group_free: u64,
    /// Its sizes are multiples of that.
    pub extent: u64,
    /// How the volume group is locked among hosts; empty: it is not.
    pub lock: String,
}

/// How full a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Free bytes of its data.
    pub free: u64,
    /// Its metadata.
    pub metadata: Spare,
}

/// A share that is written with two digits behind the point, in hundredths of a percent.
fn percent(text: &str) -> Option<u64> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    let hundredths = format!("{rest:0<2}");
    let hundredths = hundredths.get(..2)?.parse::<u64>().ok()?;
    let share = whole.parse::<u64>().ok()?.checked_mul(100)? + hundredths;
    (share <= 10_000).then_some(share)
}

fn free(size: u64, used: u64) -> u64 {
    let free = u128::from(size) * u128::from(10_000 - used.min(10_000)) / 10_000;
    u64::try_from(free).unwrap_or(u64::MAX)
}

impl Volume {
    /// The volume in a report of `lvs --reportformat json --units b --nosuffix` about one.
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn parse(report: &[u8]) -> Result<Self, String> {
        let report: Value = serde_json::from_slice(report)
            .map_err(|error| format!("what lvs reports is no JSON: {error}"))?;
        let volume = &report["report"][0]["lv"][0];
        if !volume.is_object() {
            return Err("lvs reports no logical volume".to_owned());
        }
        let text = |name: &str| volume[name].as_str().unwrap_or_default().trim();
        let number = |name: &str| {
            let parsed = text(name).parse::<u64>();
            parsed.map_err(|_| format!("lvs reports '{}' as {name}", text(name)))
        };
        let size = number("lv_size")?;
        let usage = match text("segtype") {
            "thin-pool" => percent(text("data_percent"))
                .zip(percent(text("metadata_percent")))
                .zip(number("lv_metadata_size").ok())
                .map(|((data, metadata), metadata_size)| Usage {
                    free: free(size, data),
                    metadata: Spare {
                        size: metadata_size,
                        free: free(metadata_size, metadata),
                    },
                }),
            _ => None,
        };
        let name = |name: &str| Some(text(name)).filter(|text| !text.is_empty());
        let must = |field| {
            name(field)
                .map(str::to_owned)
                .ok_or_else(|| format!("lvs reports no {field}"))
        };
        Ok(Self {
            group: must("vg_name")?,
            name: must("lv_name")?,
            size,
            pool: match text("segtype") {
                "thin" => name("pool_lv").map(str::to_owned),
                _ => None,
            },
            usage,
            group_free: number("vg_free")?,
            extent: number("vg_extent_size")?.max(512),
            lock: text("vg_lock_type").to_owned(),
        })
    }

    /// How the tools call it.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    /// Whether this host may change it: two that write to the metadata of one volume group destroy it.
    ///
    /// # Errors
    /// Why not.
    pub fn may_be_changed(&self, sole_writer: bool) -> Result<(), String> {
        if sole_writer || matches!(self.lock.as_str(), "dlm" | "sanlock") {
            return Ok(());
        }
        Err(format!(
            "volume group '{}' is not locked among hosts (lvmlockd): if no other host ever changes it, say so \
             (sole-writer = true); else extend it by a program (strategy = \"command\")",
            self.group
        ))
    }

    /// So much of `by` as whole extents are; none: it is less than one.
    #[must_use]
    pub fn whole_extents(&self, by: u64) -> Option<u64> {
        let whole = by - by % self.extent;
        (whole > 0).then_some(whole)
    }

    /// By how much the metadata of a pool has to be extended, if it has.
    #[must_use]
    pub fn metadata_step(&self) -> Option<u64> {
        let metadata = self.usage?.metadata;
        let low = u128::from(metadata.free) * 100
            < u128::from(metadata.size) * u128::from(METADATA_FREE_PERCENT);
        if !low {
            return None;
        }
        let wanted = (metadata.size / 2).max(self.extent);
        self.whole_extents(wanted.min(METADATA_MAX.saturating_sub(metadata.size)))
    }

    /// Arguments of `lvextend` that make it, or its metadata, so much larger; no file system on it is touched.
    #[must_use]
    pub fn extend(&self, by: u64, metadata: bool) -> Vec<String> {
        let what = match metadata {
            true => "--poolmetadatasize",
            false => "--size",
        };
        let by = format!("+{by}b");
        vec!["--yes".to_owned(), what.to_owned(), by, self.full_name()]
    }
}

/// Arguments of `lvs` that report about one volume.
#[must_use]
pub fn report(volume: &str) -> Vec<String> {
    [
        "--reportformat",
        "json",
        "--units",
        "b",
        "--nosuffix",
        "--options",
        FIELDS,
        volume,
    ]
    .map(str::to_owned)
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// As lvs 2.03.16 has reported.
    const LINEAR: &[u8] = br#"
  {
      "report": [
          {
              "lv": [
                  {"vg_name":"wvg", "lv_name":"vm1", "segtype":"linear", "lv_size":"268435456", "pool_lv":"", "data_percent":"", "metadata_percent":"", "lv_metadata_size":"", "vg_free":"1874853888", "vg_extent_size":"4194304", "vg_lock_type":""}
              ]
          }
      ]
  }
"#;

    /// In the same form, with what pools and thin volumes have there.
    fn report_of(fields: &str) -> Vec<u8> {
        format!(r#"{{"report":[{{"lv":[{{"vg_name":"vg", {fields}, "vg_free":"1073741824", "vg_extent_size":"4194304", "vg_lock_type":"sanlock"}}]}}]}}"#)
            .into_bytes()
    }

    fn pool(data: &str, metadata: &str) -> Volume {
        let fields = format!(
            r#""lv_name":"pool", "segtype":"thin-pool", "lv_size":"104857600", "pool_lv":"", "data_percent":"{data}", "metadata_percent":"{metadata}", "lv_metadata_size":"16777216""#
        );
        Volume::parse(&report_of(&fields)).unwrap()
    }

    #[test]
    fn what_lvs_reports() {
        let volume = Volume::parse(LINEAR).unwrap();
        assert_eq!(volume.full_name(), "wvg/vm1");
        assert_eq!((volume.size, &volume.pool), (256 * MIB, &None));
        assert_eq!((volume.group_free, volume.extent), (1788 * MIB, 4 * MIB));
        assert_eq!(volume.usage, None);
        let fields = r#""lv_name":"t", "segtype":"thin", "lv_size":"1073741824", "pool_lv":"pool", "data_percent":"9.50", "metadata_percent":"", "lv_metadata_size":"""#;
        let thin = Volume::parse(&report_of(fields)).unwrap();
        assert_eq!((thin.pool.as_deref(), thin.usage), (Some("pool"), None));
        let usage = pool("75.50", "10.00").usage.unwrap();
        assert_eq!(usage.free, 100 * MIB * 2450 / 10_000);
        assert_eq!(usage.metadata.free, 16 * MIB * 9 / 10);
        // Not active: nobody knows.
        assert_eq!(pool("", "").usage, None);
        for nonsense in [&b""[..], b"{}", b"{\"report\":[{\"lv\":[]}]}", b"[1]"] {
            assert!(Volume::parse(nonsense).is_err());
        }
        let huge = report_of(r#""lv_name":"x", "segtype":"linear", "lv_size":"-1""#);
        assert!(
            Volume::parse(&huge)
                .unwrap_err()
                .contains("'-1' as lv_size")
        );
    }

    #[test]
    fn shares() {
        for (text, share) in [
            ("0.00", Some(0)),
            ("9.5", Some(950)),
            ("100", Some(10_000)),
            ("99.999", Some(9999)),
            ("100.01", None),
            ("-1.00", None),
            ("", None),
        ] {
            assert_eq!(percent(text), share, "{text}");
        }
        assert_eq!((free(u64::MAX, 0), free(100, 10_000)), (u64::MAX, 0));
    }

    #[test]
    fn who_may_write() {
        let mut volume = Volume::parse(LINEAR).unwrap();
        for (lock, sole_writer, may) in [
            ("", false, false),
            ("none", false, false),
            ("", true, true),
            ("sanlock", false, true),
            ("dlm", false, true),
        ] {
            volume.lock = lock.to_owned();
            assert_eq!(volume.may_be_changed(sole_writer).is_ok(), may, "{lock}");
        }
    }

    #[test]
    fn what_is_extended() {
        let volume = Volume::parse(LINEAR).unwrap();
        assert_eq!(volume.whole_extents(4 * MIB - 1), None);
        assert_eq!(volume.whole_extents(9 * MIB), Some(8 * MIB));
        assert_eq!(
            volume.extend(8 * MIB, false),
            ["--yes", "--size", "+8388608b", "wvg/vm1"]
        );
        assert_eq!(volume.metadata_step(), None);
        // A fifth of the metadata must be free.
        assert_eq!(pool("99.00", "79.00").metadata_step(), None);
        let low = pool("1.00", "80.01");
        assert_eq!(low.metadata_step(), Some(8 * MIB));
        assert_eq!(low.extend(8 * MIB, true)[1], "--poolmetadatasize");
        let mut largest = low;
        largest.usage = Some(Usage {
            free: 0,
            metadata: Spare {
                size: METADATA_MAX,
                free: 0,
            },
        });
        assert_eq!(largest.metadata_step(), None);
        assert!(report("/dev/vg/lv").ends_with(&["/dev/vg/lv".to_owned()]));
    }
}
