//! What a client says, and what becomes of it: the vhost-user state of one export.
//!
//! Runs on the export's control thread. A message that makes no sense is an error, which ends the
//! connection; what concerns rings is done on the iothread, and waited for only if it ends by itself.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use block::Backend;
use rustix::fs::FileType;

use crate::config::{
    self, F_CONFIG_WCE, F_EVENT_IDX, F_FLUSH, F_INDIRECT_DESC, F_PROTOCOL_FEATURES, NEEDS_RESET,
    WCE_OFFSET,
};
use crate::device::{Closed, DeviceHandle};
use crate::inflight::Region;
use crate::memory::{Memory, MemoryError, RegionSpec};
use crate::options::Options;
use crate::protocol::back_channel::BackChannel;
use crate::protocol::message::{Answer, ConfigRange, Inflight, Message, VringAddr, VringState};
use crate::queue::Setup;
use crate::ring::Layout;
use crate::trouble::Trouble;

/// Regions that a client can have mapped at once, if it adds them one by one: what KVM has.
const MEM_SLOTS_MAX: usize = 509;

/// Where the client has a ring, in its own addresses.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    table: u64,
    avail: u64,
    used: u64,
}

/// Whether a ring is served.
#[derive(Debug, Default)]
enum Running {
    #[default]
    No,
    /// With a duplicate of its kick descriptor.
    Yes(OwnedFd),
    /// The client has removed the memory it is in, and may be about to add it again: a region is
    /// moved or resized in two messages. Until then the ring is stopped.
    Displaced(OwnedFd),
}

/// What the client has said about a queue.
#[derive(Debug, Default)]
struct Vring {
    size: u16,
    base: u16,
    addresses: Option<Addresses>,
    running: Running,
}

impl Vring {
    fn is_running(&self) -> bool {
        matches!(self.running, Running::Yes(_))
    }

    /// Whether all of it begins in memory that is there.
    fn is_mapped(&self, memory: &Memory) -> bool {
        self.addresses
            .is_some_and(|Addresses { table, avail, used }| {
                [table, avail, used]
                    .iter()
                    .all(|&address| memory.guest_address(address).is_some())
            })
    }
}

/// See the [module](self). One object serves one connection after the other.
pub(crate) struct Session {
    options: Options,
    backend: Arc<Backend>,
    device: DeviceHandle,
    features: u64,
    memory: Option<Arc<Memory>>,
    region: Option<Arc<Region>>,
    vrings: Vec<Vring>,
    /// Whether the backend has ever been told of a client.
    attached: bool,
    /// Whether this connection has begun a life of the device, or goes on with one.
    begun: bool,
    /// The driver's wish for a write cache, if it may have one.
    wce: bool,
    back_channel: Arc<BackChannel>,
    trouble: Arc<Trouble>,
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
    ) -> Self {
        let queues = (0..options.num_queues).map(|_| Vring::default());
        Self {
            wce: !options.writethrough,
            options,
            backend,
            device,
            features: 0,
            memory: None,
            region: None,
            vrings: queues.collect(),
            attached: false,
            begun: false,
            back_channel,
            trouble,
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
                queue.set_enabled(false).await;
                queue.set_call(None);
                queue.set_error(None);
            }
        })?;
        self.features = 0;
        (self.memory, self.region) = (None, None);
        self.vrings.fill_with(Vring::default);
        self.begun = false;
        self.back_channel.clear();
        self.status = 0;
        self.told_length = None;
        Ok(())
    }

    fn stop_all(&mut self) -> std::result::Result<(), Closed> {
        for index in 0..self.options.num_queues {
            let vring = &mut self.vrings[usize::from(index)];
            if vring.is_running() {
                self.stop(index)?;
            } else {
                vring.running = Running::No;
            }
        }
        Ok(())
    }

    /// Returns the next available index.
    fn stop(&mut self, index: u16) -> std::result::Result<u16, Closed> {
        let next = (self.device).call_queue(index, |queue| async move { queue.stop().await })?;
        let vring = &mut self.vrings[usize::from(index)];
        vring.running = Running::No;
        // A ring that could not be started is where it was.
        vring.base = next.unwrap_or(vring.base);
        Ok(vring.base)
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
        self.attached = true;
        self.begun = true;
        self.wce = !self.options.writethrough;
        self.device.call_all(|device| async move {
            for queue in device.queues() {
                queue.forget_all();
            }
        })?;
        self.set_writeback()
    }

    /// Whether there is a write cache, as virtio 1.2 5.2.6.2 derives it from the features.
    fn writeback(&self) -> bool {
        if self.features & F_CONFIG_WCE != 0 {
            self.wce
        } else {
            self.features & F_FLUSH != 0 && !self.options.writethrough
        }
    }

    fn set_writeback(&self) -> Result<()> {
        let writeback = self.writeback();
        self.device
            .call_all(move |device| async move { device.set_writeback(writeback) })?;
        Ok(())
    }

    fn index(&self, index: u32) -> Result<u16> {
        match u16::try_from(index) {
            Ok(index) if index < self.options.num_queues => Ok(index),
            _ => Err(wrong(format!(
                "queue {index} does not exist, there are {}",
                self.options.num_queues
            ))),
        }
    }

    /// The vring of a queue that does not run.
    fn stopped(&mut self, index: u32, message: &str) -> Result<&mut Vring> {
        let index = self.index(index)?;
        let vring = &mut self.vrings[usize::from(index)];
        if !matches!(vring.running, Running::No) {
            return Err(wrong(format!("{message} for queue {index}, which runs")));
        }
        Ok(vring)
    }

    fn setup(&mut self, index: u16, kick: OwnedFd) -> Result<Setup> {
        let vring = &self.vrings[usize::from(index)];
        let remedy = self.memory_remedy();
        let (Some(memory), Some(addresses)) = (&self.memory, vring.addresses) else {
            return Err(wrong(format!(
                "SET_VRING_KICK for queue {index} before SET_MEM_TABLE or SET_VRING_ADDR{remedy}"
            )));
        };
        let guest = |part: &str, address: u64| {
            memory.guest_address(address).ok_or_else(|| {
                wrong(format!(
                    "the {part} of queue {index} at {address:#x} is not in the memory table{remedy}"
                ))
            })
        };
        let layout = Layout {
            table: guest("descriptor table", addresses.table)?,
            avail: guest("available ring", addresses.avail)?,
            used: guest("used ring", addresses.used)?,
            size: vring.size,
            event_idx: self.features & F_EVENT_IDX != 0,
            indirect: self.features & F_INDIRECT_DESC != 0,
        };
        Ok(Setup {
            memory: Arc::clone(memory),
            layout,
            features: self.features,
            base: vring.base,
            region: self.region.clone(),
            kick,
        })
    }

    /// What to do about a ring that is in no memory.
    fn memory_remedy(&self) -> &'static str {
        match self.options.configure_mem_slots {
            true => {
                "; if the daemon was replaced while the VM was stopped, the VMM has told it only what \
                 has changed since: end the VM and start it again, with configure-mem-slots=off"
            }
            false => "",
        }
    }

    fn start(&mut self, index: u16, kick: OwnedFd) -> Result<()> {
        let kept = duplicate(&kick)?;
        if !self.begun {
            // Neither a fresh region nor one that was handed back: nothing can go on.
            self.attach()?;
        }
        let setup = self.setup(index, kick)?;
        let always = self.features & F_PROTOCOL_FEATURES == 0;
        self.device.call_queue(index, move |queue| async move {
            if always {
                queue.set_enabled(true).await;
            }
            queue.start(setup);
        })?;
        self.vrings[usize::from(index)].running = Running::Yes(kept);
        Ok(())
    }

    /// Does what the client says.
    ///
    /// Nothing depends on whether the client has negotiated the protocol feature of a message on
    /// this connection: QEMU 7.2, reconnecting while the VM is stopped, goes on as if it had.
    pub fn handle(&mut self, message: Message<OwnedFd>) -> Result<Answer<OwnedFd>> {
        let done = |()| Answer::Done;
        match message {
            Message::GetFeatures => Ok(Answer::Number(config::virtio_features(&self.options))),
            Message::SetFeatures(features) => self.set_features(features).map(done),
            Message::SetOwner => Ok(Answer::Done),
            Message::ResetOwner => Ok(self.stop_all().map(done)?),
            Message::SetMemTable(regions) => {
                let files = |(spec, fd)| (spec, File::from(fd));
                let memory = Memory::new(regions.into_iter().map(files))?;
                self.set_memory(memory).map(done)
            }
            Message::SetVringNum(state) => self.set_vring_num(state).map(done),
            Message::SetVringAddr(address) => self.set_vring_addr(address).map(done),
            Message::SetVringBase(state) => self.set_vring_base(state).map(done),
            Message::GetVringBase(index) => self.get_vring_base(index),
            Message::SetVringKick(index, fd) => self.set_vring_kick(index, fd).map(done),
            Message::SetVringCall(index, fd) => self.set_vring_call(index, fd).map(done),
            Message::SetVringErr(index, fd) => self.set_vring_err(index, fd).map(done),
            Message::GetProtocolFeatures => {
                Ok(Answer::Number(config::protocol_features(&self.options)))
            }
            Message::SetProtocolFeatures(features) => {
                let possible = config::protocol_features(&self.options);
                offered("SET_PROTOCOL_FEATURES", features, possible).map(done)
            }
            Message::GetQueueNum => Ok(Answer::Number(self.options.num_queues.into())),
            Message::SetVringEnable(index, enable) => {
                self.set_vring_enable(index, enable).map(done)
            }
            Message::SetBackendReqFd(fd) => self.set_backend_req_fd(fd).map(done),
            Message::GetConfig(range) => Ok(self.get_config(range)),
            Message::SetConfig(range, bytes) => self.set_config(range, &bytes).map(done),
            Message::GetInflightFd(inflight) => self.get_inflight_fd(inflight),
            Message::SetInflightFd(inflight, fd) => self.set_inflight_fd(inflight, fd).map(done),
            Message::GetMaxMemSlots => Ok(Answer::Number(MEM_SLOTS_MAX as u64)),
            Message::AddMemReg(spec, fd) => self.add_mem_reg(spec, fd).map(done),
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

    fn set_memory(&mut self, mut memory: Memory) -> Result<()> {
        if let Some(former) = &self.memory {
            memory = memory.replacing(former);
        }
        let memory = Arc::new(memory);
        self.memory = Some(Arc::clone(&memory));
        self.device.call_all(move |device| {
            let memory = Arc::clone(&memory);
            async move {
                for queue in device.queues() {
                    queue.set_memory(&memory);
                }
            }
        })?;
        self.replace_displaced()
    }

    fn add_mem_reg(&mut self, spec: RegionSpec, fd: OwnedFd) -> Result<()> {
        let empty = Memory::empty();
        let memory = self.memory.as_deref().unwrap_or(&empty);
        if memory.regions() >= MEM_SLOTS_MAX {
            return Err(wrong(format!(
                "ADD_MEM_REG: there are {MEM_SLOTS_MAX} memory regions, no more are possible"
            )));
        }
        let memory = memory.with(spec, &File::from(fd))?;
        self.set_memory(memory)
    }

    fn rem_mem_reg(&mut self, spec: &RegionSpec) -> Result<()> {
        let empty = Memory::empty();
        let memory = self.memory.as_deref().unwrap_or(&empty);
        let memory = memory.without(spec)?;
        for index in 0..self.options.num_queues {
            let vring = &mut self.vrings[usize::from(index)];
            if vring.is_mapped(&memory) {
                continue;
            }
            if let Running::Yes(kick) = std::mem::take(&mut vring.running) {
                self.stop(index)?;
                self.vrings[usize::from(index)].running = Running::Displaced(kick);
            }
        }
        self.set_memory(memory)
    }

    /// Starts the rings again whose memory is back.
    fn replace_displaced(&mut self) -> Result<()> {
        let Some(memory) = self.memory.clone() else {
            return Ok(());
        };
        for index in 0..self.options.num_queues {
            let vring = &mut self.vrings[usize::from(index)];
            let back = matches!(vring.running, Running::Displaced(_)) && vring.is_mapped(&memory);
            if back && let Running::Displaced(kick) = std::mem::take(&mut vring.running) {
                self.start(index, kick)?;
            }
        }
        Ok(())
    }

    fn set_vring_num(&mut self, VringState { index, value }: VringState) -> Result<()> {
        let max = self.options.queue_size_max;
        let size = u16::try_from(value)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= max);
        let size = size.ok_or_else(|| {
            wrong(format!(
                "SET_VRING_NUM {value} for queue {index}: it must be a power of two up to {max}"
            ))
        })?;
        self.stopped(index, "SET_VRING_NUM")?.size = size;
        Ok(())
    }

    fn set_vring_addr(&mut self, address: VringAddr) -> Result<()> {
        self.stopped(address.index, "SET_VRING_ADDR")?.addresses = Some(Addresses {
            table: address.table,
            avail: address.avail,
            used: address.used,
        });
        Ok(())
    }

    fn set_vring_base(&mut self, VringState { index, value }: VringState) -> Result<()> {
        let base = u16::try_from(value).map_err(|_| {
            wrong(format!(
                "SET_VRING_BASE {value} for queue {index}: indexes have 16 bits"
            ))
        })?;
        self.stopped(index, "SET_VRING_BASE")?.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<Answer<OwnedFd>> {
        let queue = self.index(index)?;
        let vring = &mut self.vrings[usize::from(queue)];
        let base = if vring.is_running() {
            self.stop(queue)?
        } else {
            vring.running = Running::No;
            vring.base
        };
        Ok(Answer::VringBase(VringState {
            index,
            value: base.into(),
        }))
    }

    fn set_vring_kick(&mut self, index: u16, fd: Option<OwnedFd>) -> Result<()> {
        let index = self.index(index.into())?;
        let kick = fd.ok_or_else(|| {
            wrong(format!(
                "SET_VRING_KICK for queue {index} without a descriptor: rings that are only polled \
                 are not supported"
            ))
        })?;
        if !can_kick(&kick) {
            return Err(wrong(format!(
                "SET_VRING_KICK for queue {index} with a descriptor that is no eventfd, pipe or \
                 socket"
            )));
        }
        match &mut self.vrings[usize::from(index)].running {
            Running::No => return self.start(index, kick),
            Running::Displaced(kept) => {
                *kept = kick;
                return Ok(());
            }
            Running::Yes(kept) => *kept = duplicate(&kick)?,
        }
        self.device
            .call_queue(index, move |queue| async move { queue.set_kick(kick) })?;
        Ok(())
    }

    fn set_vring_call(&mut self, index: u16, call: Option<OwnedFd>) -> Result<()> {
        let index = self.index(index.into())?;
        self.device
            .call_queue(index, move |queue| async move { queue.set_call(call) })?;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u16, error: Option<OwnedFd>) -> Result<()> {
        let index = self.index(index.into())?;
        self.device
            .call_queue(index, move |queue| async move { queue.set_error(error) })?;
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let index = self.index(index)?;
        self.device.call_queue(index, move |queue| async move {
            queue.set_enabled(enable).await
        })?;
        Ok(())
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
        let space = config::space(&self.options, length, limits, self.wce);
        match config::part(&space, range.offset, range.len) {
            Some(part) => {
                self.told_length = Some(length);
                Answer::Config(range, part)
            }
            None => Answer::NoConfig,
        }
    }

    fn set_config(&mut self, range: ConfigRange, bytes: &[u8]) -> Result<()> {
        let (WCE_OFFSET, &[wce @ (0 | 1)]) = (range.offset, bytes) else {
            return Err(wrong(format!(
                "SET_CONFIG of {} bytes at {}: only the write cache can be set, to 0 or 1",
                bytes.len(),
                range.offset
            )));
        };
        self.wce = wce == 1;
        self.set_writeback()
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
        let (spec, file) =
            Region::create(queues, queue_size).map_err(|error| wrong(error.to_string()))?;
        Ok(Answer::Inflight(Inflight { spec, ..inflight }, file.into()))
    }

    fn set_inflight_fd(&mut self, inflight: Inflight, fd: OwnedFd) -> Result<()> {
        let region = Region::open(&inflight.spec, &File::from(fd));
        let region = region.map_err(|error| wrong(error.to_string()))?;
        if !self.attached {
            // The first client of this process goes on with what a former one has left.
            block::block_on(self.backend.reattach()).ok_or(Closed)?;
            self.attached = true;
        }
        self.begun = true;
        self.backend.set_remembered(true);
        self.region = Some(Arc::new(region));
        Ok(())
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

/// Whether a descriptor becomes ready by being written to, and only then. Files are ready always,
/// whoever waits for one is never done.
fn can_kick(kick: &OwnedFd) -> bool {
    let Ok(stat) = rustix::fs::fstat(kick) else {
        return false;
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo | FileType::Socket => true,
        FileType::Unknown => {
            let link = format!("/proc/self/fd/{}", kick.as_raw_fd());
            // Where there is no /proc to ask, anything without a file type may be one.
            std::fs::read_link(link).map_or(true, |name| name == Path::new("anon_inode:[eventfd]"))
        }
        _ => false,
    }
}

fn duplicate(kick: &OwnedFd) -> Result<OwnedFd> {
    kick.try_clone()
        .map_err(|error| wrong(format!("cannot duplicate a kick descriptor: {error}")))
}
