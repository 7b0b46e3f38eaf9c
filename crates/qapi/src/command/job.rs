//! Arguments of `blockdev-create`, of jobs and of `transaction`.

use crate::Size;
use crate::de::flat_union;
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
