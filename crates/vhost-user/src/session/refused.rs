//! Why a message is refused.

use crate::class::Closed;
use crate::memory::MemoryError;

/// A message is refused, which ends the connection.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(String);

pub(super) type Result<T> = std::result::Result<T, Refused>;

pub(super) fn wrong(text: impl Into<String>) -> Refused {
    Refused(text.into())
}

impl From<Closed> for Refused {
    fn from(closed: Closed) -> Self {
        wrong(closed.to_string())
    }
}

impl From<MemoryError> for Refused {
    fn from(error: MemoryError) -> Self {
        wrong(error.to_string())
    }
}

/// Whether a client may set these features.
pub(super) fn offered(message: &str, features: u64, possible: u64) -> Result<()> {
    match features & !possible {
        0 => Ok(()),
        unknown => Err(wrong(format!(
            "{message} with {unknown:#x}, which is not offered"
        ))),
    }
}
