//! Inflight regions that were asked for, or made, for other queues than those that come.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod common;

use common::*;
use frontend::protocol::STATUS_OK;
use frontend::{Disk, Options};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What comes last in a region of ours, in bytes.
const TRAILER_BYTES: usize = 64;

/// As QEMU for a guest on virtio-mmio: it asks with the device's `queue-size`, and the driver makes
/// the largest queue there is.
fn mmio() -> Options {
    Options {
        queue_size: 1024,
        inflight_queue_size: Some(128),
        ..Options::default()
    }
}

/// What the client keeps looks like the region of a daemon that knew no trailer.
fn make_old(disk: &Disk) {
    let mapping = disk.inflight().unwrap().mapping();
    mapping.write(mapping.len() - TRAILER_BYTES, &[0; TRAILER_BYTES]);
}

/// The guest hung at its first look at the disk: the queue was "broken", because the region that QEMU
/// had asked for was made for 128 descriptors, and the guest's queue has 1024.
#[test]
fn a_queue_larger_than_what_was_asked_for() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect_with(mmio());
    assert_eq!(daemon.export.trouble(), None);
    assert_eq!(write(&mut disk, 0, 1, 4096), STATUS_OK);
    daemon.fail_writes(libc::ENOSPC);
    let held = post(&mut disk, 8, 2);
    daemon.wait_held(1);
    assert_eq!(disk.inflight().unwrap().marked(0).len(), 1);
    // The VM is stopped and goes on.
    disk.stop().unwrap();
    disk.start().unwrap();
    assert_eq!(daemon.held(), 1);
    // The daemon is replaced: what was held is handed back.
    let state = disk.disconnect();
    daemon.wait_disconnected();
    assert!(daemon.export.backend().is_remembered());
    let faults = Arc::clone(&daemon.faults);
    daemon.close();
    faults.write.store(0, Ordering::SeqCst);
    let next = Daemon::over(writable(), faults).unwrap();
    let mut disk = Disk::reconnect(state, &next.socket).map_err(|(error, _)| error);
    let disk = disk.as_mut().unwrap();
    expect(disk, &[held]);
    assert_eq!(read(disk, 8, 4096), vec![2; 4096]);
    assert_eq!(next.export.trouble(), None);
    expect_clean(disk);
}

/// Many queues: each has room for the largest.
#[test]
fn several_queues_larger_than_what_was_asked_for() {
    let daemon = Daemon::with(standfast_export_vhost_user_blk::Options {
        num_queues: 3,
        ..writable()
    });
    let mut disk = daemon.connect_with(Options {
        queues: 3,
        ..mmio()
    });
    daemon.stall(true);
    for queue in 0..3 {
        let data = [7; 4096];
        let sector = u64::from(queue) * 8;
        let request = frontend::Request::Write {
            sector,
            data: &data,
        };
        disk.submit(queue, request).unwrap();
        disk.kick(queue).unwrap();
    }
    wait_until("a mark for each queue", || {
        (0..3).all(|queue| disk.inflight().unwrap().marked(queue).len() == 1)
    });
    daemon.stall(false);
    for queue in 0..3 {
        assert!(disk.wait(queue, SECONDS).unwrap().unwrap().is_ok());
    }
    assert_eq!(daemon.export.trouble(), None);
    expect_clean(&disk);
}

/// A guest on virtio-mmio that an older daemon has left hanging: its region has no room for the
/// queue. It is served all the same, as a client without region is.
#[test]
fn a_region_without_room_for_the_queue() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect_with(mmio());
    disk.stop().unwrap();
    make_old(&disk);
    disk.start().unwrap();
    assert_eq!(daemon.export.trouble(), None);
    assert!(!daemon.export.backend().is_remembered());
    assert_eq!(write(&mut disk, 0, 1, 4096), STATUS_OK);
    daemon.fail_writes(libc::ENOSPC);
    let held = post(&mut disk, 8, 2);
    daemon.wait_held(1);
    assert!(disk.inflight().unwrap().marked(0).is_empty());
    // What is held survives a stop, as the ring is the one that was left.
    disk.stop().unwrap();
    disk.start().unwrap();
    assert_eq!(daemon.held(), 1);
    let writes = daemon.faults.writes.load(Ordering::SeqCst);
    daemon.fail_writes(0);
    daemon.cont();
    expect(&mut disk, &[held]);
    assert_eq!(daemon.faults.writes.load(Ordering::SeqCst), writes + 1);
    // A reset brings a region with room.
    disk.reset().unwrap();
    assert!(daemon.export.backend().is_remembered());
    daemon.fail_writes(libc::ENOSPC);
    post(&mut disk, 8, 2);
    daemon.wait_held(1);
    assert_eq!(disk.inflight().unwrap().marked(0).len(), 1);
    expect_clean(&disk);
}

/// As an older daemon has made it, for a queue that it has room for: it counts.
#[test]
fn a_region_of_an_older_daemon() {
    let daemon = Daemon::with(standfast_export_vhost_user_blk::Options {
        queue_size_max: 128,
        ..writable()
    });
    let mut disk = daemon.connect();
    daemon.fail_writes(libc::ENOSPC);
    let held = post(&mut disk, 8, 2);
    daemon.wait_held(1);
    let state = disk.disconnect();
    daemon.wait_disconnected();
    let mapping = state.inflight().unwrap().mapping();
    mapping.write(mapping.len() - TRAILER_BYTES, &[0; TRAILER_BYTES]);
    let faults = Arc::clone(&daemon.faults);
    daemon.close();
    faults.write.store(0, Ordering::SeqCst);
    let next = Daemon::over(writable(), faults).unwrap();
    let mut disk = Disk::reconnect(state, &next.socket).map_err(|(error, _)| error);
    let disk = disk.as_mut().unwrap();
    assert!(next.export.backend().is_remembered());
    expect(disk, &[held]);
    expect_clean(disk);
}
