//! A machine among a guest that writes, storage that runs full, an administrator, a connection that breaks,
//! in any order: QEMU as it is, with its hazards.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use proptest::prelude::*;

use super::super::machine::{Machine, Order, RoomOrder, RoomResult};
use super::super::notice::Notice;
use super::super::view::{Disk, IoStatus, RunState};
use super::{Same, answer, disk, error, settings};
use crate::settings::{OnFailed, Settings};

const DISKS: [&str; 2] = ["a", "b"];

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Storage runs full.
    Fill(usize),
    /// Somebody else makes room.
    Free(usize),
    /// The guest writes.
    Write(usize),
    /// The main loop does what was asked of it: the machine stops.
    Loop,
    /// The server executes the next command.
    Execute,
    /// The watcher hears the next message.
    Hear,
    /// An attempt to make room ends, or to ask for health.
    Room(bool),
    /// Time passes, in milliseconds.
    Pass(u16),
    /// An administrator stops or continues it.
    Stop,
    Cont,
    /// The connection breaks, and is there again.
    Break,
}

#[derive(Clone, Debug)]
enum Message {
    Event(Notice),
    State(RunState),
    Status(u64, RunState),
    Disks(Vec<Disk>),
    Cont,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Command {
    LookState,
    LookDisks,
    Status(u64),
    Cont,
}

/// QEMU, with anonymous backends.
struct Qemu {
    state: RunState,
    /// An error has asked the main loop to stop the machine.
    stopping: bool,
    full: [bool; 2],
    held: [u32; 2],
    /// Never reset.
    status: [IoStatus; 2],
    wire: VecDeque<Message>,
    commands: VecDeque<Command>,
    /// Whether somebody else has stopped or continued it since it said how it was: that race is nobody's
    /// to win.
    touched: bool,
}

impl Qemu {
    fn event(&mut self, notice: Notice) {
        self.wire.push_back(Message::Event(notice));
    }

    fn write(&mut self, at: usize) {
        if self.state != RunState::Running {
            return;
        }
        if self.full[at] {
            self.held[at] += 1;
            self.status[at] = IoStatus::Nospace;
            self.event(error(DISKS[at], true));
            self.stopping = true;
        }
    }

    fn main_loop(&mut self) {
        if std::mem::take(&mut self.stopping) && self.state == RunState::Running {
            self.state = RunState::IoError;
            self.event(Notice::Stop);
        }
    }

    fn resume(&mut self) {
        self.state = RunState::Running;
        self.event(Notice::Resume);
        for at in 0..2 {
            for _ in 0..std::mem::take(&mut self.held[at]) {
                self.write(at);
            }
        }
    }

    /// A `cont`. False: it has lost what is held.
    fn cont(&mut self) -> bool {
        if self.state != RunState::Running {
            self.resume();
            return true;
        }
        if std::mem::take(&mut self.stopping) {
            self.event(Notice::Stop);
            self.event(Notice::Resume);
            return false;
        }
        true
    }

    fn execute(&mut self) -> Result<(), TestCaseError> {
        let Some(command) = self.commands.pop_front() else {
            return Ok(());
        };
        match command {
            Command::LookState => {
                let state = self.state.clone();
                self.wire.push_back(Message::State(state));
            }
            Command::Status(number) => {
                self.touched = false;
                let state = self.state.clone();
                self.wire.push_back(Message::Status(number, state));
            }
            Command::LookDisks => {
                let disks = (0..2).map(|at| Disk {
                    io_status: Some(self.status[at]),
                    ..disk(DISKS[at])
                });
                let disks = disks.collect();
                self.wire.push_back(Message::Disks(disks));
            }
            Command::Cont => {
                let theirs = matches!(self.state, RunState::Other(_));
                prop_assert!(self.touched || !theirs, "somebody else's pause was ended");
                let whole = self.cont();
                prop_assert!(self.touched || whole, "a request was lost");
                if !whole {
                    // Somebody else has continued it in the same moment: only a stop frees these.
                    self.held = [0; 2];
                }
                self.wire.push_back(Message::Cont);
            }
        }
        Ok(())
    }
}

struct Model {
    qemu: Qemu,
    machine: Machine,
    now: Duration,
    look: Vec<Disk>,
    rooms: VecDeque<Box<RoomOrder>>,
    healths: VecDeque<Box<RoomOrder>>,
    conts: usize,
    extended: usize,
}

impl Model {
    fn new() -> Self {
        let settings = Settings {
            on_failed: OnFailed::After(Duration::from_secs(1)),
            give_up_after: u32::MAX,
            ..settings()
        };
        let machine = Machine::new(
            "m",
            Arc::new(Same(settings)),
            false,
            Arc::new(AtomicU64::new(0)),
            7,
        );
        let qemu = Qemu {
            state: RunState::Running,
            stopping: false,
            full: [false; 2],
            held: [0; 2],
            status: [IoStatus::Ok; 2],
            wire: VecDeque::new(),
            commands: VecDeque::new(),
            touched: false,
        };
        let mut model = Self {
            qemu,
            machine,
            now: Duration::ZERO,
            look: Vec::new(),
            rooms: VecDeque::new(),
            healths: VecDeque::new(),
            conts: 0,
            extended: 0,
        };
        model.machine.connected();
        model.carry_out();
        model
    }

    fn carry_out(&mut self) {
        for order in self.machine.take_orders() {
            match order {
                Order::Look => self
                    .qemu
                    .commands
                    .extend([Command::LookDisks, Command::LookState]),
                Order::Status(number) => self.qemu.commands.push_back(Command::Status(number)),
                Order::Cont => {
                    self.conts += 1;
                    self.qemu.commands.push_back(Command::Cont);
                }
                Order::Room(order) => self.rooms.push_back(order),
                Order::Health(order) => self.healths.push_back(order),
                Order::ContExport { .. } | Order::Tell(_) => {}
            }
        }
    }

    fn hear(&mut self) {
        match self.qemu.wire.pop_front() {
            None => {}
            Some(Message::Event(notice)) => self.machine.notice(self.now, notice),
            Some(Message::State(state)) => {
                let disks = std::mem::take(&mut self.look);
                self.machine.looked(self.now, Some(state), disks);
            }
            Some(Message::Status(number, state)) => {
                self.machine.status(self.now, number, Some(state))
            }
            Some(Message::Disks(disks)) => self.look = disks,
            Some(Message::Cont) => self.machine.continued(self.now, Ok(())),
        }
    }

    fn room(&mut self, well: bool) {
        if let Some(order) = self.rooms.pop_front() {
            let at = DISKS
                .iter()
                .position(|name| *name == order.disk.name)
                .unwrap();
            let result = match (self.qemu.full[at], order.ask.own_event) {
                (false, true) => RoomResult::Enough,
                (false, false) => RoomResult::NotAtEnd,
                (true, _) if well => {
                    self.qemu.full[at] = false;
                    self.extended += 1;
                    RoomResult::Grown { by: 1, grown: 1 }
                }
                (true, _) => RoomResult::Failed { by: 1 },
            };
            self.machine
                .room(self.now, &order.disk.name, order.incident, answer(result));
        }
        if let Some(order) = self.healths.pop_front() {
            let result = if well {
                Ok(())
            } else {
                Err("not yet".to_owned())
            };
            self.machine
                .health(self.now, &order.disk.name, order.incident, result);
        }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(due) = self.machine.wake_at().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.machine.tick(self.now);
            self.carry_out();
        }
        self.now = until;
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Fill(at) => self.qemu.full[at] = true,
            Step::Free(at) => self.qemu.full[at] = false,
            Step::Write(at) => self.qemu.write(at),
            Step::Loop => self.qemu.main_loop(),
            Step::Execute => self.qemu.execute()?,
            Step::Hear => self.hear(),
            Step::Room(well) => self.room(well),
            Step::Pass(time) => self.pass(Duration::from_millis(time.into())),
            Step::Stop => {
                if self.qemu.state == RunState::Running && !self.qemu.stopping {
                    self.qemu.state = RunState::Other("paused".to_owned());
                    self.qemu.event(Notice::Stop);
                    self.qemu.touched = true;
                }
            }
            Step::Cont => {
                // An administrator who does not lose requests himself.
                if self.qemu.state != RunState::Running {
                    self.qemu.resume();
                    self.qemu.touched = true;
                }
            }
            Step::Break => {
                self.machine.disconnected(self.now);
                self.carry_out();
                self.qemu.wire.clear();
                self.qemu.commands.clear();
                self.look.clear();
                self.machine.connected();
            }
        }
        self.carry_out();
        Ok(())
    }

    /// From now on nobody disturbs it: it must run, with nothing held, after some time.
    fn come_to_rest(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..2000 {
            for step in [Step::Loop, Step::Execute, Step::Hear, Step::Room(true)] {
                self.step(step)?;
            }
            if self.qemu.wire.is_empty() && self.qemu.commands.is_empty() && self.rooms.is_empty() {
                if matches!(self.qemu.state, RunState::Other(_)) {
                    self.step(Step::Cont)?;
                    continue;
                }
                let rests = self.qemu.state == RunState::Running && !self.qemu.stopping;
                if rests
                    && self
                        .machine
                        .disks()
                        .iter()
                        .all(|disk| disk.incident.is_none())
                {
                    prop_assert_eq!(self.qemu.held, [0; 2]);
                    prop_assert!(self.machine.is_settled() && self.machine.wake_at().is_none());
                    return Ok(());
                }
                self.pass(Duration::from_secs(400));
            }
        }
        prop_assert!(false, "it never comes to rest: {:?}", self.machine);
        Ok(())
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => (0..2_usize).prop_map(Step::Fill),
        1 => (0..2_usize).prop_map(Step::Free),
        4 => (0..2_usize).prop_map(Step::Write),
        4 => Just(Step::Loop),
        6 => Just(Step::Execute),
        8 => Just(Step::Hear),
        4 => any::<bool>().prop_map(Step::Room),
        2 => any::<u16>().prop_map(Step::Pass),
        1 => Just(Step::Stop),
        1 => Just(Step::Cont),
        1 => Just(Step::Break),
    ];
    prop::collection::vec(step, 1..200)
}

fn cases() -> u32 {
    if std::env::var_os("STANDFAST_SOAK").is_some() {
        100_000
    } else {
        2_000
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_request_is_lost_no_pause_is_taken_and_it_goes_on(steps in steps()) {
        let mut model = Model::new();
        for step in steps {
            model.step(step)?;
        }
        model.come_to_rest()?;
    }
}

/// The model finds what it is there for: it does fill storage, extend it and continue machines.
#[test]
fn the_model_does_something() {
    let mut model = Model::new();
    let round = [
        Step::Execute,
        Step::Execute,
        Step::Hear,
        Step::Hear,
        Step::Fill(0),
        Step::Write(0),
    ];
    for step in round {
        model.step(step).unwrap();
    }
    model.come_to_rest().unwrap();
    assert_eq!((model.conts, model.extended), (1, 1));
}

/// And it notices a watcher that answers the event itself.
#[test]
fn the_model_notices_a_lost_request() {
    let mut model = Model::new();
    for step in [Step::Fill(0), Step::Write(0)] {
        model.step(step).unwrap();
    }
    model.qemu.commands.clear();
    model.qemu.commands.push_back(Command::Cont);
    assert!(model.qemu.execute().is_err());
}
