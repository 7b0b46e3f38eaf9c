//! The driver side of a split virtqueue.
//!
//! The driver's own state (free descriptors, indices) is kept in private memory, so that a device
//! that scribbles over the ring cannot confuse the driver. Descriptors are handed out first in first
//! out: a head that was just completed is the last to be used again, which makes a second completion
//! of it recognisable.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::error::FrontendError;
use crate::memory::{Block, GuestMemory, Mapping};

/// Descriptor flag: the chain goes on at `next`.
pub const DESC_F_NEXT: u16 = 1;
/// Descriptor flag: the device writes into the buffer.
pub const DESC_F_WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;
pub(crate) const AVAIL_F_NO_INTERRUPT: u16 = 1;
pub(crate) const USED_F_NO_NOTIFY: u16 = 1;

/// Bytes of one descriptor.
pub const DESC_BYTES: usize = 16;
/// Largest ring of the specification.
pub const SIZE_MAX: u16 = 32768;

/// A descriptor as it stands in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// Guest address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// `DESC_F_*`.
    pub flags: u16,
    /// Index of the next descriptor, if `DESC_F_NEXT` is set.
    pub next: u16,
}

impl Descriptor {
    /// The 16 bytes of it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; DESC_BYTES] {
        let mut bytes = [0; DESC_BYTES];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// An element of the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsedElement {
    /// Head of the chain, if the device is right.
    pub id: u32,
    /// Bytes the device says it has written.
    pub len: u32,
}

/// A ring in guest memory, with the driver's state of it.
#[derive(Debug)]
pub struct Ring {
    mapping: Arc<Mapping>,
    block: Block,
    /// Offsets into the mapping.
    table: usize,
    avail: usize,
    used: usize,
    size: u16,
    event_idx: bool,
    free: VecDeque<u16>,
    /// Descriptors of each outstanding chain, by head: the private copy of `next`.
    chains: Vec<Vec<u16>>,
    avail_index: u16,
    used_index: u16,
    /// Available index at the last decision whether to kick.
    kicked_index: u16,
    calls_wanted: bool,
}

impl Ring {
    /// A ring of `size` entries, zeroed, in memory taken from `memory`.
    pub(crate) fn new(
        memory: &mut GuestMemory,
        size: u16,
        event_idx: bool,
    ) -> Result<Self, FrontendError> {
        if size > SIZE_MAX || !size.is_power_of_two() {
            return Err(FrontendError::Options(format!(
                "queue size {size} is not a power of two up to {SIZE_MAX}"
            )));
        }
        let entries = usize::from(size);
        let avail = entries * DESC_BYTES;
        let used = (avail + 6 + 2 * entries).next_multiple_of(64);
        let len = (used + 6 + 8 * entries) as u64;
        let block = memory.allocate(len).ok_or(FrontendError::MemoryFull {
            what: "a ring",
            len,
        })?;
        let (mapping, table) = memory.find(block.address(), len)?;
        let mut ring = Self {
            mapping: Arc::clone(mapping),
            block,
            table,
            avail: table + avail,
            used: table + used,
            size,
            event_idx,
            free: VecDeque::with_capacity(entries),
            chains: vec![Vec::new(); entries],
            avail_index: 0,
            used_index: 0,
            kicked_index: 0,
            calls_wanted: false,
        };
        ring.reset();
        Ok(ring)
    }

    /// Number of entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Guest memory of the whole ring.
    #[must_use]
    pub fn block(&self) -> Block {
        self.block
    }

    /// Addresses in this process of the descriptor table, the available and the used ring.
    pub(crate) fn addresses(&self) -> [u64; 3] {
        [self.table, self.avail, self.used].map(|offset| self.mapping.address() + offset as u64)
    }

    /// The mapping it is in, and in that the offsets of the available and the used ring.
    pub(crate) fn places(&self) -> (&Arc<Mapping>, usize, usize) {
        (&self.mapping, self.avail, self.used)
    }

    /// Whether `used_event` and `avail_event` are in use.
    #[must_use]
    pub fn event_idx(&self) -> bool {
        self.event_idx
    }

    /// Everything as on the first day: ring memory zeroed, all descriptors free.
    pub(crate) fn reset(&mut self) {
        let len = usize::from(self.size) * 8 + 6 + (self.used - self.table);
        self.mapping.fill(self.table, len, 0);
        self.free = (0..self.size).collect();
        self.chains.iter_mut().for_each(Vec::clear);
        (self.avail_index, self.used_index, self.kicked_index) = (0, 0, 0);
        self.disable_calls();
    }

    /// Number of free descriptors.
    #[must_use]
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// The head that the next chain will have.
    pub(crate) fn next_head(&self) -> Option<u16> {
        self.free.front().copied()
    }

    /// Makes a chain available and returns its head. `next` and [`DESC_F_NEXT`] are set here.
    /// `None` if too few descriptors are free, or none are given.
    pub(crate) fn add(&mut self, descriptors: &[Descriptor]) -> Option<u16> {
        let last = descriptors.len().checked_sub(1)?;
        let chain = self.take(descriptors.len())?;
        for (position, descriptor) in descriptors.iter().enumerate() {
            let mut descriptor = *descriptor;
            if position < last {
                descriptor.flags |= DESC_F_NEXT;
                descriptor.next = chain[position + 1];
            }
            self.write_descriptor(chain[position], descriptor);
        }
        Some(self.publish(chain))
    }

    /// Makes a chain available just as it is given, except that a `next` below the number of
    /// descriptors means that one of them. `None` if too few descriptors are free, or none are given.
    pub(crate) fn add_raw(&mut self, descriptors: &[Descriptor]) -> Option<u16> {
        if descriptors.is_empty() {
            return None;
        }
        let chain = self.take(descriptors.len())?;
        for (index, descriptor) in chain.iter().zip(descriptors) {
            let mut descriptor = *descriptor;
            if let Some(&next) = chain.get(usize::from(descriptor.next)) {
                descriptor.next = next;
            }
            self.write_descriptor(*index, descriptor);
        }
        Some(self.publish(chain))
    }

    fn take(&mut self, count: usize) -> Option<Vec<u16>> {
        if count > self.free.len() {
            return None;
        }
        // The vector of the last chain with this head is used again: no allocation per request.
        let head = usize::from(*self.free.front()?);
        let mut chain = std::mem::take(&mut self.chains[head]);
        chain.extend(self.free.drain(..count));
        Some(chain)
    }

    fn publish(&mut self, chain: Vec<u16>) -> u16 {
        let head = chain[0];
        self.chains[usize::from(head)] = chain;
        self.write_avail_entry(self.avail_index, head);
        self.set_avail_index(self.avail_index.wrapping_add(1));
        head
    }

    /// The chain of `head` belongs to the driver again.
    pub(crate) fn release(&mut self, head: u16) {
        let chain = &mut self.chains[usize::from(head)];
        self.free.extend(chain.drain(..));
    }

    /// Whether the device wants to be told about what was made available since the last call.
    pub(crate) fn needs_kick(&mut self) -> bool {
        // The available index must be visible before the device's wish is read, or both sides wait.
        fence(Ordering::SeqCst);
        let (new, old) = (self.avail_index, self.kicked_index);
        self.kicked_index = new;
        if self.event_idx {
            let event = self.avail_event();
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            new != old
                && self.mapping.u16_at(self.used).load(Ordering::Acquire) & USED_F_NO_NOTIFY == 0
        }
    }

    /// How many used elements have not been consumed. More than outstanding means a broken device.
    pub(crate) fn used_pending(&self) -> u16 {
        self.device_used_index().wrapping_sub(self.used_index)
    }

    /// The next used element, if there is one.
    pub(crate) fn pop_used(&mut self) -> Option<UsedElement> {
        if self.used_pending() == 0 {
            return None;
        }
        let slot = usize::from(self.used_index % self.size);
        let offset = self.used + 4 + 8 * slot;
        let id = u32::from_le(self.mapping.u32_at(offset).load(Ordering::Relaxed));
        let len = u32::from_le(self.mapping.u32_at(offset + 4).load(Ordering::Relaxed));
        self.used_index = self.used_index.wrapping_add(1);
        if self.calls_wanted {
            self.enable_calls();
        }
        Some(UsedElement { id, len })
    }

    /// Asks to be called at the next used element. The caller must look at the ring once more
    /// before it sleeps.
    pub(crate) fn enable_calls(&mut self) {
        self.calls_wanted = true;
        if self.event_idx {
            self.write_used_event(self.used_index);
        } else {
            self.write_avail_flags(0);
        }
        fence(Ordering::SeqCst);
    }

    /// Asks not to be called. The device may call nevertheless.
    pub(crate) fn disable_calls(&mut self) {
        self.calls_wanted = false;
        if self.event_idx {
            // An index that has just been passed comes round again only after 65536 elements.
            self.write_used_event(self.used_index.wrapping_sub(1));
        } else {
            self.write_avail_flags(AVAIL_F_NO_INTERRUPT);
        }
    }

    /// Number of elements made available so far, modulo 2^16.
    #[must_use]
    pub fn avail_index(&self) -> u16 {
        self.avail_index
    }

    /// Number of used elements consumed so far, modulo 2^16.
    #[must_use]
    pub fn consumed_index(&self) -> u16 {
        self.used_index
    }

    /// The used index as the device has published it.
    #[must_use]
    pub fn device_used_index(&self) -> u16 {
        u16::from_le(self.mapping.u16_at(self.used + 2).load(Ordering::Acquire))
    }

    /// The device's `avail_event`.
    #[must_use]
    pub fn avail_event(&self) -> u16 {
        let offset = self.used + 4 + 8 * usize::from(self.size);
        u16::from_le(self.mapping.u16_at(offset).load(Ordering::Acquire))
    }

    /// Writes a descriptor of the table, whoever owns it. For hostile tests.
    ///
    /// # Panics
    /// If `index` is not below the size.
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        assert!(
            index < self.size,
            "descriptor {index} of a ring of {}",
            self.size
        );
        self.mapping.write(
            self.table + usize::from(index) * DESC_BYTES,
            &descriptor.to_bytes(),
        );
    }

    /// Writes the entry of the available ring that belongs to `index` (modulo the size). For hostile
    /// tests, beside the ring's own use.
    pub fn write_avail_entry(&self, index: u16, head: u16) {
        let offset = self.avail + 4 + 2 * usize::from(index % self.size);
        self.mapping
            .u16_at(offset)
            .store(head.to_le(), Ordering::Relaxed);
    }

    /// Publishes an available index, also for the driver's own counting. A hostile test may set any.
    pub fn set_avail_index(&mut self, index: u16) {
        self.avail_index = index;
        self.mapping
            .u16_at(self.avail + 2)
            .store(index.to_le(), Ordering::Release);
    }

    /// Writes the available ring's flags. For hostile tests, beside the ring's own use.
    pub fn write_avail_flags(&self, flags: u16) {
        self.mapping
            .u16_at(self.avail)
            .store(flags.to_le(), Ordering::Release);
    }

    /// Writes `used_event`. For hostile tests, beside the ring's own use.
    pub fn write_used_event(&self, index: u16) {
        let offset = self.avail + 4 + 2 * usize::from(self.size);
        self.mapping
            .u16_at(offset)
            .store(index.to_le(), Ordering::Release);
    }

    /// What the device does to complete a chain. For tests of the driver side.
    #[cfg(test)]
    pub(crate) fn complete_as_device(&self, id: u32, len: u32) {
        let index = self.device_used_index();
        let offset = self.used + 4 + 8 * usize::from(index % self.size);
        self.mapping
            .u32_at(offset)
            .store(id.to_le(), Ordering::Relaxed);
        self.mapping
            .u32_at(offset + 4)
            .store(len.to_le(), Ordering::Relaxed);
        self.set_used_index_as_device(index.wrapping_add(1));
    }

    #[cfg(test)]
    pub(crate) fn set_used_index_as_device(&self, index: u16) {
        self.mapping
            .u16_at(self.used + 2)
            .store(index.to_le(), Ordering::Release);
    }

    #[cfg(test)]
    pub(crate) fn set_avail_event_as_device(&self, index: u16) {
        let offset = self.used + 4 + 8 * usize::from(self.size);
        self.mapping
            .u16_at(offset)
            .store(index.to_le(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(size: u16, event_idx: bool) -> Ring {
        let mut memory = GuestMemory::new(1 << 20, 1).unwrap();
        Ring::new(&mut memory, size, event_idx).unwrap()
    }

    fn chain(count: usize) -> Vec<Descriptor> {
        vec![
            Descriptor {
                address: 0x10_0000,
                len: 8,
                ..Descriptor::default()
            };
            count
        ]
    }

    #[test]
    fn all_descriptors_can_be_used_and_come_back_over_the_wrap_of_the_indices() {
        let mut ring = ring(8, false);
        for _ in 0..30_000 {
            let first = ring.add(&chain(3)).unwrap();
            let second = ring.add(&chain(5)).unwrap();
            assert!(ring.add(&chain(1)).is_none());
            for head in [second, first] {
                ring.complete_as_device(u32::from(head), 0);
                assert_eq!(ring.pop_used().unwrap().id, u32::from(head));
                ring.release(head);
            }
            assert!(ring.pop_used().is_none());
            assert_eq!(ring.free_descriptors(), 8);
        }
        assert_eq!(ring.avail_index(), 60_000);
    }

    #[test]
    fn a_completed_head_is_the_last_to_be_used_again() {
        let mut ring = ring(4, false);
        let head = ring.add(&chain(1)).unwrap();
        ring.release(head);
        let others: Vec<_> = (0..3).map(|_| ring.add(&chain(1)).unwrap()).collect();
        assert!(!others.contains(&head));
        assert_eq!(ring.add(&chain(1)), Some(head));
    }

    #[test]
    fn kicks_follow_avail_event() {
        let mut ring = ring(8, true);
        assert!(!ring.needs_kick());
        ring.add(&chain(1)).unwrap();
        assert!(ring.needs_kick());
        assert!(!ring.needs_kick());
        ring.set_avail_event_as_device(2);
        ring.add(&chain(1)).unwrap();
        assert!(!ring.needs_kick());
        ring.add(&chain(1)).unwrap();
        assert!(ring.needs_kick());
    }

    #[test]
    fn used_event_moves_with_what_was_consumed_while_calls_are_wanted() {
        let mut ring = ring(8, true);
        let used_event = |ring: &Ring| {
            ring.mapping
                .u16_at(ring.avail + 4 + 2 * 8)
                .load(Ordering::Acquire)
        };
        assert_eq!(used_event(&ring), u16::MAX);
        ring.enable_calls();
        assert_eq!(used_event(&ring), 0);
        let head = ring.add(&chain(1)).unwrap();
        ring.complete_as_device(u32::from(head), 0);
        ring.pop_used().unwrap();
        assert_eq!(used_event(&ring), 1);
        ring.disable_calls();
        assert_eq!(used_event(&ring), 0);
    }

    #[test]
    fn sizes_that_the_specification_forbids_are_refused() {
        let mut memory = GuestMemory::new(8 << 20, 1).unwrap();
        for size in [0, 3, 100, 40_000] {
            assert!(matches!(
                Ring::new(&mut memory, size, false),
                Err(FrontendError::Options(_))
            ));
        }
        assert!(Ring::new(&mut memory, SIZE_MAX, true).is_ok());
    }
}
