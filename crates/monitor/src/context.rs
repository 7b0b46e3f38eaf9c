//! What commands work on, and how what they meet is told to their client.

use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use block::{Refusal, Registry, RegistryError};
use parking_lot::Mutex;
use qapi::QmpError;
use qapi::types::VersionInfo;

use crate::changes::Changes;
use crate::chardevs::Chardevs;
use crate::descriptors::{self, Descriptors};
use crate::graph::Graph;
use crate::objects::Objects;
use crate::storage::Storage;

/// What commands work on: what all sessions share, and what their client has sent along.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) shared: Arc<Shared>,
    /// Descriptors that have come with the last that was read.
    pub(crate) passed: Mutex<Vec<OwnedFd>>,
}

impl Context {
    /// The one descriptor that comes with a command; more are closed, as in QEMU.
    pub(crate) fn take_passed(&self) -> Option<OwnedFd> {
        let mut passed = std::mem::take(&mut *self.passed.lock()).into_iter();
        let first = passed.next();
        descriptors::close(passed);
        first
    }
}

impl Deref for Context {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// What the commands of all sessions work on.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) registry: Arc<Registry>,
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) graph: Arc<dyn Graph>,
    pub(crate) chardevs: Arc<dyn Chardevs>,
    pub(crate) descriptors: Arc<Descriptors>,
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
