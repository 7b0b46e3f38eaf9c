//! In the steady state a request costs the iothread no allocation.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod common;

use block::HoldScope;
use common::*;
use frontend::Request;
use iothread::IoThread;
use standfast_export_vhost_user_blk::Options;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is being torn down counts no more.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        let _ = BYTES.try_with(|bytes| bytes.set(bytes.get() + layout.size() as u64));
        // SAFETY: the caller's promise is the system allocator's condition.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the system allocator's condition.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn requests_allocate_nothing() {
    let daemon = Daemon::new();
    measure(&daemon, &daemon.iothread, 0);
}

#[test]
fn nor_do_those_of_a_queue_among_several_on_another_iothread() {
    let options = Options {
        num_queues: 4,
        ..writable()
    };
    let daemon = Daemon::on(2, HoldScope::Vm, options, Faults::new()).unwrap();
    measure(&daemon, &daemon.others[0], 3);
}

/// Many more queues are offered than a client uses. Each of them once came with room for 1024
/// requests, a hundred kilobytes of it.
#[test]
fn a_queue_takes_memory_when_it_is_used() {
    let bytes = |queues: u16, used: u16| {
        let options = Options {
            num_queues: queues,
            ..writable()
        };
        let daemon = Daemon::on(1, HoldScope::Vm, options, Faults::new()).unwrap();
        let mut disk = daemon.connect_with(frontend::Options {
            queues: used,
            ..frontend::Options::default()
        });
        disk.submit(used - 1, Request::Flush).unwrap();
        disk.kick(used - 1).unwrap();
        disk.wait(used - 1, SECONDS).unwrap().expect("a completion");
        let count = || async { BYTES.get() };
        daemon.iothread.handle().run_blocking(count).unwrap()
    };
    let (one, many, used) = (bytes(1, 1), bytes(256, 1), bytes(256, 2));
    let per_unused = many.saturating_sub(one) / 255;
    assert!(
        per_unused < 1024,
        "{per_unused} bytes for a queue that is not used"
    );
    assert!(
        used > many + 8192,
        "{many} and {used}: the measurement sees nothing"
    );
}

fn measure(daemon: &Daemon, iothread: &IoThread, queue: u16) {
    let options = frontend::Options {
        queues: queue + 1,
        segments: 5,
        ..frontend::Options::default()
    };
    let mut disk = daemon.connect_with(options);
    let iothread = iothread.handle();
    let count = || {
        iothread
            .run_blocking(|| async { ALLOCATIONS.get() })
            .unwrap()
    };
    let mut run = |rounds: u64| {
        for round in 0..rounds {
            for n in 0..8 {
                let request = Request::Read {
                    sector: (round + n) * 8,
                    len: 4096,
                };
                disk.submit(queue, request).unwrap();
            }
            disk.submit(queue, Request::Flush).unwrap();
            disk.kick(queue).unwrap();
            let mut left = 9;
            while left > 0 {
                assert!(
                    disk.wait(queue, SECONDS)
                        .unwrap()
                        .expect("a completion")
                        .is_ok()
                );
                left -= 1;
            }
        }
    };
    // Tables grow to what is needed, each slot to its longest chain.
    run(200);
    let before = count();
    assert!(before > 0, "nothing is counted");
    run(500);
    let allocations = count() - before;
    // Asking for the number costs a few itself.
    assert!(
        allocations < 20,
        "{allocations} allocations for 4500 requests"
    );
}
