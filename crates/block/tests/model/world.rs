//! An imagined daemon: real gates and real run control, imagined mailboxes, storage and client.
//!
//! Every mailbox is a queue of messages, and a step takes exactly one message out of one of them,
//! so any order that the real threads could produce can come up. Beside the real state machines
//! the world keeps its own plain record of what must be true, and compares.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Instant, SystemTime};

use standfast_block::gate::{Admission, Gate, Outcome, Removed, Ticket, Verdict};
use standfast_block::overlap::Blockers;
use standfast_block::run_control::{
    BackendConfig, Effects, Failed, GateMessage, REPORT_INTERVAL, Reported, Resolved, Restored,
    RunControl,
};
use standfast_block::{
    Action, BackendId, Cause, ClientError, EndedIncident, Event, HoldEnd, HoldScope, Image,
    LocalId, Operation, Policy, Request, RunState, Status, Tag, VmOrder,
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
    /// What froze because of another part stays frozen when nothing is held there any more.
    ThawForgotten,
    /// Nobody hears that what it waited behind on another iothread has ended.
    RecheckLost,
    /// What begins a new life of one device takes the alarm of all others along.
    AlarmLost,
    /// What comes due is told by a clock that is ahead.
    ClockAhead,
    /// What waits to be told of a former life of the device is told in the next one.
    ReportOutlivesReset,
    /// Nobody hears that an incident ended because a client attached.
    EndUntold,
    /// An incident ends twice.
    EndToldTwice,
    /// Run control hears nothing of a part that has ended.
    PartEndsUnheard,
    /// What is parked in the driver stays there when something freezes.
    ParkedNotTakenBack,
    /// What a client that has left still writes is in nobody's way.
    LeftInFlight,
    /// A client that joins does not hear that all is frozen.
    JoinsUnfrozen,
}

/// Iothreads; the first client of each backend has a part on each of them.
pub const IOTHREADS: usize = 2;
/// How many parts a backend has in all its life. Each client that joins later has one.
pub const PARTS_MAX: usize = 6;
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
    /// None: something held elsewhere has ended, and something here has waited behind it.
    mailbox: VecDeque<Option<GateMessage>>,
    in_flight: Vec<Ticket>,
    /// In the driver, which has not begun them.
    parked: Vec<Ticket>,
    /// Arrival number -> request number.
    orders: BTreeMap<u64, usize>,
    next_head: u16,
    /// It has ended: nothing comes from it any more.
    closed: bool,
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
    /// A resize has all its parts drained.
    drained: bool,
    /// The export is being removed.
    leaving: bool,
    /// Run control has forgotten it.
    removed: bool,
    reports: time::Reports,
    /// The number of the incident that goes on, by what was told.
    incident: Option<u64>,
    incidents: u64,
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
    AcceptLoss(usize),
    RemoveLocal(usize, usize),
    Join(usize),
    RemoveBackend(usize),
}

#[derive(Default)]
struct Outbox {
    events: Vec<Event>,
    posts: Vec<(LocalId, GateMessage)>,
    orders: Vec<VmOrder>,
    ended: Vec<EndedIncident>,
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
    fn incident_ended(&mut self, ended: &EndedIncident) {
        self.ended.push(ended.clone());
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
    now: Instant,
    /// When the control task is to be woken.
    alarm: Option<Instant>,
    /// The last message told of a failure that was reported or ignored.
    reported_last: bool,
    /// Statistics, so that a test can see that the interesting things happened.
    pub holds: usize,
    pub completions: usize,
    /// Events that came because it was time for them.
    pub late: usize,
    /// Incidents that have ended.
    pub ends: usize,
    pub taken_back: usize,
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
mod client;
mod delivery;
mod incidents;
mod storage;
mod time;

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
            now: Instant::now(),
            alarm: None,
            reported_last: false,
            holds: 0,
            completions: 0,
            late: 0,
            ends: 0,
            taken_back: 0,
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
            image: Image::default(),
        });
        let locals = (0..IOTHREADS).map(|iothread| self.new_local(iothread, policy, scope));
        let locals: Vec<_> = locals.collect();
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
            drained: false,
            leaving: false,
            removed: false,
            reports: time::Reports::default(),
            incident: None,
            incidents: 0,
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

    fn new_local(&mut self, iothread: usize, policy: Policy, scope: HoldScope) -> Local {
        self.next_local += 1;
        Local {
            id: LocalId(self.next_local),
            iothread,
            gate: Gate::new(policy, scope, QUEUES),
            mailbox: VecDeque::new(),
            in_flight: Vec::new(),
            parked: Vec::new(),
            orders: BTreeMap::new(),
            next_head: 0,
            closed: false,
        }
    }

    /// How many parts a backend has, or has had.
    pub fn parts(&self, b: usize) -> usize {
        self.backends[b].locals.len()
    }

    /// Lets every message arrive, then checks what must hold when nothing is under way.
    pub fn settle(&mut self) -> Check {
        loop {
            while !self.inbox.is_empty() {
                self.control_step()?;
            }
            let mut idle = true;
            for b in 0..self.backends.len() {
                for l in 0..self.parts(b) {
                    while !self.backends[b].locals[l].mailbox.is_empty() {
                        idle = false;
                        self.local_step(b, l)?;
                    }
                }
            }
            if self.alarm_rings() {
                idle = false;
                self.ring()?;
            }
            if idle && self.inbox.is_empty() {
                return self.check_settled();
            }
        }
    }

    /// Ends everything: storage is mended, `cont`, and every request must come to its end.
    pub fn finish(&mut self) -> Check {
        for b in 0..self.backends.len() {
            for l in 0..self.parts(b) {
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
                for l in 0..self.parts(b) {
                    while !self.backends[b].locals[l].parked.is_empty() {
                        self.go_on(b, l, 0)?;
                    }
                    while !self.backends[b].locals[l].in_flight.is_empty() {
                        self.end(b, l, 0, None)?;
                    }
                }
            }
            self.settle()?;
        }
        // The last failures are told, and then nothing is due any more.
        self.now += REPORT_INTERVAL;
        self.settle()?;
        ensure!(
            self.alarm.is_none() && self.control.wake_at().is_none(),
            "still to wake at {:?}, {:?}",
            self.alarm,
            self.control.wake_at()
        );
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
            for ticket in local.parked.drain(..) {
                local.gate.finish(ticket, Outcome::TakenBack);
            }
        }
    }

    // ---- inside ----

    fn pump(&mut self, b: usize, l: usize) -> Check {
        loop {
            let backend = &mut self.backends[b];
            let (local, blockers) = (&mut backend.locals[l], &mut backend.blockers);
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

    fn forget(&mut self, b: usize, l: usize, removed: &[Removed], end: HoldEnd) {
        for entry in removed {
            let local = &self.backends[b].locals[l];
            let life = local.orders[&entry.order];
            let (id, generation) = (local.id, local.gate.generation());
            self.lives[life].phase = Phase::Dropped;
            self.unblock(b, l, entry.order);
            // Of a part that has ended run control forgets all at once.
            if entry.was_held && !self.backends[b].locals[l].closed {
                self.inbox.push_back(Message::Resolved(Resolved {
                    backend: self.backends[b].id,
                    local: id,
                    generation,
                    order: entry.order,
                    end,
                }));
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
