//! The world around a machine: real run control, an imagined VMM, an administrator, losses.

use std::collections::BTreeMap;
use std::time::Duration;

use block::event::Event;
use block::run_control::{Effects, GateMessage, RunControl};
use block::{LinkState, LocalId, RunState, SavedState, VmOrder, VmPause, VmState};
use standfast_vmm::machine::{Action, Answer, Failure, Machine, Output, Traits};
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

    // The daemon.

    fn give(&mut self, orders: Orders) {
        for order in orders.0 {
            self.say(format!("order {order:?}"));
            let mut order = order;
            if self.request.is_some() {
                self.seen.orders_under_way += 1;
                if self.mutant == Mutant::DropsOrders {
                    continue;
                }
            }
            if order == (VmOrder::Resume { force: true }) {
                self.seen.forced += 1;
                self.force_ok |= self.vmm.vm == VmState::Paused;
                self.force_unseen = Some(self.last_id);
                if self.mutant == Mutant::ForgetsForce {
                    order = VmOrder::Resume { force: false };
                }
            }
            self.machine.order(order);
        }
        self.pump();
    }

    fn stop(&mut self) {
        let mut orders = Orders::default();
        let _ = self.control.stop(&mut orders);
        self.give(orders);
    }

    pub fn cont(&mut self, force: bool) -> bool {
        if self.blocked {
            self.say("cont refused");
            return false;
        }
        let mut orders = Orders::default();
        let done = self.control.cont(None, force, &mut orders);
        self.give(orders);
        done.is_ok()
    }

    /// Lets the machine act, and carries out what it says.
    fn pump(&mut self) {
        for output in self.machine.outputs() {
            match output {
                Output::Cont => {
                    self.say("cont, because somebody resumed the VM");
                    self.seen.conts += 1;
                    if self.mutant == Mutant::NoCont {
                        self.machine.cont_done();
                    } else {
                        let after = self.rng.below(30);
                        self.schedule(after, Happening::Cont);
                    }
                }
                Output::Note(by) => {
                    self.say(format!("paused by {by:?}"));
                    self.control.note_vm_pause(by);
                }
                Output::Announce(status) => self.say(format!("event {status:?}")),
                Output::Reset(_) => {}
            }
        }
        if self.control.revision() != self.revision {
            self.revision = self.control.revision();
            let after = self.rng.below(20);
            self.schedule(after, Happening::Save);
        }
        self.machine.assume(self.control.state());
        if let Some(action) = self.machine.next(self.time()) {
            self.last_id += 1;
            let id = self.last_id;
            self.say(format!("request {id}: {action:?}"));
            if action == Action::Resume && self.held_back {
                self.wrong("the VM is resumed before its disks are back");
            }
            if matches!(action, Action::Pause | Action::Resume)
                && self.vmm.by == Who::Admin
                && self.now <= self.admin_paused_at + 50
            {
                // They cross: what the administrator has done cannot be known here yet.
                self.contested = true;
            }
            self.request = Some(Request {
                id,
                action,
                executed: false,
            });
            let slow = self.storm && chance(&mut self.rng, 4);
            let after = if slow { 4000 } else { 0 } + self.rng.below(8);
            self.schedule(after, Happening::Arrive { id });
            self.schedule(5000, Happening::TimeOut { id });
        } else if let Some(at) = self.machine.wake_at()
            && at <= self.time()
        {
            self.wrong("the machine wants to be woken at once, but does nothing");
        }
    }

    fn restart_daemon(&mut self) {
        if self
            .request
            .as_ref()
            .is_some_and(|request| !request.executed)
            && chance(&mut self.rng, 50)
        {
            self.execute();
        }
        self.request = None;
        self.connected = false;
        self.queue.clear();
        self.say(format!("daemon restarts with {:?}", self.disk));
        self.control = RunControl::new();
        self.control.restore(self.disk.clone());
        self.revision = self.control.revision();
        let inherited = self.disk.run_state != RunState::Running;
        let saved = self.disk.vm_pause;
        let claims = saved == VmPause::Link || (inherited && saved == VmPause::Nobody);
        if self.vmm.vm == VmState::Paused {
            self.seen.restarts_paused += 1;
            // What the former daemon had not saved yet, the new one cannot know.
            self.contested |= match self.vmm.by {
                Who::Admin => self.force_ok || (saved != VmPause::Other && claims),
                _ => !claims,
            };
        }
        // A blind link knows what was saved, and no more.
        if self.kind == Kind::Blind && (saved == VmPause::Link) != (self.vmm.vm == VmState::Paused)
        {
            self.contested = true;
        }
        let (saved, inherited) = match self.mutant {
            Mutant::OwnsAll => (VmPause::Nobody, true),
            _ => (saved, inherited),
        };
        self.machine = Machine::new(traits(self.kind), saved, inherited);
        self.held_back = chance(&mut self.rng, 50);
        self.machine.hold_back(self.held_back);
        let after = self.rng.below(5000);
        self.schedule(after, Happening::Back);
        self.contacted = false;
        self.claims = claims;
        self.doubt = false;
        self.force_unseen = None;
        if self.control.state() != RunState::Running {
            self.give(Orders(vec![VmOrder::Pause]));
        }
        self.pump();
    }

    // The VMM.

    fn become_running(&mut self) {
        self.vmm.vm = VmState::Running;
        self.vmm.by = Who::Nobody;
        self.vmm.fresh = false;
        self.force_ok = false;
        self.contested = false;
        self.tell(VmState::Running);
    }

    fn become_paused(&mut self, by: Who) {
        self.vmm.vm = VmState::Paused;
        self.vmm.by = by;
        self.tell(VmState::Paused);
    }

    fn tell(&mut self, vm: VmState) {
        if self.kind == Kind::Telling && self.connected {
            let after = self.rng.below(4);
            self.send(after, Happening::Told(vm));
        }
    }

    /// The VMM does what is asked of it now. None: it does not even answer.
    fn execute(&mut self) -> Option<Result<Answer, Failure>> {
        let request = self.request.as_mut()?;
        request.executed = true;
        let action = request.action;
        if !self.vmm.alive {
            return Some(Err(Failure::Lost("nobody there".to_owned())));
        }
        if self.kind == Kind::Telling && !self.connected {
            self.connected = true;
            self.new_connection = true;
            self.channel = self.now;
        }
        let fate = if self.storm { self.rng.below(100) } else { 99 };
        if fate < 6 {
            return None;
        }
        if fate < 16 && action != Action::Query {
            return Some(Err(Failure::Refused("not now".to_owned())));
        }
        let absent = || Some(Err(Failure::Refused("there is no VM".to_owned())));
        match (action, self.vmm.vm) {
            (Action::Pause | Action::Resume, VmState::Absent) => return absent(),
            (Action::Pause, VmState::Running) => {
                self.say("VM paused by the link");
                self.become_paused(Who::Link);
            }
            (Action::Pause, VmState::Paused) if self.kind == Kind::Polled => {
                return Some(Err(Failure::Refused("it is paused already".to_owned())));
            }
            (Action::Resume, VmState::Paused) => {
                self.say("VM resumed by the link");
                if self.vmm.by == Who::Admin && !self.force_ok && !self.contested {
                    self.wrong("the link resumes what an administrator has paused");
                }
                self.become_running();
            }
            _ => {}
        }
        if fate < 22 {
            return None;
        }
        let process = match self.mutant {
            Mutant::SameProcess => None,
            _ => Some(self.vmm.process),
        };
        Some(Ok(match action {
            Action::Query => Answer {
                vm: self.vmm.vm,
                process,
                fresh: std::mem::take(&mut self.new_connection)
                    && self.vmm.fresh
                    && self.mutant != Mutant::SameProcess,
            },
            _ => Answer::default(),
        }))
    }

    /// The connection goes, or the answer to the request does not come.
    fn lose(&mut self) {
        let said: Vec<_> = self
            .queue
            .iter()
            .filter(|(_, what)| matches!(what, Happening::Told(_) | Happening::Reply { .. }))
            .map(|(&key, what)| (key, what.clone()))
            .collect();
        for (key, _) in &said {
            self.queue.remove(key);
        }
        self.connected = false;
        if !said.is_empty() {
            if chance(&mut self.rng, 50) {
                for (_, what) in said {
                    self.happen(what);
                }
            } else if self.vmm.vm == VmState::Paused && self.vmm.by == Who::Admin {
                self.contested = true;
            }
        }
        self.say("lost");
        self.seen.lost += 1;
        if let Some(request) = &self.request {
            let id = request.id;
            if !request.executed && chance(&mut self.rng, 50) {
                self.execute();
                self.connected = false;
                // Nobody reads what it has said of that.
                self.queue
                    .retain(|_, what| !matches!(what, Happening::Told(_)));
            }
            let result = Err(Failure::Lost("the connection went".to_owned()));
            self.happen(Happening::Reply { id, result });
        } else if self.kind == Kind::Telling {
            let now = self.time();
            self.machine.lost("the connection went".to_owned(), now);
            self.pump();
        }
    }

    fn admin_pauses(&mut self) {
        if self.kind == Kind::Blind || self.vmm.vm != VmState::Running {
            return;
        }
        // Cases in which nobody can tell whose pause it was, or in which the link's request was
        // under way already.
        let under_way = self
            .request
            .as_ref()
            .is_some_and(|request| request.action != Action::Query);
        let stale = self.machine.status().paused_by == VmPause::Link
            && (self.kind == Kind::Polled || !self.connected);
        let unknown = !self.contacted && self.claims;
        self.contested = under_way || stale || unknown || self.doubt || self.force_unseen.is_some();
        self.seen.contested += u64::from(self.contested);
        self.say(format!(
            "administrator pauses (contested: {})",
            self.contested
        ));
        self.admin_paused_at = self.now;
        self.become_paused(Who::Admin);
    }

    fn admin_resumes(&mut self) -> bool {
        if self.kind == Kind::Blind || self.vmm.vm != VmState::Paused {
            return false;
        }
        self.say("administrator resumes");
        self.become_running();
        true
    }

    fn vmm_exits(&mut self) {
        if self.kind == Kind::Blind || !self.vmm.alive {
            return;
        }
        self.say("VMM exits");
        self.vmm.alive = false;
        self.vmm.vm = VmState::Absent;
        self.vmm.by = Who::Nobody;
        self.contested = false;
        self.force_ok = false;
        self.lose();
    }

    fn vmm_starts(&mut self) {
        if self.vmm.alive {
            return;
        }
        self.vmm.alive = true;
        self.vmm.process += 1;
        self.vmm.fresh = false;
        self.vmm.by = Who::Nobody;
        self.vmm.vm = match (self.kind, self.rng.below(3)) {
            (Kind::Polled, 0) => VmState::Absent,
            (_, 1) => {
                self.vmm.by = Who::Admin;
                self.vmm.fresh = true;
                self.admin_paused_at = self.now;
                // Only events tell a VM that has never run from one that was paused.
                self.contested =
                    self.force_unseen.is_some() || (!self.contacted && self.kind == Kind::Polled);
                VmState::Paused
            }
            _ => VmState::Running,
        };
        self.say(format!("VMM starts: {:?}", self.vmm));
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

    fn check(&mut self) {
        if self.broken.is_some() {
            return;
        }
        let status = self.machine.status();
        let state = self.control.state();
        self.say(format!("at rest: {state:?}, {:?}, {status:?}", self.vmm));
        if !self.vmm.alive {
            if status.state != LinkState::Down {
                self.wrong("there is no VMM, but the link is not down");
            }
            return;
        }
        if self.kind == Kind::Blind {
            let paused = self.vmm.vm == VmState::Paused;
            if paused != (state != RunState::Running) && !self.contested {
                self.wrong("the VM is not as run control wants it");
            }
            return;
        }
        if status.state != LinkState::Connected || status.error.is_some() {
            self.wrong("the link is not well although nothing is wrong");
        }
        if status.vm != self.vmm.vm || status.pending.is_some() {
            self.wrong("the link does not know how the VM is, or has something left to do");
        }
        match self.vmm.vm {
            VmState::Running if state != RunState::Running => {
                self.wrong("the VM runs although its storage does not");
            }
            VmState::Paused => {
                let admin = self.vmm.by == Who::Admin;
                if state == RunState::Running {
                    self.seen.admin_pauses_left_alone += u64::from(admin);
                    if !(admin && !self.force_ok || self.contested) {
                        self.wrong("the VM stays paused although nobody wants it so");
                    }
                }
                let right = match status.paused_by {
                    VmPause::Link => !admin || self.force_ok || self.contested,
                    VmPause::Other => admin || self.contested,
                    VmPause::Nobody => false,
                };
                if !right {
                    self.wrong("the wrong one is said to have paused the VM");
                }
            }
            _ if status.paused_by != VmPause::Nobody => {
                self.wrong("somebody is said to have paused the VM, but it is not paused");
            }
            _ => {}
        }
    }

    /// From rest: each way out of a pause leads where it should.
    pub fn finish(&mut self) {
        if self.broken.is_some() || !self.vmm.alive {
            return;
        }
        let paused = self.vmm.vm == VmState::Paused;
        match self.rng.below(3) {
            0 => {
                if self.admin_resumes() {
                    let stopped = self.control.state() != RunState::Running;
                    self.settle();
                    let state = self.control.state();
                    if self.blocked && stopped {
                        if state == RunState::Running || self.vmm.vm != VmState::Paused {
                            self.wrong("a blocked storage lets the VM run");
                        }
                    } else if state != RunState::Running || self.vmm.vm != VmState::Running {
                        self.wrong("the VM was resumed by somebody else, and that is no cont");
                    }
                }
            }
            1 => {
                if self.cont(false) {
                    self.settle();
                    let admin = self.vmm.by == Who::Admin || self.contested;
                    if paused && self.vmm.vm == VmState::Paused && !admin {
                        self.wrong("cont does not resume what the link has paused");
                    }
                }
            }
            _ => {
                if self.cont(true) {
                    self.settle();
                    if paused && self.vmm.vm != VmState::Running {
                        self.wrong("a forced cont does not resume the VM");
                    }
                }
            }
        }
    }
}

fn traits(kind: Kind) -> Traits {
    Traits {
        blind: kind == Kind::Blind,
        polled: kind == Kind::Polled,
    }
}
