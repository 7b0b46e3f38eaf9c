//! A queue for load: every request has its place, its buffers and its descriptors once and for all.
//!
//! [`Disk::submit`] and [`Disk::poll`] watch the device closely, which costs more than a fast device
//! needs for a request. A [`Lane`] takes a fresh queue over and does nothing per request but what a
//! guest cannot do without either: it writes the header and the available entry, and reads the used
//! element and the status. It allocates nothing once it is made.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::disk::Disk;
use crate::error::FrontendError;
use crate::event::take_event;
use crate::memory::{GuestMemory, Mapping};
use crate::protocol::feature;
use crate::ring::{
    AVAIL_F_NO_INTERRUPT, DESC_BYTES, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, Ring,
    USED_F_NO_NOTIFY,
};

/// Bytes of a request's place: header, status and indirect table.
const PLACE_BYTES: usize = 128;
const STATUS_OFFSET: usize = 16;
/// On a cache line of its own: the driver never writes to it again.
const TABLE_OFFSET: usize = 64;
/// Descriptors of a request: header, data, status.
const DESCRIPTORS: u16 = 3;
/// A status word that no device has written.
const STATUS_POISON: u32 = u32::MAX;

/// What the requests of a lane have in common.
#[derive(Debug, Clone, Copy)]
pub struct LaneOptions {
    /// Most requests at a time.
    pub depth: u16,
    /// Bytes of data of each request: a multiple of 512.
    pub bytes: u32,
    /// Reads, or else writes.
    pub read: bool,
    /// Use indirect tables, as Linux does if it can; without the feature they are not used.
    pub indirect: bool,
}

/// A queue that has been taken over. See [`Disk::lane`].
#[derive(Debug)]
pub struct Lane {
    ring: Arc<Mapping>,
    /// Offsets into `ring`.
    avail: usize,
    used: usize,
    size: u16,
    event_idx: bool,
    places: Arc<Mapping>,
    /// Offset into `places` of the first place.
    first: usize,
    kind: u32,
    /// Distance between the heads of two slots.
    stride: u16,
    outstanding: Vec<bool>,
    avail_index: u16,
    kicked_index: u16,
    used_index: u16,
    kick: OwnedFd,
    call: OwnedFd,
}

impl Disk {
    /// Takes a queue over for load. From then on it must be used through the lane only, and the disk
    /// is good for nothing but being dropped after it: neither stop nor reset know of lanes.
    ///
    /// # Errors
    /// [`FrontendError::Options`] if there is no such queue, if it has been used, or if `depth`
    /// requests do not fit into it; [`FrontendError::MemoryFull`]; [`FrontendError::Io`].
    pub fn lane(&mut self, queue: u16, options: LaneOptions) -> Result<Lane, FrontendError> {
        let indirect = options.indirect && self.features() & feature::INDIRECT_DESC != 0;
        let options = LaneOptions {
            indirect,
            ..options
        };
        let (memory, queue) = self.memory_and_queue(queue)?;
        let clone = |fd: &OwnedFd| {
            let failed = |source| FrontendError::Io {
                what: "duplicating an event descriptor",
                source,
            };
            fd.try_clone().map_err(failed)
        };
        let events = [clone(&queue.kick)?, clone(&queue.call)?];
        Lane::new(memory, &queue.ring, events, options)
    }
}

impl Lane {
    fn new(
        memory: &mut GuestMemory,
        ring: &Ring,
        [kick, call]: [OwnedFd; 2],
        options: LaneOptions,
    ) -> Result<Self, FrontendError> {
        let LaneOptions {
            depth,
            bytes,
            read,
            indirect,
        } = options;
        let stride = if indirect { 1 } else { DESCRIPTORS };
        let (size, fresh) = (ring.size(), ring.avail_index() == 0);
        if depth == 0 || u32::from(depth) * u32::from(stride) > u32::from(size) || !fresh {
            return Err(FrontendError::Options(format!(
                "{depth} requests of {stride} descriptors at a time on a queue that has {size} entries and \
                 is {}",
                if fresh { "fresh" } else { "in use already" }
            )));
        }
        let mut allocate = |what, len: u64| {
            let block = memory.allocate(len);
            block.ok_or(FrontendError::MemoryFull { what, len })
        };
        let len = u64::from(depth) * PLACE_BYTES as u64;
        let place = allocate("headers, status bytes and tables", len)?.address();
        let mut buffers = Vec::with_capacity(usize::from(depth));
        for _ in 0..depth {
            buffers.push(allocate("buffers", u64::from(bytes))?.address());
        }
        for &address in &buffers {
            // Every page is there before the first request, and what is written is not all zeroes.
            memory.fill(address, u64::from(bytes), 0x5a)?;
        }
        let (places, first) = memory.find(place, len)?;
        let (shared, avail, used) = ring.places();
        let mut lane = Self {
            ring: Arc::clone(shared),
            avail,
            used,
            size,
            event_idx: ring.event_idx(),
            places: Arc::clone(places),
            first,
            kind: u32::from(!read),
            stride,
            outstanding: vec![false; usize::from(depth)],
            avail_index: 0,
            kicked_index: 0,
            used_index: 0,
            kick,
            call,
        };
        for (slot, &buffer) in (0..depth).zip(&buffers) {
            let place = place + u64::from(slot) * PLACE_BYTES as u64;
            lane.describe(ring, slot, place, (buffer, bytes));
        }
        lane.disable_calls();
        Ok(lane)
    }

    /// Writes the descriptors of a slot, whose place and buffer are at these guest addresses.
    fn describe(&self, ring: &Ring, slot: u16, place: u64, (buffer, bytes): (u64, u32)) {
        let indirect = self.stride == 1;
        let first = if indirect { 0 } else { slot * self.stride };
        let data = if self.kind == 0 { DESC_F_WRITE } else { 0 };
        let chain = [
            descriptor(place, 16, DESC_F_NEXT, first + 1),
            descriptor(buffer, bytes, data | DESC_F_NEXT, first + 2),
            descriptor(place + STATUS_OFFSET as u64, 1, DESC_F_WRITE, 0),
        ];
        if indirect {
            let table = self.first + usize::from(slot) * PLACE_BYTES + TABLE_OFFSET;
            for (position, entry) in chain.iter().enumerate() {
                let at = table + position * DESC_BYTES;
                self.places.write(at, &entry.to_bytes());
            }
            let (address, len) = (place + TABLE_OFFSET as u64, u32::from(DESCRIPTORS) * 16);
            ring.write_descriptor(slot, descriptor(address, len, DESC_F_INDIRECT, 0));
        } else {
            for (position, entry) in (0..).zip(chain) {
                ring.write_descriptor(first + position, entry);
            }
        }
    }

    /// Puts the request of a slot into the ring; [`Lane::publish`] makes it available.
    ///
    /// # Panics
    /// If there is no such slot, or its request is outstanding.
    pub fn put(&mut self, slot: u16, sector: u64) {
        let busy = std::mem::replace(&mut self.outstanding[usize::from(slot)], true);
        assert!(!busy, "the request of slot {slot} is outstanding");
        let place = self.first + usize::from(slot) * PLACE_BYTES;
        let header = u64::from(self.kind).to_le();
        self.places.u64_at(place).store(header, Ordering::Relaxed);
        let sector = sector.to_le();
        self.places
            .u64_at(place + 8)
            .store(sector, Ordering::Relaxed);
        self.status(slot).store(STATUS_POISON, Ordering::Relaxed);
        let entry = self.avail + 4 + 2 * usize::from(self.avail_index & (self.size - 1));
        let head = slot * self.stride;
        self.ring
            .u16_at(entry)
            .store(head.to_le(), Ordering::Relaxed);
        self.avail_index = self.avail_index.wrapping_add(1);
    }

    /// Makes available what was put.
    pub fn publish(&mut self) {
        let index = self.avail_index.to_le();
        self.ring
            .u16_at(self.avail + 2)
            .store(index, Ordering::Release);
    }

    /// Tells the device about what was published, if it wants to know. Returns whether it did.
    ///
    /// # Errors
    /// [`FrontendError::Io`].
    pub fn kick(&mut self) -> Result<bool, FrontendError> {
        // The available index must be visible before the device's wish is read, or both sides wait.
        fence(Ordering::SeqCst);
        let (new, old) = (self.avail_index, self.kicked_index);
        self.kicked_index = new;
        let wanted = if self.event_idx {
            let event = self.used + 4 + 8 * usize::from(self.size);
            let event = u16::from_le(self.ring.u16_at(event).load(Ordering::Acquire));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags = u16::from_le(self.ring.u16_at(self.used).load(Ordering::Acquire));
            new != old && flags & USED_F_NO_NOTIFY == 0
        };
        if wanted {
            crate::event::signal(&self.kick)?;
        }
        Ok(wanted)
    }

    /// Whether something has been completed.
    #[must_use]
    pub fn has_completions(&self) -> bool {
        self.device_used_index() != self.used_index
    }

    /// Takes all completions there are: slot and status of each. A status that the device has not
    /// written is none of the valid ones.
    ///
    /// # Errors
    /// [`FrontendError::Malformed`] if the device completes what is not outstanding.
    pub fn reap(&mut self, mut each: impl FnMut(u16, u8)) -> Result<(), FrontendError> {
        let index = self.device_used_index();
        while self.used_index != index {
            let element = self.used + 4 + 8 * usize::from(self.used_index & (self.size - 1));
            let head = u32::from_le(self.ring.u32_at(element).load(Ordering::Relaxed));
            self.used_index = self.used_index.wrapping_add(1);
            let slot = self.slot_of(head).ok_or_else(|| FrontendError::Malformed {
                during: "a completion",
                detail: format!("descriptor {head} is not the head of an outstanding request"),
            })?;
            self.outstanding[usize::from(slot)] = false;
            let [status, ..] = self.status(slot).load(Ordering::Relaxed).to_ne_bytes();
            each(slot, status);
        }
        Ok(())
    }

    /// Asks to be called at the next completion but `skip`. Look at the ring once more before
    /// sleeping. Without EVENT_IDX the device calls at each.
    pub fn enable_calls(&mut self, skip: u16) {
        if self.event_idx {
            self.write_used_event(self.used_index.wrapping_add(skip));
        } else {
            self.write_avail_flags(0);
        }
        fence(Ordering::SeqCst);
    }

    /// Asks not to be called. To be repeated at least every 65535 completions.
    pub fn disable_calls(&mut self) {
        if self.event_idx {
            // An index that has just been passed comes round again only after 65536 elements.
            self.write_used_event(self.used_index.wrapping_sub(1));
        } else {
            self.write_avail_flags(AVAIL_F_NO_INTERRUPT);
        }
    }

    /// The call descriptor, to be polled.
    #[must_use]
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// Whether there was a call. It no longer is.
    ///
    /// # Errors
    /// [`FrontendError::Io`].
    pub fn take_call(&self) -> Result<bool, FrontendError> {
        take_event(&self.call)
    }

    fn slot_of(&self, head: u32) -> Option<u16> {
        let head = u16::try_from(head).ok()?;
        let slot = head / self.stride;
        let known = slot * self.stride == head;
        (known && *self.outstanding.get(usize::from(slot))?).then_some(slot)
    }

    fn status(&self, slot: u16) -> &std::sync::atomic::AtomicU32 {
        let place = self.first + usize::from(slot) * PLACE_BYTES;
        self.places.u32_at(place + STATUS_OFFSET)
    }

    fn device_used_index(&self) -> u16 {
        u16::from_le(self.ring.u16_at(self.used + 2).load(Ordering::Acquire))
    }

    fn write_used_event(&self, index: u16) {
        let offset = self.avail + 4 + 2 * usize::from(self.size);
        self.ring
            .u16_at(offset)
            .store(index.to_le(), Ordering::Release);
    }

    fn write_avail_flags(&self, flags: u16) {
        self.ring
            .u16_at(self.avail)
            .store(flags.to_le(), Ordering::Release);
    }
}

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        len,
        flags,
        next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn lane(depth: u16, indirect: bool) -> Result<(Lane, Ring), FrontendError> {
        let mut memory = GuestMemory::new(1 << 20, 1)?;
        let ring = Ring::new(&mut memory, 8, true)?;
        let event = || eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let options = LaneOptions {
            depth,
            bytes: 512,
            read: true,
            indirect,
        };
        let lane = Lane::new(&mut memory, &ring, [event(), event()], options)?;
        Ok((lane, ring))
    }

    fn reap(lane: &mut Lane) -> Vec<(u16, u8)> {
        let mut found = Vec::new();
        lane.reap(|slot, status| found.push((slot, status)))
            .unwrap();
        found
    }

    #[test]
    fn slots_are_used_again_and_again_in_any_order() {
        for (indirect, stride) in [(true, 1), (false, 3)] {
            let (mut lane, ring) = lane(2, indirect).unwrap();
            for round in 0..40_000_u64 {
                lane.put(0, round);
                lane.put(1, round);
                assert!(!lane.has_completions());
                lane.publish();
                for slot in [1_u16, 0] {
                    lane.status(slot).store(0, Ordering::Relaxed);
                    ring.complete_as_device(u32::from(slot) * stride, 513);
                }
                assert_eq!(reap(&mut lane), [(1, 0), (0, 0)]);
            }
        }
    }

    #[test]
    fn a_status_that_was_not_written_is_none() {
        let (mut lane, ring) = lane(1, true).unwrap();
        lane.put(0, 0);
        ring.complete_as_device(0, 0);
        assert_eq!(reap(&mut lane), [(0, 0xff)]);
    }

    #[test]
    fn completions_of_what_is_not_outstanding_are_refused() {
        for head in [1, 2, 3, 70_000] {
            let (mut lane, ring) = lane(2, false).unwrap();
            lane.put(0, 0);
            ring.complete_as_device(head, 0);
            lane.reap(|_, _| {}).unwrap_err();
        }
    }

    #[test]
    fn kicks_follow_avail_event() {
        let (mut lane, ring) = lane(3, true).unwrap();
        lane.put(0, 0);
        lane.publish();
        assert!(lane.kick().unwrap());
        assert!(take_event(&lane.kick).unwrap());
        ring.set_avail_event_as_device(2);
        lane.put(1, 0);
        lane.publish();
        assert!(!lane.kick().unwrap());
        lane.put(2, 0);
        lane.publish();
        assert!(lane.kick().unwrap());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(lane(8, true).is_ok() && lane(9, true).is_err());
        assert!(lane(2, false).is_ok() && lane(3, false).is_err());
        assert!(lane(0, true).is_err());
    }
}
