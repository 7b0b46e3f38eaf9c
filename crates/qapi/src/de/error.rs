//! Why a value is refused.

use crate::QmpError;
use std::fmt;

/// Why a value is not what the type wants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct DeError {
    desc: String,
}

impl DeError {
    pub(super) fn new(desc: impl fmt::Display) -> Self {
        DeError {
            desc: desc.to_string(),
        }
    }
}

impl From<DeError> for QmpError {
    fn from(e: DeError) -> Self {
        QmpError::generic(e.desc)
    }
}

impl serde::de::Error for DeError {
    fn custom<T: fmt::Display>(msg: T) -> Self {
        DeError::new(msg)
    }

    fn missing_field(field: &'static str) -> Self {
        DeError::new(format_args!("Parameter '{field}' is missing"))
    }

    fn unknown_field(field: &str, _: &'static [&'static str]) -> Self {
        DeError::new(format_args!("Parameter '{field}' is unexpected"))
    }
}
