//! What JSON refuses.

/// Why text is not JSON; the text is QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(pub(crate) String);

impl JsonError {
    pub(super) fn syntax(what: impl std::fmt::Display) -> Self {
        JsonError(format!("JSON parse error, {what}"))
    }
}
