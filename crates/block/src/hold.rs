//! The order in which waiting requests go on: sets of slots, sorted by arrival. Pure.

/// Identifies the place of a request in a gate's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub(crate) u32);

impl SlotId {
    /// The index into tables that go along with the gate's.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A request that waits, with what decides its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Arrival number within the gate: never reused, so a request that fails again keeps its place.
    pub order: u64,
    /// Which request.
    pub slot: SlotId,
}

/// Waiting requests, oldest first.
#[derive(Debug, Default)]
pub struct WaitList {
    entries: Vec<Waiting>,
}

impl WaitList {
    /// A list that holds `capacity` requests without allocating.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            entries: Vec::with_capacity(capacity),
        }
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Waiting> + '_ {
        self.entries.iter().copied()
    }

    /// Takes a request in, at the place its arrival number gives it.
    pub fn insert(&mut self, waiting: Waiting) {
        // Requests fail and are parked mostly in the order of their arrival: look from the end.
        let at = self
            .entries
            .iter()
            .rposition(|entry| entry.order < waiting.order);
        self.entries.insert(at.map_or(0, |at| at + 1), waiting);
    }

    /// Takes out the request at `index` of [`Self::iter`].
    pub fn remove(&mut self, index: usize) -> Waiting {
        self.entries.remove(index)
    }

    /// Takes out the entry of `slot`, if it is here.
    pub fn take(&mut self, slot: SlotId) -> Option<Waiting> {
        let at = self.entries.iter().position(|entry| entry.slot == slot)?;
        Some(self.entries.remove(at))
    }

    /// Moves every request that `leaves` accepts to `to`, oldest first.
    pub fn drain_into(
        &mut self,
        mut leaves: impl FnMut(Waiting) -> bool,
        mut to: impl FnMut(Waiting),
    ) {
        self.entries.retain(|&entry| {
            let goes = leaves(entry);
            if goes {
                to(entry);
            }
            !goes
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn always_sorted_and_nothing_lost(orders in proptest::collection::vec(0u64..1000, 0..60), cut in 0u64..1000) {
            let mut list = WaitList::default();
            for (slot, &order) in orders.iter().enumerate() {
                list.insert(Waiting { order, slot: SlotId(u32::try_from(slot).unwrap()) });
            }
            let sorted: Vec<u64> = list.iter().map(|w| w.order).collect();
            prop_assert!(sorted.is_sorted());
            let mut gone = Vec::new();
            list.drain_into(|w| w.order < cut, |w| gone.push(w.order));
            prop_assert!(gone.is_sorted() && gone.iter().all(|&order| order < cut));
            prop_assert!(list.iter().all(|w| w.order >= cut));
            prop_assert_eq!(gone.len() + list.len(), orders.len());
        }
    }
}
