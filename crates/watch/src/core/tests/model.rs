//! A machine among a guest that writes, storage that runs full, an administrator, a connection that breaks,
//! in any order: QEMU as it is, with its hazards.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use proptest::prelude::*;

use super::super::early::Stage;
use super::super::headroom::HeadRoom;
use super::super::machine::{Machine, Order, RoomAnswer, RoomOrder, RoomResult};
use super::super::notice::Notice;
use super::super::room::{Kind, Measure};
use super::super::view::{Disk, Growth, IoStatus, RunState};
use super::{Same, answer, disk, error, settings};
use crate::settings::{OnFailed, Settings};

const DISKS: [&str; 2] = ["a", "b"];
/// The nodes below them, qcow2 on a device each.
const NODES: [&str; 2] = ["a-dev", "b-dev"];

/// What one write allocates, how large the devices are at first, and by how much they are extended, in bytes.
const WRITE: u64 = 16 << 20;
const FIRST: u64 = 128 << 20;
const STEP: u64 = 128 << 20;
const HEAD_ROOM: HeadRoom = HeadRoom {
    min: 24 << 20,
    max: 96 << 20,
    safety: 200,
};

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
    /// The daemon that is linked with it holds something, or nothing any more.
    Hold(bool),
    /// The connection breaks, and is there again.
    Break,
}

#[derive(Clone, Debug)]
enum Message {
    Event(Notice),
    State(RunState),
    Status(u64, RunState),
    Disks(Vec<Disk>),
    Stats(Vec<Disk>),
    Armed(usize, u64),
    Cont,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Command {
    LookState,
    LookDisks,
    Status(u64),
    Stats,
    Arm(usize, u64),
    Cont,
}

/// QEMU, with anonymous backends.
struct Qemu {
    state: RunState,
    /// An error has asked the main loop to stop the machine.
    stopping: bool,
    size: [u64; 2],
    used: [u64; 2],
    /// The furthest write since it was started.
    highest: [u64; 2],
    threshold: [Option<u64>; 2],
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

    fn is_full(&self, at: usize) -> bool {
        self.used[at] + WRITE > self.size[at]
    }

    fn disks(&self) -> Vec<Disk> {
        let disk = |at: usize| Disk {
            io_status: Some(self.status[at]),
            virtual_size: Some(1 << 50),
            growth: Growth {
                node: Some(NODES[at].to_owned()),
                highest: self.highest[at],
                written: None,
            },
            ..disk(DISKS[at])
        };
        (0..2).map(disk).collect()
    }

    fn write(&mut self, at: usize) {
        if self.state != RunState::Running {
            return;
        }
        let end = self.used[at] + WRITE;
        self.highest[at] = self.highest[at].max(end);
        if self.threshold[at].is_some_and(|threshold| end > threshold) {
            self.threshold[at] = None;
            self.event(Notice::Threshold {
                node: NODES[at].to_owned(),
                reached: end,
                age: Duration::ZERO,
            });
        }
        if !self.is_full(at) {
            self.used[at] = end;
        } else {
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
                let disks = self.disks();
                self.wire.push_back(Message::Disks(disks));
            }
            Command::Stats => {
                let disks = self.disks();
                self.wire.push_back(Message::Stats(disks));
            }
            Command::Arm(at, threshold) => {
                self.threshold[at] = Some(threshold);
                self.wire.push_back(Message::Armed(at, threshold));
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
    measures: VecDeque<Box<RoomOrder>>,
    earlies: VecDeque<Box<RoomOrder>>,
    conts: usize,
    extended: usize,
    /// Whether the daemon that is linked with it holds something.
    held: bool,
    /// Whether it was continued nevertheless.
    against: bool,
}

fn at(name: &str) -> usize {
    DISKS.iter().position(|known| *known == name).unwrap()
}

impl Model {
    fn new() -> Self {
        let settings = Settings {
            on_failed: OnFailed::After(Duration::from_secs(1)),
            give_up_after: u32::MAX,
            early: Some(HEAD_ROOM),
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
            size: [FIRST; 2],
            used: [0; 2],
            highest: [0; 2],
            threshold: [None; 2],
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
            measures: VecDeque::new(),
            earlies: VecDeque::new(),
            conts: 0,
            extended: 0,
            held: false,
            against: false,
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
                    self.against |= self.held;
                    self.qemu.commands.push_back(Command::Cont);
                }
                Order::Room(order) => self.rooms.push_back(order),
                Order::Health(order) => self.healths.push_back(order),
                Order::Measure(order) => self.measures.push_back(order),
                Order::Early(order) => self.earlies.push_back(order),
                Order::Stats => self.qemu.commands.push_back(Command::Stats),
                Order::Arm {
                    disk, threshold, ..
                } => {
                    let arm = Command::Arm(at(&disk), threshold);
                    self.qemu.commands.push_back(arm);
                }
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
            Some(Message::Stats(disks)) => self.machine.stats(self.now, &disks),
            Some(Message::Armed(at, threshold)) => {
                self.machine.armed(self.now, DISKS[at], threshold, Ok(()));
            }
            Some(Message::Cont) => self.machine.continued(self.now, Ok(())),
        }
    }

    fn measure(&self, at: usize) -> Measure {
        Measure {
            kind: Kind::Device,
            size: self.qemu.size[at],
            free: None,
            exhausted: false,
        }
    }

    fn room(&mut self, well: bool) {
        if let Some(order) = self.rooms.pop_front() {
            let at = at(&order.disk.name);
            let result = match (self.qemu.is_full(at), order.ask.own_event) {
                (false, true) => RoomResult::Enough,
                (false, false) => RoomResult::NotAtEnd,
                (true, _) if well => {
                    self.qemu.size[at] += STEP;
                    self.extended += 1;
                    RoomResult::Grown {
                        by: STEP,
                        grown: STEP,
                    }
                }
                (true, _) => RoomResult::Failed { by: STEP },
            };
            self.machine
                .room(self.now, &order.disk.name, order.incident, answer(result));
        }
        if let Some(order) = self.earlies.pop_front() {
            let at = at(&order.disk.name);
            let free = order
                .ask
                .used
                .map(|used| self.qemu.size[at].saturating_sub(used));
            let result = match free {
                Some(free) if free < order.ask.head_room && well => {
                    self.qemu.size[at] += STEP.max(2 * order.ask.head_room);
                    self.extended += 1;
                    RoomResult::Grown {
                        by: STEP,
                        grown: STEP,
                    }
                }
                Some(free) if free < order.ask.head_room => RoomResult::Failed { by: STEP },
                _ => RoomResult::Enough,
            };
            let measure = Some(self.measure(at));
            let answer = RoomAnswer {
                measure,
                ..answer(result)
            };
            self.machine.early(self.now, DISKS[at], answer);
        }
        if let Some(order) = self.measures.pop_front() {
            let at = at(&order.disk.name);
            let measure = self.measure(at);
            self.machine.measured(self.now, DISKS[at], Ok(measure));
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
            Step::Fill(at) => self.qemu.used[at] = self.qemu.size[at],
            Step::Free(at) => self.qemu.size[at] += 2 * WRITE,
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
            Step::Hold(held) => {
                self.held = held;
                self.machine.hold(self.now, held);
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
        prop_assert!(!self.against, "continued while the daemon holds something");
        Ok(())
    }

    /// Whether the server will tell of each disk before its head-room is gone.
    fn is_watched(&self) -> Result<bool, TestCaseError> {
        for (at, disk) in self.machine.disks().iter().enumerate() {
            let Stage::Armed(threshold) = disk.early.stage else {
                return Ok(false);
            };
            prop_assert_eq!(self.qemu.threshold[at], Some(threshold));
            let size = self.qemu.size[at];
            // Somebody else's extension is found by the next event, or the next look.
            let end = size.saturating_sub(disk.early.head_room).max(1);
            prop_assert!(threshold <= end, "{} of {}", threshold, size);
        }
        Ok(true)
    }

    /// From now on nobody disturbs it: it must run, with nothing held, after some time.
    fn come_to_rest(&mut self) -> Result<(), TestCaseError> {
        self.step(Step::Hold(false))?;
        for _ in 0..2000 {
            for step in [Step::Loop, Step::Execute, Step::Hear, Step::Room(true)] {
                self.step(step)?;
            }
            let asked = self.rooms.len() + self.measures.len() + self.earlies.len();
            if self.qemu.wire.is_empty() && self.qemu.commands.is_empty() && asked == 0 {
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
                    prop_assert!(self.machine.is_settled());
                    if self.is_watched()? {
                        return Ok(());
                    }
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
        1 => any::<bool>().prop_map(Step::Hold),
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

/// Who writes no faster than is extended never stops.
#[test]
fn the_model_extends_early() {
    let mut model = Model::new();
    for _ in 0..200 {
        model.come_to_rest().unwrap();
        model.step(Step::Write(0)).unwrap();
        model.step(Step::Pass(500)).unwrap();
    }
    assert_eq!(model.conts, 0);
    assert!(model.extended > 5, "{}", model.extended);
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
