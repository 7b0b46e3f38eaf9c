//! What this part has in flight: who asks, and when a request enters and leaves the list ([`super::busy`]).

use crate::control::run_control::{BusyPart, BusyRequest};

use super::LocalBackend;
use super::worker::Worker;

impl LocalBackend {
    /// The `most` requests that have been in flight for longest, oldest first: those that the driver has
    /// not answered. What it answers at once is never among them, nor what is held or waits. Looks at no
    /// others.
    pub fn busy(&self, most: usize) -> Vec<BusyRequest> {
        let inner = &*self.0;
        let (busy, workers) = (inner.busy.borrow(), inner.workers.borrow());
        let request = |place: usize| workers.get(place - 1).and_then(|worker| worker.busy());
        busy.iter().filter_map(request).take(most).collect()
    }

    /// The one that has been in flight for longest.
    pub fn oldest(&self) -> Option<BusyRequest> {
        self.busy(1).pop()
    }

    pub(super) fn busy_part(&self, most: usize) -> BusyPart {
        BusyPart {
            local: self.0.id,
            in_flight: self.0.gate.borrow().in_flight(),
            oldest: self.busy(most),
        }
    }

    /// The request of `worker` is in flight from now on.
    #[inline]
    pub(super) fn is_busy(&self, worker: &Worker) {
        self.0.busy.borrow_mut().enter(worker.place());
    }

    /// It has ended.
    #[inline]
    pub(super) fn was_busy(&self, worker: &Worker) {
        self.0.busy.borrow_mut().leave(worker.place());
    }
}
