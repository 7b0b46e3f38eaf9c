//! What a client says, and what becomes of it: the vhost-user state of one export.
//!
//! Runs on the export's control thread. A message that makes no sense is an error, which ends the
//! connection; what concerns rings is done on the iothread, and waited for only if it ends by itself.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use block::Backend;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};

use crate::config::{
    self, F_CONFIG_WCE, F_EVENT_IDX, F_FLUSH, F_INDIRECT_DESC, F_PROTOCOL_FEATURES, WCE_OFFSET,
};
use crate::device::{Closed, DeviceHandle};
use crate::inflight::{self, Region};
use crate::memory::{Memory, RegionSpec};
use crate::options::Options;
use crate::queue::Setup;
use crate::ring::Layout;

/// Where the client has a ring, in its own addresses.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    table: u64,
    avail: u64,
    used: u64,
}

/// What the client has said about a queue.
#[derive(Clone, Copy, Debug, Default)]
struct Vring {
    size: u16,
    base: u16,
    addresses: Option<Addresses>,
    running: bool,
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

/// An error that names what is wrong.
fn wrong(text: impl Into<String>) -> Error {
    Error::ReqHandlerError(std::io::Error::other(text.into()))
}

fn closed(closed: Closed) -> Error {
    wrong(closed.to_string())
}

impl Session {
    pub fn new(options: Options, backend: Arc<Backend>, device: DeviceHandle) -> Self {
        let queues = usize::from(options.num_queues);
        Self {
            wce: !options.writethrough,
            options,
            backend,
            device,
            features: 0,
            memory: None,
            region: None,
            vrings: vec![Vring::default(); queues],
            attached: false,
            begun: false,
        }
    }

    /// The connection is gone: rings end as at GET_VRING_BASE. What waits is kept for a client that
    /// comes back with its region.
    pub fn end(&mut self) -> std::result::Result<(), Closed> {
        self.stop_all()?;
        self.device.call(|device| async move {
            for queue in device.queues() {
                queue.set_enabled(false).await;
                queue.set_call(None);
                queue.set_error(None);
            }
        })?;
        self.features = 0;
        (self.memory, self.region) = (None, None);
        self.vrings.fill(Vring::default());
        self.begun = false;
        Ok(())
    }

    fn stop_all(&mut self) -> std::result::Result<(), Closed> {
        for index in 0..self.options.num_queues {
            if self.vrings[usize::from(index)].running {
                self.stop(index)?;
            }
        }
        Ok(())
    }

    /// Returns the next available index.
    fn stop(&mut self, index: u16) -> std::result::Result<u16, Closed> {
        let next = self.device.call(move |device| async move {
            match device.queue(index) {
                Some(queue) => queue.stop().await,
                None => None,
            }
        })?;
        let vring = &mut self.vrings[usize::from(index)];
        vring.running = false;
        // A ring that could not be started is where it was.
        vring.base = next.unwrap_or(vring.base);
        Ok(vring.base)
    }

    /// A new life of the device: what was held is dropped, the I/O status reset.
    fn attach(&mut self) -> Result<()> {
        self.stop_all().map_err(closed)?;
        // On the same connection it is a reset by a client that stays.
        let begun = if self.begun {
            block::block_on(self.backend.reset())
        } else {
            block::block_on(self.backend.attach())
        };
        begun.ok_or_else(|| closed(Closed))?;
        self.attached = true;
        self.begun = true;
        self.wce = !self.options.writethrough;
        self.device
            .call(|device| async move {
                for queue in device.queues() {
                    queue.forget_all();
                }
            })
            .map_err(closed)?;
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
            .call(move |device| async move { device.set_writeback(writeback) })
            .map_err(closed)
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
        if vring.running {
            return Err(wrong(format!("{message} for queue {index}, which runs")));
        }
        Ok(vring)
    }

    fn setup(&mut self, index: u16, kick: OwnedFd) -> Result<Setup> {
        let vring = self.vrings[usize::from(index)];
        let (Some(memory), Some(addresses)) = (&self.memory, vring.addresses) else {
            return Err(wrong(format!(
                "SET_VRING_KICK for queue {index} before SET_MEM_TABLE or SET_VRING_ADDR"
            )));
        };
        let guest = |part: &str, address: u64| {
            memory.guest_address(address).ok_or_else(|| {
                wrong(format!(
                    "the {part} of queue {index} at {address:#x} is not in the memory table"
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

    fn start(&mut self, index: u16, kick: OwnedFd) -> Result<()> {
        if !self.begun {
            // Neither a fresh region nor one that was handed back: nothing can go on.
            self.attach()?;
        }
        let setup = self.setup(index, kick)?;
        let always = self.features & F_PROTOCOL_FEATURES == 0;
        self.device
            .call(move |device| async move {
                if let Some(queue) = device.queue(index) {
                    if always {
                        queue.set_enabled(true).await;
                    }
                    queue.start(setup);
                }
            })
            .map_err(closed)?;
        self.vrings[usize::from(index)].running = true;
        Ok(())
    }
}

fn region_spec(inflight: &VhostUserInflight) -> inflight::RegionSpec {
    inflight::RegionSpec {
        bytes: inflight.mmap_size,
        offset: inflight.mmap_offset,
        queues: inflight.num_queues,
        queue_size: inflight.queue_size,
    }
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.stop_all().map_err(closed)
    }

    fn reset_device(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("RESET_DEVICE is not offered"))
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(config::virtio_features(&self.options))
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !config::virtio_features(&self.options);
        if unknown != 0 {
            return Err(wrong(format!(
                "SET_FEATURES with {unknown:#x}, which is not offered"
            )));
        }
        self.features = features;
        self.set_writeback()
    }

    fn set_mem_table(
        &mut self,
        ctx: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let specs = ctx.iter().map(|region| RegionSpec {
            guest_address: region.guest_phys_addr,
            bytes: region.memory_size,
            user_address: region.user_addr,
            file_offset: region.mmap_offset,
        });
        let memory = Memory::new(specs.zip(files)).map_err(|error| wrong(error.to_string()))?;
        let memory = Arc::new(memory);
        self.memory = Some(Arc::clone(&memory));
        self.device
            .call(move |device| async move {
                for queue in device.queues() {
                    queue.set_memory(&memory);
                }
            })
            .map_err(closed)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let max = self.options.queue_size_max;
        let size = u16::try_from(num)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= max);
        let size = size.ok_or_else(|| {
            wrong(format!(
                "SET_VRING_NUM {num} for queue {index}: it must be a power of two up to {max}"
            ))
        })?;
        self.stopped(index, "SET_VRING_NUM")?.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        self.stopped(index, "SET_VRING_ADDR")?.addresses = Some(Addresses {
            table: descriptor,
            avail: available,
            used,
        });
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| {
            wrong(format!(
                "SET_VRING_BASE {base} for queue {index}: indexes have 16 bits"
            ))
        })?;
        self.stopped(index, "SET_VRING_BASE")?.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let queue = self.index(index)?;
        let base = if self.vrings[usize::from(queue)].running {
            self.stop(queue).map_err(closed)?
        } else {
            self.vrings[usize::from(queue)].base
        };
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.index(u32::from(index))?;
        let Some(kick) = fd.map(OwnedFd::from) else {
            return Err(wrong(format!(
                "SET_VRING_KICK for queue {index} without a descriptor: rings that are only polled \
                 are not supported"
            )));
        };
        if !self.vrings[usize::from(index)].running {
            return self.start(index, kick);
        }
        self.device
            .call(move |device| async move {
                if let Some(queue) = device.queue(index) {
                    queue.set_kick(kick);
                }
            })
            .map_err(closed)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.index(u32::from(index))?;
        let call = fd.map(OwnedFd::from);
        self.device
            .call(move |device| async move {
                if let Some(queue) = device.queue(index) {
                    queue.set_call(call);
                }
            })
            .map_err(closed)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.index(u32::from(index))?;
        let error = fd.map(OwnedFd::from);
        self.device
            .call(move |device| async move {
                if let Some(queue) = device.queue(index) {
                    queue.set_error(error);
                }
            })
            .map_err(closed)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(config::protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !config::protocol_features().bits();
        if unknown != 0 {
            return Err(wrong(format!(
                "SET_PROTOCOL_FEATURES with {unknown:#x}, which is not offered"
            )));
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.options.num_queues))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let index = self.index(index)?;
        self.device
            .call(move |device| async move {
                if let Some(queue) = device.queue(index) {
                    queue.set_enabled(enable).await;
                }
            })
            .map_err(closed)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let driver = self.backend.node().driver();
        let space = config::space(&self.options, driver.length(), driver.limits(), self.wce);
        config::part(&space, offset, size).ok_or_else(|| {
            wrong(format!(
                "GET_CONFIG of {size} bytes at {offset}: there are {}",
                space.len()
            ))
        })
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        let (WCE_OFFSET, &[wce @ (0 | 1)]) = (offset, buf) else {
            return Err(wrong(format!(
                "SET_CONFIG of {} bytes at {offset}: only the write cache can be set, to 0 or 1",
                buf.len()
            )));
        };
        self.wce = wce == 1;
        self.set_writeback()
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("GPU_SET_SOCKET is not for disks"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("SHARED_OBJECT is not offered"))
    }

    fn get_inflight_fd(
        &mut self,
        inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        let VhostUserInflight {
            num_queues,
            queue_size,
            ..
        } = *inflight;
        if num_queues > self.options.num_queues || queue_size > self.options.queue_size_max {
            return Err(wrong(format!(
                "GET_INFLIGHT_FD for {num_queues} queues of {queue_size}: there are at most {} \
                 queues of {}",
                self.options.num_queues, self.options.queue_size_max
            )));
        }
        self.attach()?;
        let (spec, file) =
            Region::create(num_queues, queue_size).map_err(|error| wrong(error.to_string()))?;
        let answer = VhostUserInflight::new(spec.bytes, spec.offset, num_queues, queue_size);
        Ok((answer, file))
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let region = Region::open(&region_spec(inflight), &file);
        let region = region.map_err(|error| wrong(error.to_string()))?;
        if !self.attached {
            // The first client of this process goes on with what a former one has left.
            block::block_on(self.backend.reattach()).ok_or_else(|| closed(Closed))?;
            self.attached = true;
        }
        self.begun = true;
        self.backend.set_remembered(true);
        self.region = Some(Arc::new(region));
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(Error::InvalidOperation(
            "CONFIGURE_MEM_SLOTS is not offered",
        ))
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        Err(Error::InvalidOperation(
            "CONFIGURE_MEM_SLOTS is not offered",
        ))
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(Error::InvalidOperation(
            "CONFIGURE_MEM_SLOTS is not offered",
        ))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("DEVICE_STATE is not offered"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("DEVICE_STATE is not offered"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("SHMEM is not offered"))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("LOG_SHMFD is not offered"))
    }
}
