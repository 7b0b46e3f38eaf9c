//! Decisions, by tables: what is seen, and what is ordered.

mod again;
mod early;
mod model;
mod seen;

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
        error_node: String::new(),
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
