//! The life of a request on its iothread: to the driver, and from its end to the client or to a hold.
//!
//! A request is given to the driver where it is admitted. What the driver answers at once ends there
//! and then; the rest is left with a worker ([`super::worker`]), whose task goes on when it is woken.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::SystemTime;

use iothread::{Deferred, time};

use crate::control::accounting::Counts;
use crate::control::run_control::{Failed, Reported};
use crate::gate::line::SlotId;
use crate::gate::{ClientError, Outcome, Ticket, Verdict};
use crate::words::error::BlockError;
use crate::words::incident::HoldEnd;
use crate::words::request::{Operation, Request};

use super::client::Unmapped;
use super::worker::{Polled, Worker};
use super::{Inner, LocalBackend, StartedAt};

impl LocalBackend {
    /// Gives a request to the driver.
    pub(super) fn dispatch(&self, ticket: Ticket) {
        let inner = &*self.0;
        let idle = inner.idle_workers.borrow_mut().pop();
        let worker = idle.unwrap_or_else(|| self.new_worker());
        let started = time::now();
        if let Some(slot) = ticket.slot()
            && let Some(since) = inner.notices.goes_on(slot)
        {
            (inner.stats).unheld(started.saturating_duration_since(since));
        }
        let outcome = match self.execute(&worker, ticket.request()) {
            Some(outcome) => outcome,
            None => {
                worker.keep(ticket, started);
                self.is_busy(&worker);
                return self.go_on(&worker);
            }
        };
        inner.idle_workers.borrow_mut().push(worker);
        self.finish(ticket, outcome, StartedAt::ThisRound);
    }

    /// How the request ended, if the driver answers at once; else it runs in the worker, which was
    /// idle.
    fn execute(&self, worker: &Worker, request: &Request) -> Option<Outcome> {
        let inner = &*self.0;
        let mut iov = worker.buffers();
        iov.clear();
        let check = worker
            .node()
            .check(request.op, request.offset, request.bytes);
        if check.is_err() {
            return Some(Outcome::GuestFault);
        }
        if let Err(unmapped) = inner.client.map(request, &mut iov) {
            return Some(match unmapped {
                Unmapped::Gone => Outcome::GuestFault,
                Unmapped::Moving => Outcome::MemoryMoves,
            });
        }
        drop(iov);
        inner.stats.attempt();
        let fua = request.op.modifies() && inner.client.fua(request);
        match worker.submit(request, fua, inner.backend.losses_accepted()) {
            Poll::Ready(result) => Some(self.outcome(worker, request, result)),
            Poll::Pending => None,
        }
    }

    /// What becomes of the worker's request now.
    fn go_on(&self, worker: &Rc<Worker>) {
        let (mut ticket, started, result) = match worker.poll() {
            Polled::Ended(ticket, started, result) => (ticket, started, result),
            Polled::Pending => return,
            Polled::Changed => return self.parks_or_goes_on(worker),
        };
        if ticket.is_parked() {
            self.has_gone_on(worker, &mut ticket);
        }
        self.was_busy(worker);
        let outcome = self.outcome(worker, ticket.request(), result);
        match Arc::ptr_eq(worker.node(), &self.0.node.borrow()) {
            true => self.0.idle_workers.borrow_mut().push(Rc::clone(worker)),
            false => self.renew(worker),
        }
        self.finish(ticket, outcome, StartedAt::Earlier(started));
    }

    fn new_worker(&self) -> Rc<Worker> {
        let place = self.0.busy.borrow_mut().add_place();
        self.0.parked.borrow_mut().add_place();
        let worker = self.worker_at(place);
        self.0.workers.borrow_mut().push(Rc::clone(&worker));
        self.provide_entries();
        worker
    }

    /// A worker with a place in the list of the busy ones.
    fn worker_at(&self, place: usize) -> Rc<Worker> {
        let worker = Worker::new(Arc::clone(&self.0.node.borrow()), place);
        let (this, own) = (self.clone(), Rc::clone(&worker));
        let (task, waker) = iothread::spawn_with_waker(poll_fn(move |_| {
            this.go_on(&own);
            if (this.0.closed.get() || own.is_retired()) && own.is_idle() {
                return Poll::Ready(());
            }
            Poll::Pending
        }));
        task.detach();
        worker.set_waker(waker);
        worker
    }

    /// An idle worker has another node than requests go to by now: one that has it takes its place.
    #[cold]
    pub(super) fn renew(&self, worker: &Worker) {
        worker.retire();
        // Of a part that has ended there are none.
        let mut workers = self.0.workers.borrow_mut();
        let mut workers = workers.iter_mut();
        if let Some(known) = workers.find(|known| std::ptr::eq(&***known, worker)) {
            *known = self.worker_at(worker.place());
            self.0.idle_workers.borrow_mut().push(Rc::clone(known));
        }
    }

    /// The submission has ended. What has failed is not mapped any more.
    fn outcome(
        &self,
        worker: &Worker,
        request: &Request,
        result: crate::words::error::Result<()>,
    ) -> Outcome {
        let error = match result {
            Ok(()) => {
                if request.op.modifies() {
                    worker.node().wrote(request.end());
                }
                return Outcome::Ok;
            }
            Err(error) => error,
        };
        self.failed(worker, request, &error)
    }

    /// The submission has failed.
    #[cold]
    fn failed(&self, worker: &Worker, request: &Request, error: &BlockError) -> Outcome {
        let inner = &*self.0;
        // A request whose memory the client has taken away would be held for ever.
        let lost = error.errno() == libc::EFAULT && {
            let iov = worker.ended_buffers();
            !iov.is_empty() && inner.client.has_lost(request, &iov)
        };
        inner.client.unmap(request);
        tracing::debug!(device = %inner.backend.device(), %error, lost, "request failed");
        match lost {
            true => Outcome::GuestFault,
            false => {
                inner.failed_node.set(error.context().node.clone());
                Outcome::Error(error.cause())
            }
        }
    }

    /// From the end of a request to hold, freeze and message, or to its completion, without a
    /// pause in between.
    pub(super) fn finish(&self, ticket: Ticket, outcome: Outcome, started: StartedAt) {
        let mut gate = self.0.gate.borrow_mut();
        if !gate.is_plain(&ticket, outcome) {
            drop(gate);
            return self.judge(ticket, outcome, started);
        }
        let request = *ticket.request();
        gate.finish_plain(ticket);
        drop(gate);
        match outcome {
            Outcome::Ok => {
                self.0.stats.done(request.op, request.bytes);
                self.account(request.op, started);
                self.0.client.succeeded(&request);
            }
            // Only in a build without a gate.
            _ => self.complete(&request, outcome.result(), started),
        }
        self.wake_ended();
    }

    /// The end of a request that has failed, has been held before or is of a former generation, or
    /// others wait.
    #[cold]
    fn judge(&self, ticket: Ticket, outcome: Outcome, started: StartedAt) {
        let (request, order) = (*ticket.request(), ticket.order());
        let node = self.0.failed_node.take();
        if outcome == Outcome::Ok {
            self.0.client.unmap(&request);
        }
        let verdict = self.0.gate.borrow_mut().finish(ticket, outcome);
        // What is frozen by that is frozen before anything else is looked at.
        self.take_back_parked();
        match verdict {
            Verdict::Held { slot, seq, cause } => {
                let failed = Failed {
                    backend: self.0.backend.id(),
                    local: self.0.id,
                    generation: self.0.gate.borrow().generation(),
                    seq,
                    order,
                    request,
                    cause,
                    node,
                    at: SystemTime::now(),
                };
                self.held(slot, failed);
            }
            Verdict::PutBack => self.provide_entries(),
            Verdict::Dropped => {
                self.0.stats.dropped();
                self.unblock(order);
                self.0.client.dropped(&request);
            }
            Verdict::Complete {
                result,
                reported,
                was_held,
            } => {
                if let Some((action, cause)) = reported {
                    self.0.reporter.reported(Reported {
                        backend: self.0.backend.id(),
                        generation: self.0.gate.borrow().generation(),
                        request,
                        action,
                        cause,
                        node,
                        at: SystemTime::now(),
                    });
                }
                if let Some(slot) = was_held {
                    self.unblock(order);
                    let end = match (reported, result) {
                        (None, Ok(())) => HoldEnd::Completed,
                        _ => HoldEnd::Reported,
                    };
                    self.resolve(slot, order, end);
                }
                self.complete(&request, result, started);
            }
        }
        self.wake_ended();
        if self.0.gate.borrow().has_waiting() {
            self.start_ready();
        }
    }

    fn complete(&self, request: &Request, result: Result<(), ClientError>, started: StartedAt) {
        let counts = match result {
            Ok(()) => {
                self.0.stats.done(request.op, request.bytes);
                Counts::All
            }
            Err(ClientError::Io(_)) => self.0.stats.failed(request.op),
            Err(ClientError::Guest) => self.0.stats.invalid(request.op),
        };
        match counts {
            Counts::All => self.account(request.op, started),
            Counts::Histogram => {
                let (started, now) = match started {
                    StartedAt::Earlier(started) => (started, time::now()),
                    StartedAt::ThisRound => (time::now(), time::refresh()),
                };
                self.0.stats.took_unaccounted(request.op, started, now);
            }
            Counts::Access => self.0.stats.accessed(time::now()),
            Counts::Nothing => {}
        }
        self.0.client.complete(request, result);
    }

    // On the path of every request, and once more on a cold one.
    #[inline(always)]
    pub(super) fn wake_ended(&self) {
        if !self.0.ended.borrow().is_empty() {
            for waker in self.0.ended.borrow_mut().drain(..) {
                waker.wake();
            }
        }
    }

    fn held(&self, slot: SlotId, failed: Failed) {
        let inner = &*self.0;
        inner.stats.held();
        let blockers = inner.backend.blockers();
        blockers.insert(inner.id, failed.order, failed.request);
        inner.notices.failed(slot, failed);
        self.provide_entries();
    }

    /// Counts the time that a request took, and that it was an access. The clock is read once a
    /// round, at its beginning; after what was answered at once also at its end.
    #[inline(always)]
    fn account(&self, op: Operation, started: StartedAt) {
        let inner = &self.0;
        match started {
            StartedAt::Earlier(started) => inner.stats.took(op, started, time::now()),
            StartedAt::ThisRound => {
                if inner.round.is_empty() {
                    inner.round.begin(time::now());
                    iothread::defer(Rc::clone(inner) as Rc<dyn Deferred>);
                }
                inner.round.add(op);
            }
        }
    }
}

impl Deferred for Inner {
    fn run(&self) {
        self.stats.settle(&self.round, time::refresh());
    }
}
