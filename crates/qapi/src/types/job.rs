//! Results of `query-jobs` and `query-block-jobs`.

use super::BlockDeviceIoStatus;
use serde::{Deserialize, Serialize};

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// Nowhere; never seen.
    Undefined,
    /// Made, and not begun.
    Created,
    /// At work.
    Running,
    /// Told to do nothing for a while.
    Paused,
    /// At its end, but going on until it is told.
    Ready,
    /// Told to do nothing for a while when it was ready.
    Standby,
    /// Waiting for others that belong to it.
    Waiting,
    /// Waiting to take effect.
    Pending,
    /// Tidying up after a failure.
    Aborting,
    /// At its end, and not dismissed.
    Concluded,
    /// Dismissed.
    Null,
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobType {
    /// `blockdev-create`.
    Create,
}

impl JobType {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
        }
    }
}

/// Element of the result of `query-jobs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobInfo {
    /// Its name.
    pub id: String,
    /// What it does.
    pub r#type: JobType,
    /// Where it is.
    pub status: JobStatus,
    /// How far it is.
    pub current_progress: i64,
    /// How far it has to come.
    pub total_progress: i64,
    /// Why it has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Element of the result of `query-block-jobs`: a job that reads and writes nodes. There are none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockJobInfo {
    /// What it does.
    pub r#type: JobType,
    /// Its name.
    pub device: String,
    /// How far it has to come.
    pub len: i64,
    /// How far it is.
    pub offset: i64,
    /// Whether it has I/O in flight.
    pub busy: bool,
    /// Whether it was told to do nothing for a while.
    pub paused: bool,
    /// Its speed limit in bytes per second.
    pub speed: i64,
    /// Whether it has failed.
    pub io_status: BlockDeviceIoStatus,
    /// Whether it can be completed.
    pub ready: bool,
    /// Where it is.
    pub status: JobStatus,
    /// Whether it takes effect by itself.
    pub auto_finalize: bool,
    /// Whether it is dismissed by itself.
    pub auto_dismiss: bool,
    /// Why it has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
