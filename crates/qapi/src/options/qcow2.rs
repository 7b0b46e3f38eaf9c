//! What a qcow2 image compares its writes with.

use serde::{Deserialize, Serialize};

/// Which writes are compared with where metadata is: a template, or one by one.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub enum Qcow2OverlapChecks {
    /// One by one.
    #[serde(rename = "@object")]
    Flags(Qcow2OverlapCheckFlags),
    /// As this template says.
    #[serde(rename = "@string")]
    Mode(Qcow2OverlapCheckMode),
}

impl Serialize for Qcow2OverlapChecks {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Flags(flags) => flags.serialize(serializer),
            Self::Mode(mode) => mode.serialize(serializer),
        }
    }
}

/// Templates of what is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Qcow2OverlapCheckMode {
    /// Nothing.
    None,
    /// What costs nothing.
    Constant,
    /// What is in memory.
    Cached,
    /// All.
    All,
}

/// What is compared, one by one. Default of each: as the template says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Qcow2OverlapCheckFlags {
    /// The template. Default: cached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<Qcow2OverlapCheckMode>,
    /// The header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub main_header: Option<bool>,
    /// The active L1 table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_l1: Option<bool>,
    /// Active L2 tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_l2: Option<bool>,
    /// The refcount table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refcount_table: Option<bool>,
    /// Refcount blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refcount_block: Option<bool>,
    /// The snapshot table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_table: Option<bool>,
    /// L1 tables of snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactive_l1: Option<bool>,
    /// L2 tables of snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactive_l2: Option<bool>,
    /// The bitmap directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmap_directory: Option<bool>,
}
