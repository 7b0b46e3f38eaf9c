//! What commands work on, and how what they meet is told to their client.

use std::sync::Arc;

use block::{Refusal, Registry, RegistryError};
use qapi::QmpError;
use qapi::types::VersionInfo;

use crate::changes::Changes;
use crate::graph::Graph;
use crate::objects::Objects;
use crate::storage::Storage;

/// What commands work on.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) registry: Arc<Registry>,
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) graph: Arc<dyn Graph>,
    pub(crate) version: VersionInfo,
    pub(crate) storage: Storage,
    pub(crate) changes: Changes,
}

/// Runs `f`, which may block, where it keeps nobody from anything.
pub(crate) async fn blocking<R: Send + 'static>(
    f: impl FnOnce() -> R + Send + 'static,
) -> Result<R, QmpError> {
    let result = tokio::task::spawn_blocking(f).await;
    result.map_err(|e| QmpError::generic(format!("Internal error: {e}")))
}

pub(crate) fn refused(refusal: Refusal) -> QmpError {
    QmpError::generic(refusal.to_string())
}

pub(crate) fn failed(error: RegistryError) -> QmpError {
    QmpError::generic(error.to_string())
}
