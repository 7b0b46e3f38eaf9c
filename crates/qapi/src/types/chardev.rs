//! Character devices and descriptors.

use serde::{Deserialize, Serialize};

/// An entry of `query-chardev`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChardevInfo {
    /// The id.
    pub label: String,
    /// What it is, and how far.
    pub filename: String,
    /// Whether a monitor uses it.
    pub frontend_open: bool,
}

/// An entry of `query-chardev-backends`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChardevBackendInfo {
    /// The kind.
    pub name: String,
}

/// Result of `chardev-add` and `chardev-change`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChardevReturn {
    /// The pseudo terminal that was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pty: Option<String>,
}

/// Result of `add-fd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AddfdInfo {
    /// The set.
    pub fdset_id: i64,
    /// The descriptor's number here.
    pub fd: i64,
}

/// An entry of `query-fdsets`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FdsetInfo {
    /// The set.
    pub fdset_id: i64,
    /// What is in it.
    pub fds: Vec<FdsetFdInfo>,
}

/// A descriptor of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdsetFdInfo {
    /// Its number here.
    pub fd: i64,
    /// What was given with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opaque: Option<String>,
}
