//! What is tried again, ever later, and given up.

use super::*;

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
