//! The life of a ring, as the client tells it: where it is, when it starts and stops, whom it kicks and
//! calls.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Result, Session, wrong};
use crate::config::{
    F_EVENT_IDX, F_INDIRECT_DESC, F_PROTOCOL_FEATURES, P_GET_VRING_BASE_SKIP_DRAIN,
};
use crate::descriptor;
use crate::device::Closed;
use crate::memory::Memory;
use crate::protocol::message::{Answer, VringAddr, VringState};
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
pub(super) enum Running {
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
pub(super) struct Vring {
    size: u16,
    base: u16,
    addresses: Option<Addresses>,
    pub(super) running: Running,
}

impl Vring {
    pub(super) fn is_running(&self) -> bool {
        matches!(self.running, Running::Yes(_))
    }

    /// Whether all of it is in memory that is there.
    pub(super) fn is_mapped(&self, memory: &Memory) -> bool {
        self.addresses
            .is_some_and(|Addresses { table, avail, used }| {
                [table, avail, used]
                    .into_iter()
                    .zip(part_bytes(self.size))
                    .all(|(address, bytes)| memory.guest_range(address, bytes as u64).is_some())
            })
    }
}

impl Session {
    pub(super) fn stop_all(&mut self) -> std::result::Result<(), Closed> {
        for index in 0..self.options.num_queues {
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

    /// Returns the next available index. Nothing of the queue is in flight then.
    pub(super) fn stop(&mut self, index: u16) -> std::result::Result<u16, Closed> {
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

    pub(super) fn start(&mut self, index: u16, kick: OwnedFd) -> Result<()> {
        let kept = duplicate(&kick)?;
        if !self.begun {
            // Neither a fresh region nor one that was handed back: nothing can go on.
            self.attach()?;
        }
        self.start_cache()?;
        let setup = self.setup(index, kick)?;
        let always = self.features & F_PROTOCOL_FEATURES == 0;
        self.device.call_queue(index, move |queue| async move {
            if always {
                queue.set_enabled(true, true).await;
            }
            queue.start(setup).await;
        })?;
        self.unclaimed.taken_up(index);
        self.vrings[usize::from(index)].running = Running::Yes(kept);
        Ok(())
    }

    pub(super) fn set_vring_num(&mut self, VringState { index, value }: VringState) -> Result<()> {
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

    pub(super) fn set_vring_addr(&mut self, address: VringAddr) -> Result<()> {
        self.stopped(address.index, "SET_VRING_ADDR")?.addresses = Some(Addresses {
            table: address.table,
            avail: address.avail,
            used: address.used,
        });
        Ok(())
    }

    pub(super) fn set_vring_base(&mut self, VringState { index, value }: VringState) -> Result<()> {
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
    pub(super) fn get_vring_base(&mut self, index: u32) -> Result<Answer<OwnedFd>> {
        let queue = self.index(index)?;
        // A ring that does not run may have been suspended.
        let base = self.stop(queue)?;
        Ok(vring_base(index, base))
    }

    /// Nothing is waited for: what is in flight stays marked in the region. Without a region nobody
    /// would know of it, so there it is completed.
    pub(super) fn get_vring_base_skip_drain(&mut self, index: u32) -> Result<Answer<OwnedFd>> {
        let queue = self.index(index)?;
        let next = (self.device).call_queue(queue, |queue| async move { queue.suspend().await })?;
        let base = self.stopped_at(queue, next);
        Ok(vring_base(index, base))
    }

    pub(super) fn set_vring_kick(&mut self, index: u16, fd: Option<OwnedFd>) -> Result<()> {
        let index = self.index(index.into())?;
        let kick = fd.ok_or_else(|| {
            wrong(format!(
                "SET_VRING_KICK for queue {index} without a descriptor: rings that are only polled \
                 are not supported"
            ))
        })?;
        let kick = eventfd(kick, "SET_VRING_KICK", index)?;
        match &mut self.vrings[usize::from(index)].running {
            Running::No => {
                // A client that starts a ring has told its memory.
                self.settle_memory()?;
                return self.start(index, kick);
            }
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

    pub(super) fn set_vring_call(&mut self, index: u16, call: Option<OwnedFd>) -> Result<()> {
        let index = self.index(index.into())?;
        let call = (call.map(|call| eventfd(call, "SET_VRING_CALL", index))).transpose()?;
        self.device
            .call_queue(index, move |queue| async move { queue.set_call(call) })?;
        Ok(())
    }

    pub(super) fn set_vring_err(&mut self, index: u16, error: Option<OwnedFd>) -> Result<()> {
        let index = self.index(index.into())?;
        let error = (error.map(|error| eventfd(error, "SET_VRING_ERR", index))).transpose()?;
        self.device
            .call_queue(index, move |queue| async move { queue.set_error(error) })?;
        Ok(())
    }

    pub(super) fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let index = self.index(index)?;
        // It comes before GET_VRING_BASE_SKIP_DRAIN, which must not wait. To others it is all that
        // they say about a pause.
        let drain = self.protocol & P_GET_VRING_BASE_SKIP_DRAIN == 0;
        self.device.call_queue(index, move |queue| async move {
            queue.set_enabled(enable, drain).await
        })?;
        Ok(())
    }
}

fn eventfd(fd: OwnedFd, message: &str, index: u16) -> Result<OwnedFd> {
    descriptor::eventfd(fd)
        .map_err(|refused| wrong(format!("{message} for queue {index} with {refused}")))
}

fn vring_base(index: u32, base: u16) -> Answer<OwnedFd> {
    let value = base.into();
    Answer::VringBase(VringState { index, value })
}

fn duplicate(kick: &OwnedFd) -> Result<OwnedFd> {
    kick.try_clone()
        .map_err(|error| wrong(format!("cannot duplicate a kick descriptor: {error}")))
}
