//! A machine as its monitor shows it: what matters here of `query-status`, `query-block` and
//! `query-named-block-nodes`, from QEMU and from `standfastd`.
//!
//! Servers lie and change: what is missing, or of another type, is as if it were not there.

use qapi::Value;

/// Disks of one machine that are looked at.
pub const DISKS_MAX: usize = 1024;

/// The run state, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// The machine runs.
    Running,
    /// It was stopped by an I/O error.
    IoError,
    /// It does not run, for another reason: by QEMU's name of that.
    Other(String),
}

impl RunState {
    /// From the answer to `query-status`. None: it says nothing.
    #[must_use]
    pub fn parse(answer: &Value) -> Option<Self> {
        Some(match answer.get("status")?.as_str()? {
            "running" => Self::Running,
            "io-error" => Self::IoError,
            other => Self::Other(other.chars().take(40).collect()),
        })
    }

    /// QEMU's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Running => "running",
            Self::IoError => "io-error",
            Self::Other(name) => name,
        }
    }
}

/// What a backend remembers of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoStatus {
    /// Nothing.
    Ok,
    /// There was no space.
    Nospace,
    /// Something else.
    Failed,
}

/// What a held request keeps waiting, and so what goes on again how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HoldScope {
    /// The whole machine: `cont`.
    #[default]
    Vm,
    /// That export, or that request: `x-block-export-cont`.
    Export,
}

/// Space that a node of `standfastd` may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Bytes that may be allocated.
    pub limit: u64,
    /// Bytes that are.
    pub used: u64,
}

/// A disk: an element of `query-block`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// What it is called here: its device, else its qdev, else its node.
    pub name: String,
    /// The backend's name; empty: it is anonymous, as with `-blockdev`.
    pub device: String,
    /// The device in the guest, by id or path.
    pub qdev: Option<String>,
    /// Its top node.
    pub node: Option<String>,
    /// Where its data lies, as the server says.
    pub file: Option<String>,
    /// The driver of its top node.
    pub driver: Option<String>,
    /// The size that the guest sees. Servers lie.
    pub virtual_size: Option<i64>,
    /// What it remembers; none: no policy of it can stop.
    pub io_status: Option<IoStatus>,
    /// What its held requests keep waiting.
    pub scope: HoldScope,
    /// How many requests are held; none: the server does not say it, as QEMU.
    pub held: Option<u64>,
    /// Whether what is held is for want of space, where `held` says that something is.
    pub held_nospace: bool,
    /// The node that had no space, its top node or one below; none: the server does not say it, as QEMU, or nothing is held for that.
    pub full_node: Option<String>,
    /// The account of its top node, if that has one.
    pub quota: Option<Quota>,
    /// What is known of its growth.
    pub growth: Growth,
}

/// What `query-blockstats` says of a disk's growth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// The node that grows: the lowest below the disk.
    pub node: Option<String>,
    /// The end of the write that reached furthest since the server began; one that failed, too. A hint.
    pub highest: u64,
    /// Bytes that the guest has written since then; none: not known.
    pub written: Option<u64>,
}

impl Disk {
    /// From an element of the answer to `query-block`. None: no medium, or nothing to call it by.
    #[must_use]
    pub fn parse(value: &Value) -> Option<Self> {
        let text = |name: &str| {
            let text = value.get(name).and_then(Value::as_str);
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let inserted = value.get("inserted")?;
        let (device, qdev) = (text("device").unwrap_or_default(), text("qdev"));
        let node = inserted.get("node-name").and_then(Value::as_str);
        let node = node.filter(|node| !node.is_empty()).map(str::to_owned);
        let name = if device.is_empty() {
            let short = qdev.as_deref().map(short);
            short.map(str::to_owned).or_else(|| node.clone())?
        } else {
            device.clone()
        };
        let file = inserted.get("file").and_then(Value::as_str);
        let image = inserted.get("image");
        let io_status = match value.get("io-status").and_then(Value::as_str) {
            Some("ok") => Some(IoStatus::Ok),
            Some("nospace") => Some(IoStatus::Nospace),
            Some("failed") => Some(IoStatus::Failed),
            _ => None,
        };
        let scope = match value.get("x-hold-scope").and_then(Value::as_str) {
            Some("device" | "request") => HoldScope::Export,
            _ => HoldScope::Vm,
        };
        let held_nospace = value
            .get("x-incident-cause")
            .is_some_and(|cause| cause == "nospace");
        Some(Self {
            name,
            device,
            qdev,
            node,
            file: file.filter(|file| !file.is_empty()).map(str::to_owned),
            driver: inserted
                .get("drv")
                .and_then(Value::as_str)
                .map(str::to_owned),
            virtual_size: image.and_then(|image| image.get("virtual-size")?.as_i64()),
            io_status,
            scope,
            held: value.get("x-held").and_then(Value::as_u64),
            held_nospace,
            full_node: text("x-incident-node").filter(|_| held_nospace),
            quota: quota(inserted),
            growth: Growth::default(),
        })
    }

    /// All disks in the answer to `query-block`; of two with one name the first.
    #[must_use]
    pub fn parse_all(answer: &Value) -> Vec<Self> {
        let mut disks: Vec<Self> = Vec::new();
        for value in answer.as_array().into_iter().flatten() {
            if let Some(disk) = Self::parse(value)
                && disks.len() < DISKS_MAX
                && disks.iter().all(|other| other.name != disk.name)
            {
                disks.push(disk);
            }
        }
        disks
    }

    /// Takes over what the answer to `query-blockstats` says.
    pub fn take_stats(disks: &mut [Self], answer: &Value) {
        for stats in answer.as_array().into_iter().flatten() {
            let text = |name: &str| stats.get(name).and_then(Value::as_str).unwrap_or_default();
            let is_of = |disk: &&mut Self| match text("qdev") {
                "" => !text("device").is_empty() && text("device") == disk.device,
                qdev => disk.qdev.as_deref() == Some(qdev),
            };
            if let Some(disk) = disks.iter_mut().find(is_of) {
                disk.growth = growth(stats);
            }
        }
    }

    /// Whether its I/O status is reset by each `cont`. That of QEMU's anonymous backends keeps the first
    /// error ever.
    #[must_use]
    pub fn status_is_fresh(&self) -> bool {
        !self.device.is_empty()
    }
}

/// The id in the path of a device of QEMU: `/machine/peripheral/disk0/virtio-backend` is `disk0`.
fn short(qdev: &str) -> &str {
    let of_user = qdev.strip_prefix("/machine/peripheral/");
    of_user.map_or(qdev, |rest| rest.split('/').next().unwrap_or(rest))
}

/// Nodes one below the other that are looked at.
const DEPTH_MAX: usize = 32;

fn growth(stats: &Value) -> Growth {
    let mut lowest = stats;
    for _ in 0..DEPTH_MAX {
        match lowest.get("parent") {
            Some(child) if child.is_object() => lowest = child,
            _ => break,
        }
    }
    let number = |node: &Value, name: &str| node.get("stats")?.get(name)?.as_u64();
    let node = lowest.get("node-name").and_then(Value::as_str);
    Growth {
        node: node.filter(|name| !name.is_empty()).map(str::to_owned),
        highest: number(lowest, "wr_highest_offset").unwrap_or(0),
        written: number(stats, "wr_bytes"),
    }
}

fn quota(node: &Value) -> Option<Quota> {
    Some(Quota {
        limit: node.get("x-quota-limit")?.as_u64()?,
        used: node.get("x-quota-used")?.as_u64()?,
    })
}

/// The account of the node `name` in the answer to `query-named-block-nodes`.
#[must_use]
pub fn quota_of(answer: &Value, name: &str) -> Option<Quota> {
    let mut nodes = answer.as_array()?.iter();
    quota(nodes.find(|node| node.get("node-name").is_some_and(|found| found == name))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// As QEMU 7.2 answers for `-blockdev` and `-device virtio-blk-pci,id=disk0,werror=enospc`.
    fn qemu() -> Value {
        json!({"io-status": "nospace", "device": "", "locked": false, "removable": false,
            "qdev": "/machine/peripheral/disk0/virtio-backend", "type": "unknown",
            "inserted": {"node-name": "node0", "drv": "file", "file": "/vm/disk0.img", "ro": false,
                "image": {"virtual-size": 67_108_864, "filename": "/vm/disk0.img", "format": "file",
                    "actual-size": 4096}}})
    }

    #[test]
    fn a_disk_of_qemu() {
        let disk = Disk::parse(&qemu()).unwrap();
        assert_eq!((disk.name.as_str(), disk.device.as_str()), ("disk0", ""));
        assert_eq!(disk.file.as_deref(), Some("/vm/disk0.img"));
        assert_eq!(disk.virtual_size, Some(64 << 20));
        assert_eq!((disk.io_status, disk.held), (Some(IoStatus::Nospace), None));
        assert!(!disk.status_is_fresh() && disk.scope == HoldScope::Vm);
    }

    /// As QEMU 7.2 answers for qcow2 on a block device, less what does not matter here.
    #[test]
    fn what_grows_is_the_lowest_node() {
        let stats =
            |highest: u64, bytes: u64| json!({"wr_highest_offset": highest, "wr_bytes": bytes});
        let answer = json!([
            {"device": "dr1", "node-name": "#block143", "stats": stats(0, 7),
                "qdev": "/machine/peripheral-anon/device[0]/virtio-backend",
                "parent": {"node-name": "#block035", "stats": stats(5, 0)}},
            {"device": "", "node-name": "fmt0", "stats": stats(1 << 20, 3 << 20),
                "qdev": "/machine/peripheral/disk0/virtio-backend",
                "parent": {"node-name": "dev0", "stats": stats(2 << 20, 0)},
                "backing": {"node-name": "base", "stats": stats(9 << 20, 0)}},
            3, {"qdev": "/machine/peripheral/gone/virtio-backend"}]);
        let mut disks = Disk::parse_all(&json!([qemu()]));
        Disk::take_stats(&mut disks, &answer);
        let expected = Growth {
            node: Some("dev0".to_owned()),
            highest: 2 << 20,
            written: Some(3 << 20),
        };
        assert_eq!(disks[0].growth, expected);
        let mut loops = json!({"node-name": "x"});
        for _ in 0..100 {
            loops = json!({"node-name": "y", "parent": loops});
        }
        loops["device"] = json!("vda");
        let mut named = vec![Disk {
            device: "vda".to_owned(),
            ..Disk::default()
        }];
        Disk::take_stats(&mut named, &json!([loops]));
        assert_eq!(named[0].growth.node.as_deref(), Some("y"));
    }

    #[test]
    fn a_disk_of_standfastd() {
        let answer = json!({"device": "vda", "qdev": "vda", "io-status": "nospace", "x-held": 3,
            "x-hold-scope": "device", "x-incident-cause": "nospace", "x-incident-node": "file0",
            "inserted": {"node-name": "disk0", "drv": "quota", "file": "/vm/disk0.img",
                "x-quota-limit": 10, "x-quota-used": 9, "image": {"virtual-size": 512}}});
        let disk = Disk::parse(&answer).unwrap();
        assert_eq!(disk.quota, Some(Quota { limit: 10, used: 9 }));
        assert_eq!((disk.held, disk.held_nospace), (Some(3), true));
        assert!(disk.scope == HoldScope::Export && disk.status_is_fresh());
        assert_eq!(disk.full_node.as_deref(), Some("file0"));
        let mut broken = answer;
        broken["x-incident-cause"] = json!("failed");
        assert_eq!(
            Disk::parse(&broken).unwrap().full_node,
            None,
            "it is not full"
        );
    }

    #[test]
    fn nonsense_is_nothing() {
        for answer in [
            json!(null),
            json!({}),
            json!([1, {}, {"inserted": 3}, {"inserted": {}}]),
        ] {
            assert_eq!(Disk::parse_all(&answer), []);
        }
        let twice = json!([qemu(), qemu()]);
        assert_eq!(Disk::parse_all(&twice).len(), 1);
        let mut odd = qemu();
        odd["inserted"]["image"]["virtual-size"] = json!(-5);
        odd["x-held"] = json!(-1);
        odd["inserted"]["x-quota-limit"] = json!("much");
        let disk = Disk::parse(&odd).unwrap();
        assert_eq!(
            (disk.virtual_size, disk.held, disk.quota),
            (Some(-5), None, None)
        );
        assert_eq!(RunState::parse(&json!({"status": 1})), None);
    }
}
