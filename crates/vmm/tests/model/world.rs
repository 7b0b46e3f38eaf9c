//! The world around a machine: real run control, an imagined VMM, an administrator, losses.

mod daemon;
mod rest;
mod vmm;

use std::collections::BTreeMap;
use std::time::Duration;

use block::event::Event;
use block::run_control::{Effects, GateMessage, RunControl};
use block::{LocalId, SavedState, VmOrder, VmPause, VmState};
use standfast_vmm::machine::{Action, Answer, Failure, Machine, Traits};
use testkit::Rng;

/// A mistake put in on purpose: it lies between the machine and the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    None,
    /// A resume by somebody else is not noticed when the VMM tells it.
    DeafToResume,
    /// A resume by somebody else is no `cont`.
    NoCont,
    /// What was lost counts as done.
    LostIsDone,
    /// What was refused counts as done.
    RefusedIsDone,
    /// `x-force` is not passed on.
    ForgetsForce,
    /// An order that comes while a request is under way is lost.
    DropsOrders,
    /// Another process is taken for the same VM.
    SameProcess,
    /// A VM that was paused when the daemon started is always taken for the link's.
    OwnsAll,
    /// `cont` applied is not told to the machine.
    NoContDone,
}

fn chance(rng: &mut Rng, percent: u64) -> bool {
    rng.below(100) < percent
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It tells by events what becomes of the VM: QEMU.
    Telling,
    /// It only answers: Cloud Hypervisor, Firecracker.
    Polled,
    /// It cannot even be asked: commands.
    Blind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Nobody,
    Link,
    Admin,
}

#[derive(Debug)]
struct Vmm {
    alive: bool,
    process: i32,
    vm: VmState,
    by: Who,
    /// The VM has not run since it is there.
    fresh: bool,
}

#[derive(Debug)]
struct Request {
    id: u64,
    action: Action,
    executed: bool,
}

#[derive(Clone, Debug)]
enum Happening {
    Arrive {
        id: u64,
    },
    Reply {
        id: u64,
        result: Result<Answer, Failure>,
    },
    TimeOut {
        id: u64,
    },
    Told(VmState),
    Cont,
    Save,
    /// The disks of the VM have come back to the daemon.
    Back,
}

/// What was seen in all runs: a model that never gets there proves nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub conts: u64,
    pub refused_conts: u64,
    pub admin_pauses_left_alone: u64,
    pub forced: u64,
    pub restarts_paused: u64,
    pub contested: u64,
    pub lost: u64,
    pub refused: u64,
    pub orders_under_way: u64,
}

/// Collects the orders to the link.
#[derive(Default)]
struct Orders(Vec<VmOrder>);

impl Effects for Orders {
    fn event(&mut self, _: Event) {}
    fn post(&mut self, _: LocalId, _: GateMessage) {}
    fn vm(&mut self, order: VmOrder) {
        self.0.push(order);
    }
}

pub struct World {
    pub rng: Rng,
    pub now: u64,
    pub log: Vec<String>,
    pub seen: Seen,
    kind: Kind,
    mutant: Mutant,
    storm: bool,
    control: RunControl,
    /// `cont` is refused: a node has lost a flush.
    blocked: bool,
    disk: SavedState,
    revision: u64,
    machine: Machine,
    /// The machine of this daemon has had an answer.
    contacted: bool,
    /// This daemon takes a VM that it finds paused for one that its former link has paused.
    claims: bool,
    /// The VM must not be resumed yet.
    held_back: bool,
    vmm: Vmm,
    connected: bool,
    new_connection: bool,
    request: Option<Request>,
    last_id: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    last_seq: u64,
    /// When the last thing said by the VMM arrives: its connection keeps the order.
    channel: u64,
    /// A pause or resume was lost, and nothing was seen since.
    doubt: bool,
    /// A forced cont, and no answer since to a question asked after it: the last request before it.
    force_unseen: Option<u64>,
    /// The pause of somebody else may be resumed: `x-force`.
    force_ok: bool,
    /// Nobody could know who has paused the VM.
    contested: bool,
    admin_paused_at: u64,
    pub broken: Option<String>,
}

impl World {
    pub fn new(seed: u64, mutant: Mutant) -> Self {
        let mut rng = Rng::new(seed);
        let kind = [
            Kind::Telling,
            Kind::Polled,
            Kind::Telling,
            Kind::Polled,
            Kind::Blind,
        ][usize::try_from(rng.below(5)).unwrap_or(0)];
        let alive = kind == Kind::Blind || chance(&mut rng, 70);
        let vm = match (kind, rng.below(4)) {
            (Kind::Blind, _) => VmState::Running,
            (Kind::Telling, _) if alive => VmState::Running,
            (_, 1..) if alive => VmState::Running,
            _ => VmState::Absent,
        };
        Self {
            now: 0,
            log: Vec::new(),
            seen: Seen::default(),
            kind,
            mutant,
            storm: true,
            control: RunControl::new(),
            blocked: false,
            disk: SavedState::default(),
            revision: 0,
            machine: Machine::new(traits(kind), VmPause::Nobody, false),
            contacted: false,
            claims: false,
            held_back: false,
            vmm: Vmm {
                alive,
                process: 1,
                vm,
                by: Who::Nobody,
                fresh: false,
            },
            connected: false,
            new_connection: false,
            request: None,
            last_id: 0,
            queue: BTreeMap::new(),
            last_seq: 0,
            channel: 0,
            doubt: false,
            force_unseen: None,
            force_ok: false,
            contested: false,
            admin_paused_at: 0,
            broken: None,
            rng,
        }
    }

    fn say(&mut self, what: impl std::fmt::Display) {
        self.log.push(format!("{:>7} {what}", self.now));
    }

    fn wrong(&mut self, what: impl std::fmt::Display) {
        self.say(format!("WRONG: {what}"));
        if self.broken.is_none() {
            self.broken = Some(what.to_string());
        }
    }

    fn time(&self) -> Duration {
        Duration::from_millis(self.now)
    }

    fn schedule(&mut self, after: u64, what: Happening) {
        self.last_seq += 1;
        self.queue.insert((self.now + after, self.last_seq), what);
    }

    /// Said by the VMM: arrives in the order in which it was said.
    fn send(&mut self, after: u64, what: Happening) {
        self.channel = self.channel.max(self.now + after);
        self.last_seq += 1;
        self.queue.insert((self.channel, self.last_seq), what);
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Arrive { id } => {
                if self
                    .request
                    .as_ref()
                    .is_none_or(|r| r.id != id || r.executed)
                {
                    return;
                }
                if let Some(result) = self.execute() {
                    let after = self.rng.below(8);
                    self.send(after, Happening::Reply { id, result });
                } else if self.kind != Kind::Blind && chance(&mut self.rng, 50) {
                    self.lose();
                }
            }
            Happening::Reply { id, result } => {
                let Some(request) = self.request.take_if(|request| request.id == id) else {
                    return;
                };
                self.say(format!("answer {id}: {result:?}"));
                match (&result, request.action) {
                    (Ok(_), Action::Query) => {
                        self.contacted = true;
                        self.doubt = false;
                        if self.force_unseen.is_some_and(|id| id < request.id) {
                            self.force_unseen = None;
                        }
                    }
                    (Ok(_), _) => self.doubt = false,
                    (Err(Failure::Lost(_)), Action::Pause | Action::Resume) => self.doubt = true,
                    (Err(Failure::Refused(_)), _) => self.seen.refused += 1,
                    _ => {}
                }
                let result = match (self.mutant, result) {
                    (Mutant::LostIsDone, Err(Failure::Lost(_)))
                        if request.action != Action::Query =>
                    {
                        Ok(Answer::default())
                    }
                    (Mutant::RefusedIsDone, Err(Failure::Refused(_))) => Ok(Answer::default()),
                    (_, result) => result,
                };
                let now = self.time();
                self.machine.done(result, now);
                self.pump();
            }
            Happening::TimeOut { id } => {
                if self
                    .request
                    .as_ref()
                    .is_some_and(|request| request.id == id)
                {
                    if let Some(request) = &mut self.request {
                        // What has not been executed by now never will.
                        request.executed = true;
                    }
                    self.say("time is over");
                    self.lose();
                }
            }
            Happening::Told(vm) => {
                self.say(format!("told {vm:?}"));
                if !(self.mutant == Mutant::DeafToResume && vm == VmState::Running) {
                    self.machine.event(vm);
                }
                self.pump();
            }
            Happening::Cont => {
                if self.cont(false) {
                    if self.storm && chance(&mut self.rng, 25) {
                        self.say("and fails at once");
                        self.stop();
                    }
                } else {
                    self.seen.refused_conts += 1;
                }
                if self.mutant != Mutant::NoContDone {
                    self.machine.cont_done();
                }
                self.pump();
            }
            Happening::Back => {
                self.held_back = false;
                self.machine.hold_back(false);
                self.pump();
            }
            Happening::Save => self.disk = self.control.save(),
        }
    }

    /// Lets `ms` pass.
    pub fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        let mut turns = 0;
        while self.broken.is_none() {
            turns += 1;
            if turns > 100 + ms {
                self.wrong("more happens than time passes: a livelock");
                return;
            }
            let next = self.queue.keys().next().copied();
            let wake = self
                .machine
                .wake_at()
                .and_then(|at| u64::try_from(at.as_millis()).ok());
            let at = match (next, wake) {
                (Some((at, _)), Some(wake)) => at.min(wake),
                (Some((at, _)), None) => at,
                (None, Some(wake)) => wake,
                (None, None) => break,
            };
            if at > end {
                break;
            }
            self.now = self.now.max(at);
            match next {
                Some(key) if key.0 <= at => {
                    if let Some(what) = self.queue.remove(&key) {
                        self.happen(what);
                    }
                }
                _ => self.pump(),
            }
        }
        self.now = end;
    }

    /// Something that nobody expects.
    pub fn shock(&mut self) {
        match self.rng.below(100) {
            0..20 => {
                self.say("error");
                self.stop();
            }
            20..38 => {
                self.cont(false);
            }
            38..44 => {
                self.cont(true);
            }
            44..48 => {
                self.blocked = !self.blocked;
                self.say(format!("blocked: {}", self.blocked));
            }
            48..60 => self.admin_pauses(),
            60..76 => {
                self.admin_resumes();
            }
            76..82 if self.kind != Kind::Blind => self.lose(),
            82..85 => self.vmm_exits(),
            85..92 => self.vmm_starts(),
            92..96 if self.vmm.alive && self.vmm.vm == VmState::Absent => {
                self.say("VM boots");
                self.vmm.vm = VmState::Running;
            }
            96..99 => self.restart_daemon(),
            _ => {}
        }
        self.pump();
    }

    /// No more faults; at rest VMM and daemon agree.
    pub fn settle(&mut self) {
        self.storm = false;
        self.pass(30_000);
        let before = self.last_id;
        self.pass(10_000);
        if self.last_id - before > 21 {
            self.wrong("the VMM is asked all the time although nothing happens");
        }
        self.check();
    }
}

fn traits(kind: Kind) -> Traits {
    Traits {
        blind: kind == Kind::Blind,
        polled: kind == Kind::Polled,
    }
}
