//! Arguments of `blockdev-snapshot` and `blockdev-snapshot-sync`.

use serde::{Deserialize, Serialize};

/// Arguments of `blockdev-snapshot`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockdevSnapshot {
    /// The node that comes to be below, or the export whose node that is.
    pub node: String,
    /// The node that is used instead: nothing uses it, and nothing is behind it (`backing=null`).
    pub overlay: String,
}

/// Arguments of `blockdev-snapshot-sync`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevSnapshotSync {
    /// The export whose node comes to be below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The node that comes to be below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The file of the overlay.
    pub snapshot_file: String,
    /// The name of the overlay's node. Without `node-name` it may be left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_node_name: Option<String>,
    /// Its format. Default: qcow2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Where the file comes from. Default: absolute-paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<NewImageMode>,
}

/// Where the file of an overlay comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NewImageMode {
    /// It is there.
    Existing,
    /// It is made, and says what is below it.
    #[default]
    AbsolutePaths,
}
