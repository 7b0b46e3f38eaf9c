//! The gate's table: a place for every request that waits or has been held. Pure.
//!
//! A request that starts at once and ends well never has one.

use crate::hold::{SlotId, Waiting};
use crate::request::Request;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
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

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) state: State,
    pub(super) request: Request,
    pub(super) order: u64,
}

impl Slot {
    /// Failed at least once under action stop: run control has a record of it.
    pub(super) fn was_held(&self) -> bool {
        !matches!(self.state, State::Free | State::Parked)
    }
}

#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<SlotId>,
    /// Number of slots in state `Replayed`.
    replayed: u32,
}

impl Slots {
    /// A table that takes `capacity` requests without allocating.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self {
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            replayed: 0,
        }
    }

    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn get(&self, slot: SlotId) -> &Slot {
        &self.slots[slot.index()]
    }

    /// Gives a request that waits a place.
    pub(super) fn insert(&mut self, slot: Slot) -> Waiting {
        let order = slot.order;
        if let Some(id) = self.free.pop() {
            self.slots[id.index()] = slot;
            return Waiting { order, slot: id };
        }
        // Queue sizes are u16 and there are at most 65536 queues, so the index fits; more than the
        // announced number happens only while requests of a former generation end.
        let id = SlotId(u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
        self.slots.push(slot);
        Waiting { order, slot: id }
    }

    pub(super) fn free(&mut self, slot: SlotId) {
        self.set_state(slot, State::Free);
        self.free.push(slot);
    }

    /// Changes the state of a request that keeps its place.
    pub(super) fn set_state(&mut self, slot: SlotId, state: State) {
        let entry = &mut self.slots[slot.index()];
        self.replayed -= u32::from(entry.state == State::Replayed);
        self.replayed += u32::from(state == State::Replayed);
        entry.state = state;
    }

    /// What is in flight again.
    pub(super) fn replayed(&self) -> impl Iterator<Item = &Slot> {
        let replayed = |slot: &&Slot| slot.state == State::Replayed;
        // The table is looked through only if there is one.
        let slots = if self.has_replayed() {
            &*self.slots
        } else {
            &[]
        };
        slots.iter().filter(replayed)
    }

    pub(super) fn has_replayed(&self) -> bool {
        self.replayed > 0
    }
}
