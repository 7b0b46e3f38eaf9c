//! Objects: those of `--object`, and those that come and go over QMP.

use std::sync::Arc;

use block::Registry;
use monitor::ChardevObject;
use qapi::options::{ObjectOptions, ObjectVariant, VmmSocketOptions};
use qapi::{QmpError, Value, os_text};
use tokio::sync::{Mutex, MutexGuard};
use vmm::Peer;

use crate::iothreads::Iothreads;
use crate::links;
use crate::properties::Properties;
use crate::secret;
use crate::setup_error::SetupError;
use crate::throttle::Groups;

/// All objects of the daemon. They have one name space.
#[derive(Debug)]
pub struct Objects {
    registry: Arc<Registry>,
    /// Locked while any object is added or deleted.
    iothreads: Mutex<Iothreads>,
    properties: Properties,
    groups: Groups,
}

impl Objects {
    /// None yet.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            iothreads: Mutex::default(),
            properties: Properties::default(),
            groups: Groups::default(),
        }
    }

    /// What may be asked and changed of the objects.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// The iothreads; nothing is added or deleted meanwhile.
    pub async fn iothreads(&self) -> MutexGuard<'_, Iothreads> {
        self.iothreads.lock().await
    }

    /// The throttle groups.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// `qom-set`.
    ///
    /// # Errors
    /// As [`Properties::set`].
    pub fn set_property(
        &self,
        chardevs: &[ChardevObject],
        path: &str,
        property: &str,
        value: Value,
    ) -> Result<(), QmpError> {
        let properties = &self.properties;
        properties.set(&self.groups, chardevs, path, property, value)
    }

    /// Executes `--object` and `object-add`.
    ///
    /// # Errors
    /// If the id is taken, there is a link to a VMM already, or the object cannot be made.
    pub async fn add(&self, options: ObjectOptions) -> Result<(), SetupError> {
        let id = options.base.id.clone();
        let is_free = || match self.properties.contains(&id) {
            true => Err(SetupError::duplicate_object(&id)),
            false => Ok(()),
        };
        is_free()?;
        // Its file may be on storage that does not answer: nobody else waits for that.
        if let ObjectVariant::Secret(options) = &options.variant {
            secret::check(options, &self.properties).await?;
        }
        let mut iothreads = self.iothreads.lock().await;
        is_free()?;
        let mut described = options.variant.clone();
        self.make(&mut iothreads, options).await?;
        if let (ObjectVariant::ThrottleGroup(options), Some(limits)) =
            (&mut described, self.groups.limits(&id))
        {
            **options = limits.into();
        }
        self.properties.add(&id, described, iothreads.handle(&id));
        Ok(())
    }

    async fn make(
        &self,
        iothreads: &mut Iothreads,
        options: ObjectOptions,
    ) -> Result<(), SetupError> {
        let ObjectOptions { base, variant } = options;
        let path = |socket: VmmSocketOptions| os_text::to_os(&socket.path).into();
        let peer = match variant {
            ObjectVariant::Iothread(options) => return iothreads.add(&base.id, &options),
            ObjectVariant::Secret(_) => return Ok(()),
            ObjectVariant::ThrottleGroup(options) => return self.groups.add(&base.id, &options),
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
        let is_gone = self.groups.remove(id)? || self.registry.remove_link(id).await?;
        if is_gone || self.properties.has_secret(id) {
            self.properties.remove(id);
            return Ok(());
        }
        let thread = iothreads.remove(id)?;
        self.properties.remove(id);
        // Nobody uses it, so that its end takes no time to speak of; but it is waited for. A panic
        // there has told of itself.
        let _ = tokio::task::spawn_blocking(move || drop(thread)).await;
        Ok(())
    }
}
