//! The control plane of a disk: what it offers, its configuration space, and what its backend is told
//! of a client's coming and going.

use std::fmt;
use std::sync::Arc;

use block::{Backend, Image};
use vhost_user::protocol::message::ConfigRange;
use vhost_user::{Class, Closed, DeviceHandle, Guest, space};

use crate::cache::Cache;
use crate::config::{self, WCE_OFFSET};
use crate::options::Options;
use crate::part::{BlockPart, Config};

/// See the [module](self).
pub(crate) struct Disk {
    options: Options,
    backend: Arc<Backend>,
    cache: Cache,
    /// The length of the disk that this client has read, in bytes.
    told_length: Option<u64>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("export", &self.options.id)
            .finish_non_exhaustive()
    }
}

impl Disk {
    pub fn new(config: Config, device: DeviceHandle<BlockPart>) -> Self {
        let backend = Arc::clone(config.backend());
        let options = config.options;
        Self {
            cache: Cache::new(&options, Arc::clone(&backend), device),
            options,
            backend,
            told_length: None,
        }
    }

    fn length(&self) -> u64 {
        self.backend.node().driver().length()
    }
}

impl Class for Disk {
    type Part = BlockPart;

    const NAME: &'static str = "vhost-user-blk";

    fn features(&self) -> u64 {
        config::virtio_features(&self.options)
    }

    fn negotiated(&mut self, guest: Guest<'_>) -> Result<(), Closed> {
        self.cache.follow(guest)
    }

    fn read_config(&mut self, range: ConfigRange) -> Vec<u8> {
        let length = self.length();
        let limits = self.backend.node().driver().limits();
        let bytes = config::space(&self.options, length, limits, self.cache.shown());
        self.told_length = Some(length);
        if space::place(range, WCE_OFFSET).is_some() {
            self.cache.read();
        }
        space::part(&bytes, range.offset, range.len)
    }

    /// Nothing but the write cache can be set. Other bytes come from guests that write to what is
    /// read-only, and are left alone, as QEMU does.
    fn write_config(
        &mut self,
        range: ConfigRange,
        bytes: &[u8],
        guest: Guest<'_>,
    ) -> Result<bool, Closed> {
        let place = space::place(range, WCE_OFFSET);
        let Some(&byte) = place.and_then(|place| bytes.get(place)) else {
            let offset = range.offset;
            tracing::debug!("SET_CONFIG of {} bytes at {offset} ignored", bytes.len());
            return Ok(true);
        };
        self.cache.set(byte, guest)
    }

    fn has_changed(&self) -> bool {
        let length = self.length();
        self.told_length.is_some_and(|told| told != length)
    }

    fn attach(&mut self) -> Result<(), Closed> {
        self.backend.set_connected(true);
        pollster::block_on(self.backend.attach())
            .map(drop)
            .ok_or(Closed)
    }

    fn reset(&mut self) -> Result<(), Closed> {
        pollster::block_on(self.backend.reset())
            .map(drop)
            .ok_or(Closed)
    }

    fn reattach(&mut self) -> Result<(), Closed> {
        pollster::block_on(self.backend.reattach()).ok_or(Closed)
    }

    fn handed_back(&mut self) -> Result<(), Closed> {
        pollster::block_on(self.backend.handed_back()).ok_or(Closed)
    }

    fn abandon(&mut self) -> Result<(), Closed> {
        pollster::block_on(self.backend.abandon()).ok_or(Closed)
    }

    fn recorded(&mut self) {
        self.backend.set_remembered(true);
    }

    fn is_recorded(&self) -> bool {
        self.backend.is_remembered()
    }

    fn holds(&self) -> bool {
        let id = self.backend.id();
        (self.backend.control()).read(|run| run.backend(id).is_some_and(|backend| backend.holds()))
    }

    fn note(&self) -> u8 {
        self.cache.to_note()
    }

    fn label(&self) -> Vec<u8> {
        self.backend.image().to_label()
    }

    fn check_label(&self, label: &[u8]) -> Result<(), String> {
        let Some(saw) = Image::from_label(label) else {
            return Ok(());
        };
        if self.backend.has_had(&saw) {
            return Ok(());
        }
        let (id, node, image) = (&self.options.id, self.backend.node(), self.backend.image());
        let what = format!(
            "its guest has seen image '{saw}' as '{id}', and node '{}' is image '{image}'",
            node.name()
        );
        if self.options.other_image {
            tracing::warn!(
                export = id,
                "{what}: it is served, as x-other-image=on says"
            );
            return Ok(());
        }
        Err(format!(
            "{what}: serve the image that it has seen, or set x-other-image=on if that is the same"
        ))
    }

    fn found(&mut self, note: u8, guest: Guest<'_>) -> Result<(), Closed> {
        self.backend.set_connected(true);
        self.cache.found(note, guest)
    }

    fn starts_ring(&mut self, guest: Guest<'_>) -> Result<(), Closed> {
        self.cache.start(guest)
    }

    fn end(&mut self) {
        self.told_length = None;
        self.backend.set_connected(false);
        self.cache.end();
    }
}
