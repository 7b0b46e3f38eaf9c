//! What a client says, and what becomes of it: the vhost-user state of one device. Messages come in
//! here, and answers go out.
//!
//! Runs on the device's control thread. A message that makes no sense is an error, which ends the
//! connection; what concerns rings is done on the iothread, and waited for only if it ends by itself.

mod life;
mod refused;
mod regions;
mod vrings;

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::class::{Class, Closed, Shape};
use crate::descriptor::Foreign;
use crate::device::DeviceHandle;
use crate::features::{self, NEEDS_RESET, P_GET_VRING_BASE_SKIP_DRAIN};
use crate::inflight::Region;
use crate::labelled::Labelled;
use crate::memory::{Memory, RegionSpec};
use crate::protocol::answer::Answer;
use crate::protocol::back_channel::BackChannel;
use crate::protocol::message::{ConfigRange, Inflight, Message};
use crate::trouble::Trouble;
use crate::unclaimed::Unclaimed;
use life::Life;
pub(crate) use refused::Refused;
use refused::{Result, offered, wrong};
use regions::{MEM_SLOTS_MAX, Regions};
use vrings::{Kick, Terms, Vrings};

/// See the [module](self). One object serves one connection after the other.
pub(crate) struct Session<C: Class> {
    class: C,
    shape: Shape,
    features: u64,
    /// The protocol features that this connection has negotiated.
    protocol: u64,
    regions: Regions<C::Part>,
    vrings: Vrings<C::Part>,
    life: Life<C::Part>,
    back_channel: Arc<BackChannel>,
    trouble: Arc<Trouble>,
    /// The device status that this client has set.
    status: u8,
}

impl<C: Class> fmt::Debug for Session<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("export", &self.shape.id)
            .field("features", &self.features)
            .field("vrings", &self.vrings)
            .finish_non_exhaustive()
    }
}

impl<C: Class> Session<C> {
    pub fn new(
        class: C,
        shape: Shape,
        device: DeviceHandle<C::Part>,
        back_channel: Arc<BackChannel>,
        trouble: Arc<Trouble>,
        unclaimed: Arc<Unclaimed>,
        labelled: Arc<Labelled>,
    ) -> Self {
        Self {
            life: Life::new(device.clone(), unclaimed, labelled),
            regions: Regions::new(device.clone()),
            vrings: Vrings::new(device, shape.queues, shape.queue_size_max),
            class,
            shape,
            features: 0,
            protocol: 0,
            back_channel,
            trouble,
            status: 0,
        }
    }

    /// The connection is gone: rings end as at GET_VRING_BASE. What waits is kept for a client that
    /// comes back with its region.
    pub fn end(&mut self) -> std::result::Result<(), Closed> {
        self.vrings.end()?;
        (self.features, self.protocol) = (0, 0);
        self.regions.end();
        self.life.end();
        self.back_channel.clear();
        self.status = 0;
        self.class.end();
        Ok(())
    }

    /// Whether something waits for a client to start its rings, who may have given it up
    /// ([`Self::drop_if_left`]).
    pub fn may_be_left(&self) -> bool {
        self.vrings.are_stopped() && self.class.holds()
    }

    /// Drops what waits if nobody can hand it back any more: the client has freed its inflight
    /// region, or never had one and is gone.
    pub fn drop_if_left(&mut self) -> std::result::Result<(), Closed> {
        if !self.life.is_left(&self.class) || !self.may_be_left() {
            return Ok(());
        }
        tracing::warn!(
            export = self.shape.id,
            "the client has given up its device with requests held: they are dropped"
        );
        self.life.abandon(&mut self.class)
    }

    /// A new life of the device: what was held is dropped.
    fn attach(&mut self) -> Result<()> {
        self.vrings.stop_all()?;
        self.life.begin(&mut self.class)?;
        let guest = self.life.guest(self.features);
        Ok(self.class.negotiated(guest)?)
    }

    /// Does what the client says.
    ///
    /// No message depends on whether the client has negotiated its protocol feature on this
    /// connection: QEMU 7.2, reconnecting while the VM is stopped, goes on as if it had.
    pub fn handle(&mut self, message: Message<Foreign>) -> Result<Answer<OwnedFd>> {
        let done = |()| Answer::Done;
        match message {
            Message::GetFeatures => Ok(Answer::Number(self.offer())),
            Message::SetFeatures(features) => self.set_features(features).map(done),
            Message::SetOwner => Ok(Answer::Done),
            Message::ResetOwner => Ok(self.vrings.stop_all().map(done)?),
            Message::SetMemTable(regions) => {
                let files = |(spec, fd)| (spec, File::from(OwnedFd::from(fd)));
                let memory = Memory::new(regions.into_iter().map(files))?;
                self.set_memory(memory).map(done)
            }
            Message::SetVringNum(state) => self.vrings.set_num(state).map(done),
            Message::SetVringAddr(address) => self.vrings.set_addr(address).map(done),
            Message::SetVringBase(state) => self.vrings.set_base(state).map(done),
            Message::GetVringBase(index) => self.vrings.base(index).map(Answer::VringBase),
            Message::GetVringBaseSkipDrain(index) => {
                self.vrings.base_skip_drain(index).map(Answer::VringBase)
            }
            Message::SetVringKick(index, fd) => {
                self.set_vring_kick(index, fd.map(Into::into)).map(done)
            }
            Message::SetVringCall(index, fd) => {
                self.vrings.set_call(index, fd.map(Into::into)).map(done)
            }
            Message::SetVringErr(index, fd) => {
                self.vrings.set_err(index, fd.map(Into::into)).map(done)
            }
            Message::GetProtocolFeatures => Ok(Answer::Number(features::protocol(&self.shape))),
            Message::SetProtocolFeatures(features) => {
                let possible = features::protocol(&self.shape);
                offered("SET_PROTOCOL_FEATURES", features, possible)?;
                self.protocol = features;
                Ok(Answer::Done)
            }
            Message::GetQueueNum => Ok(Answer::Number(self.shape.queues.into())),
            Message::SetVringEnable(index, enable) => {
                self.set_vring_enable(index, enable).map(done)
            }
            Message::SetBackendReqFd(fd) => self.set_backend_req_fd(fd.into()).map(done),
            Message::GetConfig(range) => Ok(Answer::Config(range, self.class.read_config(range))),
            Message::SetConfig(range, bytes) => self.set_config(range, &bytes),
            Message::GetInflightFd(inflight) => self.get_inflight_fd(inflight),
            Message::SetInflightFd(inflight, fd) => {
                self.set_inflight_fd(&inflight, fd.into()).map(done)
            }
            Message::GetMaxMemSlots => Ok(Answer::Number(MEM_SLOTS_MAX as u64)),
            Message::AddMemReg(spec, fd) => {
                let memory = self.regions.with(spec, fd.into())?;
                self.set_memory(memory).map(done)
            }
            Message::RemMemReg(spec) => self.rem_mem_reg(&spec).map(done),
            Message::SetStatus(status) => {
                self.set_status(status);
                Ok(Answer::Done)
            }
            Message::GetStatus => Ok(Answer::Number(self.status().into())),
        }
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        offered("SET_FEATURES", features, self.offer())?;
        self.features = features;
        let guest = self.life.guest(features);
        Ok(self.class.negotiated(guest)?)
    }

    /// The virtio features that are offered.
    fn offer(&self) -> u64 {
        features::TRANSPORT | self.class.features()
    }

    /// The status is remembered, and that is all. Status 0 is not a reset here, although virtio calls
    /// it one: QEMU sends it whenever it stops the device, so at every pause of the VM, and what is
    /// held must survive that. What tells a reset is the inflight region: a device that was reset
    /// comes back with a fresh one, a device that was stopped with the one it had.
    fn set_status(&mut self, status: u8) {
        // Not the driver's to set: it may hand back what it has read.
        self.status = status & !NEEDS_RESET;
    }

    fn status(&self) -> u8 {
        match self.trouble.has_broken_queue() {
            true => self.status | NEEDS_RESET,
            false => self.status,
        }
    }

    fn set_backend_req_fd(&mut self, fd: OwnedFd) -> Result<()> {
        let set = self.back_channel.set(fd);
        set.map_err(|error| wrong(error.to_string()))?;
        if self.class.has_changed() {
            // It was resized after the client had read it, and before it could be told.
            self.back_channel.config_changed();
        }
        Ok(())
    }

    fn set_config(&mut self, range: ConfigRange, bytes: &[u8]) -> Result<Answer<OwnedFd>> {
        let guest = self.life.guest(self.features);
        Ok(match self.class.write_config(range, bytes, guest)? {
            true => Answer::Done,
            false => Answer::Failed,
        })
    }

    fn get_inflight_fd(&mut self, inflight: Inflight) -> Result<Answer<OwnedFd>> {
        let (queues, queue_size) = (inflight.spec.queues, inflight.spec.queue_size);
        if queues > self.shape.queues || queue_size > self.shape.queue_size_max {
            return Err(wrong(format!(
                "GET_INFLIGHT_FD for {queues} queues of {queue_size}: there are at most {} \
                 queues of {}",
                self.shape.queues, self.shape.queue_size_max
            )));
        }
        self.attach()?;
        // Never smaller than the largest queue: QEMU asks with its `queue-size` and hands that back,
        // and on virtio-mmio the guest makes queues larger than it.
        let (name, size_max) = (C::NAME, self.shape.queue_size_max);
        let region = Region::create(
            &format!("{name}-inflight"),
            queues,
            size_max,
            self.class.note(),
            &self.class.label(),
        );
        let (spec, file) = region.map_err(|error| wrong(error.to_string()))?;
        Ok(Answer::Inflight(Inflight { spec, ..inflight }, file.into()))
    }

    fn set_inflight_fd(&mut self, inflight: &Inflight, fd: OwnedFd) -> Result<()> {
        let (class, queues) = (&mut self.class, self.shape.queues);
        let note = self.life.go_on(class, &inflight.spec, fd, queues)?;
        let guest = self.life.guest(self.features);
        Ok(self.class.found(note, guest)?)
    }

    fn set_memory(&mut self, memory: Memory) -> Result<()> {
        self.regions.set(memory)?;
        // The rings are started again whose memory is back.
        for index in self.vrings.indexes() {
            let memory = self.regions.memory();
            let returned = memory.and_then(|memory| self.vrings.take_returned(index, memory));
            if let Some(kick) = returned {
                self.start(index, kick)?;
            }
        }
        Ok(())
    }

    fn rem_mem_reg(&mut self, spec: &RegionSpec) -> Result<()> {
        let memory = self.regions.without(spec)?;
        self.vrings.displace(&memory)?;
        self.set_memory(memory)
    }

    /// Whether the client may be about to add memory that it has removed.
    pub fn memory_moves(&self) -> bool {
        self.regions.is_moving()
    }

    /// What the client has removed and not added again is not waited for any more: requests that need
    /// it have an error.
    pub fn settle_memory(&mut self) -> Result<()> {
        match self.regions.settled()? {
            Some(memory) => self.set_memory(memory),
            None => Ok(()),
        }
    }

    fn set_vring_kick(&mut self, index: u16, fd: Option<OwnedFd>) -> Result<()> {
        if let Some((index, kick)) = self.vrings.set_kick(index, fd)? {
            // A client that starts a ring has told its memory.
            self.settle_memory()?;
            self.start(index, kick)?;
        }
        Ok(())
    }

    fn start(&mut self, index: u16, kick: OwnedFd) -> Result<()> {
        let kick = Kick::new(kick)?;
        if !self.life.has_begun() {
            // Neither a fresh region nor one that was handed back: nothing can go on.
            self.attach()?;
        }
        let guest = self.life.guest(self.features);
        self.class.starts_ring(guest)?;
        let terms = Terms {
            memory: self.regions.memory(),
            region: self.life.region(),
            features: self.features,
            remedy: self.memory_remedy(),
        };
        self.vrings.start(index, kick, &terms)?;
        Ok(self.life.taken_up(index, &mut self.class)?)
    }

    /// What to do about a ring that is in no memory.
    fn memory_remedy(&self) -> &'static str {
        match self.shape.configure_mem_slots {
            true => {
                "; if the daemon was replaced while the VM was stopped, the VMM has told it only what \
                 has changed since: end the VM and start it again, with configure-mem-slots=off"
            }
            false => "",
        }
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        // It comes before GET_VRING_BASE_SKIP_DRAIN, which must not wait. To others it is all that
        // they say about a pause.
        let drain = self.protocol & P_GET_VRING_BASE_SKIP_DRAIN == 0;
        self.vrings.set_enabled(index, enable, drain)
    }
}
