//! The client's memory: all of it in one table, or region by region.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::vring::Running;
use super::{Result, Session, wrong};
use crate::memory::{Memory, RegionSpec};

/// Regions that a client can have mapped at once, if it adds them one by one: what KVM has.
pub(super) const MEM_SLOTS_MAX: usize = 509;

impl Session {
    pub(super) fn set_memory(&mut self, mut memory: Memory) -> Result<()> {
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
                device.memory_settled();
            }
        })?;
        self.replace_displaced()
    }

    pub(super) fn add_mem_reg(&mut self, spec: RegionSpec, fd: OwnedFd) -> Result<()> {
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

    pub(super) fn rem_mem_reg(&mut self, spec: &RegionSpec) -> Result<()> {
        let empty = Memory::empty();
        let memory = self.memory.as_deref().unwrap_or(&empty);
        let memory = memory.without(spec)?;
        for index in 0..self.options.num_queues {
            let vring = &mut self.vrings[usize::from(index)];
            // One that is displaced already stays so, whatever else goes.
            if vring.is_running()
                && !vring.is_mapped(&memory)
                && let Running::Yes(kick) = std::mem::take(&mut vring.running)
            {
                self.stop(index)?;
                self.vrings[usize::from(index)].running = Running::Displaced(kick);
            }
        }
        self.set_memory(memory)
    }

    /// Whether the client may be about to add memory that it has removed.
    pub(crate) fn memory_moves(&self) -> bool {
        (self.memory.as_ref()).is_some_and(|memory| memory.is_moving())
    }

    /// What the client has removed and not added again is not waited for any more: requests that need
    /// it have an error.
    pub(crate) fn settle_memory(&mut self) -> Result<()> {
        match &self.memory {
            Some(memory) if memory.is_moving() => {
                let memory = memory.settled()?;
                self.set_memory(memory)
            }
            _ => Ok(()),
        }
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

    /// What to do about a ring that is in no memory.
    pub(super) fn memory_remedy(&self) -> &'static str {
        match self.options.configure_mem_slots {
            true => {
                "; if the daemon was replaced while the VM was stopped, the VMM has told it only what \
                 has changed since: end the VM and start it again, with configure-mem-slots=off"
            }
            false => "",
        }
    }
}
