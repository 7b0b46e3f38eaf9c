//! Arguments of commands.

mod chardev;
mod job;
mod object;
mod snapshot;

pub use chardev::{AddFd, ChardevId, DataFormat, FdName, RemoveFd, RingbufRead, RingbufWrite};
pub use job::{
    Abort, AbortWrapper, BlockJobCancel, BlockJobId, BlockJobSetSpeed, BlockdevCreate,
    BlockdevCreateBase, BlockdevCreateDriver, BlockdevCreateFile, BlockdevCreateNothing,
    BlockdevCreateOptions, BlockdevCreateQcow2, BlockdevCreateVariant, BlockdevQcow2Version,
    BlockdevSnapshotSyncWrapper, BlockdevSnapshotWrapper, CompletionMode, JobId, PreallocMode,
    Qcow2CompressionType, Transaction, TransactionAction, TransactionActionBase,
    TransactionActionKind, TransactionActionVariant, TransactionProperties,
};
pub use object::{QomGet, QomList, QomListProperties, QomListTypes, QomSet};
pub use snapshot::{BlockdevSnapshot, BlockdevSnapshotSync, NewImageMode};

use crate::options::{BlkdebugEvent, BlkdebugIoType, BlockdevOptions};
use serde::{Deserialize, Serialize};

/// Arguments of a command that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoArguments {}

/// Capabilities a client may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QmpCapability {
    /// Commands may be sent out of band. None of ours can be executed so.
    Oob,
}

/// Arguments of `qmp_capabilities`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QmpCapabilities {
    /// Capabilities to enable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable: Option<Vec<QmpCapability>>,
}

/// Arguments of `blockdev-del`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevDel {
    /// The node, which nothing uses.
    pub node_name: String,
}

/// Arguments of `blockdev-reopen`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockdevReopen {
    /// All options of each node, as they are to be from now on.
    pub options: Vec<BlockdevOptions>,
}

/// How an export is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockExportRemoveMode {
    /// Not while it has a client.
    #[default]
    Safe,
    /// Its client is disconnected, and what is held is dropped.
    Hard,
}

/// Arguments of `block-export-del`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockExportDel {
    /// The export.
    pub id: String,
    /// Default: safe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<BlockExportRemoveMode>,
}

/// A name, or none.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub enum StrOrNull {
    /// A name.
    #[serde(rename = "@string")]
    Str(String),
    /// None.
    #[serde(rename = "@null")]
    Null,
}

impl Serialize for StrOrNull {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Str(name) => name.serialize(serializer),
            Self::Null => serializer.serialize_unit(),
        }
    }
}

/// Arguments of `x-blockdev-set-iothread`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevSetIothread {
    /// The node.
    pub node_name: String,
    /// The iothread of exports of that node that name none; null: the daemon's own.
    pub iothread: StrOrNull,
    /// Go on if an export uses the node. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
}

/// Arguments of `block_resize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockResize {
    /// The export whose node is resized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The node that is resized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The new size in bytes.
    pub size: i64,
}

/// Arguments of `block-latency-histogram-set`. A list that is not said is as `boundaries` says; if nothing is
/// said, or the list is empty, there is no histogram any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockLatencyHistogramSet {
    /// The export.
    pub id: String,
    /// Where bins end, in nanoseconds: ascending, and greater than 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boundaries: Option<Vec<u64>>,
    /// Those of reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boundaries_read: Option<Vec<u64>>,
    /// Those of writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boundaries_write: Option<Vec<u64>>,
    /// Those of appends to zones, which do not occur.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boundaries_zap: Option<Vec<u64>>,
    /// Those of flushes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boundaries_flush: Option<Vec<u64>>,
}

/// Arguments of `block-set-write-threshold`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockSetWriteThreshold {
    /// The node.
    pub node_name: String,
    /// The number of the byte beyond which a write is told; 0: none is.
    pub write_threshold: u64,
}

/// Arguments of `cont`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cont {
    /// Resume the VM even if somebody else has paused it. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_force: Option<bool>,
}

/// Arguments of `object-del`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectDel {
    /// The object.
    pub id: String,
}

/// Arguments of `query-blockstats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct QueryBlockstats {
    /// All nodes instead of all exports. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_nodes: Option<bool>,
}

/// Arguments of `query-named-block-nodes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryNamedBlockNodes {
    /// Leave out backing files. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flat: Option<bool>,
}

/// Arguments of `human-monitor-command`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HumanMonitorCommand {
    /// What would be typed.
    pub command_line: String,
    /// The CPU it concerns; accepted and ignored: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_index: Option<i64>,
}

/// Arguments of `x-quota-set`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct QuotaSet {
    /// A node whose driver is `quota`.
    pub node_name: String,
    /// How many bytes may be allocated.
    pub limit: u64,
}

/// Arguments of `x-blkdebug-inject`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlkdebugInject {
    /// A node whose driver is `blkdebug`.
    pub node_name: String,
    /// The event that activates the rule. Default: none; it is active at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<BlkdebugEvent>,
    /// The type of request that fails. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iotype: Option<BlkdebugIoType>,
    /// The error, as Linux numbers it. Default: 5 (EIO).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<i64>,
    /// Fail only requests that touch this 512 byte sector. Default: -1, any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sector: Option<i64>,
    /// Fail one request, then forget the rule. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub once: Option<bool>,
    /// Fail before the submission returns. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub immediately: Option<bool>,
    /// The state in which the event activates the rule. Default: 0, any state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<i64>,
    /// Fail only each n-th request that the rule fits. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_nth: Option<u64>,
    /// Forget the rule after that many failures. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// Result of `x-blkdebug-inject`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkdebugInjected {
    /// Names the rule in `x-blkdebug-clear`.
    pub id: u64,
}

/// Arguments of `x-blkdebug-clear`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlkdebugClear {
    /// A node whose driver is `blkdebug`.
    pub node_name: String,
    /// The rule to forget. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
}

/// Arguments of `x-block-export-cont`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockExportCont {
    /// The export whose held requests go on.
    pub id: String,
}

/// Arguments of `x-node-accept-loss`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeAcceptLoss {
    /// The node whose failed flush is given up.
    pub node_name: String,
}

/// Arguments of `x-query-held`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryHeld {
    /// The export. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}
