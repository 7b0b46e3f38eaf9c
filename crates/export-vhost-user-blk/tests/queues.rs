//! Several queues, spread over several iothreads: every request is completed once and by its own
//! queue, whatever fails, stops, leaves or comes back; holding and its order reach across iothreads.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod common;

use block::{HoldScope, RunState};
use common::*;
use frontend::{Disk, Request, Token};
use standfast_export_vhost_user_blk::{Options, QUEUES_MAX};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use testkit::{Driver, Rng, Workload};

const IOTHREADS: usize = 2;

fn with_queues(count: u16) -> Options {
    Options {
        num_queues: count,
        ..writable()
    }
}

fn daemon(queues: u16, scope: HoldScope) -> Daemon {
    Daemon::on(IOTHREADS, scope, with_queues(queues), Faults::new()).unwrap()
}

fn front(queues: u16) -> frontend::Options {
    frontend::Options {
        queues,
        ..frontend::Options::default()
    }
}

/// Submits a write of 4 KiB on a queue and returns at once.
fn post_on(disk: &mut Disk, queue: u16, sector: u64, byte: u8) -> Token {
    let data = [byte; 4096];
    let token = disk.submit(
        queue,
        Request::Write {
            sector,
            data: &data,
        },
    );
    disk.kick(queue).unwrap();
    token.unwrap()
}

fn expect_on(disk: &mut Disk, queue: u16, token: Token) {
    let completion = disk.wait(queue, SECONDS).unwrap().expect("a completion");
    assert!(completion.is_ok(), "{completion:?}");
    assert_eq!(completion.token, token);
}

fn expect_none_on(disk: &mut Disk, queue: u16) {
    assert_eq!(disk.wait(queue, A_WHILE).unwrap(), None);
}

/// One random schedule: a checked load, and everything that can happen to it.
fn schedule(seed: u64, queues: u16) {
    let mut daemon = daemon(queues, HoldScope::Vm);
    let mut rng = Rng::new(seed);
    let mut disk = daemon.connect_with(front(queues));
    let mut load = Driver::new(Workload {
        seed,
        requests: 500,
        depth: 48,
        ..Workload::default()
    });
    let deadline = Instant::now() + 6 * SECONDS;
    while !load.is_exhausted() || load.outstanding() > 0 {
        assert!(Instant::now() < deadline, "seed {seed}: stuck");
        load.fill(&mut disk).unwrap();
        load.reap_within(&mut disk, Duration::from_millis(1))
            .unwrap();
        match rng.below(24) {
            0 => daemon.fail_writes(libc::ENOSPC),
            1..6 => {
                daemon.fail_writes(0);
                daemon.cont();
            }
            6 => {
                disk.stop().unwrap();
                if rng.below(2) == 0 {
                    daemon.cont();
                }
                disk.start().unwrap();
            }
            7 => {
                let queue = u16::try_from(rng.below(queues.into())).unwrap();
                disk.set_enabled(queue, false).unwrap();
                disk.set_enabled(queue, true).unwrap();
            }
            8 => {
                disk = Disk::reconnect(disk.disconnect(), &daemon.socket)
                    .map_err(|(error, _)| error)
                    .unwrap();
            }
            9 => {
                let state = disk.disconnect();
                let faults = std::sync::Arc::clone(&daemon.faults);
                daemon.close();
                daemon = Daemon::on(IOTHREADS, HoldScope::Vm, with_queues(queues), faults).unwrap();
                disk = Disk::reconnect(state, &daemon.socket)
                    .map_err(|(error, _)| error)
                    .unwrap();
            }
            10 => {
                let tokens = disk.reset().unwrap();
                load.dropped(&tokens).unwrap();
            }
            11 => {
                let latency = rng.below(2) * 200;
                daemon.faults.latency_us.store(latency, Ordering::SeqCst);
            }
            _ => {}
        }
    }
    daemon.fail_writes(0);
    daemon.cont();
    load.read_back(&mut disk).unwrap();
    load.finish(&mut disk).unwrap();
    assert_eq!(daemon.export.trouble(), None, "seed {seed}");
    drop(disk);
    daemon.close();
}

#[test]
fn four_queues_random_schedules() {
    for seed in 1..=4 {
        schedule(seed * 0x9e37_79b9, 4);
    }
}

#[test]
fn eight_queues_random_schedules() {
    for seed in 1..=4 {
        schedule(seed * 0x517c_c1b7, 8);
    }
}

/// More iothreads than queues, and more queues than the client uses.
#[test]
fn uneven_numbers() {
    for (iothreads, queues, used) in [(4, 1, 1), (3, 2, 2), (2, 5, 3), (2, 64, 64)] {
        let daemon =
            Daemon::on(iothreads, HoldScope::Vm, with_queues(queues), Faults::new()).unwrap();
        let mut disk = daemon.connect_with(front(used));
        for queue in 0..used {
            let token = post_on(&mut disk, queue, u64::from(queue) * 8, 1);
            expect_on(&mut disk, queue, token);
        }
        expect_clean(&disk);
        drop(disk);
        daemon.close();
    }
}

#[test]
fn a_write_waits_for_one_that_is_held_on_another_iothread() {
    let daemon = daemon(2, HoldScope::Request);
    let mut disk = daemon.connect_with(front(2));
    daemon.fail_writes(libc::ENOSPC);
    let held = post_on(&mut disk, 0, 0, 1);
    daemon.wait_held(1);
    daemon.fail_writes(0);
    let overlapping = post_on(&mut disk, 1, 4, 2);
    let apart = post_on(&mut disk, 1, 100, 3);
    expect_on(&mut disk, 1, apart);
    expect_none_on(&mut disk, 1);
    daemon.cont();
    expect_on(&mut disk, 0, held);
    expect_on(&mut disk, 1, overlapping);
    assert_eq!(read(&mut disk, 0, 2048), [1; 2048]);
    assert_eq!(read(&mut disk, 4, 4096), [2; 4096]);
    let order = daemon.faults.order.lock().unwrap().clone();
    assert_eq!(order, [0, 100 * 512, 0, 4 * 512]);
    expect_clean(&disk);
}

#[test]
fn scope_device_freezes_the_part_on_the_other_iothread() {
    let daemon = daemon(2, HoldScope::Device);
    let mut disk = daemon.connect_with(front(2));
    daemon.fail_writes(libc::ENOSPC);
    let held = post_on(&mut disk, 0, 0, 1);
    daemon.wait_held(1);
    // The sibling hears of it by way of run control.
    std::thread::sleep(A_WHILE);
    daemon.fail_writes(0);
    assert_eq!(daemon.run_state(), RunState::Running);
    let apart = post_on(&mut disk, 1, 100, 2);
    expect_none_on(&mut disk, 1);
    daemon.cont();
    expect_on(&mut disk, 0, held);
    expect_on(&mut disk, 1, apart);
    expect_clean(&disk);
}

#[test]
fn a_reset_drops_what_is_held_on_every_iothread() {
    let daemon = daemon(4, HoldScope::Request);
    let mut disk = daemon.connect_with(front(4));
    daemon.fail_writes(libc::ENOSPC);
    for queue in 0..4 {
        post_on(&mut disk, queue, u64::from(queue) * 8, 1);
    }
    daemon.wait_held(4);
    assert_eq!(disk.reset().unwrap().len(), 4);
    daemon.fail_writes(0);
    daemon.wait_held(0);
    for queue in 0..4 {
        let token = post_on(&mut disk, queue, 800 + u64::from(queue) * 8, 2);
        expect_on(&mut disk, queue, token);
    }
    disk.check_dropped().unwrap();
    assert!(read(&mut disk, 0, 4 * 4096).iter().all(|byte| *byte == 0));
    expect_clean(&disk);
}

#[test]
fn queues_of_1024() {
    let daemon = daemon(2, HoldScope::Vm);
    let mut disk = daemon.connect_with(frontend::Options {
        queue_size: 1024,
        indirect: true,
        ..front(2)
    });
    daemon.stall(true);
    let mut tokens = Vec::new();
    for n in 0..1000 {
        let request = Request::Read {
            sector: n,
            len: 512,
        };
        tokens.push(disk.submit(1, request).unwrap());
    }
    disk.kick(1).unwrap();
    daemon.stall(false);
    while !tokens.is_empty() {
        let completion = disk.wait(1, SECONDS).unwrap().expect("a completion");
        assert!(completion.is_ok());
        tokens.retain(|token| *token != completion.token);
    }
    expect_clean(&disk);
}

/// Messages that carry a descriptor have 8 bits for the number of the queue.
#[test]
fn as_many_queues_as_the_protocol_can_number() {
    let daemon = daemon(QUEUES_MAX, HoldScope::Vm);
    for queues in [QUEUES_MAX, 3] {
        let mut disk = daemon.connect_with(front(queues));
        assert_eq!(disk.config().num_queues, QUEUES_MAX);
        for queue in [0, 1, 127, 128, 254, 255].map(|queue| queue.min(queues - 1)) {
            let token = post_on(&mut disk, queue, u64::from(queue) * 8, 7);
            expect_on(&mut disk, queue, token);
        }
        // What is held is found again, in its own queue.
        let last = queues - 1;
        daemon.fail_writes(libc::ENOSPC);
        let token = post_on(&mut disk, last, 0, 9);
        daemon.wait_held(1);
        let left = disk.disconnect();
        let mut disk = Disk::reconnect(left, &daemon.socket)
            .map_err(|(error, _)| error)
            .unwrap();
        daemon.wait_held(1);
        daemon.fail_writes(0);
        daemon.cont();
        expect_on(&mut disk, last, token);
    }
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
