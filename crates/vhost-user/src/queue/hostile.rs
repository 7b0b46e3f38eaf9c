//! A queue whose driver writes what it likes to memory, rings and inflight region, without any I/O:
//! the body of the fuzz target `vring`.
//!
//! The input is [`PREFIX_BYTES`]: bit 0: event index, bit 1: indirect descriptors, bit 2: inflight
//! region, bit 3: what the format of the requests makes of it; the queue size as a power of two; the base, little endian; the number
//! of steps. Then the steps, [`STEP_BYTES`] each, then the content of guest memory from address 0;
//! behind what has a content is as much again that may be taken away ([`FAR`]).

use std::fs::File;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::state::{Broken, QueueState, SlotState};
use crate::class::Format;
use crate::inflight::{self, Region};
use crate::memory::{Memory, RegionSpec};
use crate::ring::{Layout, Ring};
use crate::shared::{Area, Mapping, sealed_memfd};

const PREFIX_BYTES: usize = 5;
const STEP_BYTES: usize = 4;
/// Largest queue, as an exponent.
const SIZE_EXPONENT_MAX: u8 = 4;
const TABLE: u64 = 0;
const AVAIL: u64 = 0x100;
/// Where the guest's index is in memory.
const AVAIL_INDEX: usize = 0x102;
const USED: u64 = 0x140;
const MEMORY_BYTES: usize = 0x1000;
/// Memory behind that, as much again, which may be taken away.
const FAR: RegionSpec = RegionSpec {
    guest_address: MEMORY_BYTES as u64,
    bytes: MEMORY_BYTES as u64,
    user_address: MEMORY_BYTES as u64,
    file_offset: 0,
};

/// The queue, and what its guest can reach.
struct Bench<F: Format> {
    state: QueueState<F>,
    memory: Arc<Memory>,
    /// What is behind [`FAR`].
    far: File,
    guest: Area,
    region: Option<Kept>,
    layout: Layout,
    format: F,
    outcome: fn(u8) -> F::Outcome,
    /// Heads taken and not completed, in the order they were taken.
    taken: Vec<u16>,
}

/// The inflight region, as the client keeps it.
struct Kept {
    spec: inflight::RegionSpec,
    file: File,
    area: Area,
}

/// Runs one input, with requests of a form that its flags decide, which end as a byte says. Panics if the
/// queue does what it must never do.
pub fn run<F: Format>(input: &[u8], format: fn(u8) -> F, outcome: fn(u8) -> F::Outcome) {
    let Some((&[flags, exponent, base0, base1, steps], rest)) =
        input.split_first_chunk::<PREFIX_BYTES>()
    else {
        return;
    };
    let (steps, content) = rest.split_at(rest.len().min(usize::from(steps) * STEP_BYTES));
    let mut bench = Bench::new(flags, exponent, content, (format(flags), outcome));
    bench.start(u16::from_le_bytes([base0, base1]));
    for &step in steps.as_chunks::<STEP_BYTES>().0 {
        bench.step(step);
        bench.check();
    }
}

impl<F: Format> Bench<F> {
    fn new(
        flags: u8,
        exponent: u8,
        content: &[u8],
        (format, outcome): (F, fn(u8) -> F::Outcome),
    ) -> Self {
        let bytes = MEMORY_BYTES as u64;
        let file = sealed_memfd("vring", bytes).expect("a memfd");
        let spec = RegionSpec {
            guest_address: 0,
            bytes,
            user_address: 0,
            file_offset: 0,
        };
        let far = File::from(sealed_memfd("vring", FAR.bytes).expect("a memfd"));
        let near = Memory::new([(spec, File::from(file))]).expect("memory");
        let memory = Arc::new(near.with(FAR, &far).expect("memory"));
        let guest = memory.area(0, MEMORY_BYTES).expect("all of it");
        for (at, &byte) in content.iter().take(MEMORY_BYTES).enumerate() {
            guest.store_u8(at, byte, Ordering::Relaxed);
        }
        let size = 1 << (exponent % (SIZE_EXPONENT_MAX + 1));
        let region = (flags & 4 != 0).then(|| {
            let (spec, file) = Region::create("vring", 1, size, 0, b"").expect("a region");
            let mapping = Mapping::of_file(file.as_fd(), 0, spec.bytes).expect("a mapping");
            let area = mapping.area(0, mapping.len()).expect("all of it");
            Kept { spec, file, area }
        });
        Self {
            state: QueueState::default(),
            memory,
            far,
            guest,
            region,
            layout: Layout {
                table: TABLE,
                avail: AVAIL,
                used: USED,
                size,
                event_idx: flags & 1 != 0,
                indirect: flags & 2 != 0,
            },
            format,
            outcome,
            taken: Vec::new(),
        }
    }

    /// As `Queue::start`.
    fn start(&mut self, base: u16) {
        let ring = Ring::new(Arc::clone(&self.memory), self.layout).expect("it is mapped");
        // Handed in again, with whatever is in it by now, the trailer included.
        let handed = |kept: &Kept| Region::open(&kept.spec, &kept.file).map(Arc::new);
        let Ok(region) = self.region.as_ref().map(handed).transpose() else {
            return;
        };
        if let Some(region) = &region {
            region.set_note(region.note());
        }
        self.state.enabled = true;
        let Ok((live, marked)) = self.state.prepare(0, ring, region, 0, base) else {
            return;
        };
        // Whatever is a stranger here, or reads into other memory, has ended before the ring starts.
        let moved = self.state.moved(&live, &marked);
        self.state.has_strangers(&marked);
        self.state.live = Some(live);
        let state = &mut self.state;
        self.taken.retain(|&head| {
            let kept = state.is_kept(head, &marked);
            if !kept {
                state.slots[usize::from(head)].state = SlotState::Free;
            }
            kept
        });
        state.drop_unmarked(&marked);
        state.undo(&moved);
        let marked = marked.unwrap_or_default();
        assert!(marked.len() <= usize::from(self.layout.size));
        for marked in marked {
            match state.resume(marked, self.format) {
                Ok(Some(_)) => self.taken.push(marked.head),
                Ok(None) => {}
                Err(_) => {
                    self.break_it();
                    break;
                }
            }
        }
        self.map();
        if let Some(live) = &mut self.state.live {
            live.popping = true;
        }
    }

    fn break_it(&mut self) {
        if let Some(live) = &mut self.state.live {
            live.broken = true;
        }
    }

    fn step(&mut self, [what, a, b, c]: [u8; STEP_BYTES]) {
        let at = usize::from(u16::from_le_bytes([a, b]));
        match what % 12 {
            0 => (0..=a).for_each(|_| self.pop()),
            1 => self.complete(usize::from(a), c),
            2 => self.publish(),
            3 => self.guest.store_u8(at % MEMORY_BYTES, c, Ordering::Relaxed),
            4 => {
                self.publish();
                self.state.leave();
                self.start(u16::from_le_bytes([b, c]));
            }
            5 => {
                if let Some(Kept { spec, area, .. }) = &self.region {
                    let len = usize::try_from(spec.bytes).expect("it is mapped");
                    area.store_u8(at % len, c, Ordering::Relaxed);
                }
            }
            6 => {
                // What a driver does that behaves.
                let index = self.guest.load_u16(AVAIL_INDEX, Ordering::Relaxed);
                let next = index.wrapping_add(a.into());
                self.guest.store_u16(AVAIL_INDEX, next, Ordering::Relaxed);
            }
            7 => {
                if let Some(live) = &self.state.live {
                    live.ring.disable_kicks();
                    live.ring.enable_kicks();
                }
            }
            // As `Queue::suspend`: what is taken may end before the next start.
            8 => {
                self.publish();
                self.state.leave();
            }
            9 => {
                if self.state.live.is_none() {
                    self.start(u16::from_le_bytes([b, c]));
                }
            }
            10 => {
                if let Ok(memory) = self.memory.without(&FAR) {
                    self.set_memory(memory);
                }
            }
            _ => {
                let memory = match a & 1 {
                    0 => self.memory.settled(),
                    _ => self.memory.with(FAR, &self.far),
                };
                // It may be there.
                if let Ok(memory) = memory {
                    self.set_memory(memory);
                }
            }
        }
    }

    fn set_memory(&mut self, memory: Memory) {
        self.memory = Arc::new(memory);
        if let Some(live) = &mut self.state.live {
            let moved = live.ring.relocate(Arc::clone(&self.memory));
            assert!(moved.is_ok(), "the ring is in the other region: {moved:?}");
        }
    }

    /// What is taken is in flight, in the memory of the moment.
    fn map(&mut self) {
        let Some(live) = &self.state.live else { return };
        let view = Rc::clone(live.ring.view());
        for &head in &self.taken {
            let slot = &mut self.state.slots[usize::from(head)];
            slot.memory.get_or_insert_with(|| Rc::clone(&view));
        }
    }

    fn pop(&mut self) {
        match self.state.pop(self.format) {
            Ok(Some((head, _))) => {
                assert!(head < self.layout.size, "{head}");
                assert!(!self.taken.contains(&head), "{head} was taken twice");
                self.taken.push(head);
                self.map();
            }
            Ok(None) => {}
            Err(broken) if matches!(*broken, Broken::MemoryMoves { .. }) => {
                assert!(self.memory.is_moving());
            }
            Err(_) => self.break_it(),
        }
    }

    /// As `Queue::complete`.
    fn complete(&mut self, which: usize, status: u8) {
        if self.taken.is_empty() {
            return;
        }
        let head = self.taken.remove(which % self.taken.len());
        let slot = &mut self.state.slots[usize::from(head)];
        slot.state = SlotState::Done {
            outcome: (self.outcome)(status),
        };
        if self.state.live.is_some() {
            slot.memory = None;
        }
        self.state.done.push(head);
    }

    fn publish(&mut self) {
        let index = |state: &QueueState<F>| state.live.as_ref().map(|live| live.ring.used_index());
        let (before, done) = (index(&self.state), self.state.done.len());
        let published = self.state.publish();
        let left = self.state.done.len();
        if published.is_err() {
            assert_eq!((self.memory.regions(), self.memory.is_moving()), (1, false));
            self.break_it();
        } else if let (Some(before), Some(after)) = (before, index(&self.state)) {
            assert_eq!(usize::from(after.wrapping_sub(before)), done - left);
        }
        // What has no status byte at the moment waits for it.
        assert!(left == 0 || self.state.live.is_none() || self.memory.is_moving());
    }

    fn check(&self) {
        assert!(self.taken.len() + self.state.done.len() <= usize::from(self.layout.size));
        for &head in &self.taken {
            assert_eq!(
                self.state.slots[usize::from(head)].state,
                SlotState::Taken,
                "{head}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::plain::Plain;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_the_guest_writes(input in proptest::collection::vec(any::<u8>(), 0..1500)) {
            run(&input, |_| Plain, |status| status);
        }
    }
}
