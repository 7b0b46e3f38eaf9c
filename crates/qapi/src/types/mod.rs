//! What commands return. Members whose names begin with `x-` are ours; all are optional.

mod block;
mod chardev;
mod job;
mod object;
mod schema;
mod stats;

pub use block::{
    BlockDeviceInfo, BlockDeviceIoStatus, BlockErrorInfo, BlockExportInfo, BlockInfo,
    BlockdevCacheInfo, BlockdevChild, CacheUseInfo, HeldRequestInfo, ImageInfo, ImageInfoSpecific,
    ImageInfoSpecificFile, ImageInfoSpecificQcow2, Qcow2BitmapInfo, Qcow2BitmapInfoFlags,
    SnapshotInfo, UnwrittenInfo,
};
pub use chardev::{
    AddfdInfo, ChardevBackendInfo, ChardevInfo, ChardevReturn, FdsetFdInfo, FdsetInfo,
};
pub use job::{BlockJobInfo, JobInfo, JobStatus, JobType};
pub use object::{IothreadInfo, ObjectPropertyInfo, ObjectTypeInfo};
pub use schema::{
    JsonType, SchemaInfo, SchemaInfoAlternate, SchemaInfoAlternateMember, SchemaInfoArray,
    SchemaInfoBase, SchemaInfoBuiltin, SchemaInfoCommand, SchemaInfoEnum, SchemaInfoEnumMember,
    SchemaInfoEvent, SchemaInfoObject, SchemaInfoObjectMember, SchemaInfoObjectVariant,
    SchemaInfoVariant, SchemaMetaType,
};
pub use stats::{
    BlockDeviceStats, BlockDeviceTimedStats, BlockLatencyHistogramInfo, BlockStats,
    BlockStatsSpecificFile,
};

use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// The run state, as far as a storage daemon has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Requests are executed.
    Running,
    /// Stopped by `stop`.
    Paused,
    /// Stopped by an I/O error.
    IoError,
    /// The daemon ends.
    Shutdown,
}

impl RunState {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            RunState::Running => "running",
            RunState::Paused => "paused",
            RunState::IoError => "io-error",
            RunState::Shutdown => "shutdown",
        }
    }
}

/// Result of `query-status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusInfo {
    /// Whether the state is `running`.
    pub running: bool,
    /// The state.
    pub status: RunState,
    /// Whether a guest is single-stepped; never. QEMU 9.0 has dropped it.
    pub singlestep: bool,
    /// The link to the VMM, if there is one.
    #[serde(rename = "x-vmm", skip_serializing_if = "Option::is_none")]
    pub x_vmm: Option<VmmInfo>,
}

/// The link to the VMM: in the result of `query-status`, and the data of `X_VMM_LINK`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmmInfo {
    /// The id of the object.
    pub id: String,
    /// Its type.
    pub r#type: String,
    /// Whether the VMM is reached: connecting, connected, down.
    pub state: String,
    /// The VM's own state, as the VMM said last: unknown, running, paused, absent.
    pub vm: String,
    /// What the link still has to do: pause, resume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<String>,
    /// Who has paused the VM: nobody, link, other.
    pub paused_by: String,
    /// What is wrong, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A version number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionTriple {
    /// The third part.
    pub micro: i64,
    /// The second part.
    pub minor: i64,
    /// The first part.
    pub major: i64,
}

/// Result of `query-version`, and part of the greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// The version of the monitor: clients decide by it what they may expect.
    pub qemu: VersionTriple,
    /// Name and version of the product.
    pub package: String,
}

/// Element of the result of `query-commands`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandInfo {
    /// The name of the command.
    pub name: String,
}

/// A result without members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// A point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00 UTC; -1: the host's time is not known.
    pub seconds: i64,
    /// And microseconds; -1: the host's time is not known.
    pub microseconds: i64,
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).ok();
        match since.and_then(|d| Some((i64::try_from(d.as_secs()).ok()?, d.subsec_micros()))) {
            Some((seconds, microseconds)) => Timestamp {
                seconds,
                microseconds: microseconds.into(),
            },
            None => Timestamp {
                seconds: -1,
                microseconds: -1,
            },
        }
    }
}
