//! The line of those whose turn may have come: the order in which waiting requests go on. Pure.

use std::collections::BTreeSet;

/// Identifies the place of a request in a gate's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub(crate) u32);

impl SlotId {
    /// The index into tables that go along with the gate's.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// When it is the turn of a request that waits: first comes what was released, then what was parked,
/// each in the order of arrival. Arrival numbers are never reused, so a request that fails again
/// keeps its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    /// Whether it has never been held.
    pub parked: bool,
    /// Arrival number within the gate.
    pub order: u64,
    /// Which request.
    pub slot: SlotId,
}

/// Requests whose turn may have come, the first one first. Whether it has is looked at when they are
/// taken out: those for which it has not wait behind somebody, who puts them in again.
#[derive(Debug, Default)]
pub struct Line {
    turns: BTreeSet<Turn>,
    /// By queue: those that were looked at while their queue was stopped.
    stopped: Vec<BTreeSet<Turn>>,
}

impl Line {
    /// For `queues` queues.
    pub fn new(queues: u16) -> Self {
        Self {
            turns: BTreeSet::new(),
            stopped: vec![BTreeSet::new(); usize::from(queues)],
        }
    }

    /// It may be its turn.
    pub fn insert(&mut self, turn: Turn) {
        self.turns.insert(turn);
    }

    /// Takes out the first one.
    pub fn pop(&mut self) -> Option<Turn> {
        self.turns.pop_first()
    }

    /// Sets it aside until its queue is started.
    pub fn set_aside(&mut self, queue: u16, turn: Turn) {
        self.stopped[usize::from(queue)].insert(turn);
    }

    /// Those of `queue` that were set aside are looked at again.
    pub fn start(&mut self, queue: u16) {
        self.turns.append(&mut self.stopped[usize::from(queue)]);
    }

    /// It waits no more.
    pub fn remove(&mut self, queue: u16, turn: Turn) {
        if !self.turns.remove(&turn) {
            self.stopped[usize::from(queue)].remove(&turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(parked: bool, order: u64, slot: u32) -> Turn {
        let slot = SlotId(slot);
        Turn {
            parked,
            order,
            slot,
        }
    }

    #[test]
    fn what_was_released_goes_first_and_the_oldest_of_it() {
        let mut line = Line::new(2);
        let turns = [
            turn(true, 1, 0),
            turn(false, 9, 1),
            turn(true, 2, 2),
            turn(false, 3, 3),
        ];
        for turn in turns {
            line.insert(turn);
        }
        let first = line.pop().unwrap();
        assert_eq!(first, turns[3]);
        line.set_aside(1, first);
        assert_eq!(line.pop(), Some(turns[1]));
        line.start(0);
        line.remove(0, turns[2]);
        assert_eq!(line.pop(), Some(turns[0]));
        assert_eq!(line.pop(), None, "its queue is stopped");
        line.start(1);
        assert_eq!(line.pop(), Some(turns[3]));
        line.set_aside(1, turns[3]);
        line.remove(1, turns[3]);
        line.start(1);
        assert_eq!(line.pop(), None);
    }
}
