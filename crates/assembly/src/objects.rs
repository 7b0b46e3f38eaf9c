//! Objects: those of `--object`, and those that come and go over QMP.

use std::sync::Arc;

use block::Registry;
use qapi::options::{ObjectOptions, ObjectVariant, VmmSocketOptions};
use qapi::os_text;
use tokio::sync::{Mutex, MutexGuard};
use vmm::Peer;

use crate::iothreads::Iothreads;
use crate::links;
use crate::setup_error::SetupError;

/// All objects of the daemon. They have one name space.
#[derive(Debug)]
pub struct Objects {
    registry: Arc<Registry>,
    /// Locked while any object is added or deleted.
    iothreads: Mutex<Iothreads>,
}

impl Objects {
    /// None yet.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            iothreads: Mutex::default(),
        }
    }

    /// The iothreads; nothing is added or deleted meanwhile.
    pub async fn iothreads(&self) -> MutexGuard<'_, Iothreads> {
        self.iothreads.lock().await
    }

    /// Executes `--object` and `object-add`.
    ///
    /// # Errors
    /// If the id is taken, there is a link to a VMM already, or the object cannot be made.
    pub async fn add(&self, options: ObjectOptions) -> Result<(), SetupError> {
        let mut iothreads = self.iothreads.lock().await;
        let ObjectOptions { base, variant } = options;
        let is_link = |id: &str| self.registry.link().is_some_and(|link| link.id() == id);
        if iothreads.contains(&base.id) || is_link(&base.id) {
            return Err(SetupError::duplicate_object(&base.id));
        }
        let path = |socket: VmmSocketOptions| os_text::to_os(&socket.path).into();
        let peer = match variant {
            ObjectVariant::Iothread(options) => return iothreads.add(&base.id, &options),
            ObjectVariant::VmmQemu(socket) => Peer::Qemu { path: path(socket) },
            ObjectVariant::VmmCloudHypervisor(socket) => {
                Peer::CloudHypervisor { path: path(socket) }
            }
            ObjectVariant::VmmFirecracker(socket) => Peer::Firecracker { path: path(socket) },
            ObjectVariant::VmmCommand(options) => links::by_command(&options)?,
        };
        links::add(&self.registry, &base.id, peer).await
    }

    /// Executes `object-del`.
    ///
    /// # Errors
    /// If there is no such object, or it is in use.
    pub async fn delete(&self, id: &str) -> Result<(), SetupError> {
        let mut iothreads = self.iothreads.lock().await;
        if self.registry.remove_link(id).await? {
            return Ok(());
        }
        let thread = iothreads.remove(id)?;
        // Nobody uses it, so that its end takes no time to speak of; but it is waited for. A panic
        // there has told of itself.
        let _ = tokio::task::spawn_blocking(move || drop(thread)).await;
        Ok(())
    }
}
