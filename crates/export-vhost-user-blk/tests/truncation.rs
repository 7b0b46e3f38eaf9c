//! A client that truncates the memory it shares with us, while its requests are queued, in flight
//! or held: it loses its connection, and nobody else notices.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod common;

use block::{Event, EventKind, HoldScope, Observer};
use common::*;
use frontend::protocol::{STATUS_OK, message};
use frontend::{Disk, RawChain, RawDescriptor, Request};
use standfast_export_vhost_user_blk::Options;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Log(Mutex<Vec<(u16, String)>>);

impl Observer for Log {
    fn event(&self, event: &Event) -> bool {
        if let EventKind::BlockExportQueueBroken { id, queue, reason } = &event.kind {
            assert_eq!(id, "disk0");
            self.0.lock().unwrap().push((*queue, reason.clone()));
        }
        true
    }
}

fn observe(daemon: &Daemon) -> Arc<Log> {
    let log = Arc::new(Log::default());
    pollster::block_on(
        daemon
            .control
            .observe(Arc::clone(&log) as Arc<dyn Observer>),
    );
    log
}

/// From now on the test must not touch the disk's memory either.
fn truncate(disk: &Disk) {
    for region in disk.memory().regions() {
        rustix::fs::ftruncate(region.mapping().fd(), 0).unwrap();
    }
}

/// The export lives on, for clients that behave, and so does another one on the same iothreads.
fn expect_given_up(daemon: &Daemon, log: &Log) {
    wait_until("disconnection", || {
        let text = daemon.export.trouble();
        text.is_some_and(|text| text.contains("was disconnected: the client has truncated"))
    });
    daemon.wait_disconnected();
    // The event was posted before the trouble was told of; run control hands it on in its own time.
    daemon.settle();
    let told = log.0.lock().unwrap().clone();
    // All queues have lost their memory; whether one finds out before it is stopped is chance.
    assert!((1..=2).contains(&told.len()), "{told:?}");
    let truncated = |(_, reason): &(u16, String)| reason.contains("has truncated memory");
    assert!(told.iter().all(truncated), "{told:?}");
    daemon.fail_writes(0);
    daemon.cont();
    let (second, socket) = daemon.add_export("disk1");
    for path in [&daemon.socket, &socket] {
        let mut disk = Disk::connect(path, frontend::Options::default()).unwrap();
        assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
        expect_clean(&disk);
    }
    assert_eq!(daemon.export.trouble(), None);
    pollster::block_on(second.close());
}

fn daemon(queues: u16) -> Daemon {
    let options = Options {
        num_queues: queues,
        ..writable()
    };
    Daemon::on(2, HoldScope::Vm, options, Faults::new()).unwrap()
}

#[test]
fn before_anything_is_taken() {
    let daemon = daemon(2);
    let log = observe(&daemon);
    let mut disk = daemon.connect_with(frontend::Options {
        queues: 2,
        ..frontend::Options::default()
    });
    truncate(&disk);
    disk.kick_always(1).unwrap();
    wait_until("the error descriptor", || disk.take_queue_error(1).unwrap());
    expect_given_up(&daemon, &log);
    drop(disk);
    daemon.close();
}

#[test]
fn in_flight() {
    for read in [false, true] {
        let daemon = daemon(1);
        let log = observe(&daemon);
        let mut disk = daemon.connect();
        daemon.stall(true);
        if read {
            let len = 64 << 10;
            disk.submit(0, Request::Read { sector: 0, len }).unwrap();
            disk.kick(0).unwrap();
        } else {
            post(&mut disk, 0, 1);
            wait_until("the write", || {
                !daemon.faults.order.lock().unwrap().is_empty()
            });
        }
        // A read leaves no trace before it ends.
        std::thread::sleep(A_WHILE);
        truncate(&disk);
        daemon.stall(false);
        expect_given_up(&daemon, &log);
        drop(disk);
        daemon.close();
    }
}

/// The table was replaced while the request was in flight, and only what it replaced is lost.
#[test]
fn in_flight_in_a_former_table() {
    let daemon = daemon(1);
    let log = observe(&daemon);
    let mut disk = daemon.connect_with(frontend::Options {
        memory_regions: 1,
        ..frontend::Options::default()
    });
    let lost = rustix::fs::memfd_create("lost", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&lost, 4096).unwrap();
    let slot = [0, 0x40_0000_0000, 4096, 0x40_0000_0000, 0];
    let slot = slot.map(u64::to_ne_bytes).concat();
    let connection = disk.connection_mut();
    connection
        .set(message::ADD_MEM_REG, &slot, &[lost.as_fd()])
        .unwrap();
    daemon.stall(true);
    let block = disk.memory_mut().allocate(64).unwrap();
    let (header, status) = (block.address(), block.address() + 32);
    disk.memory().write(header, &[0; 16]).unwrap();
    disk.memory().write(header, &1_u32.to_le_bytes()).unwrap();
    let descriptor = |address, len, flags, next| RawDescriptor {
        address,
        len,
        flags,
        next,
    };
    let chain = RawChain {
        descriptors: vec![
            descriptor(header, 16, 1, 1),
            descriptor(0x40_0000_0000, 4096, 1, 2),
            descriptor(status, 1, 2, 0),
        ],
        status: Some(status),
    };
    disk.submit(0, Request::Raw(&chain)).unwrap();
    disk.kick(0).unwrap();
    wait_until("the write", || {
        !daemon.faults.order.lock().unwrap().is_empty()
    });
    disk.connection_mut()
        .set(message::REM_MEM_REG, &slot, &[])
        .unwrap();
    rustix::fs::ftruncate(&lost, 0).unwrap();
    daemon.stall(false);
    expect_given_up(&daemon, &log);
    drop(disk);
    daemon.close();
}

#[test]
fn held() {
    let daemon = daemon(1);
    let log = observe(&daemon);
    let mut disk = daemon.connect();
    daemon.fail_writes(libc::ENOSPC);
    post(&mut disk, 0, 1);
    post(&mut disk, 8, 1);
    // The second one is not taken any more.
    daemon.wait_held(1);
    truncate(&disk);
    daemon.fail_writes(0);
    daemon.cont();
    expect_given_up(&daemon, &log);
    daemon.wait_held(0);
    drop(disk);
    daemon.close();
}

/// The region that we make cannot be truncated.
#[test]
fn the_inflight_region_is_sealed() {
    let daemon = Daemon::new();
    let disk = daemon.connect();
    assert!(rustix::fs::ftruncate(disk.inflight().unwrap().fd(), 0).is_err());
    assert_eq!(daemon.export.trouble(), None);
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
