//! What a client may hand back in its inflight region that nobody in this process has seen: requests
//! of a former daemon. The block layer knows of all others.

use std::collections::BTreeSet;

use parking_lot::{Mutex, MutexGuard};

/// Shared by the session, which knows, and the export, which is asked.
#[derive(Debug, Default)]
pub(crate) struct Unclaimed {
    /// The queues in whose part of the region something is marked; none: no client has come yet.
    queues: Mutex<Option<BTreeSet<u16>>>,
}

impl Unclaimed {
    fn queues(&self) -> MutexGuard<'_, Option<BTreeSet<u16>>> {
        // It is whole wherever somebody might have panicked.
        self.queues.lock()
    }

    /// The client has a fresh life: there is nothing.
    pub fn nothing(&self) {
        *self.queues() = Some(BTreeSet::new());
    }

    /// The client has handed in a region with something in these queues.
    pub fn in_queues(&self, queues: impl Iterator<Item = u16>) {
        *self.queues() = Some(queues.collect());
    }

    /// The ring of a queue was started: what is marked there has been taken up.
    pub fn taken_up(&self, queue: u16) {
        if let Some(queues) = &mut *self.queues() {
            queues.remove(&queue);
        }
    }

    /// Whether nothing can come.
    pub fn is_nothing(&self) -> bool {
        self.queues().as_ref().is_some_and(BTreeSet::is_empty)
    }

    /// What may come.
    pub fn reason(&self) -> Option<String> {
        match &*self.queues() {
            None => Some(
                "a client that was served by a former daemon may still hand its requests back"
                    .to_owned(),
            ),
            Some(queues) => {
                let first = queues.first()?;
                Some(format!(
                    "the client has handed back requests of queue {first}, which it has not started \
                     yet,"
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_may_come_until_every_queue_is_taken_up() {
        let unclaimed = Unclaimed::default();
        let said = |word: &str| unclaimed.reason().is_some_and(|text| text.contains(word));
        assert!(said("former daemon"), "nobody has come");
        unclaimed.taken_up(0);
        assert!(said("former daemon") && !unclaimed.is_nothing());
        unclaimed.in_queues([0, 3].into_iter());
        assert!(said("queue 0"));
        unclaimed.taken_up(0);
        assert!(said("queue 3") && !unclaimed.is_nothing());
        unclaimed.taken_up(3);
        assert_eq!((unclaimed.reason(), unclaimed.is_nothing()), (None, true));
        unclaimed.in_queues(std::iter::empty());
        assert!(unclaimed.is_nothing());
        unclaimed.in_queues([1].into_iter());
        unclaimed.nothing();
        assert_eq!(unclaimed.reason(), None);
    }
}
