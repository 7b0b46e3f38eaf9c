//! What is found when a machine is seen again, or its disks come and go.

use super::*;

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
