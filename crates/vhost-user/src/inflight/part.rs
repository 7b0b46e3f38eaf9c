//! One queue's part of an inflight region: which of its heads have been taken, and in which order.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use crate::shared::{Area, Cells};

const VERSION: u16 = 1;
/// Places of 16 bits in the header.
pub(super) const VERSION_PLACE: usize = 4;
const DESCRIPTORS: usize = 5;
pub(super) const LAST_BATCH: usize = 6;
const USED: usize = 7;
pub(super) const HEADER_BYTES: usize = 16;
pub(super) const STATE_BYTES: usize = 16;
/// Places in a state, in units of their own size: of 8, 16 and 64 bits.
const MARK: usize = 0;
const NEXT: usize = 3;
const COUNTER: usize = 1;
/// Parts of different queues share no cache line.
const ALIGN: usize = 64;

/// Why the part of a queue cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PartError {
    #[error("inflight region: version {version}, supported is {VERSION}")]
    Version { version: u16 },
    #[error("inflight region: made for {found} descriptors, the queue has {size}")]
    Descriptors { found: u16, size: u16 },
    #[error(
        "inflight region: its used index {noted} and that of the ring, {used}, are more than the \
         queue size {size} apart"
    )]
    UsedIndex { noted: u16, used: u16, size: u16 },
    #[error("inflight region: the last batch names descriptor {head}, the queue has {size}")]
    LastBatch { head: u16, size: u16 },
}

/// A head that is marked as in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marked {
    /// Orders heads as they were taken.
    pub counter: u64,
    pub head: u16,
}

/// Bytes of a part with room for `queue_size` descriptors.
pub(super) fn stride(queue_size: u16) -> usize {
    (HEADER_BYTES + STATE_BYTES * usize::from(queue_size)).next_multiple_of(ALIGN)
}

/// Whether anything is marked in the part of a queue.
pub(super) fn has_marks(area: &Area, queue_size: u16) -> bool {
    let states = area.cells::<[AtomicU8; STATE_BYTES]>(HEADER_BYTES, usize::from(queue_size));
    let mut states = states.iter();
    states.any(|marks| marks[MARK].load(Ordering::Acquire) != 0)
}

/// One queue's part of a region.
#[derive(Debug)]
pub(crate) struct QueueRegion {
    header: Cells<AtomicU16>,
    /// The states, seen as numbers of each size; no byte is accessed as more than one of them.
    marks: Cells<[AtomicU8; STATE_BYTES]>,
    nexts: Cells<[AtomicU16; STATE_BYTES / 2]>,
    counters: Cells<[AtomicU64; STATE_BYTES / 8]>,
    size: u16,
    next_counter: u64,
    /// Nobody has used it before, so its used index says nothing.
    fresh: bool,
}

impl QueueRegion {
    pub(super) fn new(area: &Area, size: u16) -> Result<Self, PartError> {
        let states = usize::from(size);
        let mut this = Self {
            header: area.cells(0, HEADER_BYTES / 2),
            marks: area.cells(HEADER_BYTES, states),
            nexts: area.cells(HEADER_BYTES, states),
            counters: area.cells(HEADER_BYTES, states),
            size,
            next_counter: 0,
            fresh: false,
        };
        let (version, found) = (this.load(VERSION_PLACE), this.load(DESCRIPTORS));
        this.fresh = (version, found) == (0, 0);
        match (version, found) {
            _ if this.fresh => {
                this.store(DESCRIPTORS, size);
                this.store(VERSION_PLACE, VERSION);
            }
            (VERSION, _) if found == size => {}
            (VERSION, _) => return Err(PartError::Descriptors { found, size }),
            _ => return Err(PartError::Version { version }),
        }
        Ok(this)
    }

    fn load(&self, place: usize) -> u16 {
        u16::from_le(self.header[place].load(Ordering::Acquire))
    }

    fn store(&self, place: usize, value: u16) {
        self.header[place].store(value.to_le(), Ordering::Release);
    }

    /// Whether no device has ever used it.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// What is in flight, oldest first, at the start of a ring whose used index is `used`. Finishes
    /// what an interrupted batch has left undone.
    pub fn recover(&mut self, used: u16) -> Result<Vec<Marked>, PartError> {
        if std::mem::take(&mut self.fresh) {
            // The ring may be older than the region: after a migration, say.
            self.set_used(used);
        }
        let noted = self.load(USED);
        let batch = used.wrapping_sub(noted);
        let size = self.size;
        if batch > size {
            return Err(PartError::UsedIndex { noted, used, size });
        }
        if batch > 0 {
            // The used index was published, but perhaps not all marks of that batch were removed.
            let mut head = self.load(LAST_BATCH);
            for _ in 0..batch {
                if head >= size {
                    return Err(PartError::LastBatch { head, size });
                }
                self.unmark(head);
                let next = &self.nexts[usize::from(head)][NEXT];
                head = u16::from_le(next.load(Ordering::Acquire));
            }
            self.set_used(used);
        }
        let mut marked: Vec<_> = (0..size)
            .zip(self.marks.iter().zip(&*self.counters))
            .filter(|(_, (marks, _))| marks[MARK].load(Ordering::Acquire) != 0)
            .map(|(head, (_, counters))| Marked {
                counter: u64::from_le(counters[COUNTER].load(Ordering::Acquire)),
                head,
            })
            .collect();
        marked.sort_by_key(|marked| (marked.counter, marked.head));
        self.next_counter = marked.last().map_or(0, |last| last.counter.wrapping_add(1));
        Ok(marked)
    }

    /// A head has been taken; returns its counter.
    #[inline]
    pub fn mark(&mut self, head: u16) -> u64 {
        let counter = self.next_counter;
        self.next_counter = counter.wrapping_add(1);
        let head = usize::from(head);
        self.counters[head][COUNTER].store(counter.to_le(), Ordering::Relaxed);
        self.marks[head][MARK].store(1, Ordering::Release);
        counter
    }

    /// A head is about to be published as used. Comes after its used element and before the index.
    #[inline]
    pub fn add_to_batch(&self, head: u16) {
        let last = self.header[LAST_BATCH].load(Ordering::Relaxed);
        self.nexts[usize::from(head)][NEXT].store(last, Ordering::Release);
        self.store(LAST_BATCH, head);
    }

    /// A head has been published as used.
    #[inline]
    pub fn unmark(&self, head: u16) {
        self.marks[usize::from(head)][MARK].store(0, Ordering::Release);
    }

    /// The batch is done.
    #[inline]
    pub fn set_used(&self, used: u16) {
        self.store(USED, used);
    }
}
