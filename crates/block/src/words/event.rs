//! The events that run control hands to its observers, in order.

use std::sync::Arc;
use std::time::SystemTime;

use crate::words::error::Cause;
use crate::words::error_policy::{Action, Direction};
use crate::words::io_status::Status;
use crate::words::job::JobStatus;
use crate::words::request::Operation;
use crate::words::vm::LinkStatus;

/// `BLOCK_IO_ERROR`: a request failed and policy decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockIoError {
    /// The export.
    pub device: String,
    /// Its root node.
    pub node_name: String,
    /// Which policy judged.
    pub direction: Direction,
    /// What was done.
    pub action: Action,
    /// Whether the backend's I/O status is enabled; `nospace` is shown only then.
    pub status_enabled: bool,
    /// The I/O status as a query sees it when the event goes out.
    pub io_status: Status,
    /// Errno and class.
    pub cause: Cause,
    /// The node that failed, if it said so: the root node, or one below.
    pub error_node: Option<Arc<str>>,
    /// The operation that failed.
    pub operation: Operation,
    /// First byte of the failed request.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// The incident it belongs to; none under `report` and `ignore`.
    pub incident: Option<u64>,
}

/// `BLOCK_IMAGE_CORRUPTED`: an image says what cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockImageCorrupted {
    /// The export whose node it is; empty: none's, but a node's above.
    pub device: String,
    /// The node with the image.
    pub node_name: String,
    /// What is wrong.
    pub msg: String,
    /// Where in the file, in bytes.
    pub offset: Option<u64>,
    /// How many bytes.
    pub bytes: Option<u64>,
    /// It is not written any more.
    pub fatal: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// `BLOCK_IO_ERROR`.
    BlockIoError(Box<BlockIoError>),
    /// `BLOCK_IMAGE_CORRUPTED`.
    BlockImageCorrupted(Box<BlockImageCorrupted>),
    /// `STOP`: the run state left `running`.
    Stop,
    /// `RESUME`: the run state is `running` again.
    Resume,
    /// `SHUTDOWN`: the daemon ends.
    Shutdown {
        /// QEMU's `ShutdownCause`: `host-signal`, `host-qmp-quit`.
        reason: &'static str,
    },
    /// `BLOCK_EXPORT_DELETED`.
    BlockExportDeleted {
        /// The export.
        id: String,
        /// How many requests it held, which were dropped with it.
        dropped: u64,
    },
    /// `BLOCK_WRITE_THRESHOLD`: a write went beyond the threshold of a node, which is not armed any more.
    BlockWriteThreshold {
        /// The node.
        node_name: String,
        /// By how many bytes.
        amount: u64,
        /// The threshold in bytes.
        threshold: u64,
    },
    /// `JOB_STATUS_CHANGE`: a job is somewhere else.
    JobStatusChange {
        /// The job.
        id: String,
        /// Where it is now.
        status: JobStatus,
    },
    /// `X_BLOCK_EXPORT_QUEUE_BROKEN`: a queue is not served any more, until its client starts it
    /// anew.
    BlockExportQueueBroken {
        /// The export.
        id: String,
        /// The queue.
        queue: u16,
        /// Why.
        reason: String,
    },
    /// `X_VMM_LINK`: the link to the VMM was lost or found, or what it shall do has failed.
    VmLink {
        /// The object.
        id: String,
        /// Its type: `vmm-qemu`.
        type_name: &'static str,
        /// How it is now.
        status: Box<LinkStatus>,
    },
}

/// An event and when it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Wall clock time.
    pub at: SystemTime,
    /// What happened.
    pub kind: EventKind,
}
