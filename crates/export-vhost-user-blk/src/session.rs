//! What a client says, and what becomes of it: the vhost-user state of one export.
//!
//! Runs on the export's control thread. A message that makes no sense is an error, which ends the
//! connection; what concerns rings is done on the iothread, and waited for only if it ends by itself.

mod cache;
mod regions;
mod vring;

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use block::{Backend, WriteCache};

use crate::config::{self, NEEDS_RESET, WCE_OFFSET};
use crate::descriptor::Foreign;
use crate::device::{Closed, DeviceHandle};
use crate::inflight::Region;
use crate::memory::{Memory, MemoryError};
use crate::options::Options;
use crate::protocol::back_channel::BackChannel;
use crate::protocol::message::{Answer, ConfigRange, Inflight, Message};
use crate::trouble::Trouble;
use crate::unclaimed::Unclaimed;
use crate::witness::Witness;
use crate::write_cache::Belief;
use regions::MEM_SLOTS_MAX;
use vring::{Running, Vring};

/// See the [module](self). One object serves one connection after the other.
pub(crate) struct Session {
    options: Options,
    backend: Arc<Backend>,
    device: DeviceHandle,
    features: u64,
    /// The protocol features that this connection has negotiated.
    protocol: u64,
    memory: Option<Arc<Memory>>,
    region: Option<Arc<Region>>,
    /// Says whether the client still has it; outlives the connection.
    witness: Option<Witness>,
    vrings: Vec<Vring>,
    /// Whether the backend has ever been told of a client.
    attached: bool,
    /// Whether this connection has begun a life of the device, or goes on with one.
    begun: bool,
    /// What the guest believes about a write cache.
    belief: Belief,
    /// Whether it has been said that nobody knows.
    belief_warned: bool,
    back_channel: Arc<BackChannel>,
    trouble: Arc<Trouble>,
    unclaimed: Arc<Unclaimed>,
    /// The device status that this client has set.
    status: u8,
    /// The length of the disk that this client has read, in bytes.
    told_length: Option<u64>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("export", &self.options.id)
            .field("features", &self.features)
            .field("vrings", &self.vrings)
            .finish_non_exhaustive()
    }
}

/// Why a message is refused, which ends the connection.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(String);

type Result<T> = std::result::Result<T, Refused>;

fn wrong(text: impl Into<String>) -> Refused {
    Refused(text.into())
}

impl From<Closed> for Refused {
    fn from(closed: Closed) -> Self {
        wrong(closed.to_string())
    }
}

impl From<MemoryError> for Refused {
    fn from(error: MemoryError) -> Self {
        wrong(error.to_string())
    }
}

impl Session {
    pub fn new(
        options: Options,
        backend: Arc<Backend>,
        device: DeviceHandle,
        back_channel: Arc<BackChannel>,
        trouble: Arc<Trouble>,
        unclaimed: Arc<Unclaimed>,
    ) -> Self {
        let queues = (0..options.num_queues).map(|_| Vring::default());
        let known = backend.write_cache();
        if options.writethrough && known == WriteCache::WriteBack {
            tracing::warn!(
                export = options.id,
                "writethrough=on is what a guest is told first; this one has a write cache since a \
                 former daemon, and keeps it until it is told otherwise"
            );
        }
        Self {
            belief: Belief::new(options.writethrough, known),
            belief_warned: false,
            options,
            backend,
            device,
            features: 0,
            protocol: 0,
            memory: None,
            region: None,
            witness: None,
            vrings: queues.collect(),
            attached: false,
            begun: false,
            back_channel,
            trouble,
            unclaimed,
            status: 0,
            told_length: None,
        }
    }

    /// The connection is gone: rings end as at GET_VRING_BASE. What waits is kept for a client that
    /// comes back with its region.
    pub fn end(&mut self) -> std::result::Result<(), Closed> {
        self.stop_all()?;
        self.device.call_all(|device| async move {
            for queue in device.queues() {
                queue.set_enabled(false, true).await;
                queue.set_call(None);
                queue.set_error(None);
            }
        })?;
        (self.features, self.protocol) = (0, 0);
        (self.memory, self.region) = (None, None);
        self.vrings.fill_with(Vring::default);
        self.begun = false;
        self.back_channel.clear();
        self.status = 0;
        self.told_length = None;
        self.belief.end();
        Ok(())
    }

    /// Whether something waits for a client to start its rings, who may have given it up
    /// ([`Self::drop_if_left`]).
    pub fn may_be_left(&self) -> bool {
        let stopped = |vring: &Vring| matches!(vring.running, Running::No);
        let id = self.backend.id();
        self.vrings.iter().all(stopped)
            && (self.backend.control())
                .read(|run| run.backend(id).is_some_and(|backend| backend.holds()))
    }

    /// Drops what waits if nobody can hand it back any more: the client has freed its inflight
    /// region, or never had one and is gone.
    pub fn drop_if_left(&mut self) -> std::result::Result<(), Closed> {
        let left = match &self.witness {
            Some(witness) => witness.is_alone(),
            // Without a region, what is held lives as long as the connection; and where one cannot
            // be watched, until the next client comes.
            None => !self.begun && self.attached && !self.backend.is_remembered(),
        };
        if !left || !self.may_be_left() {
            return Ok(());
        }
        tracing::warn!(
            export = self.options.id,
            "the client has given up its device with requests held: they are dropped"
        );
        block::block_on(self.backend.abandon()).ok_or(Closed)?;
        self.unclaimed.nothing();
        (self.region, self.witness) = (None, None);
        self.begun = false;
        self.device.call_all(|device| async move {
            for queue in device.queues() {
                queue.forget_all();
            }
        })
    }

    /// A new life of the device: what was held is dropped, the I/O status reset.
    fn attach(&mut self) -> Result<()> {
        self.stop_all()?;
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
        self.device.call_all(|device| async move {
            for queue in device.queues() {
                queue.forget_all();
            }
        })?;
        self.set_writeback()
    }

    /// Does what the client says.
    ///
    /// No message depends on whether the client has negotiated its protocol feature on this
    /// connection: QEMU 7.2, reconnecting while the VM is stopped, goes on as if it had.
    pub fn handle(&mut self, message: Message<Foreign>) -> Result<Answer<OwnedFd>> {
        let done = |()| Answer::Done;
        match message {
            Message::GetFeatures => Ok(Answer::Number(config::virtio_features(&self.options))),
            Message::SetFeatures(features) => self.set_features(features).map(done),
            Message::SetOwner => Ok(Answer::Done),
            Message::ResetOwner => Ok(self.stop_all().map(done)?),
            Message::SetMemTable(regions) => {
                let files = |(spec, fd)| (spec, File::from(OwnedFd::from(fd)));
                let memory = Memory::new(regions.into_iter().map(files))?;
                self.set_memory(memory).map(done)
            }
            Message::SetVringNum(state) => self.set_vring_num(state).map(done),
            Message::SetVringAddr(address) => self.set_vring_addr(address).map(done),
            Message::SetVringBase(state) => self.set_vring_base(state).map(done),
            Message::GetVringBase(index) => self.get_vring_base(index),
            Message::GetVringBaseSkipDrain(index) => self.get_vring_base_skip_drain(index),
            Message::SetVringKick(index, fd) => {
                self.set_vring_kick(index, fd.map(Into::into)).map(done)
            }
            Message::SetVringCall(index, fd) => {
                self.set_vring_call(index, fd.map(Into::into)).map(done)
            }
            Message::SetVringErr(index, fd) => {
                self.set_vring_err(index, fd.map(Into::into)).map(done)
            }
            Message::GetProtocolFeatures => {
                Ok(Answer::Number(config::protocol_features(&self.options)))
            }
            Message::SetProtocolFeatures(features) => {
                let possible = config::protocol_features(&self.options);
                offered("SET_PROTOCOL_FEATURES", features, possible)?;
                self.protocol = features;
                Ok(Answer::Done)
            }
            Message::GetQueueNum => Ok(Answer::Number(self.options.num_queues.into())),
            Message::SetVringEnable(index, enable) => {
                self.set_vring_enable(index, enable).map(done)
            }
            Message::SetBackendReqFd(fd) => self.set_backend_req_fd(fd.into()).map(done),
            Message::GetConfig(range) => Ok(self.get_config(range)),
            Message::SetConfig(range, bytes) => self.set_config(range, &bytes),
            Message::GetInflightFd(inflight) => self.get_inflight_fd(inflight),
            Message::SetInflightFd(inflight, fd) => {
                self.set_inflight_fd(inflight, fd.into()).map(done)
            }
            Message::GetMaxMemSlots => Ok(Answer::Number(MEM_SLOTS_MAX as u64)),
            Message::AddMemReg(spec, fd) => self.add_mem_reg(spec, fd.into()).map(done),
            Message::RemMemReg(spec) => self.rem_mem_reg(&spec).map(done),
            Message::SetStatus(status) => {
                self.set_status(status);
                Ok(Answer::Done)
            }
            Message::GetStatus => Ok(Answer::Number(self.status().into())),
        }
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let possible = config::virtio_features(&self.options);
        offered("SET_FEATURES", features, possible)?;
        self.features = features;
        self.set_writeback()
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

    fn length(&self) -> u64 {
        self.backend.node().driver().length()
    }

    fn set_backend_req_fd(&mut self, fd: OwnedFd) -> Result<()> {
        let set = self.back_channel.set(fd);
        set.map_err(|error| wrong(error.to_string()))?;
        let length = self.length();
        if self.told_length.is_some_and(|told| told != length) {
            // It was resized after the client had read it, and before it could be told.
            self.back_channel.config_changed();
        }
        Ok(())
    }

    fn get_config(&mut self, range: ConfigRange) -> Answer<OwnedFd> {
        let length = self.length();
        let limits = self.backend.node().driver().limits();
        let space = config::space(&self.options, length, limits, self.belief.shown());
        self.told_length = Some(length);
        if config::place(range, WCE_OFFSET).is_some() {
            self.belief.read();
        }
        Answer::Config(range, config::part(&space, range.offset, range.len))
    }

    fn get_inflight_fd(&mut self, inflight: Inflight) -> Result<Answer<OwnedFd>> {
        let (queues, queue_size) = (inflight.spec.queues, inflight.spec.queue_size);
        if queues > self.options.num_queues || queue_size > self.options.queue_size_max {
            return Err(wrong(format!(
                "GET_INFLIGHT_FD for {queues} queues of {queue_size}: there are at most {} \
                 queues of {}",
                self.options.num_queues, self.options.queue_size_max
            )));
        }
        self.attach()?;
        // Never smaller than the largest queue: QEMU asks with its `queue-size` and hands that back,
        // and on virtio-mmio the guest makes queues larger than it.
        let (spec, file) = Region::create(queues, self.options.queue_size_max, self.belief.known())
            .map_err(|error| wrong(error.to_string()))?;
        Ok(Answer::Inflight(Inflight { spec, ..inflight }, file.into()))
    }

    fn set_inflight_fd(&mut self, inflight: Inflight, fd: OwnedFd) -> Result<()> {
        let (region, witness) = match Witness::of(fd) {
            Ok(witness) => (Region::open(&inflight.spec, witness.file()), Some(witness)),
            Err((fd, error)) => {
                tracing::debug!("an inflight region cannot be watched: {error}");
                (Region::open(&inflight.spec, &File::from(fd)), None)
            }
        };
        let region = region.map_err(|error| wrong(error.to_string()))?;
        // Before anybody could believe that there is nothing.
        let queues = 0..self.options.num_queues;
        self.unclaimed
            .in_queues(queues.filter(|queue| region.has_marks(*queue)));
        if !self.attached {
            // The first client of this process goes on with what a former one has left.
            block::block_on(self.backend.reattach()).ok_or(Closed)?;
            self.attached = true;
        }
        self.begun = true;
        self.backend.set_remembered(true);
        self.belief.found(region.write_cache());
        self.region = Some(Arc::new(region));
        self.witness = witness;
        self.note_belief(Duration::ZERO);
        self.set_writeback()
    }
}

fn offered(message: &str, features: u64, possible: u64) -> Result<()> {
    match features & !possible {
        0 => Ok(()),
        unknown => Err(wrong(format!(
            "{message} with {unknown:#x}, which is not offered"
        ))),
    }
}
