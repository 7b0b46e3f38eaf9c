//! The life of rings, as the client tells it: where they are, when they start and stop, whom they kick
//! and call.

use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::refused::{Result, wrong};
use crate::class::{Closed, Part};
use crate::descriptor;
use crate::device::DeviceHandle;
use crate::features::{EVENT_IDX, INDIRECT_DESC, PROTOCOL_FEATURES};
use crate::inflight::Region;
use crate::memory::Memory;
use crate::protocol::message::{VringAddr, VringState};
use crate::queue::Setup;
use crate::ring::{Layout, part_bytes};

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

    /// Whether all of it is in memory that is there.
    fn is_mapped(&self, memory: &Memory) -> bool {
        self.addresses
            .is_some_and(|Addresses { table, avail, used }| {
                [table, avail, used]
                    .into_iter()
                    .zip(part_bytes(self.size))
                    .all(|(address, bytes)| memory.guest_range(address, bytes as u64).is_some())
            })
    }
}

/// Who kicks a ring that is to be started.
pub(super) struct Kick {
    fd: OwnedFd,
    /// For another start of the ring.
    kept: OwnedFd,
}

impl Kick {
    pub fn new(fd: OwnedFd) -> Result<Self> {
        let kept = duplicate(&fd)?;
        Ok(Self { fd, kept })
    }
}

/// What all rings are started with.
pub(super) struct Terms<'a> {
    pub memory: Option<&'a Arc<Memory>>,
    pub region: Option<&'a Arc<Region>>,
    /// Negotiated virtio features.
    pub features: u64,
    /// What to do about a ring that is in no memory.
    pub remedy: &'static str,
}

/// See the [module](self).
pub(super) struct Vrings<P: Part> {
    device: DeviceHandle<P>,
    size_max: u16,
    vrings: Vec<Vring>,
}

impl<P: Part> fmt::Debug for Vrings<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.vrings.fmt(f)
    }
}

impl<P: Part> Vrings<P> {
    /// `count` rings of at most `size_max` descriptors.
    pub fn new(device: DeviceHandle<P>, count: u16, size_max: u16) -> Self {
        let vrings = (0..count).map(|_| Vring::default());
        Self {
            device,
            size_max,
            vrings: vrings.collect(),
        }
    }

    pub fn indexes(&self) -> Range<u16> {
        0..u16::try_from(self.vrings.len()).unwrap_or(u16::MAX)
    }

    /// Whether none is served, nor will be without another message about it.
    pub fn are_stopped(&self) -> bool {
        let stopped = |vring: &Vring| matches!(vring.running, Running::No);
        self.vrings.iter().all(stopped)
    }

    /// The connection is gone: rings end as at GET_VRING_BASE.
    pub fn end(&mut self) -> std::result::Result<(), Closed> {
        self.stop_all()?;
        self.device.call_all(|device| async move {
            for queue in device.queues() {
                queue.set_enabled(false, true).await;
                queue.set_call(None);
                queue.set_error(None);
            }
        })?;
        self.vrings.fill_with(Vring::default);
        Ok(())
    }

    pub fn stop_all(&mut self) -> std::result::Result<(), Closed> {
        for index in self.indexes() {
            let vring = &mut self.vrings[usize::from(index)];
            if vring.is_running() {
                self.stop(index)?;
            } else {
                vring.running = Running::No;
            }
        }
        // What was suspended may still be in flight.
        self.device.call_all(|device| async move {
            for queue in device.queues() {
                queue.settle().await;
            }
        })
    }

    /// Stops the rings that are not in `memory`, until they are again ([`Self::take_returned`]).
    pub fn displace(&mut self, memory: &Memory) -> std::result::Result<(), Closed> {
        for index in self.indexes() {
            let vring = &mut self.vrings[usize::from(index)];
            // One that is displaced already stays so, whatever else goes.
            if vring.is_running()
                && !vring.is_mapped(memory)
                && let Running::Yes(kick) = std::mem::take(&mut vring.running)
            {
                self.stop(index)?;
                self.vrings[usize::from(index)].running = Running::Displaced(kick);
            }
        }
        Ok(())
    }

    /// The kick descriptor of a ring that was displaced, if it is in `memory`: it is to be started
    /// again.
    pub fn take_returned(&mut self, index: u16, memory: &Memory) -> Option<OwnedFd> {
        let vring = &mut self.vrings[usize::from(index)];
        let back = matches!(vring.running, Running::Displaced(_)) && vring.is_mapped(memory);
        match back.then(|| std::mem::take(&mut vring.running)) {
            Some(Running::Displaced(kick)) => Some(kick),
            _ => None,
        }
    }

    /// Returns the next available index. Nothing of the queue is in flight then.
    fn stop(&mut self, index: u16) -> std::result::Result<u16, Closed> {
        let next = (self.device).call_queue(index, |queue| async move { queue.stop().await })?;
        Ok(self.stopped_at(index, next))
    }

    fn stopped_at(&mut self, index: u16, next: Option<u16>) -> u16 {
        let vring = &mut self.vrings[usize::from(index)];
        vring.running = Running::No;
        // A ring that could not be started is where it was.
        vring.base = next.unwrap_or(vring.base);
        vring.base
    }

    fn index(&self, index: u32) -> Result<u16> {
        let count = self.vrings.len();
        match u16::try_from(index) {
            Ok(index) if usize::from(index) < count => Ok(index),
            _ => Err(wrong(format!(
                "queue {index} does not exist, there are {count}"
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

    fn setup(&self, index: u16, kick: OwnedFd, terms: &Terms<'_>) -> Result<Setup> {
        let vring = &self.vrings[usize::from(index)];
        let (features, remedy) = (terms.features, terms.remedy);
        let (Some(memory), Some(addresses)) = (terms.memory, vring.addresses) else {
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
            event_idx: features & EVENT_IDX != 0,
            indirect: features & INDIRECT_DESC != 0,
        };
        Ok(Setup {
            memory: Arc::clone(memory),
            layout,
            features,
            base: vring.base,
            region: terms.region.cloned(),
            kick,
        })
    }

    /// Starts the ring of a queue that exists.
    pub fn start(&mut self, index: u16, kick: Kick, terms: &Terms<'_>) -> Result<()> {
        let Kick { fd, kept } = kick;
        let setup = self.setup(index, fd, terms)?;
        let always = terms.features & PROTOCOL_FEATURES == 0;
        self.device.call_queue(index, move |queue| async move {
            if always {
                queue.set_enabled(true, true).await;
            }
            queue.start(setup).await;
        })?;
        self.vrings[usize::from(index)].running = Running::Yes(kept);
        Ok(())
    }

    pub fn set_num(&mut self, VringState { index, value }: VringState) -> Result<()> {
        let max = self.size_max;
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

    pub fn set_addr(&mut self, address: VringAddr) -> Result<()> {
        self.stopped(address.index, "SET_VRING_ADDR")?.addresses = Some(Addresses {
            table: address.table,
            avail: address.avail,
            used: address.used,
        });
        Ok(())
    }

    pub fn set_base(&mut self, VringState { index, value }: VringState) -> Result<()> {
        let base = u16::try_from(value).map_err(|_| {
            wrong(format!(
                "SET_VRING_BASE {value} for queue {index}: indexes have 16 bits"
            ))
        })?;
        self.stopped(index, "SET_VRING_BASE")?.base = base;
        Ok(())
    }

    /// What is in flight is completed first, whatever has been negotiated: by the specification it
    /// must be, and GET_VRING_BASE_INFLIGHT alone, which once said otherwise, allows it. What is held
    /// is not waited for: it stays marked in the region.
    pub fn base(&mut self, index: u32) -> Result<VringState> {
        let queue = self.index(index)?;
        // A ring that does not run may have been suspended.
        let value = self.stop(queue)?.into();
        Ok(VringState { index, value })
    }

    /// Nothing is waited for: what is in flight stays marked in the region. Without a region nobody
    /// would know of it, so there it is completed.
    pub fn base_skip_drain(&mut self, index: u32) -> Result<VringState> {
        let queue = self.index(index)?;
        let next = (self.device).call_queue(queue, |queue| async move { queue.suspend().await })?;
        let value = self.stopped_at(queue, next).into();
        Ok(VringState { index, value })
    }

    /// Returns the queue and its descriptor if its ring is to be started.
    pub fn set_kick(&mut self, index: u16, fd: Option<OwnedFd>) -> Result<Option<(u16, OwnedFd)>> {
        let index = self.index(index.into())?;
        let kick = fd.ok_or_else(|| {
            wrong(format!(
                "SET_VRING_KICK for queue {index} without a descriptor: rings that are only polled \
                 are not supported"
            ))
        })?;
        let kick = eventfd(kick, "SET_VRING_KICK", index)?;
        match &mut self.vrings[usize::from(index)].running {
            Running::No => return Ok(Some((index, kick))),
            Running::Displaced(kept) => {
                *kept = kick;
                return Ok(None);
            }
            Running::Yes(kept) => *kept = duplicate(&kick)?,
        }
        self.device
            .call_queue(index, move |queue| async move { queue.set_kick(kick) })?;
        Ok(None)
    }

    pub fn set_call(&mut self, index: u16, call: Option<OwnedFd>) -> Result<()> {
        let index = self.index(index.into())?;
        let call = (call.map(|call| eventfd(call, "SET_VRING_CALL", index))).transpose()?;
        self.device
            .call_queue(index, move |queue| async move { queue.set_call(call) })?;
        Ok(())
    }

    pub fn set_err(&mut self, index: u16, error: Option<OwnedFd>) -> Result<()> {
        let index = self.index(index.into())?;
        let error = (error.map(|error| eventfd(error, "SET_VRING_ERR", index))).transpose()?;
        self.device
            .call_queue(index, move |queue| async move { queue.set_error(error) })?;
        Ok(())
    }

    /// With `drain` nothing of a ring that is disabled is in flight afterwards.
    pub fn set_enabled(&mut self, index: u32, enabled: bool, drain: bool) -> Result<()> {
        let index = self.index(index)?;
        self.device.call_queue(index, move |queue| async move {
            queue.set_enabled(enabled, drain).await
        })?;
        Ok(())
    }
}

fn eventfd(fd: OwnedFd, message: &str, index: u16) -> Result<OwnedFd> {
    descriptor::eventfd(fd)
        .map_err(|refused| wrong(format!("{message} for queue {index} with {refused}")))
}

fn duplicate(kick: &OwnedFd) -> Result<OwnedFd> {
    kick.try_clone()
        .map_err(|error| wrong(format!("cannot duplicate a kick descriptor: {error}")))
}
