//! An imagined daemon: real gates and real run control, imagined mailboxes, storage and client.
//!
//! Every mailbox is a queue of messages, and a step takes exactly one message out of one of them,
//! so any order that the real threads could produce can come up. Beside the real state machines
//! the world keeps its own plain record of what must be true, and compares.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use standfast_block::gate::{Admission, Gate, Outcome, Removed, Ticket, Verdict};
use standfast_block::overlap::Blockers;
use standfast_block::run_control::{
    BackendConfig, Effects, Failed, GateMessage, Reported, Resolved, Restored, RunControl,
};
use standfast_block::{
    Action, BackendId, Cause, Event, Fault, HoldScope, LocalId, Operation, Policy, Request,
    RunState, Status, Tag, VmOrder,
};

/// A mistake that is put in on purpose, to see that the model finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    None,
    /// A release lets everything go that is held, not only what run control had processed.
    ReleaseWithoutUpto,
    /// The event goes out before the status is latched.
    StatusAfterEvent,
    /// The second iothread never hears of a freeze.
    FreezeForgotten,
    /// A request that ends after a reset is completed to the client all the same.
    CompletionAfterReset,
    /// The freeze comes with the message, not at once with the failure.
    FreezeLate,
    /// What overlaps something held on another iothread does not wait for it.
    OverlapElsewhere,
    /// `cont` resets only the backends that hold something.
    StatusNotReset,
    /// Run control hears nothing of requests that are handed back.
    HandedBackUnseen,
}

/// Iothreads; each backend has a part on each of them.
pub const IOTHREADS: usize = 2;
/// Queues of each part.
const QUEUES: u16 = 2;
/// Length that a backend starts with, in blocks of one byte.
pub const LENGTH: u64 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waits in the gate, never failed or released again.
    Waiting,
    InFlight,
    Held {
        seq: u64,
    },
    Completed,
    Dropped,
}

#[derive(Clone, Debug)]
struct Life {
    backend: usize,
    local: usize,
    generation: u64,
    request: Request,
    phase: Phase,
    was_held: bool,
}

struct Local {
    id: LocalId,
    iothread: usize,
    gate: Gate,
    /// None: look again, something held elsewhere has ended.
    mailbox: VecDeque<Option<GateMessage>>,
    in_flight: Vec<Ticket>,
    /// Arrival number -> request number.
    orders: BTreeMap<u64, usize>,
    next_head: u16,
}

struct Backend {
    id: BackendId,
    scope: HoldScope,
    policy: Policy,
    /// What the client may use: the node's length.
    length: u64,
    locals: Vec<Local>,
    blockers: Blockers,
    /// What the I/O status must be.
    status: Status,
    generation: u64,
    /// The client waits for its attach to be settled before it submits.
    attaching: bool,
    attached: bool,
}

enum Message {
    Failed(Failed),
    Reported(Reported),
    Resolved(Resolved),
    Restored(Restored),
    Stop,
    Cont,
    ContBackend(usize),
    Attach(usize),
    ResetDevice(usize),
    Detach(usize),
    SetPolicy(usize, Policy),
}

#[derive(Default)]
struct Outbox {
    events: Vec<Event>,
    posts: Vec<(LocalId, GateMessage)>,
    orders: Vec<VmOrder>,
}

impl Effects for Outbox {
    fn event(&mut self, event: Event) {
        self.events.push(event);
    }
    fn post(&mut self, local: LocalId, message: GateMessage) {
        self.posts.push((local, message));
    }
    fn vm(&mut self, order: VmOrder) {
        self.orders.push(order);
    }
}

pub struct World {
    mutant: Mutant,
    control: RunControl,
    inbox: VecDeque<Message>,
    backends: Vec<Backend>,
    lives: Vec<Life>,
    state: RunState,
    next_local: u64,
    /// Statistics, so that a test can see that the interesting things happened.
    pub holds: usize,
    pub completions: usize,
}

/// What the model found wrong.
pub type Check = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}

mod checks;

impl World {
    pub fn new(mutant: Mutant, configs: &[(Policy, HoldScope)]) -> Self {
        let mut world = Self {
            mutant,
            control: RunControl::new(),
            inbox: VecDeque::new(),
            backends: Vec::new(),
            lives: Vec::new(),
            state: RunState::Running,
            next_local: 0,
            holds: 0,
            completions: 0,
        };
        for &(policy, scope) in configs {
            world.add_backend(policy, scope);
        }
        world
    }

    pub fn backends(&self) -> usize {
        self.backends.len()
    }

    /// Adds a backend with a part on each iothread, and attaches its client.
    pub fn add_backend(&mut self, policy: Policy, scope: HoldScope) {
        let device = format!("disk{}", self.backends.len());
        let id = self.control.add_backend(BackendConfig {
            device: device.as_str().into(),
            node: device.as_str().into(),
            policy,
            scope,
        });
        let mut locals = Vec::new();
        for iothread in 0..IOTHREADS {
            self.next_local += 1;
            locals.push(Local {
                id: LocalId(self.next_local),
                iothread,
                gate: Gate::new(policy, scope, QUEUES, 8),
                mailbox: VecDeque::new(),
                in_flight: Vec::new(),
                orders: BTreeMap::new(),
                next_head: 0,
            });
        }
        let ids: Vec<_> = locals.iter().map(|local| local.id).collect();
        self.backends.push(Backend {
            id,
            scope,
            policy,
            length: LENGTH,
            locals,
            blockers: Blockers::default(),
            status: Status::Ok,
            generation: 0,
            attaching: false,
            attached: false,
        });
        let mut outbox = Outbox::default();
        for local in ids {
            self.control
                .add_local(id, local, &mut outbox)
                .expect("the backend exists");
        }
        self.deliver_posts(outbox.posts);
        self.attach(self.backends.len() - 1);
    }

    // ---- what the client does ----

    pub fn submit(
        &mut self,
        b: usize,
        l: usize,
        queue: u16,
        op: Operation,
        offset: u64,
        bytes: u64,
    ) -> Check {
        let backend = &mut self.backends[b];
        let local = &mut backend.locals[l];
        // An export takes a request only if the gate lets it, or to park it.
        if backend.attaching {
            return Ok(());
        }
        let (offset, bytes) = match op {
            Operation::Flush => (0, 0),
            _ => (
                offset % backend.length,
                bytes.min(backend.length - offset % backend.length),
            ),
        };
        let head = local.next_head;
        local.next_head = head.wrapping_add(1);
        let request = Request {
            tag: Tag {
                queue: queue % QUEUES,
                head,
            },
            op,
            offset,
            bytes,
        };
        let life = self.lives.len();
        // From a stopped queue nothing new is taken: the client hands something back.
        let handed_back = local.gate.is_stopped(request.tag.queue);
        self.lives.push(Life {
            backend: b,
            local: l,
            generation: local.gate.generation(),
            request,
            phase: Phase::Waiting,
            was_held: handed_back,
        });
        if handed_back {
            let order = local.gate.take_up(request);
            local.orders.insert(order, life);
            backend.blockers.insert(local.id, order, request);
            if self.mutant != Mutant::HandedBackUnseen {
                self.inbox.push_back(Message::Restored(Restored {
                    backend: backend.id,
                    local: local.id,
                    generation: local.gate.generation(),
                    order,
                    request,
                    at: SystemTime::UNIX_EPOCH,
                }));
            }
            return Ok(());
        }
        let may_pop = local.gate.may_pop(request.tag.queue);
        let id = local.id;
        let blockers = &backend.blockers;
        match local.gate.admit(request, |order, request| {
            blockers.blocks(id, order, request)
        }) {
            Admission::Start(ticket) => {
                ensure!(may_pop, "started although frozen: {request:?}");
                local.orders.insert(ticket.order(), life);
                self.started(b, l, ticket)?;
            }
            Admission::Parked => {
                let order = local
                    .orders
                    .last_key_value()
                    .map_or(0, |(&order, _)| order + 1);
                local.orders.insert(order, life);
                self.pump(b, l)?;
            }
        }
        Ok(())
    }

    pub fn attach(&mut self, b: usize) {
        self.backends[b].attaching = true;
        self.inbox.push_back(Message::Attach(b));
    }

    /// The client stays and resets its device.
    pub fn reset_device(&mut self, b: usize) {
        self.backends[b].attaching = true;
        self.inbox.push_back(Message::ResetDevice(b));
    }

    /// The device goes away; a later attach brings a client back.
    pub fn detach(&mut self, b: usize) {
        self.backends[b].attaching = true;
        self.inbox.push_back(Message::Detach(b));
    }

    // ---- what storage does ----

    pub fn end(&mut self, b: usize, l: usize, nth: usize, errno: Option<i32>) -> Check {
        let local = &mut self.backends[b].locals[l];
        if local.in_flight.is_empty() {
            return Ok(());
        }
        let nth = nth % local.in_flight.len();
        let ticket = local.in_flight.remove(nth);
        let (order, request) = (ticket.order(), *ticket.request());
        let life = local.orders[&order];
        let stale = self.lives[life].generation != local.gate.generation();
        let outcome = match errno {
            None => Outcome::Ok,
            Some(errno) => Outcome::Error(Cause::of_errno(errno)),
        };
        let frozen_before = local.gate.is_frozen();
        let mut verdict = local.gate.finish(ticket, outcome);
        if verdict == Verdict::Dropped && self.mutant == Mutant::CompletionAfterReset {
            verdict = Verdict::Complete {
                result: Ok(()),
                reported: None,
                was_held: None,
            };
        }
        let generation = local.gate.generation();
        let (backend, local_id) = (self.backends[b].id, self.backends[b].locals[l].id);
        match verdict {
            Verdict::Held { seq, cause, .. } => {
                ensure!(!stale, "held after reset: {request:?}");
                self.holds += 1;
                if self.backends[b].scope != HoldScope::Request {
                    let frozen = self.backends[b].locals[l].gate.is_frozen();
                    let frozen = if self.mutant == Mutant::FreezeLate {
                        frozen_before
                    } else {
                        frozen
                    };
                    ensure!(frozen, "not frozen at once by the failure of {request:?}");
                }
                let life = &mut self.lives[life];
                life.phase = Phase::Held { seq };
                life.was_held = true;
                self.backends[b].blockers.insert(local_id, order, request);
                self.inbox.push_back(Message::Failed(Failed {
                    backend,
                    local: local_id,
                    generation,
                    seq,
                    order,
                    request,
                    cause,
                    at: SystemTime::UNIX_EPOCH,
                }));
            }
            Verdict::Dropped => {
                ensure!(stale, "dropped without a reset: {request:?}");
                self.lives[life].phase = Phase::Dropped;
                self.unblock(b, l, order);
            }
            Verdict::Complete {
                result,
                reported,
                was_held,
            } => {
                // G7: no completion after the reset.
                ensure!(!stale, "completed after reset: {request:?}");
                // G1: at most once, and no error where policy says stop.
                ensure!(
                    self.lives[life].phase == Phase::InFlight,
                    "completed twice: {request:?} was {:?}",
                    self.lives[life].phase
                );
                ensure!(
                    was_held.is_some() == self.lives[life].was_held,
                    "forgot the hold of {request:?}"
                );
                if let Some((action, cause)) = reported {
                    ensure!(action != Action::Stop, "completed under stop: {request:?}");
                    let expected = match action {
                        Action::Ignore => Ok(()),
                        Action::Report | Action::Stop => Err(Fault::Io(cause)),
                    };
                    ensure!(result == expected, "{action:?} gave {result:?}");
                    self.inbox.push_back(Message::Reported(Reported {
                        backend,
                        generation,
                        request,
                        action,
                        cause,
                        at: SystemTime::UNIX_EPOCH,
                    }));
                }
                self.lives[life].phase = Phase::Completed;
                self.completions += 1;
                if was_held.is_some() {
                    self.unblock(b, l, order);
                    self.inbox.push_back(Message::Resolved(Resolved {
                        backend,
                        local: local_id,
                        generation,
                        order,
                    }));
                }
            }
        }
        self.pump(b, l)
    }

    // ---- commands ----

    pub fn stop(&mut self) {
        self.inbox.push_back(Message::Stop);
    }

    pub fn cont(&mut self) {
        self.inbox.push_back(Message::Cont);
    }

    pub fn cont_backend(&mut self, b: usize) {
        self.inbox.push_back(Message::ContBackend(b));
    }

    pub fn set_policy(&mut self, b: usize, policy: Policy) {
        self.inbox.push_back(Message::SetPolicy(b, policy));
    }

    /// GET_VRING_BASE and a ring start: what waits stays, whatever is held.
    pub fn toggle_queue(&mut self, b: usize, l: usize, queue: u16, start: bool) -> Check {
        let gate = &mut self.backends[b].locals[l].gate;
        if start {
            gate.start_queue(queue % QUEUES);
            return self.pump(b, l);
        }
        gate.stop_queue(queue % QUEUES);
        Ok(())
    }

    /// A resize as the registry does it: drained; refused below the end of a held request.
    pub fn resize(&mut self, b: usize, length: u64, errno: Option<i32>) -> Check {
        for l in 0..IOTHREADS {
            self.backends[b].locals[l].gate.drain_begin();
            // G6: a drain ends when what is in flight has ended, whatever is held.
            while !self.backends[b].locals[l].in_flight.is_empty() {
                self.end(b, l, 0, errno)?;
            }
            let gate = &self.backends[b].locals[l].gate;
            ensure!(
                gate.in_flight() == 0,
                "drained, but {} in flight",
                gate.in_flight()
            );
        }
        while !self.inbox.is_empty() {
            self.control_step()?;
        }
        let furthest = self.backends[b]
            .locals
            .iter()
            .filter_map(|local| local.gate.furthest());
        let refused = furthest.map(|request| request.end()).max() > Some(length);
        if !refused {
            self.backends[b].length = length;
        }
        for life in &self.lives {
            if life.backend == b
                && matches!(life.phase, Phase::Held { .. })
                && life.generation == self.backends[b].generation
            {
                ensure!(
                    life.request.end() <= self.backends[b].length,
                    "resized below a held request {:?}",
                    life.request
                );
            }
        }
        for l in 0..IOTHREADS {
            self.backends[b].locals[l].gate.drain_end();
            self.pump(b, l)?;
        }
        Ok(())
    }

    // ---- message delivery ----

    /// Run control takes one message.
    pub fn control_step(&mut self) -> Check {
        let Some(message) = self.inbox.pop_front() else {
            return Ok(());
        };
        let before: Vec<Status> = self
            .backends
            .iter()
            .map(|b| self.raw_status(b.id))
            .collect();
        let mut outbox = Outbox::default();
        let mut cause: Option<(usize, bool)> = None;
        let is_cont = matches!(message, Message::Cont);
        match message {
            Message::Failed(failed) => {
                let b = self.index(failed.backend);
                self.control.failed(&failed, &mut outbox);
                let backend = &mut self.backends[b];
                if failed.generation == backend.generation {
                    if backend.status == Status::Ok {
                        backend.status = match failed.cause.errno {
                            libc::ENOSPC => Status::Nospace,
                            _ => Status::Failed,
                        };
                    }
                    cause = Some((b, true));
                }
            }
            Message::Reported(reported) => {
                let b = self.index(reported.backend);
                self.control.reported(&reported, &mut outbox);
                if reported.generation == self.backends[b].generation {
                    cause = Some((b, false));
                }
            }
            Message::Resolved(resolved) => self.control.resolved(resolved),
            Message::Restored(restored) => self.control.restored(&restored),
            Message::Stop => {
                self.control.stop(&mut outbox).map_err(|e| e.to_string())?;
                let expected = match self.state {
                    RunState::Running => RunState::Paused,
                    other => other,
                };
                self.expect_transition(&outbox, expected)?;
            }
            Message::Cont => {
                self.control
                    .cont(None, false, &mut outbox)
                    .map_err(|e| e.to_string())?;
                self.expect_transition(&outbox, RunState::Running)?;
                for (backend, &before) in self.backends.iter_mut().zip(&before) {
                    backend.status = Status::Ok;
                    if self.mutant == Mutant::StatusNotReset {
                        backend.status = before;
                    }
                }
                // G4: everything that has been processed is released.
                for backend in &self.backends {
                    for local in &backend.locals {
                        let upto = self
                            .control
                            .backend(backend.id)
                            .and_then(|state| state.upto(local.id))
                            .unwrap_or(0);
                        ensure!(
                            outbox.posts.iter().any(|&(to, message)| to == local.id
                                && matches!(message, GateMessage::Release { upto: u, .. } if u == upto)),
                            "cont does not release what {:?} had failed up to {upto}",
                            local.id
                        );
                    }
                }
            }
            Message::ContBackend(b) => {
                let device = format!("disk{b}");
                match self.control.cont_backend(&device, None, &mut outbox) {
                    Ok(()) => self.backends[b].status = Status::Ok,
                    Err(refusal) => {
                        ensure!(
                            self.backends[b].scope == HoldScope::Vm,
                            "refused: {refusal}"
                        );
                        ensure!(outbox.posts.is_empty(), "a refused command had an effect");
                    }
                }
            }
            Message::Attach(b) => {
                // Nothing is left that a `cont` could be needed for.
                let resumes = self.state == RunState::IoError
                    && self
                        .control
                        .backends()
                        .all(|(id, state)| id == self.backends[b].id || state.held().len() == 0);
                let generation = self
                    .control
                    .attach(self.backends[b].id, &mut outbox)
                    .ok_or("attach of a backend that is not there")?;
                self.backends[b].generation = generation;
                self.backends[b].status = Status::Ok;
                self.backends[b].attached = true;
                let expected = if resumes {
                    RunState::Running
                } else {
                    self.state
                };
                self.expect_transition(&outbox, expected)?;
            }
            Message::ResetDevice(b) => {
                let generation = self
                    .control
                    .reset_device(self.backends[b].id, &mut outbox)
                    .ok_or("reset of a backend that is not there")?;
                self.backends[b].generation = generation;
                self.backends[b].status = Status::Ok;
                self.backends[b].attached = true;
                self.expect_transition(&outbox, self.state)?;
            }
            Message::Detach(b) => {
                self.control.detach(self.backends[b].id, &mut outbox);
                let state = self
                    .control
                    .backend(self.backends[b].id)
                    .ok_or("backend is gone")?;
                ensure!(
                    state.io_status().is_none(),
                    "status enabled without a device"
                );
                self.backends[b].generation = state.generation();
                self.backends[b].status = Status::Ok;
                self.backends[b].attached = false;
            }
            Message::SetPolicy(b, policy) => {
                self.control
                    .set_policy(self.backends[b].id, policy, &mut outbox);
                self.backends[b].policy = policy;
            }
        }
        self.check_events(&outbox, cause, &before)?;
        self.check_orders(&outbox, is_cont)?;
        self.state = self.control.state();
        // G3: first error wins, until a reset.
        for backend in &self.backends {
            ensure!(
                self.raw_status(backend.id) == backend.status,
                "status of {:?} is {:?}, must be {:?}",
                backend.id,
                self.raw_status(backend.id),
                backend.status
            );
        }
        self.deliver_posts(outbox.posts);
        Ok(())
    }

    /// A backend's part takes one message.
    pub fn local_step(&mut self, b: usize, l: usize) -> Check {
        let Some(message) = self.backends[b].locals[l].mailbox.pop_front() else {
            return Ok(());
        };
        if let Some(message) = message {
            self.obey(b, l, message)?;
        }
        // An attach is settled when every part has taken it and nothing older is in flight.
        let backend = &mut self.backends[b];
        if backend.attaching
            && backend.attached
            && backend.locals.iter().all(|local| {
                local.gate.generation() == backend.generation && local.mailbox.is_empty()
            })
            && !self
                .inbox
                .iter()
                .any(|m| matches!(m, Message::Attach(of) | Message::ResetDevice(of) | Message::Detach(of) if *of == b))
        {
            backend.attaching = false;
        }
        self.pump(b, l)
    }

    fn obey(&mut self, b: usize, l: usize, message: GateMessage) -> Check {
        let local = &mut self.backends[b].locals[l];
        match message {
            GateMessage::Freeze { epoch } => {
                if !(self.mutant == Mutant::FreezeForgotten && local.iothread == 1) {
                    local.gate.freeze(epoch);
                }
            }
            GateMessage::FreezeBackend { epoch } => {
                local.gate.freeze_backend(epoch);
            }
            GateMessage::Release { epoch, upto } | GateMessage::ReleaseBackend { epoch, upto } => {
                let held: Vec<_> = local.gate.held().collect();
                let given = match self.mutant {
                    Mutant::ReleaseWithoutUpto => u64::MAX,
                    _ => upto,
                };
                if matches!(message, GateMessage::Release { .. }) {
                    local.gate.release(epoch, given);
                } else {
                    local.gate.release_backend(epoch, given);
                }
                let still: Vec<_> = local.gate.held().map(|held| held.order).collect();
                for held in held {
                    let life = local.orders[&held.order];
                    ensure!(
                        still.contains(&held.order) == (held.seq > upto),
                        "release up to {upto} treated failure {} wrongly",
                        held.seq
                    );
                    if held.seq <= upto {
                        self.lives[life].phase = Phase::Waiting;
                    }
                }
            }
            GateMessage::Reset { generation } => {
                let removed = local.gate.reset(generation);
                self.forget(b, l, &removed);
            }
            GateMessage::SetPolicy(policy) => local.gate.set_policy(policy),
            GateMessage::FailHeldFlushes => {
                let removed = local.gate.take_held_flushes();
                self.forget(b, l, &removed);
            }
        }
        Ok(())
    }

    /// Lets every message arrive, then checks what must hold when nothing is under way.
    pub fn settle(&mut self) -> Check {
        loop {
            while !self.inbox.is_empty() {
                self.control_step()?;
            }
            let mut idle = true;
            for b in 0..self.backends.len() {
                for l in 0..IOTHREADS {
                    while !self.backends[b].locals[l].mailbox.is_empty() {
                        idle = false;
                        self.local_step(b, l)?;
                    }
                }
            }
            if idle && self.inbox.is_empty() {
                return self.check_settled();
            }
        }
    }

    /// Ends everything: storage is mended, `cont`, and every request must come to its end.
    pub fn finish(&mut self) -> Check {
        for b in 0..self.backends.len() {
            for l in 0..IOTHREADS {
                for queue in 0..QUEUES {
                    self.toggle_queue(b, l, queue, true)?;
                }
            }
        }
        self.settle()?;
        self.cont();
        self.settle()?;
        for _ in 0..self.lives.len() + 1 {
            for b in 0..self.backends.len() {
                for l in 0..IOTHREADS {
                    while !self.backends[b].locals[l].in_flight.is_empty() {
                        self.end(b, l, 0, None)?;
                    }
                }
            }
            self.settle()?;
        }
        for life in &self.lives {
            ensure!(
                matches!(life.phase, Phase::Completed | Phase::Dropped),
                "lost: {:?} is {:?}",
                life.request,
                life.phase
            );
        }
        for (_, state) in self.control.backends() {
            ensure!(
                state.held().len() == 0,
                "run control still has {} held",
                state.held().len()
            );
            ensure!(
                state.incident().is_none(),
                "the incident goes on though nothing is held"
            );
        }
        Ok(())
    }

    /// Gives up: what is in flight is ended without a look at what becomes of it.
    pub fn abandon(&mut self) {
        for local in self
            .backends
            .iter_mut()
            .flat_map(|backend| &mut backend.locals)
        {
            for ticket in local.in_flight.drain(..) {
                local.gate.finish(ticket, Outcome::Ok);
            }
        }
    }

    // ---- inside ----

    fn pump(&mut self, b: usize, l: usize) -> Check {
        loop {
            let backend = &mut self.backends[b];
            let (local, blockers) = (&mut backend.locals[l], &backend.blockers);
            let id = local.id;
            let elsewhere = |order, request: &Request| {
                self.mutant != Mutant::OverlapElsewhere && blockers.blocks(id, order, request)
            };
            let Some(ticket) = local.gate.next_ready(elsewhere) else {
                return Ok(());
            };
            self.started(b, l, ticket)?;
        }
    }

    fn started(&mut self, b: usize, l: usize, ticket: Ticket) -> Check {
        self.check_start(b, l, &ticket)?;
        let local = &mut self.backends[b].locals[l];
        self.lives[local.orders[&ticket.order()]].phase = Phase::InFlight;
        local.in_flight.push(ticket);
        Ok(())
    }

    fn forget(&mut self, b: usize, l: usize, removed: &[Removed]) {
        for entry in removed {
            let local = &self.backends[b].locals[l];
            let life = local.orders[&entry.order];
            let (id, generation) = (local.id, local.gate.generation());
            self.lives[life].phase = Phase::Dropped;
            if entry.was_held {
                self.unblock(b, l, entry.order);
                self.inbox.push_back(Message::Resolved(Resolved {
                    backend: self.backends[b].id,
                    local: id,
                    generation,
                    order: entry.order,
                }));
            }
        }
    }

    /// A request that was held has ended: the other iothreads hear of it.
    fn unblock(&mut self, b: usize, l: usize, order: u64) {
        let backend = &mut self.backends[b];
        if backend.blockers.remove(backend.locals[l].id, order) {
            for other in (0..IOTHREADS).filter(|&other| other != l) {
                backend.locals[other].mailbox.push_back(None);
            }
        }
    }

    fn deliver_posts(&mut self, posts: Vec<(LocalId, GateMessage)>) {
        for (to, message) in posts {
            for backend in &mut self.backends {
                for local in &mut backend.locals {
                    if local.id == to {
                        local.mailbox.push_back(Some(message));
                    }
                }
            }
        }
    }

    fn raw_status(&self, id: BackendId) -> Status {
        self.control
            .backend(id)
            .map_or(Status::Ok, |state| state.raw_io_status())
    }

    fn index(&self, id: BackendId) -> usize {
        self.backends
            .iter()
            .position(|backend| backend.id == id)
            .expect("known backend")
    }
}
