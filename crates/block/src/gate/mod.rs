//! The gate: what may start, what waits and what is held, for one backend on one iothread.
//!
//! Pure: no I/O, no clock, no messages. [`crate::LocalBackend`] drives it with real requests, the
//! model test with imagined ones. Everything that must happen "at once" at a failure (hold, freeze,
//! number the failure) happens inside [`Gate::finish`], so nothing can come between.
//!
//! **The gate owns the truth about what is held.** All else are copies, which follow it by messages and
//! calls of its part: who on other iothreads has to wait ([`overlap`]), since when a request is held
//! (the notices of `local`), and what queries show and incidents last by (run control's
//! [`BackendState`](crate::run_control::BackendState)). Where one of them differs, the gate is right.
//!
//! As long as nothing fails it costs next to nothing: a request that may start at once gets no place
//! in the table, and whether it may is one flag (`Gate::clear`).

mod freeze;
pub mod line;
mod lost;
pub mod overlap;
mod parking;
mod range_index;
mod removal;
mod slots;
#[cfg(test)]
mod tests;
mod ticket;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use crate::gate::line::{Line, SlotId};
use crate::words::error_policy::{Action, Policy};
use crate::words::hold_scope::HoldScope;
use crate::words::request::Request;

use freeze::Freeze;
use slots::{Place, Slot, SlotState, Slots};
use watch::Started;

pub use lost::Lost;
pub use ticket::{Admission, ClientError, HeldRequest, Outcome, Removed, Ticket, Verdict};

/// Whether this build has no gate: everything starts at once and ends as it ends, whatever the policy
/// says. Only for the benchmark of what policy costs; no such build is ever installed.
const BYPASS: bool = cfg!(standfast_bypass);

#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    stopped: bool,
    in_flight: u32,
}

/// What waits or is held of one queue, by arrival number.
type Members = BTreeMap<u64, SlotId>;

/// The state machine of one backend on one iothread.
#[derive(Debug)]
pub struct Gate {
    policy: Policy,
    scope: HoldScope,
    generation: u64,
    freeze: Freeze,
    /// The number of its watch for lost tickets; 0: there is none.
    watch: u32,
    /// [`Self::looks_clear`], kept up to date by whoever changes what it looks at.
    clear: bool,
    last_seq: u64,
    next_order: u64,
    queues: Vec<Queue>,
    slots: Slots,
    /// By queue.
    members: Vec<Members>,
    /// What is held, by the number of its failure.
    held: BTreeSet<(u64, SlotId)>,
    line: Line,
    /// What waits behind something on another iothread, by arrival number.
    elsewhere: BTreeMap<u64, SlotId>,
}

impl Gate {
    /// A gate for `queues` queues, frozen until run control says how things are.
    pub fn new(policy: Policy, scope: HoldScope, queues: u16) -> Self {
        Self {
            policy,
            scope,
            generation: 0,
            freeze: Freeze::until_told(),
            watch: 0,
            clear: false,
            last_seq: 0,
            next_order: 0,
            queues: vec![Queue::default(); usize::from(queues)],
            slots: Slots::default(),
            members: vec![Members::new(); usize::from(queues)],
            held: BTreeSet::new(),
            line: Line::new(queues),
            elsewhere: BTreeMap::new(),
        }
    }

    /// From now on `requests` at once can wait without the table growing for them.
    pub fn reserve(&mut self, requests: usize) {
        self.slots.reserve(requests);
    }

    /// Whether nothing new may be taken from a queue.
    pub fn is_frozen(&self) -> bool {
        self.freeze.is_frozen()
    }

    /// Whether a new request may be taken from `queue`.
    pub fn may_pop(&self, queue: u16) -> bool {
        !self.queue(queue).stopped && (BYPASS || self.is_clear() || !self.is_frozen())
    }

    /// Takes a request in. `elsewhere(order, request)` says whether it has to wait for one of the
    /// same backend on another iothread ([`crate::gate::overlap`]), and if so takes note of it: when it may
    /// be its turn, the gate is told ([`Self::recheck`]).
    #[inline]
    pub fn admit(
        &mut self,
        request: Request,
        elsewhere: impl FnMut(u64, &Request) -> bool,
    ) -> Admission {
        let order = self.next_order;
        let admission = if BYPASS || self.may_start_new(&request, order, elsewhere) {
            Admission::Start(self.start(request, order, None))
        } else {
            self.park(request, order);
            Admission::Parked
        };
        self.next_order += 1;
        admission
    }

    #[cold]
    fn park(&mut self, request: Request, order: u64) {
        self.wait(Slot::new(SlotState::Parked, request, order));
        self.update_clear();
    }

    /// Gives a request a place, and puts it in the line.
    fn wait(&mut self, slot: Slot) {
        let id = self.slots.insert(slot);
        self.members_mut(slot.request.tag.queue)
            .insert(slot.order, id);
        self.line.insert(slot.turn(id));
    }

    /// Takes in a request that the client hands back: it was in flight or held when a former daemon
    /// ended. It may have been executed, so it counts as released from a hold: it goes ahead of
    /// what is new, and what would overwrite it waits. Returns its arrival number.
    pub fn take_up(&mut self, request: Request) -> u64 {
        let order = self.next_order;
        self.next_order += 1;
        self.wait(Slot::new(SlotState::Released, request, order));
        self.update_clear();
        order
    }

    /// The next waiting request whose turn has come: first what was released, oldest first, then
    /// what was parked. `elsewhere` as in [`Self::admit`].
    pub fn next_ready(
        &mut self,
        mut elsewhere: impl FnMut(u64, &Request) -> bool,
    ) -> Option<Ticket> {
        if self.is_frozen() {
            return None;
        }
        loop {
            let turn = self.line.pop()?;
            let (order, slot) = (turn.order, turn.slot);
            let request = self.slots.get(slot).request;
            let queue = request.tag.queue;
            if self.queue(queue).stopped {
                self.line.set_aside(queue, turn);
                continue;
            }
            if request.op.modifies() {
                let front = self.slots.in_front_of(&request, order, !turn.parked);
                if let Some(front) = front {
                    self.slots.set_place(slot, Place::Behind(front));
                    continue;
                }
                if elsewhere(order, &request) {
                    self.slots.set_place(slot, Place::Elsewhere);
                    self.elsewhere.insert(order, slot);
                    continue;
                }
            }
            self.members_mut(queue).remove(&order);
            let kept = (!turn.parked).then_some(slot);
            if kept.is_some() {
                self.slots.set_state(slot, SlotState::Replayed);
            } else {
                self.give_place_back(slot);
            }
            self.update_clear();
            return Some(self.start(request, order, kept));
        }
    }

    /// What the request with arrival number `order` waited behind on another iothread has ended: it
    /// may be its turn.
    pub fn recheck(&mut self, order: u64) {
        // It may have been dropped meanwhile.
        if let Some(slot) = self.elsewhere.remove(&order) {
            self.slots.set_place(slot, Place::Line);
            self.line.insert(self.slots.get(slot).turn(slot));
        }
    }

    /// Takes note of how an executed request ended, and says what to do about it.
    pub fn finish(&mut self, ticket: Ticket, outcome: Outcome) -> Verdict {
        if self.is_plain(&ticket, outcome) {
            self.finish_plain(ticket);
            return Verdict::Complete {
                result: outcome.result(),
                reported: None,
                was_held: None,
            };
        }
        let ticket = ticket.give_up();
        let started = ticket.started();
        if !started.parked {
            self.queue_mut(started.request.tag.queue).in_flight -= 1;
        }
        let verdict = self.judge(started, outcome);
        self.update_clear();
        verdict
    }

    /// Whether there is nothing to decide about a request that has ended, and nobody whose turn
    /// could have come: it did what it should, has never been held, no reset came between, and
    /// nothing waits.
    #[inline]
    pub fn is_plain(&self, ticket: &Ticket, outcome: Outcome) -> bool {
        let Started {
            generation, slot, ..
        } = *ticket.started();
        let plain = || outcome == Outcome::Ok && slot.is_none() && generation == self.generation;
        BYPASS || (plain() && self.is_clear())
    }

    /// As [`Self::finish`], for a request that [`Self::is_plain`]: it has to be completed.
    #[inline]
    pub fn finish_plain(&mut self, ticket: Ticket) {
        debug_assert!(BYPASS || self.is_plain(&ticket, Outcome::Ok));
        debug_assert!(!ticket.is_parked(), "it has gone on before it ends");
        let queue = ticket.give_up().request().tag.queue;
        self.queue_mut(queue).in_flight -= 1;
    }

    /// What becomes of a request that [`Self::is_plain`] does not vouch for.
    fn judge(&mut self, started: &Started, outcome: Outcome) -> Verdict {
        let direction = started.request.op.direction();
        let action = match outcome {
            _ if started.generation != self.generation => {
                self.give_back(started);
                return Verdict::Dropped;
            }
            Outcome::MemoryMoves => {
                self.freeze.memory_moves();
                self.put_back(started);
                return Verdict::PutBack;
            }
            Outcome::TakenBack => {
                self.put_back(started);
                return Verdict::PutBack;
            }
            Outcome::Error(cause) => Some((self.policy.action(direction, cause), cause)),
            Outcome::Ok | Outcome::GuestFault => None,
        };
        let result = match action {
            Some((Action::Stop, cause)) => {
                self.last_seq += 1;
                let seq = self.last_seq;
                let slot = self.hold(started, seq);
                return Verdict::Held { slot, seq, cause };
            }
            Some((Action::Ignore, _)) => Ok(()),
            Some((Action::Report, _)) | None => outcome.result(),
        };
        self.give_back(started);
        Verdict::Complete {
            result,
            reported: action,
            was_held: started.slot,
        }
    }

    /// It has not been executed, and waits as before.
    fn put_back(&mut self, started: &Started) {
        let (request, order) = (started.request, started.order);
        let Some(slot) = started.slot else {
            return self.wait(Slot::new(SlotState::Parked, request, order));
        };
        self.slots.set_state(slot, SlotState::Released);
        self.members_mut(request.tag.queue).insert(order, slot);
        self.line.insert(self.slots.get(slot).turn(slot));
    }

    fn give_back(&mut self, started: &Started) {
        if let Some(slot) = started.slot {
            self.give_place_back(slot);
        }
    }

    fn give_place_back(&mut self, slot: SlotId) {
        let line = &mut self.line;
        self.slots.free(slot, |turn| line.insert(turn));
    }

    /// From here on the request waits for a release, at its old place in the order.
    fn hold(&mut self, started: &Started, seq: u64) -> SlotId {
        let (state, order) = (SlotState::Held { seq }, started.order);
        let request = started.request;
        let slot = if let Some(slot) = started.slot {
            self.slots.set_state(slot, state);
            slot
        } else {
            self.slots.insert(Slot::new(state, request, order))
        };
        self.members_mut(request.tag.queue).insert(order, slot);
        self.held.insert((seq, slot));
        if self.scope != HoldScope::Request {
            self.freeze.by_failure();
        }
        slot
    }

    /// Run control froze all backends. False: an older epoch, ignored.
    pub fn freeze(&mut self, epoch: u64) -> bool {
        let counts = self.freeze.freeze(epoch);
        self.update_clear();
        counts
    }

    /// Run control froze this backend, because it failed on another iothread.
    pub fn freeze_backend(&mut self, epoch: u64) -> bool {
        let counts = self.freeze.freeze_backend(epoch);
        self.update_clear();
        counts
    }

    /// Run control knows of nothing that is held in any part of this backend: the freeze ends, unless
    /// something has failed here meanwhile. False: an older epoch, ignored.
    pub fn thaw_backend(&mut self, epoch: u64) -> bool {
        let counts = self.freeze.thaw_backend(epoch);
        self.update_clear();
        counts
    }

    /// Run control released all backends: what failed up to `upto` goes on; what failed later
    /// stays held, and with it the freeze. False: an older epoch, ignored.
    pub fn release(&mut self, epoch: u64, upto: u64) -> bool {
        let counts = self.freeze.release(epoch);
        if counts {
            self.release_upto(upto);
        }
        counts
    }

    /// As [`Self::release`], of this backend alone: a freeze of all stays.
    pub fn release_backend(&mut self, epoch: u64, upto: u64) -> bool {
        let counts = self.freeze.release_backend(epoch);
        if counts {
            self.release_upto(upto);
        }
        counts
    }

    /// From now on requests whose tickets are dropped are found again, until [`Self::end_watch`].
    pub fn watch(&mut self) -> Lost {
        let (lost, watch) = Lost::watch();
        self.watch = watch;
        lost
    }

    /// Nobody looks for lost requests any more.
    pub fn end_watch(&mut self) {
        watch::end(std::mem::take(&mut self.watch));
    }

    /// From now on `policy` judges failures. What is held stays held until it is released.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Starts nothing any more until [`Self::drain_end`]; may be nested.
    pub fn drain_begin(&mut self) {
        self.freeze.drain_begin();
        self.update_clear();
    }

    /// Ends one [`Self::drain_begin`].
    pub fn drain_end(&mut self) {
        self.freeze.drain_end();
        self.update_clear();
    }

    /// Starts nothing any more until [`Self::memory_settled`].
    pub fn memory_moves(&mut self) {
        self.freeze.memory_moves();
        self.update_clear();
    }

    /// The client's memory is as it is going to be.
    pub fn memory_settled(&mut self) {
        self.freeze.memory_settled();
        self.update_clear();
    }

    /// Starts nothing of `queue` any more. What waits keeps waiting.
    pub fn stop_queue(&mut self, queue: u16) {
        self.queue_mut(queue).stopped = true;
    }

    /// Takes `queue` up again.
    pub fn start_queue(&mut self, queue: u16) {
        self.queue_mut(queue).stopped = false;
        self.line.start(queue);
    }

    /// Whether `queue` is stopped.
    pub fn is_stopped(&self, queue: u16) -> bool {
        self.queue(queue).stopped
    }

    /// Requests in flight; held and parked ones are not, those that are parked in the driver neither.
    pub fn in_flight(&self) -> u32 {
        self.queues.iter().map(|queue| queue.in_flight).sum()
    }

    /// Requests of `queue` in flight.
    pub fn queue_in_flight(&self, queue: u16) -> u32 {
        self.queue(queue).in_flight
    }

    /// The current generation of the device.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Held requests, by the number of their failure.
    pub fn held(&self) -> impl Iterator<Item = HeldRequest> + '_ {
        self.held.iter().map(|&(seq, slot)| {
            let slot = self.slots.get(slot);
            HeldRequest {
                request: slot.request,
                seq,
                order: slot.order,
            }
        })
    }

    /// Requests that wait for their turn: parked, or released and not yet started.
    pub fn waiting(&self) -> impl Iterator<Item = Request> + '_ {
        let waits = |slot: &Slot| matches!(slot.state, SlotState::Parked | SlotState::Released);
        let waiting = self.slots.iter().filter(move |(_, slot)| waits(slot));
        waiting.map(|(_, slot)| slot.request)
    }

    /// The request among the held and the waiting ones that ends last: a node must not become
    /// shorter than that.
    pub fn furthest(&self) -> Option<Request> {
        let held = self.held().map(|held| held.request);
        held.chain(self.waiting()).max_by_key(Request::end)
    }

    /// Number of requests that have a place in the table: those that wait, and those that are in
    /// flight again after a hold.
    pub fn slots_in_use(&self) -> usize {
        self.slots.in_use()
    }

    fn start(&mut self, request: Request, order: u64, slot: Option<SlotId>) -> Ticket {
        self.queue_mut(request.tag.queue).in_flight += 1;
        Ticket::new(Started {
            request,
            order,
            // What waits is of this generation: a reset drops it.
            generation: self.generation,
            slot,
            parked: false,
            gate: self.watch,
        })
    }

    /// Whether a request waits for its turn.
    #[inline]
    pub fn has_waiting(&self) -> bool {
        !BYPASS && !self.is_clear() && self.slots.waiting() > 0
    }

    /// Whether nothing keeps a request of a queue that is not stopped from starting, unless it is
    /// something elsewhere: nothing is frozen, waits, is held or is replayed.
    fn looks_clear(&self) -> bool {
        !self.is_frozen() && self.slots.is_empty()
    }

    fn is_clear(&self) -> bool {
        debug_assert_eq!(self.clear, self.looks_clear(), "{self:?}");
        self.clear
    }

    fn update_clear(&mut self) {
        self.clear = self.looks_clear();
    }

    /// Whether a request that has just come may start. Behind those that wait it waits too.
    #[inline]
    fn may_start_new(
        &self,
        request: &Request,
        order: u64,
        mut elsewhere: impl FnMut(u64, &Request) -> bool,
    ) -> bool {
        if !self.is_clear() || self.queue(request.tag.queue).stopped {
            return self.may_start_among_others(request, order, elsewhere);
        }
        // In this order: mostly there is nothing elsewhere.
        !(elsewhere(order, request) && request.op.modifies())
    }

    #[cold]
    fn may_start_among_others(
        &self,
        request: &Request,
        order: u64,
        mut elsewhere: impl FnMut(u64, &Request) -> bool,
    ) -> bool {
        if !self.may_pop(request.tag.queue) || self.has_waiting() {
            return false;
        }
        // Whether an older request that is held or replayed overlaps this one. Were it overtaken,
        // the replay would bring old data back over newer.
        !request.op.modifies()
            || (self.slots.in_front_of(request, order, false).is_none()
                && !elsewhere(order, request))
    }

    fn release_upto(&mut self, upto: u64) {
        while let Some(&(seq, slot)) = self.held.first()
            && seq <= upto
        {
            self.held.pop_first();
            self.slots.set_state(slot, SlotState::Released);
            self.line.insert(self.slots.get(slot).turn(slot));
        }
        self.thaw_if_nothing_held();
        self.update_clear();
    }

    fn thaw_if_nothing_held(&mut self) {
        if self.held.is_empty() {
            self.freeze.nothing_held();
        }
    }

    fn queue(&self, queue: u16) -> &Queue {
        &self.queues[usize::from(queue)]
    }

    fn members_mut(&mut self, queue: u16) -> &mut Members {
        &mut self.members[usize::from(queue)]
    }

    fn queue_mut(&mut self, queue: u16) -> &mut Queue {
        &mut self.queues[usize::from(queue)]
    }
}
