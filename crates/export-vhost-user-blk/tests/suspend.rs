//! Rings that are stopped: what is in flight is completed first (GET_VRING_BASE), or suspended and
//! recorded (GET_VRING_BASE_SKIP_DRAIN); what is held is in neither case waited for.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod common;

use block::RunState;
use common::*;
use frontend::protocol::{STATUS_OK, message, protocol_feature};
use frontend::{Disk, FrontendError, RawChain, RawDescriptor, Request, Token};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The protocol features that say how rings are stopped.
fn features(base_inflight: bool, skip_drain: bool) -> frontend::Options {
    frontend::Options {
        base_inflight,
        skip_drain,
        ..frontend::Options::default()
    }
}

fn connect(daemon: &Daemon) -> Disk {
    let disk = daemon.connect_with(features(true, true));
    let skip_drain = protocol_feature::GET_VRING_BASE_SKIP_DRAIN;
    assert_ne!(disk.protocol_features() & skip_drain, 0);
    disk
}

fn writes(daemon: &Daemon) -> u64 {
    daemon.faults.writes.load(Ordering::SeqCst)
}

/// A write that does not end before the disk is allowed to go on.
fn slow_write(daemon: &Daemon, disk: &mut Disk) -> Token {
    let before = writes(daemon);
    daemon.stall(true);
    let token = post(disk, 0, 7);
    wait_until("the write", || writes(daemon) == before + 1);
    token
}

fn marked(disk: &Disk) -> usize {
    disk.inflight().unwrap().marked(0).len()
}

fn suspend(disk: &mut Disk) -> Vec<u16> {
    let begun = Instant::now();
    let bases = disk.suspend().unwrap();
    assert!(begun.elapsed() < SECONDS / 2, "it has waited");
    bases
}

fn is_written(daemon: &Daemon) -> bool {
    daemon.faults.data.lock().unwrap()[4095] == 7
}

/// The disk goes on a little later.
fn go_on_later(daemon: &Daemon) -> JoinHandle<()> {
    let faults = Arc::clone(&daemon.faults);
    std::thread::spawn(move || {
        std::thread::sleep(A_WHILE);
        faults.stall.store(false, Ordering::SeqCst);
    })
}

/// Whatever a client has negotiated, GET_VRING_BASE completes what is in flight and leaves what is
/// held: no reading of the specification is disappointed.
#[test]
fn get_vring_base_drains_and_does_not_wait_for_what_is_held() {
    for (base_inflight, skip_drain) in [(false, false), (true, false), (true, true)] {
        let daemon = Daemon::new();
        let mut disk = daemon.connect_with(features(base_inflight, skip_drain));
        let token = slow_write(&daemon, &mut disk);
        let release = go_on_later(&daemon);
        assert_eq!(disk.stop().unwrap(), [1]);
        assert!(is_written(&daemon), "it did not wait");
        assert_eq!(marked(&disk), 0);
        release.join().unwrap();
        disk.start().unwrap();
        expect(&mut disk, &[token]);
        daemon.fail_writes(libc::ENOSPC);
        let held = post(&mut disk, 8, 1);
        daemon.wait_held(1);
        assert_eq!(disk.stop().unwrap(), [2]);
        assert_eq!(marked(&disk), 1);
        disk.start().unwrap();
        daemon.fail_writes(0);
        daemon.cont();
        expect(&mut disk, &[held]);
        expect_clean(&disk);
    }
}

/// One execution and one completion, whether the I/O ends before the ring is back or later.
#[test]
fn what_was_suspended_is_joined_to_its_io() {
    for ends_before in [true, false] {
        let daemon = Daemon::new();
        let mut disk = connect(&daemon);
        assert_eq!(write(&mut disk, 64, 1, 512), STATUS_OK);
        let token = slow_write(&daemon, &mut disk);
        assert_eq!(suspend(&mut disk), [2]);
        assert_eq!(marked(&disk), 1);
        disk.take_queue_call(0).unwrap();
        if ends_before {
            daemon.stall(false);
            wait_until("the end of the write", || is_written(&daemon));
            std::thread::sleep(A_WHILE);
            assert!(!disk.take_queue_call(0).unwrap(), "the driver was called");
            assert!(disk.poll(0).is_none());
            assert_eq!(marked(&disk), 1);
        }
        disk.start().unwrap();
        if !ends_before {
            expect_nothing(&mut disk);
            daemon.stall(false);
        }
        expect(&mut disk, &[token]);
        expect_nothing(&mut disk);
        assert_eq!((writes(&daemon), marked(&disk)), (2, 0));
        assert_eq!(daemon.export.backend().stats().wr.operations, 2);
        expect_clean(&disk);
        drop(disk);
        daemon.close();
    }
}

/// Many rounds of pause and resume under one slow request, with new ones in between.
#[test]
fn one_io_over_many_starts() {
    let daemon = Daemon::new();
    let mut disk = connect(&daemon);
    let mut tokens = vec![slow_write(&daemon, &mut disk)];
    for round in 1..6 {
        suspend(&mut disk);
        disk.start().unwrap();
        tokens.push(post(&mut disk, round * 8, 1));
        wait_until("the next write", || writes(&daemon) == round + 1);
        assert_eq!(u64::try_from(marked(&disk)).unwrap(), round + 1);
    }
    daemon.stall(false);
    expect(&mut disk, &tokens);
    expect_nothing(&mut disk);
    assert_eq!(writes(&daemon), 6);
    expect_clean(&disk);
}

/// The memory table is told anew at each start. A read that ends after that is seen in it, because
/// the memory is the same.
#[test]
fn memory_is_told_anew_while_a_read_is_suspended() {
    let daemon = Daemon::new();
    let mut disk = connect(&daemon);
    daemon.faults.data.lock().unwrap()[..512].fill(9);
    daemon.stall(true);
    let request = Request::Read {
        sector: 0,
        len: 512,
    };
    let token = disk.submit(0, request).unwrap();
    disk.kick(0).unwrap();
    wait_until("the read", || marked(&disk) == 1);
    suspend(&mut disk);
    disk.add_memory(16 << 20).unwrap();
    disk.start().unwrap();
    expect_nothing(&mut disk);
    daemon.stall(false);
    let completion = disk.wait(0, SECONDS).unwrap().expect("a completion");
    assert_eq!((completion.token, completion.is_ok()), (token, true));
    assert_eq!(completion.data, [9; 512]);
    expect_clean(&disk);
}

/// The client comes back with other memory, into which it has copied the former one (a migration to
/// another process of the same machine): what the read brings must not end in the former one.
#[test]
fn other_memory_while_a_read_is_suspended() {
    for ends_before in [true, false] {
        let daemon = with_slots();
        let mut disk = daemon.connect_with(frontend::Options {
            mem_slots: true,
            ..features(true, true)
        });
        daemon.faults.data.lock().unwrap()[..4096].fill(9);
        let slot = |file: &File| {
            let words = [0, SLOT, 4096, SLOT, 0].map(u64::to_ne_bytes).concat();
            (words, file.try_clone().unwrap())
        };
        let files = ["former", "new"].map(|name| {
            let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            let file = File::from(file);
            file.set_len(4096).unwrap();
            file
        });
        let (region, file) = slot(&files[0]);
        let fds = [file.as_fd()];
        (disk.connection_mut())
            .set(message::ADD_MEM_REG, &region, &fds)
            .unwrap();
        daemon.stall(true);
        let token = read_into(&mut disk, SLOT);
        wait_until("the read", || marked(&disk) == 1);
        suspend(&mut disk);
        let release = ends_before.then(|| {
            daemon.stall(false);
            let former = &files[0];
            wait_until("the end of the read", || first_byte(former) == 9);
            std::thread::sleep(A_WHILE);
        });
        (disk.connection_mut())
            .set(message::REM_MEM_REG, &region, &[])
            .unwrap();
        let (region, file) = slot(&files[1]);
        let fds = [file.as_fd()];
        (disk.connection_mut())
            .set(message::ADD_MEM_REG, &region, &fds)
            .unwrap();
        let later = release.is_none().then(|| go_on_later(&daemon));
        disk.start().unwrap();
        let completion = disk.wait(0, SECONDS).unwrap().expect("a completion");
        assert_eq!((completion.token, completion.status), (token, STATUS_OK));
        assert_eq!(first_byte(&files[1]), 9, "ended before: {ends_before}");
        expect_nothing(&mut disk);
        assert_eq!(marked(&disk), 0);
        if let Some(later) = later {
            later.join().unwrap();
        }
    }
}

const SLOT: u64 = 0x40_0000_0000;

fn first_byte(file: &File) -> u8 {
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut byte, 0).unwrap();
    byte[0]
}

/// Reads the first 4 KiB of the disk to a guest address.
fn read_into(disk: &mut Disk, address: u64) -> Token {
    let block = disk.memory_mut().allocate(64).unwrap();
    let (header, status) = (block.address(), block.address() + 32);
    disk.memory().write(header, &[0; 16]).unwrap();
    let descriptor = |address, len, flags, next| RawDescriptor {
        address,
        len,
        flags,
        next,
    };
    let chain = RawChain {
        descriptors: vec![
            descriptor(header, 16, 1, 1),
            descriptor(address, 4096, 3, 2),
            descriptor(status, 1, 2, 0),
        ],
        status: Some(status),
    };
    let token = disk.submit(0, Request::Raw(&chain)).unwrap();
    disk.kick(0).unwrap();
    token
}

/// A fresh region is a new life: it begins when the I/O of the former one has ended, and hears
/// nothing of it.
#[test]
fn a_reset_after_a_suspension() {
    let daemon = Daemon::new();
    let mut disk = connect(&daemon);
    let token = slow_write(&daemon, &mut disk);
    suspend(&mut disk);
    let release = go_on_later(&daemon);
    assert_eq!(disk.reset().unwrap(), [token]);
    // What the front end has put there meanwhile: a late write takes what it finds.
    let written = daemon.faults.data.lock().unwrap()[4095];
    assert_ne!(written, 0, "it did not wait");
    release.join().unwrap();
    let token = post(&mut disk, 8, 8);
    expect(&mut disk, &[token]);
    expect_nothing(&mut disk);
    assert_eq!(writes(&daemon), 2);
    disk.check_dropped().unwrap();
    expect_clean(&disk);
}

/// The next connection's rings start when the I/O of this one has ended, and get its completions.
#[test]
fn a_disconnect_after_a_suspension() {
    let daemon = Daemon::new();
    let mut disk = connect(&daemon);
    let token = slow_write(&daemon, &mut disk);
    suspend(&mut disk);
    let state = disk.disconnect();
    let release = go_on_later(&daemon);
    let mut disk = Disk::reconnect(state, &daemon.socket)
        .map_err(|(error, _)| error)
        .unwrap();
    assert!(is_written(&daemon), "it did not wait");
    release.join().unwrap();
    expect(&mut disk, &[token]);
    expect_nothing(&mut disk);
    assert_eq!(writes(&daemon), 1);
    expect_clean(&disk);
}

/// The client hands back a region that does not know the request, so that it is still available. The
/// ring starts when the I/O has ended: the same head is another request's now.
#[test]
fn a_region_that_does_not_know_what_was_suspended() {
    let daemon = Daemon::new();
    let mut disk = connect(&daemon);
    let token = slow_write(&daemon, &mut disk);
    let head = usize::from(disk.inflight().unwrap().marked(0)[0].head);
    suspend(&mut disk);
    let region = Arc::clone(disk.inflight().unwrap().mapping());
    region.write(16 + head * 16, &[0]);
    let release = go_on_later(&daemon);
    disk.start().unwrap();
    assert!(is_written(&daemon), "it did not wait");
    release.join().unwrap();
    expect(&mut disk, &[token]);
    expect_nothing(&mut disk);
    assert_eq!(writes(&daemon), 2);
    expect_clean(&disk);
}

/// What fails while it is suspended is held like anything else.
#[test]
fn a_suspension_with_something_held_and_something_that_fails_later() {
    let daemon = Daemon::new();
    let mut disk = connect(&daemon);
    daemon.fail_writes(libc::ENOSPC);
    let held = post(&mut disk, 8, 1);
    daemon.wait_held(1);
    assert_eq!((suspend(&mut disk), marked(&disk)), (vec![1], 1));
    disk.start().unwrap();
    expect_nothing(&mut disk);
    daemon.fail_writes(0);
    daemon.cont();
    expect(&mut disk, &[held]);
    let before = writes(&daemon);
    let later = slow_write(&daemon, &mut disk);
    suspend(&mut disk);
    daemon.fail_writes(libc::ENOSPC);
    daemon.stall(false);
    daemon.wait_held(1);
    assert_eq!(daemon.run_state(), RunState::IoError);
    disk.start().unwrap();
    expect_nothing(&mut disk);
    assert_eq!((writes(&daemon), marked(&disk)), (before + 1, 1));
    daemon.fail_writes(0);
    daemon.cont();
    expect(&mut disk, &[later]);
    assert_eq!(writes(&daemon), before + 2);
    expect_clean(&disk);
}

/// The export goes after the I/O, and leaves the record for another daemon.
#[test]
fn the_export_is_removed_after_a_suspension() {
    let daemon = Daemon::new();
    let mut disk = connect(&daemon);
    let token = slow_write(&daemon, &mut disk);
    suspend(&mut disk);
    let release = go_on_later(&daemon);
    let faults = Arc::clone(&daemon.faults);
    daemon.close();
    assert_eq!(faults.data.lock().unwrap()[0], 7, "it did not wait");
    release.join().unwrap();
    assert_eq!(marked(&disk), 1);
    let state = disk.disconnect();
    let next = Daemon::over(writable(), faults).unwrap();
    let mut disk = Disk::reconnect(state, &next.socket)
        .map_err(|(error, _)| error)
        .unwrap();
    expect(&mut disk, &[token]);
    assert_eq!(writes(&next), 2, "only this daemon could not know");
    expect_clean(&disk);
}

/// Nobody would remember what is in flight: it is completed, as by GET_VRING_BASE.
#[test]
fn a_suspension_without_region_drains() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect_with(frontend::Options {
        inflight: false,
        ..features(true, true)
    });
    let token = slow_write(&daemon, &mut disk);
    let release = go_on_later(&daemon);
    assert_eq!(disk.suspend().unwrap(), [1]);
    assert!(is_written(&daemon), "it did not wait");
    release.join().unwrap();
    disk.start().unwrap();
    expect(&mut disk, &[token]);
    expect_clean(&disk);
}

/// Who asks for the base by GET_VRING_BASE after all is told that nothing is in flight any more.
#[test]
fn get_vring_base_after_a_suspension_drains() {
    let daemon = Daemon::new();
    let mut disk = connect(&daemon);
    let token = slow_write(&daemon, &mut disk);
    let bases = suspend(&mut disk);
    let release = go_on_later(&daemon);
    let answer = (disk.connection_mut())
        .get(message::GET_VRING_BASE, &[0; 8])
        .unwrap();
    assert_eq!(answer.payload[4..6], bases[0].to_ne_bytes());
    assert!(is_written(&daemon), "it did not wait");
    release.join().unwrap();
    assert_eq!(marked(&disk), 1, "the ring is left alone all the same");
    disk.start().unwrap();
    expect(&mut disk, &[token]);
    expect_clean(&disk);
}

/// Cloud Hypervisor pauses by SET_VRING_ENABLE alone: to such a client it is a drain, and only to one
/// that has negotiated GET_VRING_BASE_SKIP_DRAIN it is not.
#[test]
fn a_disabled_ring_is_drained_unless_skip_drain_is_negotiated() {
    for skip_drain in [false, true] {
        let daemon = Daemon::new();
        let mut disk = daemon.connect_with(frontend::Options {
            // It passes where the ring is drained.
            timeout: if skip_drain {
                SECONDS
            } else {
                Duration::from_secs(3)
            },
            ..features(true, skip_drain)
        });
        let token = slow_write(&daemon, &mut disk);
        let disabled = disk.set_enabled(0, false);
        if !skip_drain {
            assert!(
                matches!(disabled, Err(FrontendError::Timeout { .. })),
                "{disabled:?}"
            );
            daemon.stall(false);
            drop(disk);
            daemon.close();
            continue;
        }
        disabled.unwrap();
        let parked = post(&mut disk, 8, 1);
        disk.kick_always(0).unwrap();
        daemon.stall(false);
        expect(&mut disk, &[token]);
        expect_nothing(&mut disk);
        disk.set_enabled(0, true).unwrap();
        expect(&mut disk, &[parked]);
        expect_clean(&disk);
    }
}

/// Older Cloud Hypervisor does not kick when it has come back: what was made available while the ring
/// did not run is looked for at its start, and when it is enabled.
#[test]
fn a_ring_is_looked_at_when_it_starts() {
    for enabled_later in [false, true] {
        let daemon = Daemon::new();
        daemon.iothread.handle().set_poll_max_ns(0);
        let mut disk = daemon.connect_with(frontend::Options {
            kick_on_start: false,
            ..frontend::Options::default()
        });
        if enabled_later {
            disk.set_enabled(0, false).unwrap();
        } else {
            disk.stop().unwrap();
        }
        let data = [7; 4096];
        let request = Request::Write {
            sector: 0,
            data: &data,
        };
        let token = disk.submit(0, request).unwrap();
        expect_nothing(&mut disk);
        if enabled_later {
            disk.set_enabled(0, true).unwrap();
        } else {
            disk.start().unwrap();
        }
        expect(&mut disk, &[token]);
        expect_clean(&disk);
        let state = disk.disconnect();
        let mut disk = Disk::reconnect(state, &daemon.socket)
            .map_err(|(error, _)| error)
            .unwrap();
        assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
    }
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
