//! Arguments of commands about character devices and descriptors.

use serde::{Deserialize, Serialize};

/// Arguments of `chardev-remove` and `chardev-send-break`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChardevId {
    /// The character device.
    pub id: String,
}

/// How data is written in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataFormat {
    /// As text.
    #[default]
    Utf8,
    /// As base64.
    Base64,
}

/// Arguments of `ringbuf-write`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingbufWrite {
    /// The character device.
    pub device: String,
    /// What is written.
    pub data: String,
    /// How that is to be read. Default: utf8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<DataFormat>,
}

/// Arguments of `ringbuf-read`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingbufRead {
    /// The character device.
    pub device: String,
    /// Most bytes to be read.
    pub size: i64,
    /// How they are to be written. Default: utf8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<DataFormat>,
}

/// Arguments of `add-fd`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AddFd {
    /// The set. Default: a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fdset_id: Option<i64>,
    /// Anything, for whoever asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opaque: Option<String>,
}

/// Arguments of `remove-fd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RemoveFd {
    /// The set.
    pub fdset_id: i64,
    /// The descriptor. Default: all of the set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<i64>,
}

/// Arguments of `getfd` and `closefd`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdName {
    /// The name of the descriptor.
    pub fdname: String,
}
