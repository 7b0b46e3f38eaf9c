//! QMP's errors: a class that programs match, a description that people read.

use serde::{Deserialize, Serialize};

/// QMP's error classes. New errors are `GenericError`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorClass {
    /// Everything without a class of its own.
    GenericError,
    /// The command is unknown, or not legal in this phase of the session.
    CommandNotFound,
    /// A device is not active.
    DeviceNotActive,
    /// A device was named that does not exist.
    DeviceNotFound,
    /// A capability of KVM is missing; never sent, but part of the protocol.
    KVMMissingCap,
}

impl ErrorClass {
    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GenericError => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
            Self::DeviceNotActive => "DeviceNotActive",
            Self::DeviceNotFound => "DeviceNotFound",
            Self::KVMMissingCap => "KVMMissingCap",
        }
    }
}

/// An error as QMP sends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{desc}")]
pub struct QmpError {
    /// What programs may match.
    pub class: ErrorClass,
    /// What went wrong, for people, in one line.
    pub desc: String,
    /// What to look at, in lines without a final newline. QMP does not tell it.
    #[serde(skip)]
    pub hint: Option<String>,
}

impl QmpError {
    /// An error of class `GenericError`.
    pub fn generic(desc: impl Into<String>) -> Self {
        QmpError {
            class: ErrorClass::GenericError,
            desc: desc.into(),
            hint: None,
        }
    }

    /// An error of class `DeviceNotFound`.
    pub fn device_not_found(desc: impl Into<String>) -> Self {
        QmpError {
            class: ErrorClass::DeviceNotFound,
            desc: desc.into(),
            hint: None,
        }
    }

    /// The same with advice.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        QmpError {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// All that is to be told to people, where it is not in QMP.
    pub fn whole(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{}\n{hint}", self.desc),
            None => self.desc.clone(),
        }
    }

    /// There is no command of this name.
    pub fn command_not_found(name: &str) -> Self {
        QmpError {
            class: ErrorClass::CommandNotFound,
            desc: format!("The command {name} has not been found"),
            hint: None,
        }
    }

    /// Neither a device (export) nor a node of that name exists. Absent names are empty.
    pub fn cannot_find(device: &str, node_name: &str) -> Self {
        Self::generic(format!(
            "Cannot find device='{device}' nor node-name='{node_name}'"
        ))
    }
}
