//! The life of a device, which is not that of a connection: a client that hands an inflight region in
//! goes on with the one that it had; all else begins a new one.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::refused::{Result, wrong};
use crate::class::{Class, Closed, Guest, Part};
use crate::device::DeviceHandle;
use crate::inflight::{Region, RegionSpec};
use crate::labelled::Labelled;
use crate::unclaimed::Unclaimed;
use crate::witness::Witness;

/// See the [module](self).
pub(super) struct Life<P: Part> {
    device: DeviceHandle<P>,
    /// Whether the class has ever been told of a client.
    attached: bool,
    /// Whether this connection has begun a life of the device, or goes on with one.
    begun: bool,
    /// Whether the class has been told of a client that goes on with what another process has served,
    /// and not yet that all of that has been handed back.
    awaited: bool,
    region: Option<Arc<Region>>,
    /// Says whether the client still has it; outlives the connection.
    witness: Option<Witness>,
    unclaimed: Arc<Unclaimed>,
    labelled: Arc<Labelled>,
}

impl<P: Part> Life<P> {
    pub fn new(
        device: DeviceHandle<P>,
        unclaimed: Arc<Unclaimed>,
        labelled: Arc<Labelled>,
    ) -> Self {
        Self {
            device,
            attached: false,
            begun: false,
            awaited: false,
            region: None,
            witness: None,
            unclaimed,
            labelled,
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

    /// What a class is told of a driver with these features.
    pub fn guest(&self, features: u64) -> Guest<'_> {
        let region = self.region();
        Guest { features, region }
    }

    /// The connection is gone. What waits is kept for a client that comes back with its region.
    pub fn end(&mut self) {
        self.labelled.none();
        self.region = None;
        self.begun = false;
    }

    /// A new life of the device: what was held is dropped. All rings are stopped.
    pub fn begin(&mut self, class: &mut impl Class) -> std::result::Result<(), Closed> {
        // On the same connection it is a reset by a client that stays.
        if self.begun {
            class.reset()?;
        } else {
            class.attach()?;
        }
        self.unclaimed.nothing();
        self.awaited = false;
        self.witness = None;
        self.attached = true;
        self.begun = true;
        self.forget_all()
    }

    /// SET_INFLIGHT_FD: what the region remembers goes on. Returns what is noted in it.
    pub fn go_on(
        &mut self,
        class: &mut impl Class,
        spec: &RegionSpec,
        fd: OwnedFd,
        queues: u16,
    ) -> Result<u8> {
        let (region, witness) = match Witness::of(fd) {
            Ok(witness) => (Region::open(spec, witness.file()), Some(witness)),
            Err((fd, error)) => {
                tracing::debug!("an inflight region cannot be watched: {error}");
                (Region::open(spec, &File::from(fd)), None)
            }
        };
        let region = Arc::new(region.map_err(|error| wrong(error.to_string()))?);
        if let Some(label) = region.label() {
            class.check_label(&label).map_err(wrong)?;
        }
        let label = class.label();
        if region.label().as_ref() != Some(&label) {
            region.set_label(&label);
        }
        // Before anybody could believe that there is nothing.
        self.unclaimed
            .in_queues((0..queues).filter(|queue| region.has_marks(*queue)));
        if !self.attached {
            // The first client of this process goes on with what a former one has left.
            class.reattach()?;
            (self.attached, self.awaited) = (true, true);
        }
        self.look_for_the_last(class)?;
        self.begun = true;
        class.recorded();
        let note = region.note();
        self.labelled.is(&region);
        self.region = Some(region);
        self.witness = witness;
        Ok(note)
    }

    /// The ring of a queue was started: what is marked there has been taken up.
    pub fn taken_up(
        &mut self,
        queue: u16,
        class: &mut impl Class,
    ) -> std::result::Result<(), Closed> {
        self.unclaimed.taken_up(queue);
        self.look_for_the_last(class)
    }

    /// Tells the class, once, that of what another process has served nothing more comes.
    fn look_for_the_last(&mut self, class: &mut impl Class) -> std::result::Result<(), Closed> {
        if self.awaited && self.unclaimed.is_nothing() {
            self.awaited = false;
            class.handed_back()?;
        }
        Ok(())
    }

    /// Whether nobody can hand back any more what waits: the client has freed its inflight region, or
    /// never had one and is gone.
    pub fn is_left(&self, class: &impl Class) -> bool {
        match &self.witness {
            Some(witness) => witness.is_alone(),
            // Without a region, what is held lives as long as the connection; and where one cannot
            // be watched, until the next client comes.
            None => !self.begun && self.attached && !class.is_recorded(),
        }
    }

    /// Drops what waits.
    pub fn abandon(&mut self, class: &mut impl Class) -> std::result::Result<(), Closed> {
        class.abandon()?;
        self.unclaimed.nothing();
        self.awaited = false;
        self.labelled.none();
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
