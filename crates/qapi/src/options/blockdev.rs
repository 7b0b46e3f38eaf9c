//! Nodes: `--blockdev`, `blockdev-add`.

mod children;

use super::qcow2::Qcow2OverlapChecks;
use crate::de::{flat_union, from_argument};
use crate::{QmpError, Size, id};
use serde::{Deserialize, Serialize};

flat_union! {
    /// A node of the block graph.
    pub struct BlockdevOptions { tag: "@driver", base: BlockdevBase }

    /// Which driver a node uses.
    pub enum BlockdevDriver;

    /// The options of a driver.
    pub enum BlockdevDriverOptions {
        /// A regular file.
        File("file", FileOptions),
        /// A block device of the host. It takes the options of `file`.
        HostDevice("host_device", FileOptions),
        /// The format of images that have none, or of a part of one.
        Raw("raw", RawOptions),
        /// The format of images that grow as they are written. So far they are only read.
        Qcow2("qcow2", Qcow2Options),
        /// A disk that forgets what is written.
        NullCo("null-co", NullOptions),
        /// The same; no request ends before its submission does.
        NullAio("null-aio", NullOptions),
        /// A filter that lets its child do only so much in a second.
        Throttle("throttle", ThrottleOptions),
        /// A filter that copies what is read from behind its child into it.
        CopyOnRead("copy-on-read", CopyOnReadOptions),
        /// A filter that lets its child allocate only so much, then fails with "no space".
        Quota("quota", QuotaOptions),
        /// A filter that fails requests on purpose.
        Blkdebug("blkdebug", BlkdebugOptions),
    }
}

/// What the child is called that is read where an image has nothing of its own.
pub const BACKING: &str = "backing";
/// What the child is called that has the data of an image whose tables are in another file.
pub const DATA_FILE: &str = "data-file";

/// A child, as the options name it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Referred<'a> {
    /// The name of an existing node.
    Reference(&'a str),
    /// A new node.
    Definition(&'a BlockdevOptions),
}

/// What every node has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevBase {
    /// Name of the node: a letter, then letters, digits, `-`, `.`, `_`, at most 31. Only an
    /// inline child may go without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// What becomes of discard requests. Default: ignore.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard: Option<DiscardMode>,
    /// How the host caches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheOptions>,
    /// Refuse writes. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Open read-only if it cannot be opened read-write and nobody needs to write. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_read_only: Option<bool>,
    /// Tolerate other writers; only for read-only nodes. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_share: Option<bool>,
    /// Whether to look for zeroes in what is written. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detect_zeroes: Option<DetectZeroes>,
}

/// What becomes of discard requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiscardMode {
    /// They succeed and do nothing.
    #[default]
    Ignore,
    /// They are passed on.
    Unmap,
}

/// How the host caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CacheOptions {
    /// Go around the host's page cache (`O_DIRECT`). Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<bool>,
    /// Ignore flushes; what was acknowledged is lost when the host crashes. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_flush: Option<bool>,
}

/// Whether to look for zeroes in what is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DetectZeroes {
    /// No.
    #[default]
    Off,
    /// Yes; zeroes are written as zeroes, which may allocate.
    On,
    /// Yes; zeroes may also be deallocated, where discard is `unmap`.
    Unmap,
}

impl DetectZeroes {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            DetectZeroes::Off => "off",
            DetectZeroes::On => "on",
            DetectZeroes::Unmap => "unmap",
        }
    }
}

/// Options of `file` and `host_device`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileOptions {
    /// Path of the file or device.
    pub filename: String,
    /// Whether to lock it against other processes. Default: auto.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locking: Option<Locking>,
    /// The name of a persistent reservation manager. There are none: an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pr_manager: Option<String>,
    /// The I/O engine. Default: io_uring where it is to be had and the file system does not block by it, else
    /// threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aio: Option<AioMode>,
    /// How many requests are submitted at once at most. Accepted and ignored: an iothread sees to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aio_max_batch: Option<i64>,
    /// Whether the page cache is to be dropped when a migration ends. Accepted and ignored: none ends here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_cache: Option<bool>,
    /// Whether to check that it was. Accepted and ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_check_cache_dropped: Option<bool>,
}

/// Whether to lock an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Locking {
    /// If the host has OFD locks.
    #[default]
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

/// I/O engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AioMode {
    /// Workers, on every iothread.
    #[serde(rename = "threads")]
    Threads,
    /// Linux AIO in QEMU; io_uring here, or threads where there is none.
    #[serde(rename = "native")]
    Native,
    /// io_uring, or an error.
    #[serde(rename = "io_uring")]
    IoUring,
}

/// Options of `raw`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RawOptions {
    /// The node with the image.
    pub file: BlockdevRef,
    /// Where the image begins there, in bytes. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<i64>,
    /// How long it is, in bytes: a multiple of 512. Default: up to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
}

/// Options of `qcow2`. Those about writing are accepted and say nothing as long as images are only read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Qcow2Options {
    /// The node with the image.
    pub file: BlockdevRef,
    /// What is read where the image has nothing of its own; `null`: zeroes. Default: what the image names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<BlockdevRefOrNull>,
    /// The external data file, of an image that has one. Default: what the image names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<BlockdevRef>,
    /// Whether refcounts may be written late. Default: as the image says; only version 3 can be asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lazy_refcounts: Option<bool>,
    /// Whether discards reach the file. Default: as `discard` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass_discard_request: Option<bool>,
    /// Whether what a snapshot leaves is discarded in the file. Default: on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass_discard_snapshot: Option<bool>,
    /// Whether all else that becomes free is discarded in the file. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass_discard_other: Option<bool>,
    /// Whether what is discarded keeps its cluster. Default: off; only version 3 can be asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard_no_unref: Option<bool>,
    /// Which writes are compared with where metadata is. Default: cached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap_check: Option<Qcow2OverlapChecks>,
    /// Bytes of L2 tables and refcounts that are remembered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_size: Option<i64>,
    /// Bytes of L2 tables that are remembered. Default: 32 MiB, or all of a disk that has less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2_cache_size: Option<i64>,
    /// Bytes of an L2 table that are read at a time: a power of two, 512 to a cluster. Default: 4096.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2_cache_entry_size: Option<i64>,
    /// Bytes of refcounts that are remembered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refcount_cache_size: Option<i64>,
    /// Seconds after which what nobody has looked for is forgotten; 0: never. Default: 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_clean_interval: Option<i64>,
}

/// A child, or none.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub enum BlockdevRefOrNull {
    /// The name of an existing node.
    #[serde(rename = "@string")]
    Reference(String),
    /// A new node.
    #[serde(rename = "@object")]
    Definition(Box<BlockdevOptions>),
    /// None.
    #[serde(rename = "@null")]
    Null,
}

impl Serialize for BlockdevRefOrNull {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Reference(name) => name.serialize(serializer),
            Self::Definition(options) => options.serialize(serializer),
            Self::Null => serializer.serialize_unit(),
        }
    }
}

/// Options of `null-co` and `null-aio`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NullOptions {
    /// Size of the disk in bytes. Default: 1 GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// How long each request takes, in nanoseconds. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ns: Option<u64>,
    /// Whether reads fill the buffer with zeroes or leave it as it is. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_zeroes: Option<bool>,
}

/// Options of `throttle`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ThrottleOptions {
    /// The `throttle-group` whose limits it keeps, together with all its other members.
    pub throttle_group: String,
    /// The node that is limited.
    pub file: BlockdevRef,
}

/// Options of `copy-on-read`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CopyOnReadOptions {
    /// The node that is read, and written to.
    pub file: BlockdevRef,
    /// The name of the lowest node behind it that is copied from. Default: all are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bottom: Option<String>,
}

/// Options of `quota`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct QuotaOptions {
    /// The node that is limited.
    pub file: BlockdevRef,
    /// How many bytes may be allocated; a write that needs more fails with ENOSPC. It can be
    /// changed with `x-quota-set`.
    pub limit: Size,
}

/// Options of `blkdebug`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlkdebugOptions {
    /// The node whose requests are failed.
    pub image: BlockdevRef,
    /// Required alignment of requests in bytes, a power of two up to `i32::MAX`. Default: the
    /// child's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub align: Option<u64>,
    /// When to fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inject_error: Option<Vec<BlkdebugInjectError>>,
    /// When to change state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_state: Option<Vec<BlkdebugSetState>>,
}

/// One rule of `blkdebug` that fails requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlkdebugInjectError {
    /// The event that activates the rule; `none`: it is active from the beginning.
    pub event: BlkdebugEvent,
    /// The state in which the event activates the rule. Default: 0, any state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<i64>,
    /// The type of request that fails. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iotype: Option<BlkdebugIoType>,
    /// The error, as Linux numbers it. Default: 5 (EIO).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<i64>,
    /// Fail only requests that touch this 512 byte sector. Default: -1, any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sector: Option<i64>,
    /// Fail one request, then forget the rule. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub once: Option<bool>,
    /// Fail before the caller gets control back. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub immediately: Option<bool>,
    /// Fail only each n-th request that the rule fits. Default: 1.
    #[serde(rename = "x-every-nth", skip_serializing_if = "Option::is_none")]
    pub every_nth: Option<u64>,
    /// Forget the rule after that many failures. Default: never.
    #[serde(rename = "x-limit", skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// One rule of `blkdebug` that changes its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlkdebugSetState {
    /// The event that triggers the change.
    pub event: BlkdebugEvent,
    /// The state in which the rule holds. Default: 0, any state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<i64>,
    /// The state that follows.
    pub new_state: i64,
}

/// Events of `blkdebug`: those that drivers without metadata have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlkdebugEvent {
    /// A read.
    ReadAio,
    /// A write.
    WriteAio,
    /// A flush.
    FlushToDisk,
    /// A write-zeroes.
    PwritevZero,
    /// The moment at which the rule is made.
    #[default]
    None,
}

impl BlkdebugEvent {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            BlkdebugEvent::ReadAio => "read_aio",
            BlkdebugEvent::WriteAio => "write_aio",
            BlkdebugEvent::FlushToDisk => "flush_to_disk",
            BlkdebugEvent::PwritevZero => "pwritev_zero",
            BlkdebugEvent::None => "none",
        }
    }
}

/// Types of request, as `blkdebug` tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlkdebugIoType {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Write-zeroes.
    WriteZeroes,
    /// Discards.
    Discard,
    /// Flushes.
    Flush,
}

impl BlkdebugIoType {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            BlkdebugIoType::Read => "read",
            BlkdebugIoType::Write => "write",
            BlkdebugIoType::WriteZeroes => "write-zeroes",
            BlkdebugIoType::Discard => "discard",
            BlkdebugIoType::Flush => "flush",
        }
    }
}

/// A child of a node: the name of one that exists, or a definition in place.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub enum BlockdevRef {
    /// The name of an existing node.
    #[serde(rename = "@string")]
    Reference(String),
    /// A new node.
    #[serde(rename = "@object")]
    Definition(Box<BlockdevOptions>),
}

impl Serialize for BlockdevRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            BlockdevRef::Reference(name) => name.serialize(serializer),
            BlockdevRef::Definition(options) => options.serialize(serializer),
        }
    }
}

impl BlockdevOptions {
    /// Parses the argument of `--blockdev`; the node must have a name.
    pub fn parse(text: &str) -> Result<Self, QmpError> {
        let options: Self = from_argument(text, Some("driver"))?;
        options.check_root()?;
        Ok(options)
    }

    /// Checks a definition at top level: it has a name, and all names are well-formed.
    pub fn check_root(&self) -> Result<(), QmpError> {
        if self.base.node_name.is_none() {
            return Err(QmpError::generic(
                "'node-name' must be specified for the root node",
            ));
        }
        self.check_names()
    }

    /// Checks the names of the node and of its inline children.
    pub fn check_names(&self) -> Result<(), QmpError> {
        if let Some(name) = &self.base.node_name {
            id::check_node_name(name)?;
        }
        self.children()
            .into_iter()
            .try_for_each(|(_, child)| match child {
                Referred::Definition(child) => child.check_names(),
                Referred::Reference(_) => Ok(()),
            })
    }
}

impl BlockdevBase {
    /// `cache.direct`.
    pub fn cache_direct(&self) -> bool {
        self.cache.and_then(|c| c.direct).unwrap_or(false)
    }

    /// `cache.no-flush`.
    pub fn cache_no_flush(&self) -> bool {
        self.cache.and_then(|c| c.no_flush).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests;
