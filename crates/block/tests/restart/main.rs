//! Run control over a restart of the daemon: what is saved, what is found again, and when a new
//! client ends an `io-error`.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "the whole file is a test"
)]
mod left_out;
mod world;

use std::time::Instant;

use standfast_block::run_control::{BackendConfig, GateMessage, Reported, RunControl};
use standfast_block::{
    Action, BackendId, Cause, EventKind, HoldScope, Image, LocalId, RunState, Status, VmOrder,
    VmPause,
};

use world::*;

#[test]
fn io_error_status_incident_and_errors_are_found_again() {
    let mut before = Daemon::failed(HoldScope::Vm);
    before.fail(0, 2, libc::EIO);
    let mut daemon = before.restart(HoldScope::Vm);
    assert_eq!(daemon.control.state(), RunState::IoError);
    for local in [1, 2] {
        let frozen = |&(to, message): &(LocalId, GateMessage)| {
            to == LocalId(local) && matches!(message, GateMessage::Freeze { .. })
        };
        assert!(daemon.outbox.posts.iter().any(frozen), "{local}");
    }
    assert_eq!(daemon.io_status(0), Some(Status::Nospace));
    assert_eq!(daemon.io_status(1), Some(Status::Ok));
    daemon.control.reattach(daemon.ids[0]);
    assert_eq!(daemon.io_status(0), Some(Status::Nospace));
    let state = daemon.control.backend(daemon.ids[0]).unwrap();
    let old = before.control.backend(before.ids[0]).unwrap();
    assert_eq!(state.first_error(), old.first_error());
    assert_eq!(state.last_error(), old.last_error());
    assert_eq!((state.incident(), state.incidents()), (old.incident(), 1));

    // What is handed back is held, until it has been completed.
    daemon.hand_back(0, 7);
    daemon.hand_back(0, 8);
    assert_eq!((daemon.held(0), daemon.incident(0)), (2, Some(1)));
    daemon
        .control
        .cont(None, false, &mut daemon.outbox)
        .unwrap();
    assert_eq!(daemon.outbox.events, [EventKind::Resume]);
    assert_eq!(daemon.io_status(0), Some(Status::Ok));
    daemon.resolve(0, 7);
    assert_eq!((daemon.held(0), daemon.incident(0)), (1, Some(1)));
    // It fails again: the same incident.
    daemon.fail(0, 8, libc::ENOSPC);
    let state = daemon.control.backend(daemon.ids[0]).unwrap();
    let held: Vec<_> = state.held().collect();
    assert_eq!((held.len(), held[0].attempts, held[0].since), (1, 1, AT));
    assert_eq!((daemon.incident(0), state.incidents()), (Some(1), 1));
    daemon
        .control
        .cont(None, false, &mut daemon.outbox)
        .unwrap();
    daemon.resolve(0, 8);
    assert_eq!((daemon.held(0), daemon.incident(0)), (0, None));
}

#[test]
fn paused_is_found_again_and_ended_by_cont_only() {
    let mut before = Daemon::start(None, HoldScope::Vm);
    before.control.stop(&mut before.outbox).unwrap();
    assert_eq!(before.outbox.orders, [VmOrder::Pause]);
    before.control.note_vm_pause(VmPause::Link);
    let mut daemon = before.restart(HoldScope::Vm);
    assert_eq!(daemon.control.state(), RunState::Paused);
    assert_eq!(daemon.control.vm_pause(), VmPause::Link);
    daemon.attach(0);
    assert_eq!(daemon.control.state(), RunState::Paused);
    daemon.control.cont(None, true, &mut daemon.outbox).unwrap();
    assert_eq!(daemon.outbox.orders, [VmOrder::Resume { force: true }]);
    assert_eq!(daemon.control.state(), RunState::Running);
}

#[test]
fn a_fresh_client_ends_an_io_error_in_which_nothing_is_held() {
    // Nothing restarted: the VM was killed, and its disk comes back new.
    let mut daemon = Daemon::failed(HoldScope::Vm);
    assert_eq!(daemon.control.state(), RunState::IoError);
    daemon.attach(0);
    assert_eq!(daemon.outbox.events, [EventKind::Resume]);
    assert_eq!(daemon.control.state(), RunState::Running);
    for (local, upto) in [(1, 1), (2, 0)] {
        let epoch = daemon.control.epoch();
        let release = (LocalId(local), GateMessage::Release { epoch, upto });
        assert!(daemon.outbox.posts.contains(&release), "{local}");
    }

    // The other disk still holds something.
    let mut daemon = Daemon::failed(HoldScope::Vm);
    daemon.attach(1);
    assert_eq!(daemon.control.state(), RunState::IoError);
    assert!(daemon.outbox.events.is_empty());
    // A device that goes is no client that comes.
    daemon.control.detach(daemon.ids[0], &mut daemon.outbox);
    assert_eq!(daemon.control.state(), RunState::IoError);
    daemon.attach(1);
    assert_eq!(daemon.control.state(), RunState::Running);
}

/// A device whose clients come and go has no reset: a client that is back after a restart is no new
/// device, and the administrator finds what the former daemon left.
#[test]
fn a_client_that_joins_after_a_restart_resets_nothing() {
    let mut first = Daemon::start(None, HoldScope::Vm);
    let joined = first.control.join(first.ids[0], &mut first.outbox);
    assert_eq!(joined, Some(true), "there has never been one");
    assert_eq!(first.io_status(0), Some(Status::Ok));
    assert_eq!(first.io_status(1), None);
    first.fail(0, 1, libc::ENOSPC);

    let mut daemon = first.restart(HoldScope::Vm);
    let (vda, vdb) = (daemon.ids[0], daemon.ids[1]);
    daemon.outbox.posts.clear();
    for _ in 0..2 {
        let joined = daemon.control.join(vda, &mut daemon.outbox);
        assert_eq!(joined, Some(false));
    }
    assert_eq!(daemon.outbox.events, []);
    assert_eq!(daemon.outbox.posts, []);
    assert_eq!(daemon.control.state(), RunState::IoError);
    assert_eq!(daemon.io_status(0), Some(Status::Nospace));
    assert_eq!((daemon.generation(0), daemon.incident(0)), (0, Some(1)));
    // One that leaves again was not the one that held it.
    daemon
        .control
        .remove_local(vda, LocalId(1), &mut daemon.outbox);
    assert_eq!(daemon.incident(0), Some(1));
    // Another device's first client, meanwhile: something may still be held, so nothing goes on.
    let joined = daemon.control.join(vdb, &mut daemon.outbox);
    assert_eq!((joined, daemon.generation(1)), (Some(true), 1));
    assert_eq!(daemon.control.state(), RunState::IoError);
    let refused = daemon.control.cont(None, false, &mut daemon.outbox);
    assert_eq!(refused, Ok(()));
    assert_eq!(
        (daemon.io_status(0), daemon.incident(0)),
        (Some(Status::Ok), None)
    );
    // The device is gone, and comes back.
    daemon.control.detach(vda, &mut daemon.outbox);
    let joined = daemon.control.join(vda, &mut daemon.outbox);
    assert_eq!((joined, daemon.generation(0)), (Some(true), 2));
    let nobody = BackendId(99);
    assert_eq!(daemon.control.join(nobody, &mut daemon.outbox), None);
}

#[test]
fn what_a_former_daemon_held_counts_until_its_client_is_heard_of() {
    let daemon = Daemon::failed(HoldScope::Vm);
    let mut after = daemon.restart(HoldScope::Vm);
    after.attach(1);
    assert_eq!(
        after.control.state(),
        RunState::IoError,
        "vda may come back"
    );
    after.attach(0);
    assert_eq!(after.control.state(), RunState::Running, "it came back new");

    let mut after = daemon.restart(HoldScope::Vm);
    after.control.reattach(after.ids[0]);
    after.attach(1);
    assert_eq!(after.control.state(), RunState::IoError);
    after.hand_back(0, 1);
    after.attach(1);
    assert_eq!(after.control.state(), RunState::IoError);
    // The operator does not wait for it.
    let mut after = daemon.restart(HoldScope::Vm);
    after.control.cont(None, false, &mut after.outbox).unwrap();
    assert_eq!((after.incident(0), after.held(0)), (None, 0));
}

#[test]
fn an_export_that_was_frozen_alone_is_frozen_again() {
    let daemon = Daemon::failed(HoldScope::Device);
    assert_eq!(daemon.control.state(), RunState::Running);
    let mut after = daemon.restart(HoldScope::Device);
    let frozen = |after: &Daemon, local| {
        after.outbox.posts.iter().any(|&(to, message)| {
            to == LocalId(local) && matches!(message, GateMessage::FreezeBackend { .. })
        })
    };
    assert!(frozen(&after, 1) && !frozen(&after, 2));
    after.control.reattach(after.ids[0]);
    after.hand_back(0, 1);
    after
        .control
        .cont_backend("vda", None, &mut after.outbox)
        .unwrap();
    let epoch = after.control.epoch();
    let release = GateMessage::ReleaseBackend { epoch, upto: 0 };
    assert_eq!(after.outbox.posts.last(), Some(&(LocalId(1), release)));
    after.resolve(0, 1);
    assert_eq!(after.incident(0), None);
}

/// The former daemon was killed between the end of its last request and the next save of its state. The
/// client had nothing to hand back, and the export was frozen until somebody sent a `cont`, with
/// nothing held for anybody to see.
#[test]
fn an_incident_of_which_nothing_comes_back_ends_with_its_freeze() {
    let daemon = Daemon::failed(HoldScope::Device);
    let thaws = |after: &Daemon| {
        let thaw = |message: &GateMessage| matches!(message, GateMessage::ThawBackend { .. });
        let posts = after.outbox.posts.iter();
        let to = posts
            .filter(|(_, message)| thaw(message))
            .map(|&(to, _)| to);
        to.collect::<Vec<_>>()
    };
    let back = |after: &mut Daemon, requests: std::ops::Range<u64>| {
        after.control.reattach(after.ids[0]);
        requests.for_each(|order| after.hand_back(0, order));
        assert!(after.incident(0).is_some() && thaws(after).is_empty());
        (after.control).handed_back(after.ids[0], &mut after.outbox);
    };
    let mut after = daemon.restart(HoldScope::Device);
    let revision = after.control.revision();
    back(&mut after, 0..0);
    assert_eq!((after.incident(0), thaws(&after)), (None, vec![LocalId(1)]));
    assert!(after.control.revision() > revision);
    // In a life that goes on it says nothing new.
    after.fail(0, 1, libc::ENOSPC);
    (after.control).handed_back(after.ids[0], &mut after.outbox);
    assert_eq!((after.incident(0), after.held(0)), (Some(2), 1));

    // What has come back waits for its `cont`, and ends the incident with the last of it.
    let mut after = daemon.restart(HoldScope::Device);
    back(&mut after, 5..7);
    assert_eq!((after.incident(0), thaws(&after)), (Some(1), vec![]));
    let released = after.control.cont_backend("vda", None, &mut after.outbox);
    released.unwrap();
    after.resolve(0, 5);
    assert_eq!(after.incident(0), Some(1));
    after.resolve(0, 6);
    assert_eq!(after.incident(0), None);
}

#[test]
fn at_the_end_the_state_before_it_is_saved() {
    for (stop, fails, expected) in [
        (false, false, RunState::Running),
        (true, false, RunState::Paused),
        (true, true, RunState::Paused),
        (false, true, RunState::IoError),
    ] {
        let mut daemon = Daemon::start(None, HoldScope::Vm);
        daemon.attach(0);
        if stop {
            daemon.control.stop(&mut daemon.outbox).unwrap();
        }
        daemon.control.shutdown("host-signal", &mut daemon.outbox);
        if fails {
            // It was in flight.
            daemon.fail(0, 1, libc::EIO);
        }
        let saved = daemon.control.save();
        assert_eq!(saved.run_state, expected, "stop {stop}, fails {fails}");
        assert_eq!(saved.backends[0].incident.is_some(), fails);
        assert_eq!(daemon.control.state(), RunState::Shutdown);
    }
}

#[test]
fn state_belongs_to_an_export_on_its_node() {
    let mut saved = Daemon::failed(HoldScope::Vm).control.save();
    saved.backends[0].node = "other".to_owned();
    let mut daemon = Daemon::start(Some(saved), HoldScope::Vm);
    assert_eq!((daemon.incident(0), daemon.io_status(0)), (None, None));
    assert_eq!(kept(&daemon.control), ["vda on other"]);
    let left = daemon.control.start_ended(&mut daemon.outbox);
    assert_eq!((left.kept.len(), left.dropped.len()), (1, 0));
    assert_eq!(kept(&daemon.control), ["vda on other"]);
    assert_eq!(daemon.control.save().backends.len(), 2);
}

#[test]
fn the_revision_tells_what_is_to_be_saved() {
    let mut daemon = Daemon::failed(HoldScope::Vm);
    let mut last = daemon.control.revision();
    let mut changed = |daemon: &Daemon| {
        let revision = daemon.control.revision();
        std::mem::replace(&mut last, revision) != revision
    };
    daemon.hand_back(0, 9);
    assert!(!changed(&daemon), "clients remember that");
    daemon.fail(0, 2, libc::EIO);
    assert!(changed(&daemon), "another error");
    daemon.resolve(0, 9);
    daemon.resolve(0, 2);
    assert!(!changed(&daemon), "the incident goes on");
    daemon.resolve(0, 1);
    assert!(changed(&daemon), "the incident ends");
    daemon.control.stop(&mut daemon.outbox).unwrap();
    assert!(!changed(&daemon), "stopped already");
    daemon
        .control
        .cont(None, false, &mut daemon.outbox)
        .unwrap();
    assert!(changed(&daemon), "running");
    daemon.control.reported(
        &Reported {
            backend: daemon.ids[0],
            generation: daemon.generation(0),
            request: request(3),
            action: Action::Report,
            cause: Cause::of_errno(libc::EIO),
            node: None,
            at: AT,
        },
        Instant::now(),
        &mut daemon.outbox,
    );
    assert!(changed(&daemon), "the last error");
}

/// Which image the next daemon has to serve, and as long as somebody may count on it.
#[test]
fn the_image_of_a_guest_that_may_be_alive_is_remembered() {
    let image = |name: &str| Image::new(name, "");
    let with = |name: &str| BackendConfig {
        image: image(name),
        ..config("vda", HoldScope::Vm)
    };
    let mut outbox = Outbox::default();
    let mut before = RunControl::new();
    let vda = before.add_backend(with("/a"));
    before.set_connected(vda, true);
    before.set_image(vda, image("/b"));
    for (connected, left) in [(false, None), (true, Some(image("/b"))), (false, None)] {
        before.set_connected(vda, connected);
        let mut after = RunControl::new();
        after.restore(before.save());
        assert_eq!(after.image_left("vda"), left.as_ref());
        assert_eq!(after.image_left("vdb"), None);
        // What nobody has asked for is passed on.
        after.start_ended(&mut outbox);
        let mut third = RunControl::new();
        third.restore(after.save());
        assert_eq!(third.image_left("vda"), left.as_ref());
        third.add_backend(with("/b"));
        assert_eq!(third.image_left("vda"), None);
    }
    // An export that no client has come to says what it has found.
    before.set_connected(vda, true);
    let mut after = RunControl::new();
    after.restore(before.save());
    after.add_backend(with("/other"));
    assert_eq!(after.save().backends[0].image, Some(image("/b")));

    // What is held counts on it, whoever is there.
    let mut after = RunControl::new();
    let mut held = Daemon::failed(HoldScope::Vm).control.save();
    held.backends[0].connected = false;
    held.backends[0].image = Some(image("/c"));
    let device = held.backends[0].device.clone();
    after.restore(held);
    assert_eq!(after.image_left(&device), Some(&image("/c")));
}
