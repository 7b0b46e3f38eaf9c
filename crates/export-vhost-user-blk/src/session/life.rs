//! The life of a device, which is not that of a connection: a client that hands an inflight region in
//! goes on with the one that it had; all else begins a new one.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use block::Backend;

use super::refused::{Result, wrong};
use crate::device::{Closed, DeviceHandle};
use crate::inflight::{Region, RegionSpec};
use crate::unclaimed::Unclaimed;
use crate::witness::Witness;

/// See the [module](self).
pub(super) struct Life {
    backend: Arc<Backend>,
    device: DeviceHandle,
    /// Whether the backend has ever been told of a client.
    attached: bool,
    /// Whether this connection has begun a life of the device, or goes on with one.
    begun: bool,
    region: Option<Arc<Region>>,
    /// Says whether the client still has it; outlives the connection.
    witness: Option<Witness>,
    unclaimed: Arc<Unclaimed>,
}

impl Life {
    pub fn new(backend: Arc<Backend>, device: DeviceHandle, unclaimed: Arc<Unclaimed>) -> Self {
        Self {
            backend,
            device,
            attached: false,
            begun: false,
            region: None,
            witness: None,
            unclaimed,
        }
    }

    /// See [`Self::begin`].
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// The client's inflight region.
    pub fn region(&self) -> Option<&Arc<Region>> {
        self.region.as_ref()
    }

    /// The connection is gone. What waits is kept for a client that comes back with its region.
    pub fn end(&mut self) {
        self.region = None;
        self.begun = false;
    }

    /// A new life of the device: what was held is dropped, the I/O status reset. All rings are stopped.
    pub fn begin(&mut self) -> std::result::Result<(), Closed> {
        // On the same connection it is a reset by a client that stays.
        let begun = if self.begun {
            block::block_on(self.backend.reset())
        } else {
            block::block_on(self.backend.attach())
        };
        begun.ok_or(Closed)?;
        self.unclaimed.nothing();
        self.witness = None;
        self.attached = true;
        self.begun = true;
        self.forget_all()
    }

    /// GET_INFLIGHT_FD, after [`Self::begin`].
    pub fn create_region(queues: u16, queue_size: u16, note: u8) -> Result<(RegionSpec, File)> {
        Region::create("vhost-user-blk-inflight", queues, queue_size, note)
            .map_err(|error| wrong(error.to_string()))
    }

    /// SET_INFLIGHT_FD: what the region remembers goes on. Returns what is noted in it.
    pub fn go_on(&mut self, spec: &RegionSpec, fd: OwnedFd, queues: u16) -> Result<u8> {
        let (region, witness) = match Witness::of(fd) {
            Ok(witness) => (Region::open(spec, witness.file()), Some(witness)),
            Err((fd, error)) => {
                tracing::debug!("an inflight region cannot be watched: {error}");
                (Region::open(spec, &File::from(fd)), None)
            }
        };
        let region = region.map_err(|error| wrong(error.to_string()))?;
        // Before anybody could believe that there is nothing.
        self.unclaimed
            .in_queues((0..queues).filter(|queue| region.has_marks(*queue)));
        if !self.attached {
            // The first client of this process goes on with what a former one has left.
            block::block_on(self.backend.reattach()).ok_or(Closed)?;
            self.attached = true;
        }
        self.begun = true;
        self.backend.set_remembered(true);
        let note = region.note();
        self.region = Some(Arc::new(region));
        self.witness = witness;
        Ok(note)
    }

    /// The ring of a queue was started: what is marked there has been taken up.
    pub fn taken_up(&self, queue: u16) {
        self.unclaimed.taken_up(queue);
    }

    /// Whether something is held.
    pub fn holds(&self) -> bool {
        let id = self.backend.id();
        (self.backend.control()).read(|run| run.backend(id).is_some_and(|backend| backend.holds()))
    }

    /// Whether nobody can hand back any more what waits: the client has freed its inflight region, or
    /// never had one and is gone.
    pub fn is_left(&self) -> bool {
        match &self.witness {
            Some(witness) => witness.is_alone(),
            // Without a region, what is held lives as long as the connection; and where one cannot
            // be watched, until the next client comes.
            None => !self.begun && self.attached && !self.backend.is_remembered(),
        }
    }

    /// Drops what waits.
    pub fn abandon(&mut self) -> std::result::Result<(), Closed> {
        block::block_on(self.backend.abandon()).ok_or(Closed)?;
        self.unclaimed.nothing();
        (self.region, self.witness) = (None, None);
        self.begun = false;
        self.forget_all()
    }

    fn forget_all(&self) -> std::result::Result<(), Closed> {
        self.device.call_all(|device| async move {
            for queue in device.queues() {
                queue.forget_all();
            }
        })
    }
}
