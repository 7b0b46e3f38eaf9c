//! Requests that are parked in the driver ([`crate::driver::park`]): which they are, and how they are taken
//! back when they may not start any more.

use std::rc::Rc;

use iothread::time;

use crate::gate::{Outcome, Ticket, Verdict};

use super::LocalBackend;
use super::worker::Worker;

impl LocalBackend {
    /// The driver has parked the worker's request, or executes it now.
    #[cold]
    pub(super) fn parks_or_goes_on(&self, worker: &Rc<Worker>) {
        worker.with_ticket(|ticket, went_on| {
            if ticket.is_parked() {
                self.has_gone_on(worker, ticket);
                *went_on = Some(time::now());
            } else {
                self.0.gate.borrow_mut().parks(ticket);
                self.was_busy(worker);
                self.0.parked.borrow_mut().enter(worker.place());
            }
        });
        self.take_back_parked();
        self.wake_ended();
    }

    /// The driver has gone on with a request that was parked.
    #[cold]
    pub(super) fn has_gone_on(&self, worker: &Rc<Worker>, ticket: &mut Ticket) {
        self.0.gate.borrow_mut().goes_on(ticket);
        self.0.parked.borrow_mut().leave(worker.place());
        self.is_busy(worker);
    }

    /// Takes those back that may not start now. To be called after all that freezes or stops, before
    /// anything else happens.
    #[inline]
    pub(super) fn take_back_parked(&self) {
        if !self.0.parked.borrow().is_empty() {
            self.take_back(|queue| !self.0.gate.borrow().may_pop(queue));
        }
    }

    /// Takes back those of the queues that `goes` accepts: each waits at its old place.
    #[cold]
    pub(super) fn take_back(&self, goes: impl Fn(u16) -> bool) {
        let inner = &*self.0;
        let places: Vec<_> = inner.parked.borrow().iter().collect();
        for place in places {
            let Some(worker) = inner.workers.borrow().get(place - 1).map(Rc::clone) else {
                continue;
            };
            let mut goes_here = false;
            worker.with_ticket(|ticket, _| goes_here = goes(ticket.request().tag.queue));
            if !goes_here {
                continue;
            }
            inner.parked.borrow_mut().leave(place);
            let Some(ticket) = worker.take_back() else {
                continue;
            };
            inner.idle_workers.borrow_mut().push(worker);
            let request = *ticket.request();
            let order = ticket.order();
            inner.client.unmap(&request);
            inner.stats.not_attempted();
            let verdict = inner.gate.borrow_mut().finish(ticket, Outcome::TakenBack);
            debug_assert_eq!(verdict, Verdict::PutBack, "a reset takes them back before");
            if verdict == Verdict::Dropped {
                inner.stats.dropped();
                self.unblock(order);
                inner.client.dropped(&request);
            }
        }
        self.provide_entries();
        self.wake_ended();
    }
}
