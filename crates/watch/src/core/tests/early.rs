//! What is done before it is full.

use std::time::Duration;

use super::super::early::Stage as Early;
use super::super::headroom::HeadRoom;
use super::super::machine::{RoomAnswer, RoomResult};
use super::super::notice::{Action, IoError, Notice};
use super::super::record::{Ending, Extended, Record, What};
use super::super::room::{Kind, Measure};
use super::super::view::{Disk, Growth, Quota, RunState};
use super::{GROWN, Rig, answer, disk, error, settings};
use crate::settings::{Settings, Strategy, Zfs, ZfsProperty};

const MIB: u64 = 1 << 20;

fn early() -> Settings {
    Settings {
        early: Some(HeadRoom {
            min: 64 * MIB,
            max: 512 * MIB,
            safety: 200,
        }),
        step: 256 * MIB,
        ..settings()
    }
}

/// `a` is qcow2 on the device `dev`; how far it has come and what was written, in MiB.
fn qcow2(highest: u64, written: u64) -> Disk {
    Disk {
        driver: Some("qcow2".to_owned()),
        virtual_size: Some(1 << 40),
        growth: Growth {
            node: Some("dev".to_owned()),
            highest: highest * MIB,
            written: Some(written * MIB),
        },
        ..disk("a")
    }
}

fn of(kind: Kind, mib: u64, free: Option<u64>) -> Measure {
    Measure {
        kind,
        size: mib * MIB,
        free: free.map(|free| free * MIB),
        exhausted: false,
    }
}

fn device(mib: u64) -> Measure {
    of(Kind::Device, mib, None)
}

fn rig(settings: Settings, disk: Disk) -> Rig {
    let mut rig = Rig::with(settings, RunState::Running, vec![disk]);
    assert_eq!(rig.orders(), ["measure a"]);
    rig
}

impl Rig {
    fn measured(&mut self, measure: Measure) -> Vec<String> {
        self.machine.measured(self.now, "a", Ok(measure));
        self.orders()
    }

    fn reached(&mut self, node: &str, mib: u64) -> Vec<String> {
        let node = node.to_owned();
        self.notice(Notice::Threshold {
            node,
            reached: mib * MIB,
            age: Duration::from_millis(3),
        })
    }

    fn stats(&mut self, highest: u64, written: u64) -> Vec<String> {
        self.machine.stats(self.now, &[qcow2(highest, written)]);
        self.orders()
    }

    fn early(&mut self, result: RoomResult, measure: Measure) -> Vec<String> {
        let answer = RoomAnswer {
            measure: Some(measure),
            took: Duration::from_millis(200),
            ..answer(result)
        };
        self.machine.early(self.now, "a", answer);
        self.orders()
    }

    fn extensions(&self) -> Vec<(Extended, bool)> {
        let extension = |record: &Record| match record.what {
            What::Extension { result, early, .. } => Some((result, early)),
            _ => None,
        };
        self.told.iter().filter_map(extension).collect()
    }
}

fn arm(mib: u64) -> Vec<String> {
    vec![format!("arm dev {}", mib * MIB)]
}

/// The machine never stops: events on the way say how fast it grows, and what is left is ever as much as is needed.
#[test]
fn a_format_on_a_device() {
    let mut rig = rig(early(), qcow2(0, 0));
    // Nobody knows how far it has come: half-way to where the head-room begins.
    assert_eq!(rig.measured(device(1088)), arm(512));
    rig.now = Duration::from_secs(10);
    assert_eq!(rig.reached("dev", 520), ["stats", &arm(772)[0]]);
    // The first that is known says nothing of speed.
    assert_eq!(rig.stats(520, 520), [""; 0]);
    rig.now += Duration::from_secs(1);
    // 200 MiB a second; an extension is guessed to take a second: 400 MiB.
    assert_eq!(rig.reached("dev", 720), ["stats", &arm(872)[0]]);
    assert_eq!(rig.stats(720, 720), ["early a 419430400"]);
    // What happens meanwhile is not what it waits for.
    assert_eq!(rig.reached("dev", 730), ["stats"]);
    rig.now += Duration::from_millis(200);
    // It took 200 ms: 80 MiB. There are 1888 MiB now.
    let grown = RoomResult::Grown {
        by: 800 * MIB,
        grown: 800 * MIB,
    };
    let orders = rig.early(grown, device(1888));
    assert_eq!(orders[1..], ["stats"]);
    assert!(orders[0].starts_with("arm dev "), "{orders:?}");
    assert_eq!(rig.extensions(), [(Extended::Grown, true)]);
    assert_eq!(rig.alerts(), 0);
    let state = &rig.machine.disks()[0].early;
    assert!(state.head_room < 100 * MIB, "{state:?}");
    // Events of other nodes, and late ones, are nothing.
    assert_eq!(rig.reached("other", 5000), [""; 0]);
    assert!(rig.machine.is_settled());
}

/// A hint may cause an extension, never prevent one.
#[test]
fn what_the_server_says_at_first_is_a_hint() {
    let mut full = rig(early(), qcow2(1050, 9000));
    assert_eq!(full.measured(device(1088)), ["early a 67108864"]);
    let mut none = rig(early(), qcow2(0, 0));
    none.measured(device(1088));
    // It says so later, when it is looked at again.
    let (passed, orders) = none.pass();
    assert_eq!(
        (passed, orders),
        (Duration::from_secs(60), vec!["look".to_owned()])
    );
    let disks = vec![qcow2(1080, 1)];
    none.machine
        .looked(none.now, Some(RunState::Running), disks);
    assert_eq!(none.orders(), ["early a 67108864"]);
}

#[test]
fn an_account_by_what_is_used() {
    let account = Disk {
        quota: Some(Quota {
            limit: 1 << 30,
            used: 0,
        }),
        ..qcow2(0, 0)
    };
    let settings = Settings {
        strategy: Strategy::Quota(None),
        ..early()
    };
    let mut rig = rig(settings, account);
    // The account is the top node's.
    let orders = rig.measured(of(Kind::Quota, 1024, Some(1024)));
    assert_eq!(orders, [format!("arm a {}", 480 * MIB)]);
    rig.now = Duration::from_secs(1);
    // 480 MiB a second, and a second for an extension: all that is allowed.
    assert_eq!(rig.reached("dev", 480), [""; 0]);
    assert_eq!(rig.reached("a", 480), [format!("arm a {}", 512 * MIB)]);
    rig.now += Duration::from_millis(50);
    assert_eq!(rig.reached("a", 520), ["early a 536870912"]);
    let answer = of(Kind::Quota, 2048, Some(2000));
    rig.now += Duration::from_millis(200);
    let orders = rig.early(GROWN, answer);
    assert_eq!(orders.len(), 1);
    assert!(orders[0].starts_with("arm a "), "{orders:?}");
}

/// Offsets say nothing of a sparse file: a threshold tells that the guest writes, and then it is measured while
/// free space moves.
#[test]
fn a_file_system_is_measured_while_it_moves() {
    let fs = |free| of(Kind::Filesystem, 10_000, Some(free));
    let mut rig = rig(early(), qcow2(0, 0));
    assert_eq!(rig.measured(fs(1000)), ["arm dev 1"]);
    // Nobody writes: nothing but the look after a minute.
    assert_eq!(rig.machine.wake_at(), Some(Duration::from_secs(60)));
    rig.now = Duration::from_secs(10);
    assert_eq!(rig.reached("dev", 5), ["measure a"]);
    assert_eq!(rig.measured(fs(990)), [""; 0]);
    let (passed, orders) = rig.pass();
    assert!(passed <= Duration::from_secs(5), "{passed:?}");
    assert_eq!(orders, ["measure a"]);
    // Ever faster, and looked at ever more often.
    rig.measured(fs(490));
    let (passed, _) = rig.pass();
    assert!(passed < Duration::from_secs(2), "{passed:?}");
    assert_eq!(rig.measured(fs(120)).len(), 1);
    rig.now += Duration::from_millis(200);
    assert_eq!(rig.early(GROWN, fs(1100)), [""; 0]);
    // It has come to rest.
    let mut looks = 0;
    loop {
        let (_, orders) = rig.pass();
        if orders == ["look"] {
            continue;
        }
        assert_eq!(orders, ["measure a"]);
        looks += 1;
        let orders = rig.measured(fs(1100));
        if orders == ["arm dev 1"] {
            break;
        }
        assert_eq!(orders, [""; 0]);
    }
    assert!(looks < 10, "{looks}");
}

/// It ran full all the same: what goes on is the incident's own, and nothing is extended twice.
#[test]
fn an_incident_while_it_is_extended() {
    let start = || {
        let mut rig = rig(early(), qcow2(0, 0));
        rig.measured(device(1088));
        assert_eq!(rig.reached("dev", 1080), ["stats", "early a 67108864"]);
        assert_eq!(rig.notice(error("a", true)), [""; 0]);
        assert_eq!(rig.notice(Notice::Stop), [""; 0]);
        rig
    };
    let mut rig = start();
    assert_eq!(rig.early(GROWN, device(1344)), ["status 1"]);
    assert_eq!(rig.status(1, RunState::IoError), ["cont"]);
    // Afterwards it is begun anew.
    assert_eq!(rig.notice(Notice::Resume), ["measure a"]);
    assert_eq!(rig.endings(), [Ending::Continued]);
    let extensions = rig.told.iter().map(|record| match record.what {
        What::IncidentEnded { extensions, .. } => extensions,
        _ => 0,
    });
    assert_eq!(extensions.max(), Some(1));
    // It has not helped.
    let mut rig = start();
    let failed = RoomResult::Failed { by: 5 };
    assert_eq!(rig.early(failed, device(1088)), ["extend a 1"]);
    assert_eq!(rig.room("a", 1, GROWN), ["status 1"]);
    // Somebody else continues it before that is known.
    let mut rig = start();
    assert_eq!(rig.notice(Notice::Resume), [""; 0]);
    assert_eq!(rig.early(GROWN, device(1344)).len(), 2);
}

#[test]
fn what_fails_is_tried_ever_later_and_somebody_knows_before_it_is_full() {
    let mut rig = rig(early(), qcow2(1050, 0));
    rig.measured(device(1088));
    for (result, about) in [
        (RoomResult::Failed { by: 3 }, 1),
        (RoomResult::Refused, 2),
        (RoomResult::Refused, 4),
    ] {
        assert_eq!(rig.early(result, device(1088)), [""; 0]);
        let (passed, orders) = rig.pass();
        let about = Duration::from_secs(about);
        assert!(passed <= about && passed >= about * 3 / 4, "{passed:?}");
        assert_eq!(orders, ["measure a"]);
        assert_eq!(rig.measured(device(1088)), ["early a 67108864"]);
    }
    assert_eq!(rig.alerts(), 1);
    assert_eq!(rig.early(RoomResult::Enough, device(4088)).len(), 2);
}

#[test]
fn as_large_as_it_may_be() {
    let capped = Settings {
        cap: Some(1088 * MIB),
        ..early()
    };
    let mut rig = rig(capped, qcow2(1050, 0));
    assert_eq!(rig.measured(device(1088)), [""; 0]);
    assert_eq!((rig.alerts(), rig.extensions().len()), (1, 0));
    // A raw disk has all that it can use: that is nothing to tell.
    let raw = Disk {
        driver: Some("raw".to_owned()),
        virtual_size: Some(1 << 30),
        ..qcow2(1024, 0)
    };
    let mut rig = super::early::rig(early(), raw);
    assert_eq!(rig.measured(device(1024)), [""; 0]);
    assert_eq!((rig.alerts(), rig.told.len()), (0, 0));
}

#[test]
fn a_server_without_thresholds() {
    let refuses = |rig: &mut Rig, threshold| {
        let why = Err("The command has not been found".to_owned());
        rig.machine.armed(rig.now, "a", threshold, why);
        rig.orders()
    };
    let mut rig = rig(early(), qcow2(0, 0));
    rig.measured(device(1088));
    assert_eq!(refuses(&mut rig, 512 * MIB), [""; 0]);
    assert_eq!((rig.told.len(), rig.alerts()), (1, 0));
    // What can be measured is.
    let fs = |free| of(Kind::Filesystem, 10_000, Some(free));
    let mut rig = super::early::rig(early(), qcow2(0, 0));
    rig.measured(fs(1000));
    assert_eq!(refuses(&mut rig, 1), [""; 0]);
    let (passed, orders) = rig.pass();
    assert_eq!(
        (passed, orders),
        (Duration::from_secs(5), vec!["measure a".to_owned()])
    );
    // 950 MiB in 5 s.
    assert_eq!(rig.measured(fs(50)), ["early a 398458880"]);
}

/// A lost connection, another node below the disk, other settings: it is begun anew.
#[test]
fn begun_anew() {
    let mut rig = rig(early(), qcow2(0, 0));
    assert_eq!(rig.measured(device(1088)), arm(512));
    rig.machine.disconnected(rig.now);
    assert_eq!((rig.orders(), rig.machine.wake_at()), (vec![], None));
    rig.machine.connected();
    assert_eq!(rig.orders(), ["look"]);
    let looked = |rig: &mut Rig, disk| {
        rig.machine
            .looked(rig.now, Some(RunState::Running), vec![disk]);
        rig.orders()
    };
    assert_eq!(looked(&mut rig, qcow2(0, 0)), ["measure a"]);
    assert_eq!(rig.measured(device(1088)), arm(512));
    assert_eq!(looked(&mut rig, qcow2(0, 0)), [""; 0]);
    let mut snapshot = qcow2(0, 0);
    snapshot.growth.node = Some("overlay".to_owned());
    assert_eq!(looked(&mut rig, snapshot), ["measure a"]);
    let orders = rig.measured(device(1088));
    assert_eq!(orders, [format!("arm overlay {}", 512 * MIB)]);
    // An extension of a connection before is told, and changes nothing else.
    assert_eq!(rig.early(GROWN, device(2000)), [""; 0]);
    assert_eq!(rig.extensions(), [(Extended::Grown, true)]);
    assert!(matches!(
        rig.machine.disks()[0].early.stage,
        Early::Armed(_)
    ));
}

/// A guest that was told of it is not continued, but the next request finds room.
#[test]
fn a_guest_that_was_told_of_no_space() {
    let mut rig = rig(early(), qcow2(0, 0));
    rig.measured(device(1088));
    let Notice::IoError(error) = error("a", true) else {
        panic!("an error");
    };
    let reported = IoError {
        action: Action::Report,
        ..error
    };
    assert_eq!(rig.notice(Notice::IoError(reported)), ["measure a"]);
    assert_eq!(rig.measured(device(1088)), ["early a 67108864"]);
    let orders = rig.early(GROWN, device(1344));
    assert!(orders.iter().all(|order| order != "cont"), "{orders:?}");
}

/// QEMU takes an exceeded quota of ZFS for a failure: the dataset's figures say whether it is one.
#[test]
fn an_exceeded_quota_of_zfs() {
    let zfs = Settings {
        strategy: Strategy::Zfs(Zfs {
            tools: "/sbin".into(),
            time_limit: Duration::from_secs(1),
            property: ZfsProperty::Quota,
            dataset: None,
        }),
        ..settings()
    };
    let failed = |settings: Settings, reason: &str| {
        let mut rig = Rig::with(settings, RunState::Running, vec![disk("a")]);
        let Notice::IoError(error) = error("a", false) else {
            panic!("an error");
        };
        let error = IoError {
            reason: reason.to_owned(),
            ..error
        };
        // As often as there are requests.
        rig.notice(Notice::IoError(error.clone()));
        rig.notice(Notice::IoError(error));
        let orders = rig.notice(Notice::Stop);
        (orders, rig)
    };
    let (orders, mut rig) = failed(zfs.clone(), "Disk quota exceeded");
    assert_eq!(orders, ["extend a 1 if at its end"]);
    assert_eq!(rig.room("a", 1, GROWN), ["status 1"]);
    let (_, mut rig) = failed(zfs.clone(), "Disk quota exceeded");
    assert_eq!(rig.room("a", 1, RoomResult::NotAtEnd), [""; 0]);
    assert_eq!(rig.alerts(), 1);
    // Anything else, and anybody else's, is a failure.
    assert_eq!(failed(zfs, "Input/output error").0, [""; 0]);
    assert_eq!(failed(settings(), "Disk quota exceeded").0, [""; 0]);
}
