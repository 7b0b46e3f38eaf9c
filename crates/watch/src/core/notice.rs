//! Events, as far as they matter.

use std::time::Duration;

use qapi::Value;

use super::view::Disk;

/// What text of a server is kept, in characters.
const TEXT_MAX: usize = 200;

/// What is done about a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The guest is told of success.
    Ignore,
    /// The guest is told of the error.
    Report,
    /// It is held.
    Stop,
}

/// `BLOCK_IO_ERROR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoError {
    /// The device in the guest (QEMU 9.2 and newer; `standfastd`).
    pub qom_path: String,
    /// The backend; empty: anonymous.
    pub device: String,
    /// The disk's top node.
    pub node: String,
    /// The node that failed, that one or one below; empty: the server does not say it, as QEMU.
    pub error_node: String,
    /// `read` or `write`.
    pub operation: String,
    /// What is done.
    pub action: Action,
    /// Whether it was for want of space.
    pub nospace: bool,
    /// How long the request is, in bytes; 0: not known.
    pub length: u64,
    /// The error, for people; and the cause, of those who tell it.
    pub reason: String,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A request failed.
    IoError(IoError),
    /// A node has grown beyond its write threshold, which is none any more.
    Threshold {
        /// The node.
        node: String,
        /// How far it has come: to which offset, or how much of its account is used.
        reached: u64,
        /// How long ago; zero: not known.
        age: Duration,
    },
    /// The machine has stopped.
    Stop,
    /// It goes on.
    Resume,
    /// Disks may have come or gone.
    Disks,
}

impl Notice {
    /// From an event's name and data. None: it does not matter here.
    #[must_use]
    pub fn parse(name: &str, data: Option<&qapi::Object>) -> Option<Self> {
        Some(match name {
            "STOP" => Self::Stop,
            "RESUME" => Self::Resume,
            "DEVICE_DELETED" | "BLOCK_EXPORT_DELETED" | "DEVICE_TRAY_MOVED" => Self::Disks,
            "BLOCK_WRITE_THRESHOLD" => {
                let data = data?;
                let number = |name: &str| data.get(name).and_then(Value::as_u64);
                let threshold = number("write-threshold")?;
                Self::Threshold {
                    node: data.get("node-name")?.as_str()?.to_owned(),
                    reached: threshold.saturating_add(number("amount-exceeded")?),
                    age: Duration::ZERO,
                }
            }
            "BLOCK_IO_ERROR" => {
                let data = data?;
                let text = |name: &str| {
                    let text = data.get(name).and_then(Value::as_str).unwrap_or_default();
                    text.chars().take(TEXT_MAX).collect::<String>()
                };
                let (reason, cause) = (text("reason"), text("x-cause"));
                Self::IoError(IoError {
                    qom_path: text("qom-path"),
                    device: text("device"),
                    node: text("node-name"),
                    error_node: text("x-error-node"),
                    operation: text("operation"),
                    action: match text("action").as_str() {
                        "stop" => Action::Stop,
                        "ignore" => Action::Ignore,
                        _ => Action::Report,
                    },
                    nospace: data
                        .get("nospace")
                        .and_then(Value::as_bool)
                        .unwrap_or(false),
                    length: data.get("x-length").and_then(Value::as_u64).unwrap_or(0),
                    reason: match cause.as_str() {
                        "" | "nospace" | "failed" => reason,
                        cause => format!("{reason} ({cause})"),
                    },
                })
            }
            _ => return None,
        })
    }
}

impl IoError {
    /// Whether it is of that disk. A name that is given and differs says no; no name at all is no one's.
    #[must_use]
    pub fn is_of(&self, disk: &Disk) -> bool {
        let qdev = disk.qdev.as_deref().unwrap_or_default();
        if !self.device.is_empty() || !disk.device.is_empty() {
            return self.device == disk.device;
        }
        if !self.qom_path.is_empty() && qdev.starts_with('/') {
            return self.qom_path == qdev;
        }
        !self.node.is_empty() && disk.node.as_deref() == Some(&self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(event: &str, data: Value) -> Option<Notice> {
        Notice::parse(event, data.as_object())
    }

    fn disk(device: &str, qdev: &str, node: &str) -> Disk {
        Disk {
            device: device.to_owned(),
            qdev: Some(qdev.to_owned()),
            node: Some(node.to_owned()),
            ..Disk::default()
        }
    }

    #[test]
    fn events_find_their_disk() {
        let error = |qom: &str, device: &str, node: &str| {
            let data = json!({"qom-path": qom, "device": device, "node-name": node,
                "operation": "write", "action": "stop", "nospace": true, "reason": "No space"});
            match parse("BLOCK_IO_ERROR", data) {
                Some(Notice::IoError(error)) => error,
                other => panic!("{other:?}"),
            }
        };
        // QEMU with -drive; with -blockdev, 7.2 and 9.2; standfastd.
        let named = disk("drive0", "/machine/peripheral/a/virtio-backend", "#block1");
        let first = disk("", "/machine/peripheral/a/virtio-backend", "node0");
        let second = disk("", "/machine/peripheral/b/virtio-backend", "node1");
        let ours = disk("vda", "vda", "disk0");
        for (error, of) in [
            (error("", "drive0", "#block1"), &named),
            (error("", "", "node0"), &first),
            (
                error("/machine/peripheral/b/virtio-backend", "", "node1"),
                &second,
            ),
            // After a snapshot the node is another one, the device is the same.
            (
                error("/machine/peripheral/b/virtio-backend", "", "overlay"),
                &second,
            ),
            (error("vda", "vda", "disk0"), &ours),
        ] {
            for other in [&named, &first, &second, &ours] {
                assert_eq!(
                    error.is_of(other),
                    std::ptr::eq(other, of),
                    "{error:?} {other:?}"
                );
            }
        }
        assert!(!error("", "", "").is_of(&disk("", "", "")));
    }

    #[test]
    fn what_is_missing_stops_nothing() {
        let Some(Notice::IoError(error)) = parse("BLOCK_IO_ERROR", json!({"action": 3})) else {
            panic!("an event");
        };
        assert_eq!((error.action, error.nospace), (Action::Report, false));
        assert_eq!(parse("BLOCK_IO_ERROR", Value::Null), None);
        assert_eq!(parse("NIC_RX_FILTER_CHANGED", json!({})), None);
        assert_eq!(parse("STOP", Value::Null), Some(Notice::Stop));
        let threshold = |exceeded: Value| {
            let data =
                json!({"node-name": "dev0", "amount-exceeded": exceeded, "write-threshold": 7});
            parse("BLOCK_WRITE_THRESHOLD", data)
        };
        let reached = |reached| Notice::Threshold {
            node: "dev0".to_owned(),
            reached,
            age: Duration::ZERO,
        };
        assert_eq!(threshold(json!(5)), Some(reached(12)));
        assert_eq!(threshold(json!(u64::MAX)), Some(reached(u64::MAX)));
        for nonsense in [json!(-1), json!("5"), Value::Null] {
            assert_eq!(threshold(nonsense), None);
        }
        let long = json!({"reason": "x".repeat(10_000), "x-cause": "timeout"});
        let Some(Notice::IoError(error)) = parse("BLOCK_IO_ERROR", long) else {
            panic!("an event");
        };
        assert_eq!(error.reason, format!("{} (timeout)", "x".repeat(200)));
    }
}
