//! The gate's table: a place for every request that waits or has been held, and who waits behind
//! whom. Pure.
//!
//! A request that starts at once and ends well never has one.

use std::collections::BTreeSet;

use crate::gate::line::{SlotId, Turn};
use crate::gate::range_index::RangeIndex;
use crate::words::request::Request;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState {
    Free,
    /// Popped, not started.
    Parked,
    /// Failed; waits for a release.
    Held {
        seq: u64,
    },
    /// Released; waits for its turn.
    Released,
    /// In flight again.
    Replayed,
}

impl SlotState {
    const COUNT: usize = 5;

    const fn number(self) -> usize {
        match self {
            Self::Free => 0,
            Self::Parked => 1,
            Self::Held { .. } => 2,
            Self::Released => 3,
            Self::Replayed => 4,
        }
    }
}

/// Where a request that is parked or released waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the line, or it does not wait.
    Line,
    /// Behind another one of this table.
    Behind(SlotId),
    /// Behind one on another iothread.
    Elsewhere,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) state: SlotState,
    pub(super) request: Request,
    pub(super) order: u64,
    pub(super) place: Place,
}

impl Slot {
    pub(super) fn new(state: SlotState, request: Request, order: u64) -> Self {
        Self {
            state,
            request,
            order,
            place: Place::Line,
        }
    }

    /// Failed at least once under action stop: run control has a record of it.
    pub(super) fn was_held(&self) -> bool {
        !matches!(self.state, SlotState::Free | SlotState::Parked)
    }

    pub(super) fn turn(&self, slot: SlotId) -> Turn {
        Turn {
            parked: self.state == SlotState::Parked,
            order: self.order,
            slot,
        }
    }

    /// Whether others have to wait behind it because of its range.
    fn blocks(&self) -> bool {
        self.request.bytes > 0 && (self.was_held() || self.request.op.modifies())
    }
}

#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<SlotId>,
    /// Number of slots in each state.
    counts: [usize; SlotState::COUNT],
    /// What was held, by range: until it has ended it blocks.
    was_held: RangeIndex<SlotId>,
    /// What is parked and modifies its range.
    parked: RangeIndex<SlotId>,
    /// Who waits behind whom: the one in front first.
    behind: BTreeSet<(SlotId, SlotId)>,
}

impl Slots {
    /// From now on the table takes `capacity` requests without growing.
    pub(super) fn reserve(&mut self, capacity: usize) {
        self.slots
            .reserve(capacity.saturating_sub(self.slots.len()));
        self.free.reserve(capacity.saturating_sub(self.free.len()));
    }

    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn get(&self, slot: SlotId) -> &Slot {
        &self.slots[slot.index()]
    }

    /// Gives a request a place.
    pub(super) fn insert(&mut self, slot: Slot) -> SlotId {
        self.counts[slot.state.number()] += 1;
        let id = if let Some(id) = self.free.pop() {
            self.counts[SlotState::Free.number()] -= 1;
            self.slots[id.index()] = slot;
            id
        } else {
            self.slots.push(slot);
            // Queue sizes are u16 and there are at most 65536 queues, so the index fits; more than
            // the announced number happens only while requests of a former generation end.
            SlotId(u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX))
        };
        if slot.blocks() {
            let (request, order) = (slot.request, slot.order);
            self.index_of(&slot)
                .insert(request.offset, request.end(), order, id);
        }
        id
    }

    /// Gives a place up. Those that wait behind it are handed to `woken`: it may be their turn.
    pub(super) fn free(&mut self, slot: SlotId, mut woken: impl FnMut(Turn)) {
        let entry = self.slots[slot.index()];
        if entry.blocks() {
            self.index_of(&entry)
                .remove(entry.request.offset, entry.order);
        }
        self.leave_place(slot);
        while let Some(&(front, waits)) = self.behind.range((slot, SlotId(0))..).next()
            && front == slot
        {
            self.behind.remove(&(front, waits));
            let waiting = &mut self.slots[waits.index()];
            waiting.place = Place::Line;
            woken(waiting.turn(waits));
        }
        self.set_state(slot, SlotState::Free);
        self.free.push(slot);
    }

    fn index_of(&mut self, slot: &Slot) -> &mut RangeIndex<SlotId> {
        if slot.was_held() {
            &mut self.was_held
        } else {
            &mut self.parked
        }
    }

    /// Changes the state of a request that keeps its place, between those of [`Slot::was_held`].
    pub(super) fn set_state(&mut self, slot: SlotId, state: SlotState) {
        let entry = &mut self.slots[slot.index()];
        self.counts[entry.state.number()] -= 1;
        self.counts[state.number()] += 1;
        entry.state = state;
    }

    /// It waits elsewhere than in the line.
    pub(super) fn set_place(&mut self, slot: SlotId, place: Place) {
        self.leave_place(slot);
        if let Place::Behind(front) = place {
            self.behind.insert((front, slot));
        }
        self.slots[slot.index()].place = place;
    }

    fn leave_place(&mut self, slot: SlotId) {
        let entry = &mut self.slots[slot.index()];
        if let Place::Behind(front) = std::mem::replace(&mut entry.place, Place::Line) {
            self.behind.remove(&(front, slot));
        }
    }

    /// The request that `request`, which modifies its range and has the arrival number `order`, has
    /// to wait behind, if there is one. Of several it is the one that came last: the others have
    /// mostly ended when it has.
    ///
    /// One that has been held waits only for others that have been held, in the order that
    /// [`crate::gate::overlap`] has too; one that has not waits for those and for older ones of its kind.
    /// So nobody waits in a circle.
    pub(super) fn in_front_of(
        &self,
        request: &Request,
        order: u64,
        was_held: bool,
    ) -> Option<SlotId> {
        let (start, end) = (request.offset, request.end());
        let held = self.was_held.last_before(start, end, order);
        let parked = if was_held {
            None
        } else {
            self.parked.last_before(start, end, order)
        };
        held.max(parked).map(|(_, slot)| slot)
    }

    /// Number of requests that wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        self.counts[SlotState::Parked.number()] + self.counts[SlotState::Released.number()]
    }

    /// Whether something waits, is held, or is in flight again.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.len() == self.counts[SlotState::Free.number()]
    }

    /// All that are in use.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SlotId, &Slot)> {
        (0..)
            .map(SlotId)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.state != SlotState::Free)
    }
}
