//! A backend's part on one iothread: executes requests and applies what the gate decides.
//!
//! The room: what the export has to do for it (`client`), a request's way to the driver and back
//! (`dispatch`), what waits for the driver (`worker`, `busy`, `in_flight`) or in it (`parking`), what run
//! control is told (`hold_notices`, `reporter`), how it opens (`opening`) and ends (`end`), what drivers write on their own
//! (`write_back`).

mod busy;
mod client;
mod dispatch;
mod end;
mod hold_notices;
mod in_flight;
mod opening;
mod parking;
mod reporter;
mod worker;
mod write_back;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Instant, SystemTime};

use iothread::mailbox::{self, Receiver, Sender};
use iothread::time;

use crate::backend::Backend;
use crate::backend::connection::Connection;
use crate::control::accounting::{Counts, LocalStats, Round};
use crate::control::inbox::Message;
use crate::control::run_control::{GateMessage, LocalMessage, Resolved, Restored};
use crate::driver::node::Node;
use crate::driver::threads::Attachment;
use crate::gate::line::SlotId;
use crate::gate::{Admission, ClientError, Gate, Lost, Outcome, Removed};
use crate::words::error::Cause;
use crate::words::ids::LocalId;
use crate::words::incident::HoldEnd;
use crate::words::request::{Operation, Request};

use self::busy::Busy;
use self::hold_notices::HoldNotices;
use self::opening::Opening;
use self::reporter::Reporter;
use self::worker::Worker;

pub use self::client::{Client, Unmapped};

/// When a request that has ended was given to the driver.
#[derive(Clone, Copy)]
enum StartedAt {
    Earlier(Instant),
    /// The driver has answered at once.
    ThisRound,
}

struct Inner {
    backend: Arc<Backend>,
    id: LocalId,
    client: Rc<dyn Client>,
    /// Where requests go; workers have it, too.
    node: RefCell<Arc<Node>>,
    /// Until nothing is in flight any more.
    attachment: RefCell<Option<Attachment>>,
    gate: RefCell<Gate>,
    /// The node that the failure comes from which is judged next, without a pause in between: what the outcome, which the gate takes,
    /// has no room for.
    failed_node: Cell<Option<Arc<str>>>,
    idle_workers: RefCell<Vec<Rc<Worker>>>,
    /// All workers, those that are busy included.
    workers: RefCell<Vec<Rc<Worker>>>,
    /// Those that are, by place: that of the first worker is 1.
    busy: RefCell<Busy>,
    /// Those whose request is parked in the driver, by place too.
    parked: RefCell<Busy>,
    /// Woken whenever a request ends.
    ended: RefCell<Vec<Waker>>,
    /// Its client has it.
    open: Cell<bool>,
    /// It takes nothing any more.
    closed: Cell<bool>,
    /// Nothing is left of it.
    gone: Cell<bool>,
    /// Drivers write back when nothing is in flight any more.
    will_write_back: Cell<bool>,
    /// Whether somebody is in the loop of [`LocalBackend::start_ready`].
    starting: Cell<bool>,
    /// How many there may be at once.
    requests: Cell<usize>,
    stats: Arc<LocalStats>,
    /// What has been answered at once in this round.
    round: Round,
    control: Sender<Message>,
    notices: HoldNotices,
    reporter: Reporter,
}

/// A backend on one iothread. Clones are the same part.
#[derive(Clone)]
pub struct LocalBackend(Rc<Inner>);

impl fmt::Debug for LocalBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalBackend")
            .field("device", self.0.backend.device())
            .field("gate", &self.0.gate)
            .finish_non_exhaustive()
    }
}

impl LocalBackend {
    /// Opens a part of `connection` on the calling iothread, for `queues` queues (numbered from 0).
    /// Whatever is frozen or drained at the moment, it is too. None: the daemon or the connection ends.
    ///
    /// It keeps `client` until nothing of it is in flight any more; a client that keeps the part has to
    /// let it go at the end.
    pub async fn open(
        connection: &Connection,
        client: Rc<dyn Client>,
        queues: u16,
    ) -> Option<Self> {
        let backend = connection.backend();
        let control = backend.control();
        let id = control.fresh_local();
        let (sender, mut receiver) = mailbox::channel();
        let drains = backend.add_local(connection.id(), id, sender.clone())?;
        let mut gate = Gate::new(backend.policy(), backend.scope(), queues);
        (0..drains).for_each(|_| gate.drain_begin());
        let node = backend.node();
        let inner = Rc::new(Inner {
            backend: Arc::clone(backend),
            id,
            client,
            node: RefCell::new(Arc::clone(&node)),
            attachment: RefCell::new(Some(Attachment::new(&node))),
            gate: RefCell::new(gate),
            failed_node: Cell::default(),
            idle_workers: RefCell::default(),
            workers: RefCell::default(),
            busy: RefCell::default(),
            parked: RefCell::default(),
            ended: RefCell::default(),
            open: Cell::new(false),
            closed: Cell::new(false),
            gone: Cell::new(false),
            will_write_back: Cell::new(false),
            starting: Cell::new(false),
            requests: Cell::new(0),
            round: Round::default(),
            stats: backend.accounting().register(),
            control: control.sender().clone(),
            notices: HoldNotices::new(control.sender().clone()),
            reporter: Reporter::new(control.sender().clone()),
        });
        let this = Self(inner);
        let opening = Opening::new(backend, id, &this.0.stats);
        let of = backend.id();
        let known = control
            .call(move |state, wiring| {
                wiring.add_local(id, sender);
                state.add_local(of, id, wiring).is_ok()
            })
            .await;
        if known != Some(true) {
            return None;
        }
        opening.done();
        // Before the first request: what run control has told it begins with a reset.
        while let Some(message) = receiver.try_recv() {
            this.take(message);
        }
        this.0.open.set(true);
        iothread::spawn_local(this.clone().serve(receiver)).detach();
        let lost = this.0.gate.borrow_mut().watch();
        iothread::spawn_local(this.clone().recover(lost)).detach();
        Some(this)
    }

    /// From now on there may be `more` requests at once than before. Those of a queue are announced
    /// before its first one: what waits is then not allocated for.
    pub fn expect(&self, more: usize) {
        let requests = self.0.requests.get().saturating_add(more);
        self.0.requests.set(requests);
        self.0.gate.borrow_mut().reserve(requests);
    }

    /// Whether a new request may be taken from `queue` now. If not, [`Client::resume`] is called
    /// when it may.
    pub fn may_pop(&self, queue: u16) -> bool {
        self.0.gate.borrow().may_pop(queue)
    }

    /// Takes a request in: executes it now, or parks it until its turn comes.
    ///
    /// The client has checked its form; whether the range exists is checked here, at each
    /// submission, because the node may be resized meanwhile.
    ///
    /// From a queue that is stopped nothing new is taken: what comes from there is handed back by a
    /// client, and was in flight or held when a former daemon ended. Run control is told of it,
    /// because nobody knows which of the two it was.
    pub fn submit(&self, request: Request) {
        let admission = {
            let mut gate = self.0.gate.borrow_mut();
            if gate.is_stopped(request.tag.queue) {
                drop(gate);
                return self.take_up(request);
            }
            gate.admit(request, self.elsewhere())
        };
        match admission {
            Admission::Start(ticket) => self.dispatch(ticket),
            Admission::Parked if self.0.closed.get() => self.drop_waiting(),
            Admission::Parked => {
                self.provide_entries();
                self.start_ready();
            }
        }
    }

    #[cold]
    fn take_up(&self, request: Request) {
        let inner = &*self.0;
        if inner.closed.get() {
            inner.gate.borrow_mut().take_up(request);
            return self.drop_waiting();
        }
        let (order, generation) = {
            let mut gate = inner.gate.borrow_mut();
            (gate.take_up(request), gate.generation())
        };
        self.provide_entries();
        inner.backend.blockers().insert(inner.id, order, request);
        let restored = Restored {
            backend: inner.backend.id(),
            local: inner.id,
            generation,
            order,
            request,
            at: SystemTime::now(),
        };
        // Not in an entry: the slot's may be needed before this one has been received. If nobody
        // receives any more, the daemon ends.
        let _ = inner.control.send(Message::Restored(restored));
    }

    /// A request that made no sense was refused by the client itself: counts it.
    pub fn invalid(&self, op: Operation) {
        if self.0.stats.invalid(op) == Counts::Access {
            self.0.stats.accessed(time::now());
        }
    }

    /// Starts nothing of `queue` any more and waits until nothing of it is in flight. What waits
    /// keeps waiting, in the driver too.
    pub async fn stop_queue(&self, queue: u16) {
        self.suspend_queue(queue);
        self.settle_queue(queue).await;
    }

    /// Starts nothing of `queue` any more. What is in flight ends as ever.
    pub fn suspend_queue(&self, queue: u16) {
        self.0.gate.borrow_mut().stop_queue(queue);
        self.take_back_parked();
    }

    /// Waits until nothing of `queue` is in flight.
    pub async fn settle_queue(&self, queue: u16) {
        self.until(|gate| gate.queue_in_flight(queue) == 0).await;
    }

    /// Takes `queue` up again.
    pub fn start_queue(&self, queue: u16) {
        self.0.gate.borrow_mut().start_queue(queue);
        self.pump();
    }

    /// The client is changing its memory, and needs what is not there at the moment: nothing is taken
    /// or started before [`Self::memory_settled`].
    pub fn memory_moves(&self) {
        self.0.gate.borrow_mut().memory_moves();
        self.take_back_parked();
    }

    /// What could not be started for want of memory is tried again. What is parked in the driver looks its
    /// buffers up again: it may wait for long.
    pub fn memory_settled(&self) {
        self.take_back(|_| true);
        self.0.gate.borrow_mut().memory_settled();
        self.pump();
    }

    /// Drops the waiting requests of `queue` whose head `keep` does not accept.
    pub fn retain(&self, queue: u16, keep: impl FnMut(u16) -> bool) {
        let removed = self.0.gate.borrow_mut().retain(queue, keep);
        self.forget(&removed, HoldEnd::NoRecord);
        self.pump();
    }

    /// What becomes of requests that were lost here, which is a mistake in the daemon: they have
    /// failed, and policy decides. What was begun of them may still go on.
    async fn recover(self, lost: Lost) {
        while let Some(ticket) = poll_fn(|cx| lost.poll_next(cx)).await {
            let request = *ticket.request();
            tracing::error!(
                device = %self.0.backend.device(),
                "a {} of {} bytes at offset {} was lost in the daemon: a bug, please report it; it \
                 counts as failed with EIO",
                request.op,
                request.bytes,
                request.offset
            );
            self.0.stats.lost();
            self.0.client.unmap(&request);
            let outcome = Outcome::Error(Cause::of_errno(libc::EIO));
            self.finish(ticket, outcome, StartedAt::ThisRound);
        }
    }

    async fn serve(self, mut receiver: Receiver<LocalMessage>) {
        while let Some(message) = receiver.recv().await {
            self.take(message);
        }
    }

    fn take(&self, message: LocalMessage) {
        match message {
            LocalMessage::Gate(message) => self.obey(message),
            LocalMessage::DrainBegin { done } => {
                self.0.gate.borrow_mut().drain_begin();
                self.take_back_parked();
                let this = self.clone();
                // Beside the messages: others must not wait for the drain.
                iothread::spawn_local(async move {
                    this.until(|gate| gate.in_flight() == 0).await;
                    this.write_back().await;
                    if let Some(furthest) = this.0.gate.borrow().furthest() {
                        // Whoever drains has stopped waiting: nobody to tell.
                        let _ = done.send(furthest);
                    }
                })
                .detach();
            }
            LocalMessage::Recheck => {
                for order in self.0.backend.blockers().take_woken(self.0.id) {
                    self.0.gate.borrow_mut().recheck(order);
                }
                self.start_ready();
            }
            LocalMessage::DrainEnd => {
                self.follow_graph();
                self.0.gate.borrow_mut().drain_end();
                self.pump();
            }
            LocalMessage::GraphChanged { done } => {
                self.follow_graph();
                // Behind the tasks of the workers that end by that: they still have the former node.
                iothread::spawn_local(async move { drop(done) }).detach();
            }
            LocalMessage::Busy { most, reply } => {
                // Whoever has asked may have stopped waiting.
                let _ = reply.send(self.busy_part(most));
            }
            LocalMessage::End { done } => self.end_for(done),
        }
    }

    /// Other nodes may be in use than before the drain: what goes there is attached to them first.
    fn follow_graph(&self) {
        let node = self.0.backend.node();
        if let Some(attachment) = &mut *self.0.attachment.borrow_mut() {
            attachment.update(&node);
        }
        self.take_node();
    }

    /// Another node may have taken the root's place while this was drained. What is in flight all the
    /// same ends where it is.
    fn take_node(&self) {
        let node = self.0.backend.node();
        if Arc::ptr_eq(&node, &self.0.node.borrow()) {
            return;
        }
        *self.0.node.borrow_mut() = node;
        let idle = std::mem::take(&mut *self.0.idle_workers.borrow_mut());
        for worker in idle {
            self.renew(&worker);
        }
    }

    fn obey(&self, message: GateMessage) {
        let mut gate = self.0.gate.borrow_mut();
        if self.0.closed.get() {
            return;
        }
        match message {
            GateMessage::Freeze { epoch } => {
                if gate.freeze(epoch) {
                    self.begin_write_back();
                }
            }
            GateMessage::FreezeBackend { epoch } => {
                gate.freeze_backend(epoch);
            }
            GateMessage::ThawBackend { epoch } => {
                gate.thaw_backend(epoch);
            }
            GateMessage::Release { epoch, upto } => {
                gate.release(epoch, upto);
            }
            GateMessage::ReleaseBackend { epoch, upto } => {
                gate.release_backend(epoch, upto);
            }
            GateMessage::SetPolicy(policy) => gate.set_policy(policy),
            GateMessage::Reset { generation } => {
                drop(gate);
                self.take_back(|_| true);
                let removed = self.0.gate.borrow_mut().reset(generation);
                self.forget(&removed, HoldEnd::Reset);
                self.pump();
                return;
            }
            GateMessage::FailHeldFlushes => {
                drop(gate);
                // Those that are tried again and parked have been held, too.
                self.take_back(|_| true);
                let removed = self.0.gate.borrow_mut().take_held_flushes();
                self.0.stats.accessed(time::now());
                for entry in &removed {
                    self.0.stats.failed(entry.request.op);
                    self.unblock(entry.order);
                    self.resolve(entry.slot, entry.order, HoldEnd::LossAccepted);
                    self.give_up(entry.slot);
                    let error = ClientError::Io(Cause::of_errno(libc::EIO));
                    self.0.client.complete(&entry.request, Err(error));
                }
                self.pump();
                return;
            }
        }
        drop(gate);
        self.take_back_parked();
        self.pump();
    }

    /// Starts everything whose turn has come, and lets new requests in if nothing is frozen.
    fn pump(&self) {
        self.start_ready();
        if self.0.open.get() && !self.0.gate.borrow().is_frozen() {
            self.0.client.resume();
        }
    }

    fn start_ready(&self) {
        // A request that ends at once lets others start: whoever is in the loop already does it.
        if self.0.starting.replace(true) {
            return;
        }
        loop {
            let next = self.0.gate.borrow_mut().next_ready(self.elsewhere());
            let Some(ticket) = next else { break };
            self.dispatch(ticket);
        }
        self.0.starting.set(false);
    }

    /// Whether a request has to wait for one of the same backend on another iothread.
    fn elsewhere(&self) -> impl FnMut(u64, &Request) -> bool {
        let inner = &*self.0;
        move |order, request| inner.backend.blockers().blocks(inner.id, order, request)
    }

    /// A request has ended that was held or has waited: what waited behind it elsewhere may go on.
    fn unblock(&self, order: u64) {
        self.0.backend.unblock(self.0.id, order);
    }

    fn resolve(&self, slot: SlotId, order: u64, end: HoldEnd) {
        let resolved = Resolved {
            backend: self.0.backend.id(),
            local: self.0.id,
            generation: self.0.gate.borrow().generation(),
            order,
            end,
        };
        self.0.notices.resolved(slot, resolved);
    }

    /// What was waiting in these slots is gone without having been executed to its end.
    fn forget(&self, removed: &[Removed], end: HoldEnd) {
        for entry in removed {
            self.unblock(entry.order);
            // Of a part that has ended run control forgets all at once.
            if entry.was_held && !self.0.closed.get() {
                self.resolve(entry.slot, entry.order, end);
            }
            self.give_up(entry.slot);
            self.0.stats.dropped();
            self.0.client.dropped(&entry.request);
        }
    }

    fn give_up(&self, slot: SlotId) {
        if let Some(since) = self.0.notices.given_up(slot) {
            self.0.stats.unheld(since.elapsed());
        }
    }

    /// Provides entries for every request that has a slot of the gate, and for every one in flight,
    /// which gets a slot when it fails.
    fn provide_entries(&self) {
        let slots = self.0.gate.borrow().slots_in_use();
        let workers = self.0.workers.borrow().len();
        self.0.notices.provide(slots + workers);
    }

    /// Waits until `condition` holds; asked again whenever a request ends.
    async fn until(&self, condition: impl Fn(&Gate) -> bool) {
        poll_fn(|cx| {
            if condition(&self.0.gate.borrow()) {
                return Poll::Ready(());
            }
            self.0.ended.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests;
