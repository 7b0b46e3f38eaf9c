//! The inflight region: shared memory in which the back end marks what it has taken from the rings.
//!
//! The front end only keeps it and hands it back, as QEMU does. Reading it is for tests.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::FrontendError;
use crate::memory::Mapping;
use crate::protocol::message;

/// Bytes of the payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD.
pub(crate) const PAYLOAD_BYTES: usize = 24;
/// Bytes before the descriptor states of a queue.
const QUEUE_HEADER_BYTES: usize = 16;
/// Bytes of one descriptor state.
const STATE_BYTES: usize = 16;
/// What parts of queues begin at multiples of, in our own back end.
const PART_ALIGN: usize = 64;

/// A head the back end has marked as in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marked {
    /// Descriptor index.
    pub head: u16,
    /// The back end's counter: the order in which the heads were taken.
    pub counter: u64,
}

/// The region, as long as the device has not been reset.
#[derive(Debug, Clone)]
pub struct InflightRegion {
    mapping: Arc<Mapping>,
    mmap_size: u64,
    mmap_offset: u64,
    /// What was asked for, and is said of the region for ever, as QEMU does.
    queues: u16,
    queue_size: u16,
    /// The queue size that the back end has answered: its parts may be larger than what was asked.
    part_size: u16,
}

impl InflightRegion {
    /// The question for a region: no size yet, the number and size of the queues.
    pub(crate) fn question(queues: u16, queue_size: u16) -> [u8; PAYLOAD_BYTES] {
        payload(0, 0, queues, queue_size)
    }

    /// Takes the region from the answer to GET_INFLIGHT_FD.
    pub(crate) fn from_answer(
        answer: &[u8],
        fd: Option<OwnedFd>,
        queues: u16,
        queue_size: u16,
    ) -> Result<Self, FrontendError> {
        let malformed = |detail: String| FrontendError::Malformed {
            during: message::name(message::GET_INFLIGHT_FD),
            detail,
        };
        if answer.len() < 16 {
            return Err(malformed(format!("payload of {} bytes", answer.len())));
        }
        let word = |offset: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&answer[offset..offset + 8]);
            u64::from_ne_bytes(bytes)
        };
        let (mmap_size, mmap_offset) = (word(0), word(8));
        let fd = fd.ok_or_else(|| malformed("no descriptor came with it".into()))?;
        let needed = u64::from(queues)
            * u64::try_from(queue_bytes(queue_size)).map_err(|e| malformed(e.to_string()))?;
        let len = match usize::try_from(mmap_size) {
            Ok(len) if mmap_size >= needed => len,
            _ => return Err(malformed(format!("{mmap_size} bytes, needed are {needed}"))),
        };
        let mapping = Arc::new(Mapping::of_fd(fd, mmap_offset, len)?);
        let part_size = match answer.get(18..20) {
            Some(&[low, high]) => u16::from_ne_bytes([low, high]).max(queue_size),
            _ => queue_size,
        };
        Ok(Self {
            mapping,
            mmap_size,
            mmap_offset,
            queues,
            queue_size,
            part_size,
        })
    }

    /// What SET_INFLIGHT_FD says about the region.
    pub(crate) fn payload(&self) -> [u8; PAYLOAD_BYTES] {
        payload(
            self.mmap_size,
            self.mmap_offset,
            self.queues,
            self.queue_size,
        )
    }

    /// Its descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.mapping.fd()
    }

    /// The shared memory itself, for tests that damage it.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Offset of a queue's part, in a region of our own back end.
    ///
    /// # Panics
    /// If there is no such queue.
    #[must_use]
    pub fn queue_offset(&self, queue: u16) -> usize {
        assert!(queue < self.queues, "queue {queue} of {}", self.queues);
        queue_bytes(self.part_size).next_multiple_of(PART_ALIGN) * usize::from(queue)
    }

    /// The heads marked as in flight, oldest first.
    ///
    /// # Panics
    /// If there is no such queue.
    #[must_use]
    pub fn marked(&self, queue: u16) -> Vec<Marked> {
        let first = self.queue_offset(queue) + QUEUE_HEADER_BYTES;
        let mut marked: Vec<_> = (0..self.part_size)
            .filter_map(|head| {
                let state = first + usize::from(head) * STATE_BYTES;
                let inflight = self
                    .mapping
                    .u64_at(state)
                    .load(Ordering::Acquire)
                    .to_ne_bytes()[0];
                let counter = self.mapping.u64_at(state + 8).load(Ordering::Acquire);
                (inflight != 0).then_some(Marked { head, counter })
            })
            .collect();
        marked.sort_by_key(|marked| marked.counter);
        marked
    }

    /// The used index the back end has noted for a queue.
    ///
    /// # Panics
    /// If there is no such queue.
    #[must_use]
    pub fn used_index(&self, queue: u16) -> u16 {
        self.mapping
            .u16_at(self.queue_offset(queue) + 14)
            .load(Ordering::Acquire)
    }
}

/// Bytes of one queue's part without padding.
fn queue_bytes(queue_size: u16) -> usize {
    QUEUE_HEADER_BYTES + STATE_BYTES * usize::from(queue_size)
}

fn payload(size: u64, offset: u64, queues: u16, queue_size: u16) -> [u8; PAYLOAD_BYTES] {
    let mut bytes = [0; PAYLOAD_BYTES];
    bytes[..8].copy_from_slice(&size.to_ne_bytes());
    bytes[8..16].copy_from_slice(&offset.to_ne_bytes());
    bytes[16..18].copy_from_slice(&queues.to_ne_bytes());
    bytes[18..20].copy_from_slice(&queue_size.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(bytes: usize) -> Result<InflightRegion, FrontendError> {
        let fd = Mapping::new(bytes)
            .unwrap()
            .fd()
            .try_clone_to_owned()
            .unwrap();
        let mut answer = [0; PAYLOAD_BYTES];
        answer[..8].copy_from_slice(&(bytes as u64).to_ne_bytes());
        InflightRegion::from_answer(&answer, Some(fd), 2, 4)
    }

    #[test]
    fn marked_heads_come_in_the_order_of_their_counters() {
        let region = region(256).unwrap();
        let states = region.queue_offset(1) + 16;
        for (head, counter) in [(3_usize, 10_u64), (0, 12), (1, 11)] {
            region.mapping.write(states + head * 16, &[1]);
            region
                .mapping
                .u64_at(states + head * 16 + 8)
                .store(counter, Ordering::Release);
        }
        let heads: Vec<_> = region.marked(1).iter().map(|marked| marked.head).collect();
        assert_eq!(heads, [3, 1, 0]);
        assert!(region.marked(0).is_empty());
    }

    #[test]
    fn a_region_too_small_for_its_queues_is_refused() {
        assert!(matches!(region(159), Err(FrontendError::Malformed { .. })));
        assert!(region(160).is_ok());
        assert!(InflightRegion::from_answer(&[0; PAYLOAD_BYTES], None, 1, 4).is_err());
        assert!(InflightRegion::from_answer(&[0; 3], None, 1, 4).is_err());
    }
}
