//! Held requests: over stop and start of the VM, reconnects, resets and the end of the export.

mod common;

use block::RunState;
use common::*;
use frontend::protocol::{STATUS_OK, message};
use frontend::{Disk, FrontendError, Request};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[test]
fn a_full_disk_is_not_an_error_for_the_guest() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    daemon.fail_writes(libc::ENOSPC);
    let token = post(&mut disk, 0, 1);
    daemon.wait_held(1);
    assert_eq!(daemon.run_state(), RunState::IoError);
    expect_nothing(&mut disk);
    assert_eq!(disk.inflight().unwrap().marked(0).len(), 1);
    daemon.fail_writes(0);
    daemon.cont();
    expect(&mut disk, &[token]);
    assert_eq!(read(&mut disk, 0, 4096), vec![1; 4096]);
    daemon.wait_held(0);
    assert!(disk.inflight().unwrap().marked(0).is_empty());
    expect_clean(&disk);
    drop(disk);
    daemon.close();
}

/// While frozen nothing is popped: what the driver makes available waits in the ring.
#[test]
fn new_requests_wait_until_cont() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    daemon.fail_writes(libc::ENOSPC);
    let held = post(&mut disk, 0, 1);
    daemon.wait_held(1);
    let waiting = post(&mut disk, 8, 2);
    expect_nothing(&mut disk);
    assert_eq!(disk.inflight().unwrap().marked(0).len(), 1);
    daemon.cont();
    // Both may be tried before the first failure freezes again.
    wait_until("the retry", || {
        daemon.faults.writes.load(Ordering::SeqCst) >= 2
    });
    wait_until("held requests", || daemon.held() > 0);
    expect_nothing(&mut disk);
    daemon.fail_writes(0);
    daemon.cont();
    expect(&mut disk, &[held, waiting]);
    expect_clean(&disk);
}

/// QEMU stops the rings before it can pause the VM, holding its big lock.
#[test]
fn stop_does_not_wait_for_held_requests() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    daemon.fail_writes(libc::ENOSPC);
    let tokens: Vec<_> = (0..5).map(|n| post(&mut disk, n * 8, 7)).collect();
    wait_until("held requests", || daemon.held() > 0);
    let begun = Instant::now();
    let bases = disk.stop().unwrap();
    assert!(begun.elapsed() < SECONDS);
    let marked = disk.inflight().unwrap().marked(0).len();
    assert_eq!(usize::from(bases[0]), marked, "nothing has been used");
    daemon.fail_writes(0);
    daemon.cont();
    std::thread::sleep(A_WHILE);
    assert!(disk.poll(0).is_none(), "the ring is stopped");
    disk.start().unwrap();
    expect(&mut disk, &tokens);
    assert_eq!(read(&mut disk, 32, 4096), vec![7; 4096]);
    expect_clean(&disk);
}

/// A ring restart alone is never a `cont`.
#[test]
fn start_and_stop_release_nothing() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    daemon.fail_writes(libc::ENOSPC);
    let token = post(&mut disk, 0, 7);
    daemon.wait_held(1);
    daemon.fail_writes(0);
    for _ in 0..5 {
        disk.stop().unwrap();
        disk.start().unwrap();
        expect_nothing(&mut disk);
    }
    assert_eq!(daemon.faults.writes.load(Ordering::SeqCst), 1);
    daemon.cont();
    expect(&mut disk, &[token]);
    expect_clean(&disk);
}

#[test]
fn stop_waits_for_what_is_in_flight() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    daemon.stall(true);
    let token = post(&mut disk, 0, 7);
    wait_until("the write", || {
        daemon.faults.writes.load(Ordering::SeqCst) == 1
    });
    let faults = std::sync::Arc::clone(&daemon.faults);
    let release = std::thread::spawn(move || {
        std::thread::sleep(A_WHILE);
        faults.stall.store(false, Ordering::SeqCst);
    });
    assert_eq!(disk.stop().unwrap(), [1]);
    assert!(
        !daemon.faults.stall.load(Ordering::SeqCst),
        "it did not wait"
    );
    assert!(disk.inflight().unwrap().marked(0).is_empty());
    release.join().unwrap();
    disk.start().unwrap();
    expect(&mut disk, &[token]);
    expect_clean(&disk);
}

#[test]
fn a_client_that_comes_back_finds_its_requests_held() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    daemon.fail_writes(libc::ENOSPC);
    let token = post(&mut disk, 0, 7);
    daemon.wait_held(1);
    let generation = daemon.backend(|backend| backend.generation());
    let state = disk.disconnect();
    let mut disk = Disk::reconnect(state, &daemon.socket)
        .map_err(|(error, _)| error)
        .unwrap();
    assert_eq!(daemon.held(), 1);
    assert_eq!(daemon.backend(|backend| backend.generation()), generation);
    expect_nothing(&mut disk);
    daemon.fail_writes(0);
    daemon.cont();
    expect(&mut disk, &[token]);
    assert_eq!(read(&mut disk, 0, 4096), vec![7; 4096]);
    assert_eq!(daemon.export.trouble(), None);
    expect_clean(&disk);
}

/// How many requests were dropped. The parts count, and hear of it after run control.
fn dropped(daemon: &Daemon) -> u64 {
    daemon.backend(|backend| backend.accounting().read().dropped)
}

/// What a client has held when it gives its device up was listed as held until another one came, for
/// ever if none did: after QEMU's `device_del`, which stops the rings, frees the inflight region and
/// stays connected, and after the end of a VM. The region tells: nobody has it any more.
#[test]
fn what_nobody_can_hand_back_is_dropped() {
    for unplugged in [true, false] {
        let daemon = Daemon::new();
        let mut disk = daemon.connect();
        daemon.fail_writes(libc::ENOSPC);
        post(&mut disk, 0, 7);
        daemon.wait_held(1);
        let mut connected = None;
        if unplugged {
            disk.stop().unwrap();
            // As at every pause of the VM: it may go on.
            std::thread::sleep(Duration::from_millis(2500));
            assert_eq!(daemon.held(), 1);
            disk.free_inflight();
            connected = Some(disk);
        } else {
            drop(disk);
        }
        daemon.wait_held(0);
        daemon.backend(|backend| {
            assert!(backend.incident().is_none());
            assert_eq!(backend.raw_io_status(), block::Status::Nospace);
        });
        wait_until("the count", || dropped(&daemon) == 1);
        // As in QEMU the VM waits for `cont`, or for a device with a fresh life.
        assert_eq!(daemon.run_state(), RunState::IoError);
        drop(connected);
        daemon.fail_writes(0);
        let mut disk = daemon.connect();
        assert_eq!(daemon.run_state(), RunState::Running);
        assert_eq!(write(&mut disk, 0, 5, 4096), STATUS_OK);
        expect_clean(&disk);
    }
}

/// Without an inflight region nothing can be handed back: it goes with the connection.
#[test]
fn without_a_region_it_is_dropped_with_the_connection() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect_with(frontend::Options {
        inflight: false,
        ..frontend::Options::default()
    });
    daemon.fail_writes(libc::ENOSPC);
    post(&mut disk, 0, 7);
    daemon.wait_held(1);
    drop(disk);
    daemon.wait_held(0);
    wait_until("the count", || dropped(&daemon) == 1);
}

/// A client that is away and keeps its region is waited for.
#[test]
fn what_can_be_handed_back_stays_held() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    daemon.fail_writes(libc::ENOSPC);
    let token = post(&mut disk, 0, 7);
    daemon.wait_held(1);
    let state = disk.disconnect();
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(daemon.held(), 1);
    let mut disk = Disk::reconnect(state, &daemon.socket)
        .map_err(|(error, _)| error)
        .unwrap();
    daemon.fail_writes(0);
    daemon.cont();
    expect(&mut disk, &[token]);
    expect_clean(&disk);
}

/// The held requests are released while there is no client, and completed to the next one.
#[test]
fn cont_while_the_client_is_away() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    daemon.fail_writes(libc::ENOSPC);
    let token = post(&mut disk, 0, 7);
    daemon.wait_held(1);
    let state = disk.disconnect();
    daemon.wait_disconnected();
    daemon.fail_writes(0);
    daemon.cont();
    std::thread::sleep(A_WHILE);
    assert_eq!(
        daemon.faults.writes.load(Ordering::SeqCst),
        1,
        "no ring, no execution"
    );
    let mut disk = Disk::reconnect(state, &daemon.socket)
        .map_err(|(error, _)| error)
        .unwrap();
    expect(&mut disk, &[token]);
    expect_clean(&disk);
}

/// A daemon that was restarted knows nothing but the region: it resubmits in the order the former
/// one had taken the requests.
#[test]
fn another_daemon_goes_on_where_this_one_ended() {
    let first = Daemon::new();
    let mut disk = first.connect();
    first.stall(true);
    first.fail_writes(libc::ENOSPC);
    let tokens: Vec<_> = (0..20).map(|n| post(&mut disk, (19 - n) * 8, 9)).collect();
    wait_until("the writes", || {
        first.faults.writes.load(Ordering::SeqCst) == 20
    });
    first.stall(false);
    first.wait_held(20);
    let state = disk.disconnect();
    first.close();

    let second = Daemon::new();
    let mut disk = Disk::reconnect(state, &second.socket)
        .map_err(|(error, _)| error)
        .unwrap();
    expect(&mut disk, &tokens);
    let order = second.faults.order.lock().unwrap().clone();
    let expected: Vec<_> = (0..20).map(|n| (19 - n) * 4096).collect();
    assert_eq!(order, expected);
    assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
    expect_clean(&disk);
}

/// A reset drops what is held and is never followed by a completion of it.
#[test]
fn reset_drops_held_requests() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    daemon.fail_writes(libc::ENOSPC);
    let dropped = post(&mut disk, 0, 7);
    daemon.wait_held(1);
    assert_eq!(disk.reset().unwrap(), [dropped]);
    daemon.wait_held(0);
    daemon.fail_writes(0);
    daemon.cont();
    assert_eq!(
        read(&mut disk, 0, 4096),
        vec![0; 4096],
        "it was never written"
    );
    let token = post(&mut disk, 0, 8);
    expect(&mut disk, &[token]);
    expect_nothing(&mut disk);
    disk.check_dropped().unwrap();
    expect_clean(&disk);
}

/// A reset waits for what is in flight, which must not complete into the new life of the ring.
#[test]
fn reset_while_requests_are_in_flight() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    daemon.stall(true);
    for n in 0..10 {
        post(&mut disk, n * 8, 7);
    }
    wait_until("the writes", || {
        daemon.faults.writes.load(Ordering::SeqCst) == 10
    });
    let faults = std::sync::Arc::clone(&daemon.faults);
    let release = std::thread::spawn(move || {
        std::thread::sleep(A_WHILE);
        faults.write.store(libc::ENOSPC, Ordering::SeqCst);
        faults.stall.store(false, Ordering::SeqCst);
    });
    assert_eq!(disk.reset().unwrap().len(), 10);
    release.join().unwrap();
    daemon.wait_held(0);
    daemon.fail_writes(0);
    daemon.cont();
    let token = post(&mut disk, 0, 8);
    expect(&mut disk, &[token]);
    disk.check_dropped().unwrap();
    expect_clean(&disk);
}

/// Another VM, or the same one booted again: a fresh region is a new life of the device.
#[test]
fn a_fresh_region_drops_what_is_held() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    daemon.fail_writes(libc::ENOSPC);
    post(&mut disk, 0, 7);
    daemon.wait_held(1);
    drop(disk);
    let mut disk = daemon.connect();
    daemon.wait_held(0);
    daemon.fail_writes(0);
    daemon.cont();
    assert_eq!(read(&mut disk, 0, 4096), vec![0; 4096]);
    expect_nothing(&mut disk);
    expect_clean(&disk);
}

fn without_region() -> frontend::Options {
    frontend::Options {
        inflight: false,
        ..frontend::Options::default()
    }
}

#[test]
fn without_region_the_very_ring_that_was_left_goes_on() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect_with(without_region());
    assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
    daemon.fail_writes(libc::ENOSPC);
    let token = post(&mut disk, 0, 7);
    daemon.wait_held(1);
    assert_eq!(disk.stop().unwrap(), [2]);
    disk.start().unwrap();
    assert_eq!(daemon.held(), 1);
    daemon.fail_writes(0);
    daemon.cont();
    expect(&mut disk, &[token]);
    expect_clean(&disk);
}

#[test]
fn without_region_another_ring_drops_what_was_held() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect_with(without_region());
    daemon.fail_writes(libc::ENOSPC);
    post(&mut disk, 0, 7);
    daemon.wait_held(1);
    disk.reset().unwrap();
    wait_until("nothing held", || daemon.held() == 0);
    daemon.fail_writes(0);
    daemon.cont();
    let token = post(&mut disk, 8, 8);
    expect(&mut disk, &[token]);
    expect_nothing(&mut disk);
    disk.check_dropped().unwrap();
    expect_clean(&disk);
}

/// Cloud Hypervisor pauses a device by disabling its rings, and by nothing else.
#[test]
fn a_disabled_ring_is_frozen_and_loses_no_kick() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    disk.set_enabled(0, false).unwrap();
    let token = post(&mut disk, 0, 7);
    disk.kick_always(0).unwrap();
    expect_nothing(&mut disk);
    assert!(disk.inflight().unwrap().marked(0).is_empty());
    disk.set_enabled(0, true).unwrap();
    expect(&mut disk, &[token]);
    daemon.fail_writes(libc::ENOSPC);
    let held = post(&mut disk, 0, 8);
    daemon.wait_held(1);
    disk.set_enabled(0, false).unwrap();
    daemon.fail_writes(0);
    daemon.cont();
    expect_nothing(&mut disk);
    disk.set_enabled(0, true).unwrap();
    expect(&mut disk, &[held]);
    expect_clean(&disk);
}

/// Held requests are translated again when they are released.
#[test]
fn memory_may_be_plugged_while_requests_are_held() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    daemon.fail_writes(libc::ENOSPC);
    let token = post(&mut disk, 0, 7);
    daemon.wait_held(1);
    disk.add_memory(16 << 20).unwrap();
    daemon.fail_writes(0);
    daemon.cont();
    expect(&mut disk, &[token]);
    daemon.stall(true);
    let token = post(&mut disk, 0, 9);
    wait_until("the write", || {
        daemon.faults.writes.load(Ordering::SeqCst) == 3
    });
    disk.add_memory(16 << 20).unwrap();
    daemon.stall(false);
    expect(&mut disk, &[token]);
    assert_eq!(read(&mut disk, 0, 4096), vec![9; 4096]);
    expect_clean(&disk);
}

/// It hung without a word, until the first one was gone. What tells it apart from the client that
/// comes back is that the first one is still there.
#[test]
fn a_second_client_is_told() {
    let daemon = Daemon::new();
    let mut first = daemon.connect();
    for _ in 0..3 {
        let second = Disk::connect(&daemon.socket, frontend::Options::default());
        assert!(
            matches!(second, Err(FrontendError::Closed { .. })),
            "{second:?}"
        );
    }
    let me = std::process::id();
    let expected = format!(
        "process {me} has connected and was refused: process {me} is the client, an export has one \
         at a time"
    );
    assert_eq!(daemon.export.trouble(), Some(expected));
    assert_eq!(write(&mut first, 0, 1, 512), STATUS_OK);
    expect_clean(&first);
    drop(first);
    assert_eq!(write(&mut daemon.connect(), 0, 3, 512), STATUS_OK);
    assert_eq!(daemon.export.trouble(), None);
}

/// The first one is gone, its I/O is not: whoever comes now waits for that, and a third one is told.
#[test]
fn a_client_comes_while_the_former_ones_io_ends() {
    let daemon = Daemon::new();
    let mut first = daemon.connect();
    daemon.stall(true);
    post(&mut first, 0, 7);
    wait_until("the write", || {
        daemon.faults.writes.load(Ordering::SeqCst) == 1
    });
    drop(first);
    let socket = daemon.socket.clone();
    let second = std::thread::spawn(move || {
        // It may be the third one that comes first.
        let mut disk = loop {
            match Disk::connect(&socket, frontend::Options::default()) {
                Err(FrontendError::Closed { .. }) => {}
                disk => break disk.unwrap(),
            }
        };
        write(&mut disk, 0, 3, 512)
    });
    wait_until("a refusal", || {
        let third = Disk::connect(
            &daemon.socket,
            frontend::Options {
                timeout: A_WHILE,
                ..frontend::Options::default()
            },
        );
        matches!(third, Err(FrontendError::Closed { .. }))
    });
    assert!(!second.is_finished());
    daemon.stall(false);
    assert_eq!(second.join().unwrap(), STATUS_OK);
}

#[test]
fn close_with_a_client_and_held_requests() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    daemon.fail_writes(libc::ENOSPC);
    let token = post(&mut disk, 0, 7);
    daemon.wait_held(1);
    daemon.close();
    assert!(disk.wait(0, A_WHILE).is_err(), "disconnected");
    assert_eq!(disk.outstanding_tokens(), [token]);
    assert_eq!(
        disk.inflight().unwrap().marked(0).len(),
        1,
        "left for the next daemon"
    );
}

/// The operator gives a held flush up while the VM is stopped: the ring is not touched before it
/// is started again.
#[test]
fn what_is_answered_while_the_ring_is_stopped_is_published_later() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    daemon.faults.flush.store(libc::ENOSPC, Ordering::SeqCst);
    let token = disk.submit(0, Request::Flush).unwrap();
    disk.kick(0).unwrap();
    daemon.wait_held(1);
    disk.stop().unwrap();
    let id = daemon.export.backend().id();
    daemon
        .control
        .call_blocking(move |state, wiring| state.fail_held_flushes(id, wiring))
        .unwrap();
    wait_until("nothing held", || daemon.held() == 0);
    assert!(disk.poll(0).is_none());
    disk.start().unwrap();
    let completion = disk.wait(0, SECONDS).unwrap().expect("a completion");
    assert_eq!((completion.token, completion.is_ok()), (token, false));
    daemon.cont();
    assert_eq!(read(&mut disk, 0, 512), vec![0; 512]);
    expect_clean(&disk);
}

/// GET_VRING_BASE of a ring that does not run is answered with where it is.
#[test]
fn stopping_twice() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    write(&mut disk, 0, 1, 512);
    assert_eq!(disk.stop().unwrap(), [1]);
    let again = disk
        .connection_mut()
        .get(message::GET_VRING_BASE, &[0; 8])
        .unwrap();
    assert_eq!(again.payload, [0, 0, 0, 0, 1, 0, 0, 0]);
    disk.start().unwrap();
    assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
    expect_clean(&disk);
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
