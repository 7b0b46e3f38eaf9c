//! What the options of all nodes have in common, as the drivers want it.

use block::NodeInfo;
use qapi::options::{BlockdevBase, DiscardMode};

use crate::setup_error::SetupError;

/// Whether the guest's discards are passed on.
pub fn unmaps(base: &BlockdevBase) -> bool {
    base.discard == Some(DiscardMode::Unmap)
}

/// How a node is opened that has no storage of its own, or whose child has.
pub fn node_info(base: &BlockdevBase) -> NodeInfo {
    NodeInfo {
        read_only: base.read_only.unwrap_or(false),
        cache_direct: base.cache_direct(),
        cache_no_flush: base.cache_no_flush(),
        ..NodeInfo::default()
    }
}

/// A number of bytes that must not be negative.
///
/// # Errors
/// It is, in QEMU's words.
pub fn not_negative(name: &str, bytes: Option<i64>) -> Result<Option<u64>, SetupError> {
    let number = bytes.map(u64::try_from).transpose();
    number.map_err(|_| {
        let bytes = bytes.unwrap_or_default();
        SetupError::new(format!(
            "Value '{bytes}' is out of range for parameter '{name}'"
        ))
    })
}
