//! A queue for load: every request has its place, its buffers and its descriptors once and for all.
//!
//! [`Disk::submit`] and [`Disk::poll`] watch the device closely, which costs more than a fast device
//! needs for a request. A [`Lane`] takes a fresh queue over and does nothing per request but what a
//! guest cannot do without either: it writes the header and the available entry, and reads the used
//! element and the status. It allocates nothing once it is made.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::disk::{Disk, take_event};
use crate::error::FrontendError;
use crate::memory::Mapping;
use crate::protocol::feature;
use crate::ring::{
    AVAIL_F_NO_INTERRUPT, DESC_BYTES, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor,
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
        let LaneOptions {
            depth, bytes, read, ..
        } = options;
        let indirect = options.indirect && self.features() & feature::INDIRECT_DESC != 0;
        let stride = if indirect { 1 } else { DESCRIPTORS };
        let ring = &self.queue_mut(queue)?.ring;
        let (size, fresh) = (ring.size(), ring.avail_index() == 0);
        if depth == 0 || u32::from(depth) * u32::from(stride) > u32::from(size) || !fresh {
            return Err(FrontendError::Options(format!(
                "{depth} requests of {stride} descriptors at a time on queue {queue}, which has {size} \
                 entries and is {}",
                if fresh { "fresh" } else { "in use already" }
            )));
        }
        let mut allocate = |what, len: u64| {
            let block = self.memory_mut().allocate(len);
            block.ok_or(FrontendError::MemoryFull { what, len })
        };
        let len = u64::from(depth) * PLACE_BYTES as u64;
        let places = allocate("headers, status bytes and tables", len)?.address();
        let mut buffers = Vec::with_capacity(usize::from(depth));
        for _ in 0..depth {
            buffers.push(allocate("buffers", u64::from(bytes))?.address());
        }
        for &address in &buffers {
            // Every page is there before the first request, and what is written is not all zeroes.
            self.memory().fill(address, u64::from(bytes), 0x5a)?;
        }
        let (mapping, first) = self.memory().find(places, len)?;
        let mapping = Arc::clone(mapping);

        let ring = &self.queue_mut(queue)?.ring;
        for (slot, &buffer) in (0..depth).zip(&buffers) {
            let place = places + u64::from(slot) * PLACE_BYTES as u64;
            let data = if read { DESC_F_WRITE } else { 0 };
            let next = |position: u16| if indirect { 0 } else { slot * stride } + position;
            let chain = [
                descriptor(place, 16, DESC_F_NEXT, next(1)),
                descriptor(buffer, bytes, data | DESC_F_NEXT, next(2)),
                descriptor(place + STATUS_OFFSET as u64, 1, DESC_F_WRITE, 0),
            ];
            if indirect {
                let at = first + usize::from(slot) * PLACE_BYTES + TABLE_OFFSET;
                for (position, entry) in chain.iter().enumerate() {
                    mapping.write(at + position * DESC_BYTES, &entry.to_bytes());
                }
                let table = place + TABLE_OFFSET as u64;
                let len = u32::from(DESCRIPTORS) * 16;
                ring.write_descriptor(slot, descriptor(table, len, DESC_F_INDIRECT, 0));
            } else {
                for (position, entry) in (0..).zip(chain) {
                    ring.write_descriptor(slot * stride + position, entry);
                }
            }
        }
        let (shared, avail, used) = ring.places();
        let (ring, event_idx) = (Arc::clone(shared), ring.event_idx());
        let queue = self.queue_mut(queue)?;
        let clone = |fd: &OwnedFd| {
            let failed = |source| FrontendError::Io {
                what: "duplicating an event descriptor",
                source,
            };
            fd.try_clone().map_err(failed)
        };
        let mut lane = Lane {
            ring,
            avail,
            used,
            size,
            event_idx,
            places: mapping,
            first,
            kind: u32::from(!read),
            stride,
            outstanding: vec![false; usize::from(depth)],
            avail_index: 0,
            kicked_index: 0,
            used_index: 0,
            kick: clone(&queue.kick)?,
            call: clone(&queue.call)?,
        };
        lane.disable_calls();
        Ok(lane)
    }
}

impl Lane {
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
            crate::disk::signal(&self.kick)?;
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
