//! The gate: what may start, what waits and what is held, for one backend on one iothread.
//!
//! Pure: no I/O, no clock, no messages. [`crate::LocalBackend`] drives it with real requests, the
//! model test with imagined ones. Everything that must happen "at once" at a failure (hold, freeze,
//! number the failure) happens inside [`Gate::finish`], so nothing can come between.

use crate::error::Cause;
use crate::error_policy::{Action, Policy};
use crate::hold::{SlotId, WaitList, Waiting};
use crate::request::{Operation, Request, Tag};

/// What a *stop* error freezes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum HoldScope {
    /// All exports; the run state becomes `io-error`.
    #[default]
    Vm,
    /// This export only.
    Device,
    /// Nothing: only what failed waits, and what would overwrite it.
    Request,
}

impl HoldScope {
    /// The word of the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Device => "device",
            Self::Request => "request",
        }
    }
}

/// Permission to execute a request, and the duty to tell the gate how it ended.
///
/// Dropping it would lose the request: [`Gate::finish`] consumes it.
#[must_use]
#[derive(Debug)]
pub struct Ticket {
    slot: SlotId,
    request: Request,
    was_held: bool,
    finished: bool,
}

impl Ticket {
    /// The request to execute.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Its place in the gate's table.
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// Whether it has been held before.
    pub fn was_held(&self) -> bool {
        self.was_held
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // While a panic unwinds, a second one would hide the first.
        if !std::thread::panicking() {
            debug_assert!(
                self.finished,
                "request {:?} was dropped, its client waits",
                self.request
            );
        }
    }
}

/// What becomes of a request that was admitted.
#[derive(Debug)]
pub enum Admission {
    /// Execute it now.
    Start(Ticket),
    /// It waits; [`Gate::next_ready`] yields it when its turn comes.
    Parked,
}

/// How an executed request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it should.
    Ok,
    /// The storage failed it: policy decides.
    Error(Cause),
    /// The client asked for what cannot be done (out of range, memory gone): always reported.
    GuestFault,
}

/// What to do about a request that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Complete it to the client: with success, or with an error.
    Complete {
        /// The result the client sees.
        result: Result<(), Fault>,
        /// The action of the policy, if it failed in storage: an event tells of it.
        reported: Option<(Action, Cause)>,
        /// Whether run control knows it as held and has to be told that it is not any more.
        was_held: bool,
    },
    /// Tell run control; the client learns nothing.
    Held {
        /// Number of the failure within backend and iothread.
        seq: u64,
        /// Why it failed.
        cause: Cause,
    },
    /// The device was reset meanwhile: the client must learn nothing, ever.
    Dropped,
}

/// The error that a client sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Storage failed.
    Io(Cause),
    /// The client's own fault.
    Guest,
}

/// A request that has left the gate without having been executed to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its place.
    pub slot: SlotId,
    /// Its arrival number.
    pub order: u64,
    /// The request.
    pub request: Request,
    /// Whether run control knows it as held.
    pub was_held: bool,
}

/// A held request, as [`Gate::held`] shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldRequest {
    /// The request.
    pub request: Request,
    /// Number of its latest failure.
    pub seq: u64,
    /// Its arrival number.
    pub order: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Popped, not started.
    Parked,
    /// Submitted to storage.
    InFlight,
    /// Failed; waits for a release.
    Held {
        seq: u64,
    },
    /// Released; waits for its turn.
    Released,
}

#[derive(Debug)]
struct Slot {
    state: State,
    request: Request,
    order: u64,
    generation: u64,
    /// Failed at least once under action stop: run control has a record of it.
    was_held: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    stopped: bool,
    in_flight: u32,
}

/// The state machine of one backend on one iothread.
#[derive(Debug)]
pub struct Gate {
    policy: Policy,
    scope: HoldScope,
    generation: u64,
    /// Epoch of the latest freeze or release that counted.
    epoch: u64,
    /// Frozen by run control: the run state is not `running`.
    frozen: bool,
    /// Frozen by what is held here.
    frozen_by_failure: bool,
    /// Frozen by what the same backend holds on another iothread.
    frozen_by_sibling: bool,
    draining: u32,
    last_seq: u64,
    next_order: u64,
    slots: Vec<Slot>,
    free: Vec<SlotId>,
    queues: Vec<Queue>,
    held: WaitList,
    released: WaitList,
    parked: WaitList,
    in_flight: u32,
    /// In flight and released from a hold before: overlapping writes wait behind them.
    replaying: u32,
}

impl Gate {
    /// A gate for `queues` queues and `slots` requests at once, frozen until run control says how
    /// things are.
    pub fn new(policy: Policy, scope: HoldScope, queues: u16, slots: u32) -> Self {
        let capacity = slots as usize;
        Self {
            policy,
            scope,
            generation: 0,
            epoch: 0,
            frozen: true,
            frozen_by_failure: false,
            frozen_by_sibling: false,
            draining: 0,
            last_seq: 0,
            next_order: 0,
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            queues: vec![Queue::default(); usize::from(queues)],
            held: WaitList::with_capacity(capacity),
            released: WaitList::with_capacity(capacity),
            parked: WaitList::with_capacity(capacity),
            in_flight: 0,
            replaying: 0,
        }
    }

    /// Whether nothing new may be taken from a queue.
    pub fn is_frozen(&self) -> bool {
        self.frozen || self.frozen_by_failure || self.frozen_by_sibling || self.draining > 0
    }

    /// Whether a new request may be taken from `queue`.
    pub fn may_pop(&self, queue: u16) -> bool {
        !self.is_frozen() && !self.queue(queue).stopped
    }

    /// Takes a request in. `elsewhere(order, request)` says whether it has to wait for one of the
    /// same backend on another iothread ([`crate::overlap`]).
    pub fn admit(
        &mut self,
        request: Request,
        elsewhere: impl Fn(u64, &Request) -> bool,
    ) -> Admission {
        let order = self.next_order;
        self.next_order += 1;
        let slot = self.allocate(Slot {
            state: State::Parked,
            request,
            order,
            generation: self.generation,
            was_held: false,
        });
        let clear = self.may_pop(request.tag.queue) && !self.has_waiting();
        if clear && !self.must_wait(&request, order, false, &elsewhere) {
            return Admission::Start(self.start(slot));
        }
        self.parked.insert(Waiting { order, slot });
        Admission::Parked
    }

    /// Takes in a request that the client hands back: it was in flight or held when a former daemon
    /// ended. It may have been executed, so it counts as released from a hold: it goes ahead of
    /// what is new, and what would overwrite it waits. Returns its arrival number.
    pub fn take_up(&mut self, request: Request) -> u64 {
        let order = self.next_order;
        self.next_order += 1;
        let slot = self.allocate(Slot {
            state: State::Released,
            request,
            order,
            generation: self.generation,
            was_held: true,
        });
        self.released.insert(Waiting { order, slot });
        order
    }

    /// The next waiting request whose turn has come: first what was released, oldest first, then
    /// what was parked. `elsewhere` as in [`Self::admit`].
    pub fn next_ready(&mut self, elsewhere: impl Fn(u64, &Request) -> bool) -> Option<Ticket> {
        if self.is_frozen() {
            return None;
        }
        let ready = |waiting| self.may_start(waiting, &elsewhere);
        let released = self.released.iter().position(ready);
        let next = if let Some(index) = released {
            self.released.remove(index)
        } else {
            let index = self.parked.iter().position(ready)?;
            self.parked.remove(index)
        };
        Some(self.start(next.slot))
    }

    /// Takes note of how an executed request ended, and says what to do about it.
    pub fn finish(&mut self, mut ticket: Ticket, outcome: Outcome) -> Verdict {
        ticket.finished = true;
        let slot = ticket.slot;
        let Slot {
            request,
            order,
            generation,
            was_held,
            ..
        } = *self.slot(slot);
        self.in_flight -= 1;
        self.replaying -= u32::from(was_held);
        self.queue_mut(request.tag.queue).in_flight -= 1;
        if generation != self.generation {
            self.release_slot(slot);
            return Verdict::Dropped;
        }
        let (result, reported) = match outcome {
            Outcome::Ok => (Ok(()), None),
            Outcome::GuestFault => (Err(Fault::Guest), None),
            Outcome::Error(cause) => match self.policy.action(request.op.direction(), cause) {
                Action::Ignore => (Ok(()), Some((Action::Ignore, cause))),
                Action::Report => (Err(Fault::Io(cause)), Some((Action::Report, cause))),
                Action::Stop => {
                    self.last_seq += 1;
                    let seq = self.last_seq;
                    let entry = self.slot_mut(slot);
                    entry.state = State::Held { seq };
                    entry.was_held = true;
                    self.held.insert(Waiting { order, slot });
                    if self.scope != HoldScope::Request {
                        self.frozen_by_failure = true;
                    }
                    return Verdict::Held { seq, cause };
                }
            },
        };
        self.release_slot(slot);
        Verdict::Complete {
            result,
            reported,
            was_held,
        }
    }

    /// Run control froze all backends. False: an older epoch, ignored.
    pub fn freeze(&mut self, epoch: u64) -> bool {
        let counts = self.enter_epoch(epoch);
        self.frozen |= counts;
        counts
    }

    /// Run control froze this backend, because it failed on another iothread.
    pub fn freeze_backend(&mut self, epoch: u64) -> bool {
        let counts = self.enter_epoch(epoch);
        self.frozen_by_sibling |= counts;
        counts
    }

    /// Run control released all backends: what failed up to `upto` goes on; what failed later
    /// stays held, and with it the freeze. False: an older epoch, ignored.
    pub fn release(&mut self, epoch: u64, upto: u64) -> bool {
        let counts = self.enter_epoch(epoch);
        if counts {
            self.frozen = false;
            self.release_upto(upto);
        }
        counts
    }

    /// As [`Self::release`], of this backend alone: a freeze of all stays.
    pub fn release_backend(&mut self, epoch: u64, upto: u64) -> bool {
        let counts = self.enter_epoch(epoch);
        if counts {
            self.release_upto(upto);
        }
        counts
    }

    /// The device was reset or removed: drops everything that waits; what is in flight will end
    /// as [`Verdict::Dropped`].
    pub fn reset(&mut self, generation: u64) -> Vec<Removed> {
        self.generation = generation;
        self.frozen_by_failure = false;
        self.frozen_by_sibling = false;
        self.remove_waiting(|_, _| true)
    }

    /// Drops the waiting requests of `queue` whose head `keep` does not accept: at a ring start the
    /// client's record decides, not ours.
    pub fn retain(&mut self, queue: u16, mut keep: impl FnMut(u16) -> bool) -> Vec<Removed> {
        let removed = self.remove_waiting(|tag, _| tag.queue == queue && !keep(tag.head));
        self.thaw_if_nothing_held();
        removed
    }

    /// Takes out the held flushes, to be completed with an error: the operator accepts that what
    /// they should have made durable may be lost.
    pub fn take_held_flushes(&mut self) -> Vec<Removed> {
        let removed = self.remove_waiting(|_, slot| {
            // Released ones too: those that a client has handed back wait there.
            let waits = matches!(slot.state, State::Held { .. } | State::Released);
            slot.request.op == Operation::Flush && waits
        });
        self.thaw_if_nothing_held();
        removed
    }

    /// From now on `policy` judges failures. What is held stays held until it is released.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Starts nothing any more until [`Self::drain_end`]; may be nested.
    pub fn drain_begin(&mut self) {
        self.draining += 1;
    }

    /// Ends one [`Self::drain_begin`].
    pub fn drain_end(&mut self) {
        debug_assert!(self.draining > 0);
        self.draining = self.draining.saturating_sub(1);
    }

    /// Starts nothing of `queue` any more. What waits keeps waiting.
    pub fn stop_queue(&mut self, queue: u16) {
        self.queue_mut(queue).stopped = true;
    }

    /// Takes `queue` up again.
    pub fn start_queue(&mut self, queue: u16) {
        self.queue_mut(queue).stopped = false;
    }

    /// Whether `queue` is stopped.
    pub fn is_stopped(&self, queue: u16) -> bool {
        self.queue(queue).stopped
    }

    /// Requests in flight; held and parked ones are not.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Requests of `queue` in flight.
    pub fn queue_in_flight(&self, queue: u16) -> u32 {
        self.queue(queue).in_flight
    }

    /// The current generation of the device.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Arrival number of the request in `slot`.
    pub fn order(&self, slot: SlotId) -> u64 {
        self.slot(slot).order
    }

    /// Held requests, oldest first.
    pub fn held(&self) -> impl Iterator<Item = HeldRequest> + '_ {
        self.held.iter().filter_map(|waiting| {
            let slot = self.slot(waiting.slot);
            match slot.state {
                State::Held { seq } => Some(HeldRequest {
                    request: slot.request,
                    seq,
                    order: slot.order,
                }),
                _ => None,
            }
        })
    }

    /// Requests that wait for their turn: parked, or released and not yet started.
    pub fn waiting(&self) -> impl Iterator<Item = Request> + '_ {
        self.released
            .iter()
            .chain(self.parked.iter())
            .map(|w| self.slot(w.slot).request)
    }

    /// The request among the held and the waiting ones that ends last: a node must not become
    /// shorter than that.
    pub fn furthest(&self) -> Option<Request> {
        let held = self.held().map(|held| held.request);
        held.chain(self.waiting()).max_by_key(Request::end)
    }

    /// Number of places the table has grown to.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    fn allocate(&mut self, slot: Slot) -> SlotId {
        if let Some(id) = self.free.pop() {
            self.slots[id.index()] = slot;
            return id;
        }
        // Queue sizes are u16 and there are at most 65536 queues, so the index fits; more than the
        // announced number happens only while requests of a former generation end.
        let id = SlotId(u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
        self.slots.push(slot);
        id
    }

    fn release_slot(&mut self, slot: SlotId) {
        self.slot_mut(slot).state = State::Free;
        self.free.push(slot);
    }

    fn start(&mut self, id: SlotId) -> Ticket {
        let slot = self.slot_mut(id);
        slot.state = State::InFlight;
        let (request, was_held) = (slot.request, slot.was_held);
        self.in_flight += 1;
        self.replaying += u32::from(was_held);
        self.queue_mut(request.tag.queue).in_flight += 1;
        Ticket {
            slot: id,
            request,
            was_held,
            finished: false,
        }
    }

    /// Whether a request waits for its turn.
    pub fn has_waiting(&self) -> bool {
        !(self.parked.is_empty() && self.released.is_empty())
    }

    fn may_start(&self, waiting: Waiting, elsewhere: impl Fn(u64, &Request) -> bool) -> bool {
        let Slot {
            ref request,
            was_held,
            ..
        } = *self.slot(waiting.slot);
        !self.queue(request.tag.queue).stopped
            && !self.must_wait(request, waiting.order, was_held, elsewhere)
    }

    /// Whether an older request that waits or is replayed overlaps this one. Were it overtaken, the
    /// replay would bring old data back over newer.
    ///
    /// One that has been held waits only for others that have been held, in the order that
    /// [`crate::overlap`] has too; one that has not waits for those and for older ones of its kind.
    /// So nobody waits in a circle.
    fn must_wait(
        &self,
        request: &Request,
        order: u64,
        was_held: bool,
        elsewhere: impl Fn(u64, &Request) -> bool,
    ) -> bool {
        if !request.op.modifies() {
            return false;
        }
        let blocks = |waiting: Waiting| {
            waiting.order < order && self.slot(waiting.slot).request.overlaps(request)
        };
        elsewhere(order, request)
            || self.held.iter().any(blocks)
            || self.released.iter().any(blocks)
            || (!was_held
                && self
                    .parked
                    .iter()
                    .any(|w| blocks(w) && self.slot(w.slot).request.op.modifies()))
            || (self.replaying > 0
                && self.slots.iter().any(|slot| {
                    slot.state == State::InFlight
                        && slot.was_held
                        && slot.order < order
                        && slot.request.overlaps(request)
                }))
    }

    fn enter_epoch(&mut self, epoch: u64) -> bool {
        let counts = epoch > self.epoch;
        if counts {
            self.epoch = epoch;
        }
        counts
    }

    fn release_upto(&mut self, upto: u64) {
        let (slots, released) = (&mut self.slots, &mut self.released);
        self.held.drain_into(
            |waiting| {
                matches!(slots[waiting.slot.index()].state, State::Held { seq } if seq <= upto)
            },
            |waiting| released.insert(waiting),
        );
        for waiting in self.released.iter() {
            slots[waiting.slot.index()].state = State::Released;
        }
        self.frozen_by_sibling = false;
        self.thaw_if_nothing_held();
    }

    fn thaw_if_nothing_held(&mut self) {
        self.frozen_by_failure &= !self.held.is_empty();
    }

    fn remove_waiting(&mut self, mut goes: impl FnMut(Tag, &Slot) -> bool) -> Vec<Removed> {
        let mut removed = Vec::new();
        for list in [&mut self.held, &mut self.released, &mut self.parked] {
            let slots = &self.slots;
            list.drain_into(
                |waiting| {
                    let slot = &slots[waiting.slot.index()];
                    goes(slot.request.tag, slot)
                },
                |waiting| {
                    let slot = &slots[waiting.slot.index()];
                    removed.push(Removed {
                        slot: waiting.slot,
                        order: slot.order,
                        request: slot.request,
                        was_held: slot.was_held,
                    });
                },
            );
        }
        for entry in &removed {
            self.release_slot(entry.slot);
        }
        removed
    }

    fn slot(&self, slot: SlotId) -> &Slot {
        &self.slots[slot.index()]
    }

    fn slot_mut(&mut self, slot: SlotId) -> &mut Slot {
        &mut self.slots[slot.index()]
    }

    fn queue(&self, queue: u16) -> &Queue {
        &self.queues[usize::from(queue)]
    }

    fn queue_mut(&mut self, queue: u16) -> &mut Queue {
        &mut self.queues[usize::from(queue)]
    }
}
