//! The device side of a split virtqueue: what is available, what is used, who wants to be told.
//!
//! Addresses are resolved once, when the ring starts or the memory table changes. The used index is
//! published once per batch, which is also what the inflight protocol asks for; that, and chains
//! that have to be found again by their head, is why this is not a crate's queue.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use crate::chain::Table;
use crate::memory::Memory;
use crate::shared::Cells;
use crate::view::View;

/// Largest queue the specification allows.
pub const SIZE_MAX: u16 = 32768;

/// Places of 16 bits in both rings.
const FLAGS: usize = 0;
const INDEX: usize = 1;
/// Place of the first element of the available ring; the used event index is behind the last.
const AVAIL_RING: usize = 2;
/// Offset of the first element of the used ring in bytes; behind the last is the available event
/// index.
const USED_RING: usize = 4;
const USED_ELEMENT: usize = 8;
const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// Where the parts of a ring are, in guest addresses, and how large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub table: u64,
    pub avail: u64,
    pub used: u64,
    /// Number of descriptors: a power of two.
    pub size: u16,
    pub event_idx: bool,
    pub indirect: bool,
}

/// Why a ring cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RingError {
    #[error(
        "the {part} of {bytes} bytes at guest address {address:#x} is not in one region of guest \
         memory, or misaligned"
    )]
    NotMapped {
        part: &'static str,
        address: u64,
        bytes: usize,
    },
    #[error("{size} is no queue size: it must be a power of two up to {SIZE_MAX}")]
    Size { size: u16 },
    #[error(
        "the available index {found} is more than the queue size {size} ahead of {next}, the next \
         one to take"
    )]
    AvailIndex { found: u16, next: u16, size: u16 },
}

#[derive(Debug)]
pub(crate) struct Ring {
    layout: Layout,
    view: Rc<View>,
    parts: Parts,
    next_avail: u16,
    /// The available index as it was last read.
    seen_avail: u16,
    /// The used index as it was last published.
    used_index: u16,
    /// Used elements written and not yet published.
    batch: u16,
}

impl Ring {
    pub fn new(memory: Arc<Memory>, layout: Layout) -> Result<Self, RingError> {
        if !layout.size.is_power_of_two() || layout.size > SIZE_MAX {
            return Err(RingError::Size { size: layout.size });
        }
        let parts = Parts::resolve(&memory, layout)?;
        let used_index = load(&parts.used[INDEX], Ordering::Acquire);
        Ok(Self {
            layout,
            view: Rc::new(View::new(memory)),
            parts,
            next_avail: used_index,
            seen_avail: used_index,
            used_index,
            batch: 0,
        })
    }

    /// The same ring as another memory table maps it. On an error nothing has changed.
    pub fn relocate(&mut self, memory: Arc<Memory>) -> Result<(), RingError> {
        self.parts = Parts::resolve(&memory, self.layout)?;
        self.view = Rc::new(View::new(memory));
        Ok(())
    }

    /// The memory that the ring and its requests are in.
    #[inline]
    pub fn view(&self) -> &Rc<View> {
        &self.view
    }

    #[inline]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    #[inline]
    pub fn table(&self) -> Table {
        Table {
            address: self.layout.table,
            size: self.layout.size,
            indirect: self.layout.indirect,
        }
    }

    /// Index of the next available entry to take.
    #[inline]
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    pub fn set_next_avail(&mut self, index: u16) {
        (self.next_avail, self.seen_avail) = (index, index);
    }

    /// The used index as it was last published.
    #[inline]
    pub fn used_index(&self) -> u16 {
        self.used_index
    }

    /// The next available head, if there is one.
    #[inline]
    pub fn peek(&mut self) -> Result<Option<u16>, RingError> {
        if self.seen_avail == self.next_avail {
            self.look()?;
            if self.seen_avail == self.next_avail {
                return Ok(None);
            }
        }
        let place = usize::from(self.next_avail & (self.layout.size - 1));
        let head = &self.parts.avail[AVAIL_RING + place];
        Ok(Some(load(head, Ordering::Relaxed)))
    }

    /// Takes the head that `peek` has shown.
    #[inline]
    pub fn advance(&mut self) {
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Whether something is available; an available index out of range counts, so that somebody
    /// looks.
    #[inline]
    pub fn has_available(&self) -> bool {
        load(&self.parts.avail[INDEX], Ordering::Acquire) != self.next_avail
    }

    fn look(&mut self) -> Result<(), RingError> {
        let found = load(&self.parts.avail[INDEX], Ordering::Acquire);
        let (next, size) = (self.next_avail, self.layout.size);
        if found.wrapping_sub(next) > size {
            return Err(RingError::AvailIndex { found, next, size });
        }
        self.seen_avail = found;
        Ok(())
    }

    /// Writes a used element; the driver sees it after `publish`.
    #[inline]
    pub fn put_used(&mut self, head: u16, written: u32) {
        let index = self.used_index.wrapping_add(self.batch);
        let [id, len] = &self.parts.used_ring[usize::from(index & (self.layout.size - 1))];
        id.store(u32::from(head).to_le(), Ordering::Relaxed);
        len.store(written.to_le(), Ordering::Relaxed);
        self.batch += 1;
    }

    /// Shows the driver what was put, and says whether it wants to be told.
    pub fn publish(&mut self) -> bool {
        let old = self.used_index;
        let new = old.wrapping_add(self.batch);
        (self.used_index, self.batch) = (new, 0);
        self.parts.used[INDEX].store(new.to_le(), Ordering::Release);
        // The driver writes its wish and then looks at the index; here it is the other way round.
        fence(Ordering::SeqCst);
        if !self.layout.event_idx {
            return load(&self.parts.avail[FLAGS], Ordering::Relaxed) & AVAIL_NO_INTERRUPT == 0;
        }
        let place = AVAIL_RING + usize::from(self.layout.size);
        let event = load(&self.parts.avail[place], Ordering::Relaxed);
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Kicks are a waste from now on.
    pub fn disable_kicks(&self) {
        // With event_idx the old event index stays behind, which suppresses them as well.
        if !self.layout.event_idx {
            self.parts.used[FLAGS].store(USED_NO_NOTIFY.to_le(), Ordering::Relaxed);
        }
    }

    /// From now on the driver kicks. True if something is available already.
    pub fn enable_kicks(&self) -> bool {
        if self.layout.event_idx {
            self.parts.avail_event[0].store(self.next_avail.to_le(), Ordering::Relaxed);
        } else {
            self.parts.used[FLAGS].store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.has_available()
    }
}

fn load(cell: &AtomicU16, order: Ordering) -> u16 {
    u16::from_le(cell.load(order))
}

/// Lengths of descriptor table, available and used ring of a queue of `size`, in bytes.
pub(crate) fn part_bytes(size: u16) -> [usize; 3] {
    let size = usize::from(size);
    [16 * size, 6 + 2 * size, 6 + USED_ELEMENT * size]
}

/// Where the rings are mapped.
#[derive(Debug)]
struct Parts {
    /// All of the available ring.
    avail: Cells<AtomicU16>,
    /// Flags and index of the used ring.
    used: Cells<AtomicU16>,
    /// Id and length each.
    used_ring: Cells<[AtomicU32; 2]>,
    /// When the driver is to kick.
    avail_event: Cells<AtomicU16>,
}

impl Parts {
    fn resolve(memory: &Arc<Memory>, layout: Layout) -> Result<Self, RingError> {
        let size = usize::from(layout.size);
        let part = |part, address, bytes, align| {
            let area = memory
                .area(address, bytes)
                .filter(|area| area.is_aligned(align));
            area.ok_or(RingError::NotMapped {
                part,
                address,
                bytes,
            })
        };
        let [table_bytes, avail_bytes, used_bytes] = part_bytes(layout.size);
        part("descriptor table", layout.table, table_bytes, 16)?;
        let avail = part("available ring", layout.avail, avail_bytes, 2)?;
        let used = part("used ring", layout.used, used_bytes, 4)?;
        Ok(Self {
            avail: avail.cells(0, 3 + size),
            used: used.cells(0, 2),
            used_ring: used.cells(USED_RING, size),
            avail_event: used.cells(USED_RING + USED_ELEMENT * size, 1),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::memory::RegionSpec;
    use crate::shared::{Area, sealed_memfd};
    use std::fs::File;

    pub const LAYOUT: Layout = Layout {
        table: 0x1000,
        avail: 0x2000,
        used: 0x3000,
        size: 4,
        event_idx: true,
        indirect: true,
    };

    pub fn memory() -> Arc<Memory> {
        let spec = RegionSpec {
            guest_address: 0x1000,
            bytes: 0x4000,
            user_address: 0,
            file_offset: 0,
        };
        let file = File::from(sealed_memfd("test", 0x4000).unwrap());
        Arc::new(Memory::new([(spec, file)]).unwrap())
    }

    const AVAIL_INDEX: usize = 2;
    const USED_INDEX: usize = 2;

    fn ring(event_idx: bool) -> (Ring, Area, Area) {
        let memory = memory();
        let avail = memory.area(LAYOUT.avail, 14).unwrap();
        let used = memory.area(LAYOUT.used, 38).unwrap();
        let layout = Layout {
            event_idx,
            ..LAYOUT
        };
        (Ring::new(memory, layout).unwrap(), avail, used)
    }

    #[test]
    fn takes_what_is_available_across_the_wrap() {
        let (mut ring, avail, _) = ring(true);
        ring.set_next_avail(u16::MAX);
        avail.store_u16(4 + 6, 3, Ordering::Relaxed);
        avail.store_u16(4, 1, Ordering::Relaxed);
        avail.store_u16(AVAIL_INDEX, 1, Ordering::Release);
        for expected in [3, 1] {
            assert_eq!(ring.peek(), Ok(Some(expected)));
            ring.advance();
        }
        assert_eq!(ring.peek(), Ok(None));
        avail.store_u16(AVAIL_INDEX, 6, Ordering::Release);
        let error = RingError::AvailIndex {
            found: 6,
            next: 1,
            size: 4,
        };
        assert_eq!(ring.peek(), Err(error));
        assert!(ring.has_available());
    }

    #[test]
    fn one_index_update_and_one_call_per_batch() {
        let (mut ring, avail, used) = ring(true);
        let event = 4 + 8;
        ring.put_used(2, 513);
        ring.put_used(0, 1);
        assert_eq!(used.load_u16(USED_INDEX, Ordering::Acquire), 0);
        assert!(ring.publish());
        assert_eq!(used.load_u16(USED_INDEX, Ordering::Acquire), 2);
        assert_eq!(used.load_u32(USED_RING, Ordering::Relaxed), 2);
        assert_eq!(used.load_u32(USED_RING + 4, Ordering::Relaxed), 513);
        assert_eq!(used.load_u32(USED_RING + 8, Ordering::Relaxed), 0);
        ring.put_used(1, 1);
        assert!(!ring.publish(), "the driver waits for index 0 only");
        avail.store_u16(event, 4, Ordering::Relaxed);
        ring.put_used(1, 1);
        assert!(!ring.publish());
        ring.put_used(1, 1);
        assert!(ring.publish());
    }

    #[test]
    fn flags_without_event_index() {
        let (mut ring, avail, used) = ring(false);
        ring.put_used(0, 1);
        assert!(ring.publish());
        avail.store_u16(0, AVAIL_NO_INTERRUPT, Ordering::Relaxed);
        ring.put_used(0, 1);
        assert!(!ring.publish());
        ring.disable_kicks();
        assert_eq!(used.load_u16(0, Ordering::Relaxed), USED_NO_NOTIFY);
        assert!(!ring.enable_kicks());
        assert_eq!(used.load_u16(0, Ordering::Relaxed), 0);
        avail.store_u16(AVAIL_INDEX, 1, Ordering::Release);
        assert!(ring.enable_kicks());
    }

    #[test]
    fn rings_outside_memory_or_of_no_size_are_refused() {
        for (layout, part) in [
            (Layout { table: 0, ..LAYOUT }, "descriptor table"),
            (
                Layout {
                    avail: 0x4ffa,
                    ..LAYOUT
                },
                "available ring",
            ),
            (
                Layout {
                    avail: 0x2001,
                    ..LAYOUT
                },
                "available ring",
            ),
            (
                Layout {
                    used: 0x3002,
                    ..LAYOUT
                },
                "used ring",
            ),
            (
                Layout {
                    used: u64::MAX,
                    ..LAYOUT
                },
                "used ring",
            ),
        ] {
            match Ring::new(memory(), layout).unwrap_err() {
                RingError::NotMapped { part: found, .. } => assert_eq!(found, part),
                other => panic!("{other}"),
            }
        }
        for size in [0, 3, 65535] {
            let layout = Layout { size, ..LAYOUT };
            assert_eq!(
                Ring::new(memory(), layout).unwrap_err(),
                RingError::Size { size }
            );
        }
    }
}
