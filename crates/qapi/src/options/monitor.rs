//! Monitors: `--monitor`.

use crate::QmpError;
use crate::de::from_argument;
use serde::{Deserialize, Serialize};

/// A monitor on a character device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MonitorOptions {
    /// Name of the monitor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The protocol. Default: control.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<MonitorMode>,
    /// Whether to indent what is sent. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretty: Option<bool>,
    /// The character device.
    pub chardev: String,
}

/// Protocols of a monitor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MonitorMode {
    /// QMP.
    #[default]
    Control,
}

impl MonitorOptions {
    /// Parses the argument of `--monitor`.
    pub fn parse(text: &str) -> Result<Self, QmpError> {
        from_argument(text, Some("chardev"))
    }
}
