//! Exports that a daemon does not have: what is known of them is kept.

use standfast_block::{EventKind, HoldScope, LocalId, RunState, VmOrder};

use super::world::*;

/// Through a daemon without it, and once more, until it is added to one that runs.
#[test]
fn an_export_that_is_added_later_finds_its_state() {
    let mut before = Daemon::failed(HoldScope::Vm);
    before
        .control
        .set_write_cache(before.ids[0], standfast_block::WriteCache::WriteThrough);
    let expected = before.control.save().backends.swap_remove(0);
    let (mut control, _, mut outbox) = without_vda(&before, HoldScope::Vm);
    control.start_ended(&mut outbox);
    let next = Daemon {
        control,
        ids: Vec::new(),
        outbox,
    };
    let (mut control, vdb, mut outbox) = without_vda(&next, HoldScope::Vm);
    control.start_ended(&mut outbox);
    assert_eq!(control.state(), RunState::IoError);
    assert_eq!(control.save().unclaimed, std::slice::from_ref(&expected));

    let vda = control.add_backend(config("vda", HoldScope::Vm));
    control.add_local(vda, LocalId(1), &mut outbox).unwrap();
    let saved = control.save();
    assert!(saved.unclaimed.is_empty());
    assert!(saved.backends.contains(&expected), "all of it");
    // Its client may come with what was held: it counts again.
    control.attach(vdb, &mut outbox);
    assert_eq!(control.state(), RunState::IoError);
    control.reattach(vda);
    control.handed_back(vda, &mut outbox);
    control.attach(vdb, &mut outbox);
    assert_eq!(control.state(), RunState::Running);
    assert!(control.backend(vda).unwrap().incident().is_none());
}

/// Nobody knows whether it ever comes: the VM does not stand still for it.
#[test]
fn an_export_that_is_left_out_holds_the_vm_during_the_start_only() {
    let before = Daemon::failed(HoldScope::Vm);
    let (mut control, vdb, mut outbox) = without_vda(&before, HoldScope::Vm);
    control.start_ended(&mut outbox);
    assert_eq!(control.state(), RunState::IoError, "until somebody comes");
    control.attach(vdb, &mut outbox);
    assert_eq!(control.state(), RunState::Running);
    assert_eq!(outbox.events, [EventKind::Resume]);
    assert!(
        control.save().unclaimed[0].incident.is_some(),
        "but it is known"
    );

    // A client is faster than the start: it gets what it would have got, once it is clear.
    let (mut control, vdb, mut outbox) = without_vda(&before, HoldScope::Vm);
    control.attach(vdb, &mut outbox);
    assert_eq!(control.state(), RunState::IoError, "vda may come yet");
    control.start_ended(&mut outbox);
    assert_eq!(control.state(), RunState::Running);
    assert_eq!(outbox.orders, [VmOrder::Resume { force: false }]);

    // It does come, and then it waits for its client.
    let (mut control, vdb, mut outbox) = without_vda(&before, HoldScope::Vm);
    control.attach(vdb, &mut outbox);
    let vda = control.add_backend(config("vda", HoldScope::Vm));
    control.start_ended(&mut outbox);
    assert_eq!(control.state(), RunState::IoError);
    control.attach(vda, &mut outbox);
    assert_eq!(control.state(), RunState::Running);

    // Nobody came: the end of the start alone resumes nothing, neither does it end a `stop`.
    let (mut control, vdb, mut outbox) = without_vda(&before, HoldScope::Vm);
    control.attach(vdb, &mut outbox);
    control.cont(None, false, &mut outbox).unwrap();
    control.stop(&mut outbox).unwrap();
    control.start_ended(&mut outbox);
    assert_eq!(control.state(), RunState::Paused);
}

/// In QEMU a deleted export is gone, too.
#[test]
fn an_export_that_is_deleted_and_added_again_begins_anew() {
    let before = Daemon::failed(HoldScope::Device);
    let mut daemon = before.restart(HoldScope::Device);
    daemon.control.start_ended(&mut daemon.outbox);
    let vda = daemon.ids[0];
    (daemon.control).set_write_cache(vda, standfast_block::WriteCache::WriteThrough);
    daemon.control.detach(vda, &mut daemon.outbox);
    (daemon.control).remove_local(vda, LocalId(1), &mut daemon.outbox);
    daemon.control.remove_backend(vda, &mut daemon.outbox);
    let saved = daemon.control.save();
    assert_eq!((saved.backends.len(), saved.unclaimed.len()), (1, 0));
    let again = daemon.control.add_backend(config("vda", HoldScope::Device));
    let saved = daemon.control.save().backends;
    let saved = saved.iter().find(|saved| saved.device == "vda").unwrap();
    let new = standfast_block::SavedBackend {
        device: "vda".to_owned(),
        node: "disk".to_owned(),
        ..Default::default()
    };
    assert_eq!(*saved, new);
    assert!(!daemon.control.backend(again).unwrap().holds());
}

/// The socket was taken, or an iothread was not there: the next attempt finds what this one did not use.
#[test]
fn an_export_that_is_not_made_gives_its_state_back() {
    let before = Daemon::failed(HoldScope::Vm);
    let expected = before.control.save().backends.swap_remove(0);
    let (mut control, _, mut outbox) = without_vda(&before, HoldScope::Vm);
    for _ in 0..2 {
        let vda = control.add_backend(config("vda", HoldScope::Vm));
        assert!(kept(&control).is_empty());
        let revision = control.revision();
        control.unmake_backend(vda, &mut outbox);
        assert!(control.backend(vda).is_none() && control.revision() > revision);
        assert_eq!(control.save().unclaimed, std::slice::from_ref(&expected));
    }
    // Of one that had nothing, nothing stays.
    let vdc = control.add_backend(config("vdc", HoldScope::Vm));
    control.unmake_backend(vdc, &mut outbox);
    assert_eq!(kept(&control), ["vda on disk"]);
}
