//! Arguments of `blockdev-create`, of jobs and of `transaction`.

use super::snapshot::{BlockdevSnapshot, BlockdevSnapshotSync};
use crate::Size;
use crate::de::flat_union;
use crate::options::{BlockdevDriver, BlockdevRef};
use serde::{Deserialize, Serialize};

/// Arguments of `blockdev-create`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevCreate {
    /// The name of the job.
    pub job_id: String,
    /// What is made.
    pub options: BlockdevCreateOptions,
}

flat_union! {
    /// An image to be made.
    pub struct BlockdevCreateOptions { tag: "@driver", base: BlockdevCreateBase }

    /// For which driver.
    pub enum BlockdevCreateDriver;

    /// What a driver wants to know. Most cannot make anything.
    pub enum BlockdevCreateVariant {
        /// A file.
        File("file", BlockdevCreateFile),
        /// An image on a node.
        Qcow2("qcow2", BlockdevCreateQcow2),
        /// A device is there or not.
        HostDevice("host_device", BlockdevCreateNothing),
        /// What is below it is made by others.
        Raw("raw", BlockdevCreateNothing),
        /// There is nothing to be made.
        NullCo("null-co", BlockdevCreateNothing),
        /// There is nothing to be made.
        NullAio("null-aio", BlockdevCreateNothing),
        /// A filter.
        Throttle("throttle", BlockdevCreateNothing),
        /// A filter.
        CopyOnRead("copy-on-read", BlockdevCreateNothing),
        /// A filter.
        Quota("quota", BlockdevCreateNothing),
        /// A filter.
        Blkdebug("blkdebug", BlockdevCreateNothing),
    }
}

/// What all of them have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockdevCreateBase {}

/// Of a driver that makes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockdevCreateNothing {}

/// A file to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevCreateFile {
    /// Its path. What is there begins anew.
    pub filename: String,
    /// Its length in bytes.
    pub size: u64,
    /// How its space is made. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preallocation: Option<PreallocMode>,
    /// Without copy-on-write, where the file system has that. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nocow: Option<bool>,
    /// In pieces of how many bytes the file system is to allocate it, where it can be told so; 0: as it
    /// likes. Default: 1 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extent_size_hint: Option<Size>,
}

/// A qcow2 image to be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevCreateQcow2 {
    /// The node that is to have it. What is there is overwritten.
    pub file: BlockdevRef,
    /// The node that is to have the data of the disk. Default: the image itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<BlockdevRef>,
    /// Whether the data file is a raw image of its own at any time. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file_raw: Option<bool>,
    /// Whether clusters have subclusters. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extended_l2: Option<bool>,
    /// The length of the disk in bytes: a multiple of 512.
    pub size: Size,
    /// The version of the format. Default: v3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<BlockdevQcow2Version>,
    /// The name of the backing file, as it is written into the image. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<String>,
    /// Its format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_fmt: Option<BlockdevDriver>,
    /// Bytes of a cluster. Default: 64 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<Size>,
    /// How its space is made. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preallocation: Option<PreallocMode>,
    /// Whether refcounts may be written late. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lazy_refcounts: Option<bool>,
    /// Bits of a refcount. Default: 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refcount_bits: Option<i64>,
    /// How compressed clusters are compressed. Default: zlib.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression_type: Option<Qcow2CompressionType>,
}

/// Versions of the format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockdevQcow2Version {
    /// That of QEMU before 1.1.
    V2,
    /// With features.
    #[default]
    V3,
}

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Qcow2CompressionType {
    /// Deflate.
    #[default]
    Zlib,
    /// zstd.
    Zstd,
}

/// How the space of an image is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreallocMode {
    /// When it is written.
    #[default]
    Off,
    /// That of what a format remembers; a file has nothing of that kind.
    Metadata,
    /// It is reserved.
    Falloc,
    /// Zeroes are written.
    Full,
}

/// Arguments of `job-cancel`, `job-pause`, `job-resume`, `job-complete`, `job-finalize`, `job-dismiss`, and
/// of `block-job-finalize` and `block-job-dismiss`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobId {
    /// The job.
    pub id: String,
}

/// Arguments of `block-job-pause`, `block-job-resume`, `block-job-complete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockJobId {
    /// The job.
    pub device: String,
}

/// Arguments of `block-job-cancel`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockJobCancel {
    /// The job.
    pub device: String,
    /// Even if it is at its end. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
}

/// Arguments of `block-job-set-speed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockJobSetSpeed {
    /// The job.
    pub device: String,
    /// Bytes in a second; 0: as fast as it can.
    pub speed: i64,
}

/// Arguments of `transaction`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transaction {
    /// What is done: all of it or nothing.
    pub actions: Vec<TransactionAction>,
    /// How.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub properties: Option<TransactionProperties>,
}

flat_union! {
    /// A part of a transaction.
    pub struct TransactionAction { tag: "@type", base: TransactionActionBase }

    /// Kinds of them.
    pub enum TransactionActionKind;

    /// What a kind wants to know.
    pub enum TransactionActionVariant {
        /// Fail, so that nothing is done.
        Abort("abort", AbortWrapper),
        /// An overlay that is a node already comes in above a node.
        BlockdevSnapshot("blockdev-snapshot", BlockdevSnapshotWrapper),
        /// An overlay in a file of its own comes in above a node.
        BlockdevSnapshotSync("blockdev-snapshot-sync", BlockdevSnapshotSyncWrapper),
    }
}

/// What all of them have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionActionBase {}

/// The content of `abort`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbortWrapper {
    /// Nothing.
    pub data: Abort,
}

/// Nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abort {}

/// The content of `blockdev-snapshot`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockdevSnapshotWrapper {
    /// As the arguments of the command.
    pub data: BlockdevSnapshot,
}

/// The content of `blockdev-snapshot-sync`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockdevSnapshotSyncWrapper {
    /// As the arguments of the command.
    pub data: BlockdevSnapshotSync,
}

/// How a transaction is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TransactionProperties {
    /// Whether jobs of the transaction end together. Default: individual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_mode: Option<CompletionMode>,
}

/// Whether jobs of a transaction end together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CompletionMode {
    /// Each for itself.
    #[default]
    Individual,
    /// One that fails cancels all.
    Grouped,
}
