//! How requests leave the gate without having been executed to their end.

use crate::words::request::Operation;

use super::Gate;
use super::line::SlotId;
use super::slots::{Place, Slot, SlotState};
use super::ticket::Removed;

impl Gate {
    /// The device was reset or removed: drops everything that waits; what is in flight will end
    /// as [`super::Verdict::Dropped`].
    pub fn reset(&mut self, generation: u64) -> Vec<Removed> {
        self.generation = generation;
        self.freeze.reset();
        let removed = self.remove_waiting(0..self.members.len(), |_| true);
        self.update_clear();
        removed
    }

    /// This part ends: as [`Self::reset`], for ever. Whatever is still in flight, of this generation
    /// or of a former one, ends as [`super::Verdict::Dropped`]; whatever is admitted from now on waits,
    /// and goes the next time.
    pub fn close(&mut self) -> Vec<Removed> {
        self.freeze.end();
        // Run control counts from 0 and will not get there.
        self.reset(u64::MAX)
    }

    /// Drops the waiting requests of `queue` whose head `keep` does not accept: at a ring start the
    /// client's record decides, not ours.
    pub fn retain(&mut self, queue: u16, mut keep: impl FnMut(u16) -> bool) -> Vec<Removed> {
        let queue = usize::from(queue);
        let goes = |slot: &Slot| !keep(slot.request.tag.head);
        let removed = self.remove_waiting(queue..queue + 1, goes);
        self.thaw_if_nothing_held();
        self.update_clear();
        removed
    }

    /// Takes out the held flushes, to be completed with an error: the operator accepts that what
    /// they should have made durable may be lost.
    pub fn take_held_flushes(&mut self) -> Vec<Removed> {
        let removed = self.remove_waiting(0..self.members.len(), |slot| {
            // Released ones too: those that a client has handed back wait there.
            let waits = matches!(slot.state, SlotState::Held { .. } | SlotState::Released);
            slot.request.op == Operation::Flush && waits
        });
        self.thaw_if_nothing_held();
        self.update_clear();
        removed
    }

    fn remove_waiting(
        &mut self,
        queues: std::ops::Range<usize>,
        mut goes: impl FnMut(&Slot) -> bool,
    ) -> Vec<Removed> {
        let mut removed = Vec::new();
        for members in &mut self.members[queues] {
            let leaving = members.extract_if(.., |_, slot| goes(self.slots.get(*slot)));
            removed.extend(leaving.map(|(order, slot)| {
                let entry = self.slots.get(slot);
                Removed {
                    slot,
                    order,
                    request: entry.request,
                    was_held: entry.was_held(),
                }
            }));
        }
        for entry in &removed {
            self.leave(entry.slot);
        }
        removed
    }

    /// A request that waits or is held goes from wherever it is.
    fn leave(&mut self, id: SlotId) {
        let slot = *self.slots.get(id);
        match (slot.state, slot.place) {
            (SlotState::Held { seq }, _) => {
                self.held.remove(&(seq, id));
            }
            (_, Place::Line) => self.line.remove(slot.request.tag.queue, slot.turn(id)),
            (_, Place::Elsewhere) => {
                self.elsewhere.remove(&slot.order);
            }
            (_, Place::Behind(_)) => {}
        }
        self.give_place_back(id);
    }
}
