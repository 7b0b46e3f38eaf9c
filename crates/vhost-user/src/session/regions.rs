//! The client's memory: all of it in one table, or region by region.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::refused::{Result, wrong};
use crate::class::{Closed, Part};
use crate::device::DeviceHandle;
use crate::memory::{Memory, MemoryError, RegionSpec};

/// Regions that a client can have mapped at once, if it adds them one by one: what KVM has.
pub(super) const MEM_SLOTS_MAX: usize = 509;

/// See the [module](self).
pub(super) struct Regions<P: Part> {
    device: DeviceHandle<P>,
    memory: Option<Arc<Memory>>,
}

impl<P: Part> Regions<P> {
    pub fn new(device: DeviceHandle<P>) -> Self {
        Self {
            device,
            memory: None,
        }
    }

    /// What the client has told; none if it has told nothing yet.
    pub fn memory(&self) -> Option<&Arc<Memory>> {
        self.memory.as_ref()
    }

    /// The connection is gone.
    pub fn end(&mut self) {
        self.memory = None;
    }

    /// All queues go by this memory from now on.
    pub fn set(&mut self, mut memory: Memory) -> std::result::Result<(), Closed> {
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
        })
    }

    /// The memory with one region more.
    pub fn with(&self, spec: RegionSpec, fd: OwnedFd) -> Result<Memory> {
        let empty = Memory::empty();
        let memory = self.memory.as_deref().unwrap_or(&empty);
        if memory.regions() >= MEM_SLOTS_MAX {
            return Err(wrong(format!(
                "ADD_MEM_REG: there are {MEM_SLOTS_MAX} memory regions, no more are possible"
            )));
        }
        Ok(memory.with(spec, &File::from(fd))?)
    }

    /// The memory with one region less.
    pub fn without(&self, spec: &RegionSpec) -> std::result::Result<Memory, MemoryError> {
        let empty = Memory::empty();
        let memory = self.memory.as_deref().unwrap_or(&empty);
        memory.without(spec)
    }

    /// Whether the client may be about to add memory that it has removed.
    pub fn is_moving(&self) -> bool {
        (self.memory.as_ref()).is_some_and(|memory| memory.is_moving())
    }

    /// The memory as it is if what was removed does not come back; none if that is what it is already.
    pub fn settled(&self) -> std::result::Result<Option<Memory>, MemoryError> {
        let moving = self.memory.as_ref().filter(|memory| memory.is_moving());
        moving.map(|memory| memory.settled()).transpose()
    }
}
