//! Where a ring goes on when it is started, and which of the requests that were taken from it are still
//! known. Touches shared memory, but waits for nothing and calls nobody back.

use std::sync::Arc;

use super::state::{Broken, Identity, Live, QueueState, Slot, SlotState};
use crate::class::Format;
use crate::inflight::{Marked, Region};
use crate::ring::Ring;

impl<F: Format> QueueState<F> {
    /// Looks at a ring that is to be started, and at what was in flight in it before. The second
    /// result is what the region has marked; none without a region that leaves all as it was.
    pub(super) fn prepare(
        &mut self,
        index: u16,
        mut ring: Ring,
        region: Option<Arc<Region>>,
        features: u64,
        base: u16,
    ) -> Result<(Live, Option<Vec<Marked>>), Broken> {
        let (size, used) = (ring.layout().size, ring.used_index());
        let places = usize::from(size).max(self.slots.len());
        self.slots.resize_with(places, Slot::default);
        self.done.reserve(places - self.done.len());
        let (mut next, mut marked, mut part) = (None, None, None);
        // A region without room for this queue is none.
        let of_queue = region
            .as_ref()
            .map_or(Ok(None), |all| all.queue(index, size))?;
        if let Some(mut region) = of_queue {
            let fresh = region.is_fresh();
            let found = region.recover(used)?;
            if !fresh {
                // Everything that was taken is either used or marked. The base knows less: the
                // client may have read it off the ring while requests were still ending.
                let count = u16::try_from(found.len()).unwrap_or(u16::MAX);
                next = Some(used.wrapping_add(count));
            }
            (marked, part) = (Some(found), Some(region));
        }
        let next = match next {
            Some(next) => next,
            None => first_available(base, used, size)?,
        };
        ring.set_next_avail(next);
        let identity = Identity {
            layout: ring.layout(),
            features,
            next_avail: next,
            used,
        };
        if marked.is_none() && self.left.take() == Some(identity) {
            // The very ring that was left: everything that waits belongs to it.
            let kept = (0..size)
                .zip(&self.slots)
                .filter(|(_, slot)| slot.state != SlotState::Free);
            marked = Some(
                kept.map(|(head, slot)| Marked {
                    counter: slot.counter,
                    head,
                })
                .collect(),
            );
        }
        let live = Live {
            ring,
            region: part,
            whole: region,
            features,
            popping: false,
            broken: false,
        };
        Ok((live, marked))
    }

    /// Whether something that has not been completed is not the request that is marked there.
    pub(super) fn has_strangers(&self, marked: &Option<Vec<Marked>>) -> bool {
        (0..)
            .zip(&self.slots)
            .any(|(head, slot)| slot.state == SlotState::Taken && !self.is_kept(head, marked))
    }

    /// The requests whose data went, or go, to other memory than the client has there now: it has not
    /// seen them complete, and would not find what was read.
    pub(super) fn moved(&self, live: &Live, marked: &Option<Vec<Marked>>) -> Vec<u16> {
        let memory = live.ring.view().memory();
        let is_moved = |slot: &Slot<F>| {
            let used = slot.memory.as_ref().map(|view| view.memory());
            let mut buffers = slot.taken.as_ref().writable().iter();
            used.is_some_and(|used| {
                !buffers.all(|buffer| used.is_same_at(memory, buffer.address, buffer.len.into()))
            })
        };
        (0..)
            .zip(&self.slots)
            .filter(|&(head, slot)| self.is_kept(head, marked) && is_moved(slot))
            .map(|(head, _)| head)
            .collect()
    }

    /// Forgets how these requests have ended, so that they are done again.
    pub(super) fn undo(&mut self, moved: &[u16]) {
        for &head in moved {
            let slot = &mut self.slots[usize::from(head)];
            if matches!(slot.state, SlotState::Done { .. }) {
                slot.state = SlotState::Free;
            }
        }
        let slots = &self.slots;
        let is_done = |&head: &u16| slots[usize::from(head)].state != SlotState::Free;
        self.done.retain(is_done);
    }

    /// Whether our record of a head is the request that is marked there.
    pub(super) fn is_kept(&self, head: u16, marked: &Option<Vec<Marked>>) -> bool {
        let Some(slot) = self.slots.get(usize::from(head)) else {
            return false;
        };
        let same = |marked: &Marked| marked.head == head && marked.counter == slot.counter;
        marked.iter().flatten().any(same)
    }

    /// Forgets what is done but not marked; what waits has been dropped by the block layer already.
    /// Returns how many there were.
    pub(super) fn drop_unmarked(&mut self, marked: &Option<Vec<Marked>>) -> usize {
        let done = std::mem::take(&mut self.done);
        let before = done.len();
        let (kept, dropped): (Vec<_>, Vec<_>) = done
            .into_iter()
            .partition(|&head| self.is_kept(head, marked));
        for head in dropped {
            self.slots[usize::from(head)].state = SlotState::Free;
        }
        self.done.extend(kept);
        before - self.done.len()
    }

    /// Takes up a head that is marked: none if we remember it, be it held, done, or in flight.
    pub(super) fn resume(
        &mut self,
        marked: Marked,
        format: F,
    ) -> Result<Option<F::Parsed>, Box<Broken>> {
        let Marked { counter, head } = marked;
        let (Some(live), Some(slot)) = (&self.live, self.slots.get_mut(usize::from(head))) else {
            return Ok(None);
        };
        if slot.state != SlotState::Free {
            return Ok(None);
        }
        let parsed = slot.parse(&live.ring, head, format)?;
        slot.counter = counter;
        slot.state = SlotState::Taken;
        Ok(Some(parsed))
    }
}

/// Where a ring begins of which only the client knows something.
fn first_available(base: u16, used: u16, size: u16) -> Result<u16, Broken> {
    if base.wrapping_sub(used) <= size {
        Ok(base)
    } else if used.wrapping_sub(base) <= size {
        // Requests of a former connection ended after the client had read the index.
        Ok(used)
    } else {
        Err(Broken::Base { base, used, size })
    }
}

#[cfg(test)]
mod tests {
    use super::super::plain::Plain;
    use super::*;
    use crate::ring::tests::{LAYOUT, memory};
    use vm_memory::{Bytes, GuestAddress};

    const BASE: u16 = 7;

    fn state() -> QueueState<Plain> {
        QueueState::default()
    }

    /// A ring whose used index is `used`.
    fn ring(used: u16) -> Ring {
        let memory = memory();
        let index = GuestAddress(LAYOUT.used + 2);
        memory.table().write_obj(used.to_le(), index).unwrap();
        Ring::new(memory, LAYOUT).unwrap()
    }

    fn region(heads: &[u16]) -> Arc<Region> {
        let (spec, file) = Region::create("test", 1, 4, 0, b"").unwrap();
        let region = Region::open(&spec, &file).unwrap();
        let mut part = region.queue(0, 4).unwrap().unwrap();
        part.recover(5).unwrap();
        for &head in heads {
            part.mark(head);
        }
        Arc::new(region)
    }

    fn start(
        state: &mut QueueState<Plain>,
        used: u16,
        region: Option<Arc<Region>>,
        features: u64,
        base: u16,
    ) -> Option<Vec<Marked>> {
        let (live, marked) = (state.prepare(0, ring(used), region, features, base)).unwrap();
        state.live = Some(live);
        marked
    }

    fn next_avail(state: &QueueState<Plain>) -> u16 {
        state.live.as_ref().unwrap().ring.next_avail()
    }

    #[test]
    fn the_base_counts_only_for_a_region_that_was_never_used() {
        for (heads, base, expected) in [
            (&[][..], BASE, 5),
            (&[], 9999, 5),
            (&[2], BASE, 6),
            (&[2, 0], 9999, 7),
            (&[3, 2, 1, 0], 0, 9),
        ] {
            let mut state = state();
            let marked = start(&mut state, 5, Some(region(heads)), 0, base);
            assert_eq!(next_avail(&state), expected, "{heads:?}, base {base}");
            let found: Vec<_> = marked.unwrap().iter().map(|marked| marked.head).collect();
            assert_eq!(found, heads);
        }
        let (spec, file) = Region::create("test", 1, 4, 0, b"").unwrap();
        let fresh = Arc::new(Region::open(&spec, &file).unwrap());
        let mut state = state();
        let marked = start(&mut state, 5, Some(fresh), 0, BASE);
        assert_eq!((next_avail(&state), marked), (BASE, Some(vec![])));
    }

    #[test]
    fn a_base_that_cannot_be_breaks_the_queue() {
        let next = |base, used| first_available(base, used, 4);
        for (base, used, expected) in [
            (5, 5, 5),
            (9, 5, 9),
            (4, 5, 5),
            (1, 5, 5),
            (3, u16::MAX, 3),
            (u16::MAX, 3, 3),
        ] {
            assert_eq!(next(base, used).unwrap(), expected, "{base} {used}");
        }
        for (base, used) in [(10, 5), (0, 5), (4, u16::MAX), (32768, 0)] {
            let error = next(base, used).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("SET_VRING_BASE {base}")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_record_survives_only_as_the_very_request_that_is_marked() {
        let mut state = state();
        let marked = start(&mut state, 5, Some(region(&[2, 1])), 0, 0);
        for (head, counter) in [(0, 0), (1, 1), (2, 9)] {
            state.slots[head].state = SlotState::Done { outcome: 0 };
            state.slots[head].counter = counter;
        }
        state.done = vec![2, 1, 0];
        let kept: Vec<_> = (0..5)
            .filter(|&head| state.is_kept(head, &marked))
            .collect();
        assert_eq!(kept, [1]);
        assert_eq!(state.drop_unmarked(&marked), 2);
        assert_eq!(state.done, [1]);
        assert_eq!(state.slots[2].state, SlotState::Free);
    }

    #[test]
    fn without_region_only_the_ring_that_was_left_goes_on() {
        for (used, features, base, goes_on) in [
            (5, 1, 6, true),
            (4, 1, 6, false),
            (5, 0, 6, false),
            (5, 1, 5, false),
        ] {
            let mut state = state();
            start(&mut state, 5, None, 1, 6);
            state.slots[3].state = SlotState::Taken;
            assert_eq!(state.leave(), Some(6));
            let marked = start(&mut state, used, None, features, base);
            assert_eq!(state.has_strangers(&marked), !goes_on);
            assert_eq!(marked.is_some(), goes_on, "{used} {features} {base}");
            assert_eq!(state.is_kept(3, &marked), goes_on);
        }
    }
}
