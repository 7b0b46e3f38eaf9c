//! Exports: `--export`, `block-export-add`.

use super::address::{FdAddress, InetAddress, UnixAddress, VsockAddress};
use crate::de::{flat_union, from_argument};
use crate::{QmpError, Size, id};
use serde::{Deserialize, Serialize};

flat_union! {
    /// A node offered to a client.
    pub struct ExportOptions { tag: "@type", base: ExportBase }

    /// Over which protocol a node is offered.
    pub enum ExportType;

    /// The options of a protocol.
    pub enum ExportVariant {
        /// A virtio-blk device for a VMM that speaks vhost-user.
        VhostUserBlk("vhost-user-blk", VhostUserBlkOptions),
    }
}

/// What every export has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ExportBase {
    /// Name of the export: a letter, then letters, digits, `-`, `.`, `_`.
    pub id: String,
    /// Whether to stay in the iothread. Exports here never leave theirs, so both values mean the
    /// same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fixed_iothread: Option<bool>,
    /// The iothread objects that do the work. Default: that of the node (`x-blockdev-set-iothread`), or
    /// the daemon's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iothread: Option<BlockExportIothreads>,
    /// The node.
    pub node_name: String,
    /// Whether clients may write. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writable: Option<bool>,
    /// Whether to flush after each write. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writethrough: Option<bool>,
    /// What to do when a read fails. Default: auto, which is report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rerror: Option<OnError>,
    /// What to do when a write, flush, discard or write-zeroes fails. Default: auto, which is
    /// enospc.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub werror: Option<OnError>,
    /// What stands still while a request is held. Default: vm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_scope: Option<HoldScope>,
    /// Whether failed requests count in times, and end the idle time. Default: on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account_failed: Option<bool>,
    /// Whether refused requests end the idle time. Default: on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account_invalid: Option<bool>,
    /// Lengths in seconds of the intervals over which `query-blockstats` shows averages. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats_intervals: Option<Vec<u32>>,
    /// Serve a guest that has seen another image, as a former daemon or the guest's VMM says. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_other_image: Option<bool>,
}

impl ExportBase {
    fn check_intervals(&self) -> Result<(), QmpError> {
        let intervals = self.stats_intervals.as_deref().unwrap_or_default();
        if intervals.contains(&0) {
            return Err(QmpError::generic("Invalid interval length: 0"));
        }
        if intervals.len() > STATS_INTERVALS_MAX {
            return Err(QmpError::generic(format!(
                "'stats-intervals' must not have more than {STATS_INTERVALS_MAX} elements"
            )));
        }
        Ok(())
    }
}

/// The iothreads of an export: the name of one, or a list over which its queues are spread.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub enum BlockExportIothreads {
    /// All queues on one.
    #[serde(rename = "@string")]
    Single(String),
    /// Queue `i` on the iothread `i` modulo the length of the list.
    #[serde(rename = "@array")]
    Multi(Vec<String>),
}

impl BlockExportIothreads {
    /// Their names.
    pub fn names(&self) -> &[String] {
        match self {
            Self::Single(name) => std::slice::from_ref(name),
            Self::Multi(names) => names,
        }
    }

    fn check(&self) -> Result<(), QmpError> {
        let names = self.names();
        if names.is_empty() {
            return Err(QmpError::generic(
                "'iothread' must name at least one iothread",
            ));
        }
        match (1..names.len()).find(|&at| names[..at].contains(&names[at])) {
            Some(at) => Err(QmpError::generic(format!(
                "iothread \"{}\" is named more than once",
                names[at]
            ))),
            None => Ok(()),
        }
    }
}

impl Serialize for BlockExportIothreads {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Single(name) => name.serialize(serializer),
            Self::Multi(names) => names.serialize(serializer),
        }
    }
}

/// What to do when a request fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Tell the client.
    Report,
    /// Tell the client that it succeeded.
    Ignore,
    /// `stop` when there is no space left, else `report`.
    #[serde(alias = "enospace")]
    Enospc,
    /// Hold the request and stop.
    Stop,
    /// The default of the direction: `enospc` for writes, `report` for reads.
    #[default]
    Auto,
}

impl OnError {
    /// The policy for reads: `auto` resolved.
    pub fn for_reads(self) -> OnError {
        if self == OnError::Auto {
            OnError::Report
        } else {
            self
        }
    }

    /// The policy for everything but reads: `auto` resolved.
    pub fn for_writes(self) -> OnError {
        if self == OnError::Auto {
            OnError::Enospc
        } else {
            self
        }
    }
}

/// What stands still while a request is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HoldScope {
    /// All exports, and the VM is paused.
    #[default]
    Vm,
    /// This export.
    Device,
    /// The failed request and what overlaps it.
    Request,
}

impl HoldScope {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            HoldScope::Vm => "vm",
            HoldScope::Device => "device",
            HoldScope::Request => "request",
        }
    }
}

/// Options of `vhost-user-blk`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VhostUserBlkOptions {
    /// Where to listen.
    pub addr: SocketAddress,
    /// Block size in bytes, a power of two from 512 to 2 MiB. Default: 512.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logical_block_size: Option<Size>,
    /// Most request queues that a client may use, 1 to 256. Default: 128.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_queues: Option<u16>,
    /// Most descriptors a client may give a queue, a power of two from 4 to 1024. Default: 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_size: Option<u16>,
    /// What the guest reads as the disk's serial number, at most 20 bytes. Default: the id of the
    /// export, cut to that length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Whether to offer CONFIGURE_MEM_SLOTS, with which a client tells changes of its memory instead
    /// of all of it. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configure_mem_slots: Option<bool>,
}

flat_union! {
    /// A listening socket.
    pub struct SocketAddress { tag: "@type", base: SocketAddressBase }

    /// Kinds of socket address.
    pub enum SocketAddressType;

    /// What belongs to a kind of socket address.
    pub enum SocketAddressVariant {
        /// A path in the file system, or an abstract name.
        Unix("unix", UnixAddress),
        /// A file descriptor that was passed in.
        Fd("fd", FdAddress),
        /// A host and a port, which no export listens on.
        Inet("inet", InetAddress),
        /// A virtual machine's socket, which no export listens on.
        Vsock("vsock", VsockAddress),
    }
}

/// Socket addresses have no common members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketAddressBase {}

/// Most intervals of an export: each request counts in all of them.
pub const STATS_INTERVALS_MAX: usize = 32;

/// Longest serial number virtio-blk has room for, in bytes.
pub const SERIAL_BYTES_MAX: usize = 20;

/// Most request queues of an export: vhost-user has 8 bits for the number of a queue.
pub const QUEUES_MAX: u16 = 256;
/// Request queues that are offered unless the user says otherwise. QEMU asks for as many as there are
/// virtual CPUs and refuses an export that has fewer. Others (crosvm) make as many as are offered,
/// with a descriptor and an interrupt vector each, of which crosvm has room for 256: hence not all.
pub const QUEUES_DEFAULT: u16 = 128;
/// Most descriptors of a queue, as in QEMU.
pub const QUEUE_SIZE_MAX: u16 = 1024;

const LOGICAL_BLOCK_SIZE_MIN: u64 = 512;
const LOGICAL_BLOCK_SIZE_MAX: u64 = 2 << 20;

impl ExportOptions {
    /// Parses the argument of `--export` and checks it as far as that goes without its node.
    pub fn parse(text: &str) -> Result<Self, QmpError> {
        let options: Self = from_argument(text, Some("type"))?;
        options.check()?;
        Ok(options)
    }

    /// Checks what does not depend on anything else.
    pub fn check(&self) -> Result<(), QmpError> {
        id::check_export_id(&self.base.id)?;
        if let Some(iothreads) = &self.base.iothread {
            iothreads.check()?;
        }
        self.base.check_intervals()?;
        match &self.variant {
            ExportVariant::VhostUserBlk(options) => options.check(&self.base.id),
        }
    }
}

impl VhostUserBlkOptions {
    /// The block size in bytes.
    pub fn logical_block_size(&self) -> u64 {
        // 0 is as if it were not given, as in QEMU.
        self.logical_block_size
            .filter(|size| size.0 != 0)
            .map_or(LOGICAL_BLOCK_SIZE_MIN, |size| size.0)
    }

    /// The most queues that a client may use.
    pub fn num_queues(&self) -> u16 {
        self.num_queues.unwrap_or(QUEUES_DEFAULT)
    }

    /// The most descriptors of a queue.
    pub fn queue_size(&self) -> u16 {
        self.queue_size.unwrap_or(QUEUE_SIZE_MAX)
    }

    fn check(&self, export_id: &str) -> Result<(), QmpError> {
        match &self.addr.variant {
            SocketAddressVariant::Unix(address) => {
                address.check_listens("addr.path")?;
                address.check_access(address.is_path(), "a path that is not abstract")?;
            }
            SocketAddressVariant::Fd(_) => {}
            SocketAddressVariant::Inet(_) | SocketAddressVariant::Vsock(_) => {
                return Err(QmpError::generic(
                    "Only socket address types 'unix' and 'fd' are supported",
                ));
            }
        }
        let size = self.logical_block_size();
        if !(LOGICAL_BLOCK_SIZE_MIN..=LOGICAL_BLOCK_SIZE_MAX).contains(&size) {
            return Err(QmpError::generic(format!(
                "Property {export_id}.logical-block-size doesn't take value {size} \
                 (minimum: {LOGICAL_BLOCK_SIZE_MIN}, maximum: {LOGICAL_BLOCK_SIZE_MAX})"
            )));
        }
        if !size.is_power_of_two() {
            return Err(QmpError::generic(format!(
                "Property {export_id}.logical-block-size doesn't take value '{size}', \
                 it's not a power of 2"
            )));
        }
        if self.num_queues() == 0 {
            return Err(QmpError::generic("num-queues must be greater than 0"));
        }
        if self.num_queues() > QUEUES_MAX {
            return Err(QmpError::generic(format!(
                "Property {export_id}.num-queues doesn't take value {} \
                 (minimum: 1, maximum: {QUEUES_MAX})",
                self.num_queues()
            )));
        }
        let size = self.queue_size();
        if size <= 2 {
            return Err(QmpError::generic(format!(
                "invalid queue-size property ({size}), must be > 2"
            )));
        }
        if !size.is_power_of_two() || size > QUEUE_SIZE_MAX {
            return Err(QmpError::generic(format!(
                "invalid queue-size property ({size}), must be a power of 2 (max {QUEUE_SIZE_MAX})"
            )));
        }
        match &self.serial {
            Some(serial) if serial.len() > SERIAL_BYTES_MAX => Err(QmpError::generic(format!(
                "Property {export_id}.serial doesn't take value '{serial}', \
                 it has more than {SERIAL_BYTES_MAX} bytes"
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
