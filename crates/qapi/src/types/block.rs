//! Results of `query-block`, `query-named-block-nodes`, `query-block-exports`, `x-query-held`.

use super::Timestamp;
use crate::options::DetectZeroes;
use serde::{Deserialize, Serialize};

/// The I/O status of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockDeviceIoStatus {
    /// No error since the last reset.
    Ok,
    /// An error for another reason than space.
    Failed,
    /// There was no space left.
    Nospace,
}

impl BlockDeviceIoStatus {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            BlockDeviceIoStatus::Ok => "ok",
            BlockDeviceIoStatus::Failed => "failed",
            BlockDeviceIoStatus::Nospace => "nospace",
        }
    }
}

/// Element of the result of `query-block`: the backend of one export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockInfo {
    /// The id of the export.
    pub device: String,
    /// The id of the export.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qdev: Option<String>,
    /// Always `unknown`.
    pub r#type: String,
    /// Whether the medium can be taken out; never.
    pub removable: bool,
    /// Whether the guest has locked the medium; never.
    pub locked: bool,
    /// Whether the tray is open.
    #[serde(rename = "tray_open", skip_serializing_if = "Option::is_none")]
    pub tray_open: Option<bool>,
    /// The I/O status; there if the export has one: its device is attached and a policy can stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_status: Option<BlockDeviceIoStatus>,
    /// The node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inserted: Option<BlockDeviceInfo>,
    /// `werror` of the export, `auto` resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_werror: Option<String>,
    /// `rerror` of the export, `auto` resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_rerror: Option<String>,
    /// `hold-scope` of the export.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_hold_scope: Option<String>,
    /// How many requests are held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_held: Option<u64>,
    /// The number of the incident that goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_incident: Option<u64>,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_incident_since: Option<Timestamp>,
    /// Its cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_incident_cause: Option<String>,
    /// The node that failed, the export's own or one below, if it said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_incident_node: Option<String>,
    /// How many incidents there have been.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_incidents: Option<u64>,
    /// The first error since the I/O status was reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_first_error: Option<BlockErrorInfo>,
    /// The last error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_last_error: Option<BlockErrorInfo>,
    /// What the user should know about this configuration or state; absent if nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_warnings: Option<Vec<String>>,
}

impl BlockInfo {
    /// The node below the export's own that `error` comes from; none if it is not known, or the export's own.
    #[must_use]
    pub fn failed_below<'a>(&self, error: &'a BlockErrorInfo) -> Option<&'a str> {
        let own = self.inserted.as_ref()?.node_name.as_deref();
        error
            .error_node
            .as_deref()
            .filter(|&node| own != Some(node))
    }
}

/// An error, as `query-block` remembers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockErrorInfo {
    /// The operation: read, write, flush, discard, write-zeroes.
    pub operation: String,
    /// Where the request begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// The error as Linux numbers it.
    pub errno: i32,
    /// What it means: nospace, backing-gone, timeout, permission, media, unsupported, invalid, corrupt,
    /// failed.
    pub cause: String,
    /// The node that failed, the export's own or one below, if it said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_node: Option<String>,
    /// The error, for people.
    pub reason: String,
    /// When it happened.
    pub timestamp: Timestamp,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockDeviceInfo {
    /// The name of the file, or what stands for it.
    pub file: String,
    /// The name of the node.
    #[serde(rename = "node-name", skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Whether it refuses writes.
    pub ro: bool,
    /// The driver.
    pub drv: String,
    /// The name of the backing file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<String>,
    /// How many backing files there are; a node that is filtered counts as one.
    pub backing_file_depth: i64,
    /// The nodes below (QEMU 10.1).
    #[serde(default)]
    pub children: Vec<BlockdevChild>,
    /// Whether it may be used; always.
    #[serde(default)]
    pub active: bool,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Whether zeroes are looked for.
    pub detect_zeroes: DetectZeroes,
    /// Limit of bytes per second; 0: none.
    pub bps: i64,
    /// Of those, read.
    pub bps_rd: i64,
    /// Of those, written.
    pub bps_wr: i64,
    /// Limit of operations per second; 0: none.
    pub iops: i64,
    /// Of those, reads.
    pub iops_rd: i64,
    /// Of those, writes.
    pub iops_wr: i64,
    /// How the host caches.
    pub cache: BlockdevCacheInfo,
    /// The offset in bytes whose crossing by a write is told; 0: none.
    pub write_threshold: i64,
    /// The image.
    pub image: ImageInfo,
    /// Bytes that may be allocated, where the node limits that.
    #[serde(rename = "x-quota-limit", skip_serializing_if = "Option::is_none")]
    pub x_quota_limit: Option<u64>,
    /// Bytes that are allocated, where the node limits that.
    #[serde(rename = "x-quota-used", skip_serializing_if = "Option::is_none")]
    pub x_quota_used: Option<u64>,
    /// What does its I/O, of a node that has storage of its own: `io_uring`, `threads`.
    #[serde(rename = "x-engine", skip_serializing_if = "Option::is_none")]
    pub x_engine: Option<String>,
    /// What is remembered of the tables of an image that say where data is.
    #[serde(rename = "x-l2-cache", skip_serializing_if = "Option::is_none")]
    pub x_l2_cache: Option<CacheUseInfo>,
    /// What is remembered of the counts of what is in use, of an image that is written.
    #[serde(rename = "x-refcount-cache", skip_serializing_if = "Option::is_none")]
    pub x_refcount_cache: Option<CacheUseInfo>,
    /// What the driver could not write back on its own, if there is something.
    #[serde(rename = "x-unwritten", skip_serializing_if = "Option::is_none")]
    pub x_unwritten: Option<UnwrittenInfo>,
}

/// How much a cache has of what it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheUseInfo {
    /// Bytes that it has room for.
    pub size: u64,
    /// Bytes that it has.
    pub used: u64,
    /// How often something was not there, and had to be read, since the image was opened or came into use.
    pub misses: u64,
}

/// A node below another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevChild {
    /// What it is to the other one: `file`, `image`...
    pub child: String,
    /// Its name.
    pub node_name: String,
}

/// What a driver keeps because it could not write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnwrittenInfo {
    /// How many bytes.
    pub bytes: u64,
    /// What it is, for people.
    pub what: String,
    /// Why it could not be written, for people.
    pub reason: String,
}

/// How the host caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevCacheInfo {
    /// Whether writes are acknowledged before they are durable.
    pub writeback: bool,
    /// Whether the host's page cache is gone around.
    pub direct: bool,
    /// Whether flushes are ignored.
    pub no_flush: bool,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// The name of the file, or what stands for it.
    pub filename: String,
    /// The format.
    pub format: String,
    /// The size that the guest sees, in bytes.
    pub virtual_size: i64,
    /// Bytes allocated on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_size: Option<i64>,
    /// Whether it was not closed in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dirty_flag: Option<bool>,
    /// Whether it is encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    /// Bytes per cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<i64>,
    /// The backing file, as the image names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
    /// Where that name leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_backing_filename: Option<String>,
    /// The format of the backing file, as the image says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename_format: Option<String>,
    /// The image of the backing file, or of the node that this one filters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_image: Option<Box<ImageInfo>>,
    /// Its internal snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<Vec<SnapshotInfo>>,
    /// What only this format has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format_specific: Option<ImageInfoSpecific>,
}

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotInfo {
    /// Its number, mostly.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// Bytes of VM state.
    pub vm_state_size: i64,
    /// When it was taken, in seconds since 1970.
    pub date_sec: i64,
    /// And nanoseconds.
    pub date_nsec: i64,
    /// How long the VM had run by then, in seconds.
    pub vm_clock_sec: i64,
    /// And nanoseconds.
    pub vm_clock_nsec: i64,
    /// How many instructions had been executed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icount: Option<i64>,
}

/// What only one format has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "lowercase")]
pub enum ImageInfoSpecific {
    /// `file` and `host_device`.
    File(ImageInfoSpecificFile),
    /// `qcow2`.
    Qcow2(ImageInfoSpecificQcow2),
}

/// What only qcow2 images have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfoSpecificQcow2 {
    /// The version: `0.10` or `1.1`.
    pub compat: String,
    /// The external data file, as the image names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<String>,
    /// Whether that is an image of its own. Not there without such a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file_raw: Option<bool>,
    /// Whether it has subclusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extended_l2: Option<bool>,
    /// Whether refcounts may be written late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lazy_refcounts: Option<bool>,
    /// Whether it is marked as corrupt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<bool>,
    /// The width of a refcount in bits.
    pub refcount_bits: i64,
    /// Its persistent bitmaps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmaps: Option<Vec<Qcow2BitmapInfo>>,
    /// How compressed clusters are compressed: `zlib`, `zstd`.
    pub compression_type: String,
}

/// A persistent bitmap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Qcow2BitmapInfo {
    /// What it is called.
    pub name: String,
    /// Bytes that one bit stands for.
    pub granularity: u32,
    /// `in-use`: not saved in order; `auto`: it follows all writes.
    pub flags: Vec<Qcow2BitmapInfoFlags>,
}

/// Flags of a persistent bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Qcow2BitmapInfoFlags {
    /// It was not saved in order.
    InUse,
    /// It follows all writes.
    Auto,
}

/// What only files have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfoSpecificFile {
    /// In pieces of how many bytes the file system allocates it, where it was told so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extent_size_hint: Option<u32>,
}

/// Element of the result of `query-block-exports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockExportInfo {
    /// The id of the export.
    pub id: String,
    /// The protocol.
    pub r#type: String,
    /// The node.
    pub node_name: String,
    /// Whether it is about to go.
    pub shutting_down: bool,
    /// Whether clients may write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_writable: Option<bool>,
    /// Whether a client is connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_client: Option<bool>,
    /// What is wrong with it; absent if nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_trouble: Option<String>,
}

/// Element of the result of `x-query-held`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HeldRequestInfo {
    /// The id of the export.
    pub id: String,
    /// The queue the request came from.
    pub queue: u16,
    /// Its place in the queue's descriptor table.
    pub head: u16,
    /// The operation: read, write, flush, discard, write-zeroes.
    pub operation: String,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// The error of the last attempt, as Linux numbers it; absent if the client has handed the
    /// request back after a restart and it has not failed since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// What it means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The node that failed, the export's own or one below, if it said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_node: Option<String>,
    /// The same as `errno`, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How often it has failed since the daemon was started.
    pub attempts: u64,
    /// When it failed first, or was handed back.
    pub since: Timestamp,
}
