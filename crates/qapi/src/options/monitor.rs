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
    /// HMP, typed at a terminal: of QEMU, not of its storage daemon.
    Readline,
}

impl MonitorOptions {
    /// Parses the argument of `--monitor`.
    pub fn parse(text: &str) -> Result<Self, QmpError> {
        let options: Self = from_argument(text, Some("chardev"))?;
        match options.mode {
            Some(MonitorMode::Readline) => Err(QmpError::generic("Only QMP is supported")),
            Some(MonitorMode::Control) | None => Ok(options),
        }
    }
}
