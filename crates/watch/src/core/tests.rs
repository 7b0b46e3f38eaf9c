//! Decisions, by tables: what is seen, and what is ordered.

mod early;
mod model;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::incident::Stage;
use super::machine::{Machine, Order, RoomAnswer, RoomResult, Rules};
use super::notice::{Action, IoError, Notice};
use super::record::{Ending, Record, What};
use super::room::{Kind, Measure};
use super::view::{Disk, HoldScope, IoStatus, RunState};
use crate::settings::{OnFailed, Program, Settings, Strategy};

#[derive(Debug)]
pub struct Same(pub Settings);

impl Rules for Same {
    fn of(&self, _: &Disk) -> Arc<Settings> {
        Arc::new(self.0.clone())
    }
}

pub fn program() -> Program {
    Program {
        argv: vec!["/bin/grow".to_owned()],
        time_limit: Duration::from_secs(60),
    }
}

pub fn settings() -> Settings {
    Settings {
        strategy: Strategy::Command(program()),
        give_up_after: 4,
        ..Settings::default()
    }
}

pub fn disk(name: &str) -> Disk {
    Disk {
        name: name.to_owned(),
        node: Some(name.to_owned()),
        io_status: Some(IoStatus::Ok),
        virtual_size: Some(1 << 30),
        ..Disk::default()
    }
}

pub fn error(node: &str, nospace: bool) -> Notice {
    Notice::IoError(IoError {
        qom_path: String::new(),
        device: String::new(),
        node: node.to_owned(),
        operation: "write".to_owned(),
        action: Action::Stop,
        nospace,
        length: 0,
        reason: "as it is".to_owned(),
    })
}

pub fn answer(result: RoomResult) -> RoomAnswer {
    RoomAnswer {
        result,
        measure: None,
        before: None,
        took: Duration::ZERO,
        to_start: Duration::ZERO,
        running: Duration::ZERO,
        detail: "as it is".to_owned(),
    }
}

const GROWN: RoomResult = RoomResult::Grown { by: 1, grown: 1 };

/// A machine with two disks, `a` and `b`, that runs.
struct Rig {
    machine: Machine,
    now: Duration,
    told: Vec<Record>,
}

impl Rig {
    fn new(settings: Settings) -> Self {
        Self::with(settings, RunState::Running, vec![disk("a"), disk("b")])
    }

    fn with(settings: Settings, state: RunState, disks: Vec<Disk>) -> Self {
        let machine = Machine::new(
            "m",
            Arc::new(Same(settings)),
            false,
            Arc::new(AtomicU64::new(0)),
            7,
        );
        let mut rig = Self {
            machine,
            now: Duration::ZERO,
            told: Vec::new(),
        };
        rig.machine.connected();
        assert_eq!(rig.orders(), ["look"]);
        rig.machine.looked(rig.now, Some(state), disks);
        rig
    }

    /// What is ordered now, in short; what is told is kept.
    fn orders(&mut self) -> Vec<String> {
        let mut short = Vec::new();
        for order in self.machine.take_orders() {
            short.push(match order {
                Order::Look => "look".to_owned(),
                Order::Status(number) => format!("status {number}"),
                Order::Room(order) => format!(
                    "{} {} {}{}",
                    if order.ask.extend {
                        "extend"
                    } else {
                        "look at"
                    },
                    order.disk.name,
                    order.incident,
                    if order.ask.own_event {
                        ""
                    } else {
                        " if at its end"
                    }
                ),
                Order::Health(order) => format!("health {} {}", order.disk.name, order.incident),
                Order::Cont => "cont".to_owned(),
                Order::ContExport { disk, incident } => format!("cont {disk} {incident}"),
                Order::Measure(order) => format!("measure {}", order.disk.name),
                Order::Early(order) => format!("early {} {}", order.disk.name, order.ask.head_room),
                Order::Arm {
                    node, threshold, ..
                } => format!("arm {node} {threshold}"),
                Order::Stats => "stats".to_owned(),
                Order::Tell(record) => {
                    self.told.push(record);
                    continue;
                }
            });
        }
        short
    }

    fn notice(&mut self, notice: Notice) -> Vec<String> {
        self.machine.notice(self.now, notice);
        self.orders()
    }

    fn status(&mut self, number: u64, state: RunState) -> Vec<String> {
        self.machine.status(self.now, number, Some(state));
        self.orders()
    }

    fn room(&mut self, disk: &str, incident: u64, result: RoomResult) -> Vec<String> {
        self.machine.room(self.now, disk, incident, answer(result));
        self.orders()
    }

    /// Lets time pass until something is due.
    fn pass(&mut self) -> (Duration, Vec<String>) {
        let due = self.machine.wake_at().expect("something is due");
        let passed = due.saturating_sub(self.now);
        self.now = self.now.max(due);
        self.machine.tick(self.now);
        (passed, self.orders())
    }

    fn endings(&self) -> Vec<Ending> {
        let ending = |record: &Record| match record.what {
            What::IncidentEnded { ending, .. } => Some(ending),
            _ => None,
        };
        self.told.iter().filter_map(ending).collect()
    }

    fn alerts(&self) -> usize {
        self.told.iter().filter(|record| record.alert).count()
    }

    /// Fails, stops, is extended and continued.
    fn round(&mut self, incident: u64, status: u64) {
        assert_eq!(self.notice(error("a", true)), [""; 0]);
        assert_eq!(self.notice(Notice::Stop), [format!("extend a {incident}")]);
        assert_eq!(
            self.room("a", incident, GROWN),
            [format!("status {status}")]
        );
        assert_eq!(self.status(status, RunState::IoError), ["cont"]);
        assert_eq!(self.notice(Notice::Resume), [""; 0]);
        self.machine.continued(self.now, Ok(()));
        assert_eq!(self.orders(), [""; 0]);
        assert_eq!(self.endings().last(), Some(&Ending::Continued));
    }
}

#[test]
fn an_incident_from_its_error_to_its_end() {
    let mut rig = Rig::new(settings());
    rig.round(1, 1);
    // Again and again at once: it does help, as it is full again each time.
    for round in 2..20 {
        rig.now += Duration::from_millis(10);
        rig.round(round, round);
    }
    assert_eq!((rig.alerts(), rig.machine.wake_at()), (0, None));
    assert!(rig.machine.is_settled());
}

/// In QEMU a `cont` between the error and its STOP loses the request.
#[test]
fn the_event_itself_is_not_answered() {
    let mut rig = Rig::new(settings());
    assert_eq!(rig.notice(error("a", true)), [""; 0]);
    // Asked for the state; it was read before the STOP.
    assert_eq!(
        rig.pass(),
        (Duration::from_millis(500), vec!["status 1".to_owned()])
    );
    assert_eq!(rig.status(1, RunState::Running), [""; 0]);
    assert_eq!(rig.pass().1, ["status 2"]);
    assert_eq!(rig.status(2, RunState::IoError), ["extend a 1"]);
    // STOP was not seen; now it is.
    assert_eq!(rig.notice(Notice::Stop), ["status 3"]);
    assert_eq!(rig.status(3, RunState::IoError), [""; 0]);
    assert_eq!(rig.room("a", 1, GROWN), ["status 4"]);
    // Another error while it was asked: what was answered before does not count.
    assert_eq!(rig.notice(error("b", true)), ["extend b 2"]);
    assert_eq!(rig.status(4, RunState::IoError), [""; 0]);
    assert_eq!(rig.room("b", 2, GROWN), ["status 5"]);
    assert_eq!(rig.status(5, RunState::IoError), ["cont"]);
    // More of the same before the machine goes on changes nothing.
    assert_eq!(rig.notice(error("a", true)), [""; 0]);
    assert_eq!(rig.notice(Notice::Resume), [""; 0]);
    assert_eq!(rig.endings(), [Ending::Continued, Ending::Continued]);
}

#[test]
fn a_machine_that_never_stops_is_let_alone() {
    let mut rig = Rig::new(settings());
    rig.notice(error("a", true));
    let mut asked = 0;
    while rig.endings().is_empty() {
        let (_, orders) = rig.pass();
        for order in orders {
            let number = order
                .strip_prefix("status ")
                .expect("nothing else")
                .parse()
                .unwrap();
            assert_eq!(rig.status(number, RunState::Running), [""; 0]);
            asked += 1;
        }
    }
    assert_eq!(
        (rig.endings(), rig.now),
        (vec![Ending::NotStopped], Duration::from_secs(5))
    );
    assert!(asked < 10);
}

#[test]
fn it_goes_on_when_all_disks_are_well() {
    let mut rig = Rig::new(settings());
    rig.notice(error("a", true));
    rig.notice(error("b", false));
    assert_eq!(rig.notice(Notice::Stop), ["extend a 1"]);
    // 'b' has failed, and is left: it would stop it again.
    assert_eq!(rig.room("a", 1, GROWN), [""; 0]);
    assert_eq!((rig.alerts(), rig.endings()), (1, vec![]));
    assert!(rig.machine.is_settled());
    // Somebody else decides.
    assert_eq!(rig.notice(Notice::Resume), [""; 0]);
    assert_eq!(rig.endings(), [Ending::ContinuedByOther; 2]);
}

#[test]
fn somebody_elses_pause_is_left_alone() {
    let mut rig = Rig::new(settings());
    let paused = || RunState::Other("paused".to_owned());
    rig.notice(error("a", true));
    assert_eq!(rig.notice(Notice::Stop), ["extend a 1"]);
    assert_eq!(rig.room("a", 1, GROWN), ["status 1"]);
    assert_eq!(rig.status(1, paused()), [""; 0]);
    // Whatever happens, until it is resumed.
    assert_eq!(rig.notice(error("b", true)), ["extend b 2"]);
    assert_eq!(rig.room("b", 2, GROWN), [""; 0]);
    assert_eq!(rig.machine.wake_at(), None);
    assert_eq!(rig.notice(Notice::Resume), [""; 0]);
    assert_eq!(rig.endings(), [Ending::ContinuedByOther; 2]);
    let told = rig.told.iter().filter(|record| {
        matches!(
            record.what,
            What::Decision {
                decision: "leave",
                ..
            }
        )
    });
    assert_eq!(told.count(), 1);
}

/// With a link only the daemon gets the `cont` while it holds something: it resumes the VM itself.
#[test]
fn the_daemon_that_is_linked_goes_on_first() {
    let mut rig = Rig::new(settings());
    rig.machine.hold(rig.now, true);
    rig.notice(error("a", true));
    assert_eq!(rig.notice(Notice::Stop), ["extend a 1"]);
    assert_eq!(rig.room("a", 1, GROWN), [""; 0]);
    // That is nothing to wake somebody for.
    assert_eq!((rig.alerts(), rig.endings().len()), (0, 0));
    rig.machine.hold(rig.now, false);
    assert_eq!(rig.orders(), ["status 1"]);
    // It stops again before the answer is there.
    rig.machine.hold(rig.now, true);
    assert_eq!(rig.status(1, RunState::IoError), [""; 0]);
    rig.machine.hold(rig.now, false);
    assert_eq!(rig.orders(), ["status 2"]);
    assert_eq!(rig.status(2, RunState::IoError), ["cont"]);
}

/// Storage that has room, and a machine that stops again at once all the same.
#[test]
fn flapping_gets_slower_and_ends() {
    let mut rig = Rig::new(settings());
    let mut waits = Vec::new();
    for round in 1.. {
        rig.notice(error("a", true));
        assert_eq!(rig.notice(Notice::Stop), [format!("extend a {round}")]);
        let mut orders = rig.room("a", round, RoomResult::Enough);
        if orders.is_empty() {
            let (passed, again) = rig.pass();
            waits.push(passed);
            if again == [format!("look at a {round}")] {
                break;
            }
            assert_eq!(again, [format!("extend a {round}")]);
            orders = rig.room("a", round, RoomResult::Enough);
        }
        let number = orders[0].strip_prefix("status ").unwrap().parse().unwrap();
        assert_eq!(rig.status(number, RunState::IoError), ["cont"]);
        rig.notice(Notice::Resume);
        rig.machine.continued(rig.now, Ok(()));
        rig.now += Duration::from_millis(10);
    }
    // Three waits, each about twice the one before, then it is given up and looked at every five minutes.
    assert_eq!(waits.len(), 4);
    for (wait, about) in waits.iter().zip([1, 2, 4]) {
        let about = Duration::from_secs(about);
        assert!(*wait <= about && *wait >= about * 3 / 4, "{waits:?}");
    }
    assert_eq!(waits[3], Duration::from_secs(300));
    assert!(
        rig.told
            .iter()
            .any(|record| matches!(record.what, What::GaveUp { .. }) && record.alert)
    );

    // What is there is not new. New space is.
    let mut of = |free| {
        let measure = Some(Measure {
            kind: Kind::Filesystem,
            size: 1 << 40,
            free: Some(free),
            exhausted: false,
        });
        let answer = RoomAnswer {
            measure,
            ..answer(RoomResult::Enough)
        };
        let number = rig.machine.disks()[0].incident.as_ref().unwrap().number;
        rig.machine.room(rig.now, "a", number, answer);
        rig.orders()
    };
    assert_eq!(of(1 << 30), [""; 0]);
}

#[test]
fn new_space_ends_what_was_given_up() {
    let mut rig = Rig::new(Settings {
        give_up_after: 1,
        ..settings()
    });
    rig.notice(error("a", true));
    rig.notice(Notice::Stop);
    let measured = |result, free| RoomAnswer {
        measure: Some(Measure {
            kind: Kind::Filesystem,
            size: 1 << 40,
            free: Some(free),
            exhausted: false,
        }),
        ..answer(result)
    };
    rig.machine
        .room(rig.now, "a", 1, measured(RoomResult::Failed { by: 5 }, 7));
    assert_eq!(rig.orders(), [""; 0]);
    assert!(matches!(
        rig.machine.disks()[0].incident.as_ref().unwrap().stage,
        Stage::GaveUp { .. }
    ));
    for (result, free) in [
        (RoomResult::Full, 7),
        (RoomResult::Refused, 7),
        (RoomResult::Enough, 8),
    ] {
        assert_eq!(rig.pass().1, ["look at a 1"]);
        rig.machine.room(rig.now, "a", 1, measured(result, free));
        assert_eq!(rig.orders(), [""; 0]);
    }
    assert_eq!(rig.pass().1, ["look at a 1"]);
    rig.machine
        .room(rig.now, "a", 1, measured(RoomResult::Enough, 2 << 30));
    assert_eq!(rig.orders(), ["status 1"]);
    assert_eq!(rig.alerts(), 1);
}

#[test]
fn an_extension_that_fails_is_tried_ever_later() {
    let mut rig = Rig::new(settings());
    rig.notice(error("a", true));
    assert_eq!(rig.notice(Notice::Stop), ["extend a 1"]);
    for (failed, about) in [(1, 1), (2, 2), (3, 4)] {
        let result = if failed == 2 {
            RoomResult::Refused
        } else {
            RoomResult::Failed { by: 3 }
        };
        assert_eq!(rig.room("a", 1, result), [""; 0]);
        let (passed, orders) = rig.pass();
        assert!(
            passed <= Duration::from_secs(about) && passed >= Duration::from_millis(about * 750)
        );
        assert_eq!(orders, ["extend a 1"]);
    }
    // Answers to what was not asked are nothing.
    assert_eq!(rig.room("a", 2, GROWN), [""; 0]);
    assert_eq!(rig.room("b", 1, GROWN), [""; 0]);
    assert_eq!(rig.room("a", 1, GROWN), ["status 1"]);
    assert_eq!(rig.room("a", 1, GROWN), [""; 0]);
    // Waked once, not for each attempt.
    assert_eq!(rig.alerts(), 1);
}

#[test]
fn a_refused_cont_is_tried_ever_later() {
    let mut rig = Rig::new(settings());
    rig.notice(error("a", true));
    rig.notice(Notice::Stop);
    rig.room("a", 1, GROWN);
    for round in 1..4 {
        assert_eq!(rig.status(round, RunState::IoError), ["cont"]);
        rig.machine
            .continued(rig.now, Err("node 'x' has lost data".to_owned()));
        assert_eq!(rig.orders(), [""; 0]);
        assert_eq!(rig.pass().1, ["extend a 1"]);
        assert_eq!(
            rig.room("a", 1, RoomResult::Enough),
            [format!("status {}", round + 1)]
        );
    }
    assert_eq!(rig.status(4, RunState::IoError), ["cont"]);
    rig.machine
        .continued(rig.now, Err("node 'x' has lost data".to_owned()));
    assert!(rig.orders().is_empty());
    assert!(matches!(
        rig.machine.disks()[0].incident.as_ref().unwrap().stage,
        Stage::GaveUp { .. }
    ));
}

#[test]
fn what_others_make_room_for_is_looked_at() {
    let mut rig = Rig::new(Settings {
        strategy: Strategy::Wait,
        ..settings()
    });
    rig.notice(error("a", true));
    assert_eq!(rig.notice(Notice::Stop), ["look at a 1"]);
    for _ in 0..20 {
        assert_eq!(rig.room("a", 1, RoomResult::Full), [""; 0]);
        assert_eq!(
            rig.pass(),
            (Duration::from_secs(5), vec!["look at a 1".to_owned()])
        );
    }
    assert_eq!(rig.room("a", 1, RoomResult::Enough), ["status 1"]);
    assert_eq!(rig.alerts(), 1);
}

#[test]
fn other_failures() {
    let failed = |on_failed| {
        let mut rig = Rig::new(Settings {
            on_failed,
            ..settings()
        });
        rig.notice(error("a", false));
        let orders = rig.notice(Notice::Stop);
        (rig, orders)
    };
    let (rig, orders) = failed(OnFailed::Leave);
    assert_eq!(
        (orders.len(), rig.alerts(), rig.machine.wake_at()),
        (0, 1, None)
    );

    let (mut rig, orders) = failed(OnFailed::WhenHealthy(program()));
    assert_eq!(orders, ["health a 1"]);
    rig.machine
        .health(rig.now, "a", 1, Err("not yet".to_owned()));
    assert_eq!(rig.orders(), [""; 0]);
    assert_eq!(rig.pass().1, ["health a 1"]);
    rig.machine.health(rig.now, "a", 1, Ok(()));
    assert_eq!(rig.orders(), ["status 1"]);

    let (mut rig, orders) = failed(OnFailed::After(Duration::from_secs(30)));
    assert_eq!(orders, [""; 0]);
    assert_eq!(
        rig.pass(),
        (Duration::from_secs(30), vec!["health a 1".to_owned()])
    );
    rig.machine.health(rig.now, "a", 1, Ok(()));
    assert_eq!(rig.orders(), ["status 1"]);
}

fn remembers(name: &str, device: &str, status: IoStatus) -> Disk {
    Disk {
        device: device.to_owned(),
        io_status: Some(status),
        ..disk(name)
    }
}

fn holds(name: &str, nospace: bool, scope: HoldScope) -> Disk {
    Disk {
        held: Some(3),
        held_nospace: nospace,
        scope,
        ..remembers(name, name, IoStatus::Nospace)
    }
}

#[test]
fn what_happened_while_nobody_listened() {
    let with = |state, disks| {
        let mut rig = Rig::with(settings(), state, disks);
        (rig.orders(), rig)
    };
    // Named backends: the status is of now.
    let (orders, rig) = with(
        RunState::IoError,
        vec![remembers("a", "a", IoStatus::Nospace)],
    );
    assert_eq!((orders, rig.alerts()), (vec!["extend a 1".to_owned()], 0));
    let (orders, rig) = with(
        RunState::IoError,
        vec![remembers("a", "a", IoStatus::Failed)],
    );
    assert_eq!((orders, rig.alerts()), (vec![], 1));
    // What a machine that runs remembers is no incident.
    for status in [IoStatus::Nospace, IoStatus::Failed] {
        let disks = vec![remembers("a", "", status), remembers("b", "b", status)];
        for state in [RunState::Running, RunState::Other("paused".to_owned())] {
            assert_eq!(with(state, disks.clone()).0, [""; 0]);
        }
    }
    // What is held is of now, whatever the run state; and goes on by its export.
    let (orders, mut rig) = with(RunState::Running, vec![holds("a", true, HoldScope::Export)]);
    assert_eq!(orders, ["extend a 1"]);
    assert_eq!(rig.room("a", 1, GROWN), ["cont a 1"]);
    rig.machine.export_continued(rig.now, "a", 1, Ok(()));
    assert_eq!(
        (rig.orders(), rig.endings()),
        (vec![], vec![Ending::Continued])
    );
    // A pause is theirs; that there is room does no harm.
    let (orders, mut rig) = with(
        RunState::Other("paused".to_owned()),
        vec![holds("a", true, HoldScope::Vm)],
    );
    assert_eq!(orders, ["extend a 1"]);
    assert_eq!(rig.room("a", 1, GROWN), [""; 0]);
    // Nobody says that it was his.
    let (orders, rig) = with(RunState::IoError, vec![disk("a")]);
    assert_eq!((orders, rig.alerts()), (vec![], 1));
}

/// QEMU's anonymous backends remember the first error ever.
#[test]
fn what_anonymous_backends_remember_is_not_believed() {
    let stale = |disks: [IoStatus; 2]| {
        let [a, b] = disks;
        let disks = vec![remembers("a", "", a), remembers("b", "", b)];
        let mut rig = Rig::with(settings(), RunState::IoError, disks);
        assert_eq!(
            rig.orders(),
            ["extend a 1 if at its end", "extend b 2 if at its end"]
        );
        rig
    };
    // One is at its end: that was it.
    let mut rig = stale([IoStatus::Failed, IoStatus::Nospace]);
    assert_eq!(rig.room("b", 2, RoomResult::NotAtEnd), [""; 0]);
    assert_eq!(rig.room("a", 1, GROWN), ["status 1"]);
    assert_eq!((rig.endings(), rig.alerts()), (vec![Ending::Stale], 0));
    assert_eq!(rig.status(1, RunState::IoError), ["cont"]);
    // None is: one of them has failed, and nobody knows which.
    let mut rig = stale([IoStatus::Nospace, IoStatus::Nospace]);
    assert_eq!(rig.room("b", 2, RoomResult::NotAtEnd), [""; 0]);
    assert_eq!(rig.room("a", 1, RoomResult::NotAtEnd), [""; 0]);
    assert_eq!((rig.endings(), rig.alerts()), (vec![], 1));
    assert!(rig.machine.is_settled());
    // An event of its own says it.
    let mut rig = stale([IoStatus::Nospace, IoStatus::Ok].map(|_| IoStatus::Nospace));
    rig.notice(error("a", true));
    assert_eq!(rig.room("b", 2, RoomResult::NotAtEnd), [""; 0]);
    assert_eq!(rig.room("a", 1, RoomResult::Enough), ["status 1"]);
}

/// QEMU 9.2 and newer send STOP before an error that comes within a second of another one.
#[test]
fn an_error_that_comes_behind_its_stop() {
    let mut rig = Rig::new(settings());
    assert_eq!(rig.notice(Notice::Stop), ["status 1"]);
    assert_eq!(rig.status(1, RunState::IoError), [""; 0]);
    assert!(rig.machine.wake_at().is_some());
    rig.now += Duration::from_secs(1);
    assert_eq!(rig.notice(error("a", true)), ["extend a 1"]);
    // It never comes: the disks are asked.
    let mut rig = Rig::new(settings());
    rig.notice(Notice::Stop);
    rig.status(1, RunState::IoError);
    assert_eq!(rig.pass().1, ["look"]);
    let full = remembers("a", "a", IoStatus::Nospace);
    rig.machine
        .looked(rig.now, Some(RunState::IoError), vec![full, disk("b")]);
    assert_eq!(rig.orders(), ["extend a 1"]);
    // An administrator's pause is no reason to look.
    let mut rig = Rig::new(settings());
    rig.notice(Notice::Stop);
    assert_eq!(rig.status(1, RunState::Other("paused".to_owned())), [""; 0]);
    assert_eq!(rig.machine.wake_at(), None);
}

#[test]
fn disks_come_and_go() {
    let mut rig = Rig::new(settings());
    // Hot-plugged: its error comes before it is known.
    assert_eq!(rig.notice(error("c", true)), ["look"]);
    assert_eq!(rig.notice(Notice::Stop), ["status 1"]);
    assert_eq!(rig.status(1, RunState::IoError), [""; 0]);
    let disks = vec![disk("a"), disk("c")];
    rig.machine.looked(rig.now, Some(RunState::IoError), disks);
    assert_eq!(rig.orders(), ["extend c 1"]);
    assert_eq!(rig.room("c", 1, GROWN), ["status 2"]);
    // Of a disk that nobody shows.
    assert_eq!(rig.notice(error("z", true)), ["look"]);
    rig.machine
        .looked(rig.now, Some(RunState::IoError), vec![disk("a")]);
    rig.orders();
    assert_eq!(rig.endings(), [Ending::DiskGone]);
    // A flood of them is bounded.
    for n in 0..10_000 {
        rig.notice(error(&n.to_string(), true));
    }
    rig.machine
        .looked(rig.now, Some(RunState::Running), vec![disk("a")]);
    rig.orders();
    // Told with the one of before, or some time later.
    assert_eq!(rig.alerts(), 1);
    rig.now += Duration::from_secs(20);
    for n in 0..10 {
        rig.notice(error(&n.to_string(), true));
        rig.machine
            .looked(rig.now, Some(RunState::Running), vec![disk("a")]);
        rig.orders();
    }
    assert_eq!(rig.alerts(), 2);
}

#[test]
fn a_lost_connection_loses_sight_and_no_memory() {
    let mut rig = Rig::new(settings());
    rig.notice(error("a", true));
    assert_eq!(rig.notice(Notice::Stop), ["extend a 1"]);
    rig.machine.disconnected(rig.now);
    assert_eq!(rig.orders(), [""; 0]);
    // What comes of it late is nothing.
    assert_eq!(rig.room("a", 1, GROWN), [""; 0]);
    assert_eq!(
        (rig.endings(), rig.machine.wake_at()),
        (vec![Ending::LostSight], None)
    );
    rig.machine.connected();
    assert_eq!(rig.orders(), ["look"]);
    let full = remembers("a", "a", IoStatus::Nospace);
    rig.machine
        .looked(rig.now, Some(RunState::IoError), vec![full]);
    assert_eq!(rig.orders(), ["extend a 2"]);
    // It was continued meanwhile.
    rig.machine.disconnected(rig.now);
    rig.machine.connected();
    rig.orders();
    rig.machine
        .looked(rig.now, Some(RunState::Running), vec![disk("a")]);
    assert_eq!((rig.orders(), rig.machine.is_settled()), (vec![], true));
}

#[test]
fn errors_that_guests_are_told_of_are_told_now_and_then() {
    let mut rig = Rig::new(settings());
    let Notice::IoError(reported) = error("a", true) else {
        panic!("an error");
    };
    for second in 0..60 {
        rig.now = Duration::from_secs(second);
        for _ in 0..100 {
            let reported = IoError {
                action: Action::Report,
                ..reported.clone()
            };
            assert_eq!(rig.notice(Notice::IoError(reported)), [""; 0]);
        }
    }
    let counts = rig.told.iter().map(|record| match record.what {
        What::Reported { count, .. } => count,
        _ => panic!("{record:?}"),
    });
    assert_eq!(
        counts.collect::<Vec<_>>(),
        [1, 1000, 1000, 1000, 1000, 1000]
    );
}

#[test]
fn a_dry_run_orders_nothing() {
    let numbers = Arc::new(AtomicU64::new(0));
    let mut machine = Machine::new("m", Arc::new(Same(settings())), true, numbers, 7);
    machine.connected();
    machine.take_orders();
    machine.looked(
        Duration::ZERO,
        Some(RunState::Running),
        vec![disk("a"), disk("b")],
    );
    for notice in [error("a", true), error("b", false), Notice::Stop] {
        machine.notice(Duration::ZERO, notice);
    }
    let orders = machine.take_orders();
    assert!(
        orders
            .iter()
            .all(|order| matches!(order, Order::Tell(record) if !record.alert)),
        "{orders:?}"
    );
    let would = |order: &Order| {
        format!("{order:?}").contains("would run /bin/grow for 2147483648 bytes more")
    };
    assert!(orders.iter().any(would), "{orders:?}");
    assert!(machine.is_settled());
}

#[test]
fn other_settings_move_what_was_left() {
    let mut rig = Rig::new(Settings::default());
    rig.notice(error("a", true));
    assert_eq!(rig.notice(Notice::Stop), [""; 0]);
    assert_eq!(rig.alerts(), 1);
    rig.machine.reconfigure(rig.now, Arc::new(Same(settings())));
    assert_eq!(rig.orders(), ["extend a 1"]);
}
