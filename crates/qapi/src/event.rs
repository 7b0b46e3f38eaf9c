//! Events: what the daemon tells without being asked.

use crate::types::{JobStatus, VmmInfo};
use serde::{Deserialize, Serialize};

/// An event and its data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", content = "data")]
pub enum Event {
    /// A request failed.
    #[serde(rename = "BLOCK_IO_ERROR")]
    BlockIoError(BlockIoError),
    /// The run state left `running`.
    #[serde(rename = "STOP")]
    Stop,
    /// The run state became `running`.
    #[serde(rename = "RESUME")]
    Resume,
    /// The daemon ends.
    #[serde(rename = "SHUTDOWN")]
    Shutdown(Shutdown),
    /// An export is gone; its id may be used again.
    #[serde(rename = "BLOCK_EXPORT_DELETED")]
    BlockExportDeleted(BlockExportDeleted),
    /// A write went beyond the threshold of a node.
    #[serde(rename = "BLOCK_WRITE_THRESHOLD")]
    BlockWriteThreshold(BlockWriteThreshold),
    /// An image says what cannot be.
    #[serde(rename = "BLOCK_IMAGE_CORRUPTED")]
    BlockImageCorrupted(BlockImageCorrupted),
    /// A job is somewhere else.
    #[serde(rename = "JOB_STATUS_CHANGE")]
    JobStatusChange(JobStatusChange),
    /// A queue of an export is not served any more.
    #[serde(rename = "X_BLOCK_EXPORT_QUEUE_BROKEN")]
    BlockExportQueueBroken(BlockExportQueueBroken),
    /// The link to the VMM was lost or found, or what it shall do has failed.
    #[serde(rename = "X_VMM_LINK")]
    VmmLink(VmmInfo),
}

impl Event {
    /// The names of all events.
    pub const NAMES: [&'static str; 10] = [
        "BLOCK_IO_ERROR",
        "STOP",
        "RESUME",
        "SHUTDOWN",
        "BLOCK_EXPORT_DELETED",
        "BLOCK_WRITE_THRESHOLD",
        "BLOCK_IMAGE_CORRUPTED",
        "JOB_STATUS_CHANGE",
        "X_BLOCK_EXPORT_QUEUE_BROKEN",
        "X_VMM_LINK",
    ];
}

/// The direction of a failed request, as error policies tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IoOperationType {
    /// A read.
    Read,
    /// Anything else.
    Write,
}

/// What is done about a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockErrorAction {
    /// The client is told that it succeeded.
    Ignore,
    /// The client is told that it failed.
    Report,
    /// It is held until `cont`.
    Stop,
}

/// Data of `BLOCK_IO_ERROR`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockIoError {
    /// The id of the export.
    pub qom_path: String,
    /// The id of the export.
    pub device: String,
    /// The name of the export's node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The direction.
    pub operation: IoOperationType,
    /// What is done about it.
    pub action: BlockErrorAction,
    /// Whether there was no space left; there if the export has an I/O status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nospace: Option<bool>,
    /// The error, for people.
    pub reason: String,
    /// The operation itself: read, write, flush, discard, write-zeroes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_request: Option<String>,
    /// Where on the disk the request begins, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_offset: Option<u64>,
    /// How long the request is, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_length: Option<u64>,
    /// The error as Linux numbers it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_errno: Option<i32>,
    /// What the error means: nospace, backing-gone, timeout, permission, media, unsupported, invalid,
    /// corrupt, failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_cause: Option<String>,
    /// The node that failed, the export's own or one below, if it said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_error_node: Option<String>,
    /// The number of the incident that the error belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_incident: Option<u64>,
}

/// Why the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownCause {
    /// The command `quit`.
    HostQmpQuit,
    /// SIGINT, SIGTERM or SIGHUP.
    HostSignal,
    /// An error that leaves nothing else.
    HostError,
}

/// Data of `SHUTDOWN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Shutdown {
    /// Whether a guest asked for it; never.
    pub guest: bool,
    /// Why.
    pub reason: ShutdownCause,
}

/// Data of `BLOCK_EXPORT_DELETED`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockExportDeleted {
    /// The id of the export.
    pub id: String,
    /// How many requests that it held were dropped with it; absent if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_dropped: Option<u64>,
}

/// Data of `BLOCK_WRITE_THRESHOLD`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockWriteThreshold {
    /// The name of the node.
    pub node_name: String,
    /// By how many bytes it was exceeded.
    pub amount_exceeded: u64,
    /// The threshold in bytes; none is set any more.
    pub write_threshold: u64,
}

/// Data of `BLOCK_IMAGE_CORRUPTED`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockImageCorrupted {
    /// The id of the export whose node it is; empty if it is the node of none.
    pub device: String,
    /// The name of the node with the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// What is wrong, for people.
    pub msg: String,
    /// Where in the file, in bytes, if that says something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// How many bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Whether it is so bad that the image is not written any more.
    pub fatal: bool,
}

/// Data of `JOB_STATUS_CHANGE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatusChange {
    /// The job.
    pub id: String,
    /// Where it is now.
    pub status: JobStatus,
}

/// Data of `X_BLOCK_EXPORT_QUEUE_BROKEN`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockExportQueueBroken {
    /// The id of the export.
    pub id: String,
    /// The number of the queue.
    pub queue: u16,
    /// What its client or guest did, for people.
    pub reason: String,
}
