//! A driver that waits before it begins: what waits in it is parked, and nobody waits for that.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use block::driver::park;
use block::{Child, Driver, HoldScope, Io, IoFuture, Limits, NodeInfo, Operation};
use common::*;
use frontend::protocol::STATUS_OK;
use frontend::{Disk, Request};

/// What the test and its throttle share.
#[derive(Debug, Default)]
struct Valve {
    shut: AtomicBool,
    /// Requests that wait for it.
    waiting: AtomicUsize,
    /// Requests that have ever come to it.
    arrived: AtomicUsize,
    /// Requests that it has let through.
    passed: AtomicUsize,
    /// It waits although it has begun.
    begins_before: AtomicBool,
    /// Flushes wait for it, too.
    flushes: AtomicBool,
}

/// A place in the throttle's line. It goes back by drop.
struct Place<'a>(&'a Valve);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Valve {
    async fn opens(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let place = Place(self);
        while self.shut.load(Ordering::SeqCst) {
            iothread::time::sleep(Duration::from_millis(1)).await;
        }
        drop(place);
        self.passed.fetch_add(1, Ordering::SeqCst);
    }
}

/// A filter that lets writes through when its valve is open.
#[derive(Debug)]
struct Throttle {
    file: Child,
    valve: Arc<Valve>,
}

impl Driver for Throttle {
    fn name(&self) -> &'static str {
        "throttle"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }

    fn length(&self) -> u64 {
        self.file.length()
    }

    fn limits(&self) -> Limits {
        self.file.limits()
    }

    fn children(&self) -> Vec<&Child> {
        vec![&self.file]
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let waits = match io.op {
            Operation::Write => true,
            Operation::Flush => self.valve.flushes.load(Ordering::SeqCst),
            _ => false,
        };
        if !waits {
            return self.file.submit(io);
        }
        IoFuture::new(async move {
            if self.valve.begins_before.load(Ordering::SeqCst) {
                iothread::time::sleep(Duration::from_millis(1)).await;
            }
            park::until(self.valve.opens()).await;
            self.file.submit(io).await
        })
    }
}

struct Setup {
    daemon: Daemon,
    valve: Arc<Valve>,
}

impl Setup {
    fn new(scope: HoldScope) -> Self {
        Self::on(1, scope, writable())
    }

    fn on(
        iothreads: usize,
        scope: HoldScope,
        options: standfast_export_vhost_user_blk::Options,
    ) -> Self {
        let valve = Arc::new(Valve::default());
        let above = Arc::clone(&valve);
        let daemon = Daemon::below(iothreads, scope, options, |file| Throttle {
            file,
            valve: above,
        });
        Self { daemon, valve }
    }

    fn shut(&self, shut: bool) {
        self.valve.shut.store(shut, Ordering::SeqCst);
    }

    fn waiting(&self) -> usize {
        self.valve.waiting.load(Ordering::SeqCst)
    }

    fn wait_waiting(&self, count: usize) {
        wait_until(&format!("{count} parked requests"), || {
            self.waiting() == count
        });
    }

    fn writes(&self) -> u64 {
        self.daemon.faults.writes.load(Ordering::SeqCst)
    }

    /// Three writes of which the throttle begins none.
    fn park_three(&self, disk: &mut Disk) -> [frontend::Token; 3] {
        self.shut(true);
        let tokens = [post(disk, 0, 1), post(disk, 8, 2), post(disk, 16, 3)];
        self.wait_waiting(3);
        tokens
    }

    fn drain(&self) -> block::Drained {
        let begun = Instant::now();
        let drained = pollster::block_on(self.daemon.export.backend().drain());
        assert!(begun.elapsed() < SECONDS, "it has waited");
        drained
    }

    /// The offsets of the writes, in the order in which they came to the disk.
    fn order(&self) -> Vec<u64> {
        self.daemon.faults.order.lock().unwrap().clone()
    }

    /// The three are written once each.
    fn expect_three(&self, disk: &mut Disk, tokens: &[frontend::Token; 3]) {
        expect(disk, tokens);
        expect_nothing(disk);
        let mut order = self.order();
        order.sort_unstable();
        assert_eq!(order, [0, 4096, 8192]);
        for (sector, byte) in [(0, 1), (8, 2), (16, 3)] {
            assert_eq!(read(disk, sector, 4096), vec![byte; 4096]);
        }
        assert!(disk.inflight().unwrap().marked(0).is_empty());
        let stats = self.daemon.export.backend().stats();
        // The reads are tried, too.
        assert_eq!((stats.wr.operations, stats.attempts), (3, 6));
        assert_eq!((stats.dropped, stats.lost), (0, 0));
        expect_clean(disk);
    }
}

#[test]
fn it_goes_on_by_itself_and_others_pass_it() {
    let setup = Setup::new(HoldScope::Vm);
    let mut disk = setup.daemon.connect();
    let tokens = setup.park_three(&mut disk);
    assert_eq!(setup.daemon.held(), 0);
    assert_eq!(disk.inflight().unwrap().marked(0).len(), 3);
    assert_eq!(read(&mut disk, 64, 512), vec![0; 512]);
    expect_nothing(&mut disk);
    assert_eq!(setup.writes(), 0);
    setup.shut(false);
    expect(&mut disk, &tokens);
    assert_eq!(setup.valve.passed.load(Ordering::SeqCst), 3);
    drop(disk);
    setup.daemon.close();
}

#[test]
fn a_drain_does_not_wait_and_nothing_starts_during_it() {
    let setup = Setup::new(HoldScope::Vm);
    let mut disk = setup.daemon.connect();
    let tokens = setup.park_three(&mut disk);
    let drained = setup.drain();
    assert_eq!(setup.waiting(), 0, "the throttle has its budget back");
    // A resize must not cut them off.
    assert_eq!(drained.furthest().map(block::Request::end), Some(3 * 4096));
    setup.shut(false);
    expect_nothing(&mut disk);
    assert_eq!(setup.writes(), 0);
    drop(drained);
    setup.expect_three(&mut disk, &tokens);
    assert_eq!(setup.order(), [0, 4096, 8192], "each at its old place");
    drop(disk);
    setup.daemon.close();
}

#[test]
fn rings_stop_and_start_without_it() {
    let setup = Setup::new(HoldScope::Vm);
    let mut disk = setup.daemon.connect();
    let tokens = setup.park_three(&mut disk);
    let begun = Instant::now();
    assert_eq!(disk.stop().unwrap(), [3], "GET_VRING_BASE");
    assert!(begun.elapsed() < SECONDS);
    assert_eq!(setup.waiting(), 0);
    assert_eq!(disk.inflight().unwrap().marked(0).len(), 3);
    setup.shut(false);
    std::thread::sleep(A_WHILE);
    assert!(disk.poll(0).is_none() && setup.writes() == 0);
    setup.shut(true);
    disk.start().unwrap();
    setup.wait_waiting(3);
    let begun = Instant::now();
    disk.set_enabled(0, false).unwrap();
    assert!(begun.elapsed() < SECONDS);
    assert_eq!(setup.waiting(), 0);
    setup.shut(false);
    expect_nothing(&mut disk);
    assert_eq!(setup.writes(), 0);
    disk.set_enabled(0, true).unwrap();
    setup.expect_three(&mut disk, &tokens);
    assert_eq!(setup.order(), [0, 4096, 8192], "each at its old place");
    drop(disk);
    setup.daemon.close();
}

#[test]
fn a_reconnect_finds_it_where_it_was() {
    let setup = Setup::new(HoldScope::Vm);
    let mut disk = setup.daemon.connect();
    let tokens = setup.park_three(&mut disk);
    let state = disk.disconnect();
    setup.wait_waiting(0);
    let reconnected = Disk::reconnect(state, &setup.daemon.socket);
    let mut disk = reconnected.map_err(|(error, _)| error).unwrap();
    setup.wait_waiting(3);
    setup.shut(false);
    setup.expect_three(&mut disk, &tokens);
    drop(disk);
    setup.daemon.close();
}

#[test]
fn a_stopped_vm_has_nothing_waiting_in_the_driver() {
    let setup = Setup::new(HoldScope::Vm);
    let mut disk = setup.daemon.connect();
    let tokens = setup.park_three(&mut disk);
    pollster::block_on(setup.daemon.control.stop()).unwrap();
    setup.wait_waiting(0);
    setup.shut(false);
    expect_nothing(&mut disk);
    assert_eq!(setup.writes(), 0);
    setup.shut(true);
    setup.daemon.cont();
    setup.wait_waiting(3);
    setup.shut(false);
    setup.expect_three(&mut disk, &tokens);
    drop(disk);
    setup.daemon.close();
}

/// The read fails before anything else is looked at: what is parked does not begin between that and the
/// freeze. It is on another queue and iothread, too.
#[test]
fn a_failure_takes_back_what_is_parked() {
    let options = standfast_export_vhost_user_blk::Options {
        num_queues: 2,
        ..writable()
    };
    let setup = Setup::on(2, HoldScope::Device, options);
    let mut disk = setup.daemon.connect_with(frontend::Options {
        queues: 2,
        ..frontend::Options::default()
    });
    setup
        .daemon
        .faults
        .flush
        .store(libc::ENOSPC, Ordering::SeqCst);
    setup.shut(true);
    let mut tokens = Vec::new();
    for queue in [0, 1] {
        let data = &[7; 4096];
        let sector = u64::from(queue) * 8;
        tokens.push(disk.submit(queue, Request::Write { sector, data }).unwrap());
        disk.kick(queue).unwrap();
    }
    setup.wait_waiting(2);
    let flush = disk.submit(0, Request::Flush).unwrap();
    disk.kick(0).unwrap();
    setup.daemon.wait_held(1);
    setup.wait_waiting(0);
    setup.shut(false);
    std::thread::sleep(A_WHILE);
    assert_eq!(setup.writes(), 0);
    setup.daemon.faults.flush.store(0, Ordering::SeqCst);
    let export = setup.daemon.export.id().to_owned();
    pollster::block_on(setup.daemon.control.cont_backend(export)).unwrap();
    for queue in [0, 1] {
        let count = if queue == 0 { 2 } else { 1 };
        for _ in 0..count {
            let completion = disk.wait(queue, SECONDS).unwrap().expect("a completion");
            assert!(completion.is_ok(), "{completion:?}");
            assert!(tokens.contains(&completion.token) || completion.token == flush);
        }
    }
    assert_eq!(setup.writes(), 2);
    expect_clean(&disk);
    drop(disk);
    setup.daemon.close();
}

/// Its buffers are looked up again when the client's memory is another.
#[test]
fn memory_may_change_while_it_is_parked() {
    let setup = Setup::new(HoldScope::Vm);
    let mut disk = setup.daemon.connect();
    let tokens = setup.park_three(&mut disk);
    disk.add_memory(1 << 20).unwrap();
    wait_until("a second look at the buffers", || {
        setup.valve.arrived.load(Ordering::SeqCst) == 6
    });
    setup.wait_waiting(3);
    setup.shut(false);
    expect(&mut disk, &tokens);
    setup.shut(true);
    let token = post(&mut disk, 24, 4);
    setup.wait_waiting(1);
    disk.stop().unwrap();
    disk.add_memory(1 << 20).unwrap();
    setup.shut(false);
    disk.start().unwrap();
    expect(&mut disk, &[token]);
    assert_eq!(read(&mut disk, 24, 4096), vec![4; 4096]);
    assert_eq!(setup.writes(), 4);
    expect_clean(&disk);
    drop(disk);
    setup.daemon.close();
}

#[test]
fn a_reset_drops_it() {
    let setup = Setup::new(HoldScope::Vm);
    let mut disk = setup.daemon.connect();
    let tokens = setup.park_three(&mut disk);
    let begun = Instant::now();
    let dropped = disk.reset().unwrap();
    assert!(begun.elapsed() < SECONDS);
    assert_eq!(dropped.len(), tokens.len());
    assert_eq!(setup.waiting(), 0);
    setup.shut(false);
    expect_nothing(&mut disk);
    assert_eq!(setup.writes(), 0);
    assert_eq!(setup.daemon.export.backend().stats().dropped, 3);
    assert_eq!(write(&mut disk, 0, 9, 512), STATUS_OK);
    disk.check_dropped().unwrap();
    expect_clean(&disk);
    drop(disk);
    setup.daemon.close();
}

#[test]
fn the_end_of_the_export_does_not_wait() {
    let setup = Setup::new(HoldScope::Vm);
    let mut disk = setup.daemon.connect();
    setup.park_three(&mut disk);
    let begun = Instant::now();
    let valve = Arc::clone(&setup.valve);
    setup.daemon.close();
    assert!(begun.elapsed() < SECONDS);
    assert_eq!(valve.waiting.load(Ordering::SeqCst), 0);
    assert_eq!(valve.passed.load(Ordering::SeqCst), 0);
}

/// A request that has begun is not dropped half-way, wherever it waits then: a drain waits for it.
#[test]
fn what_has_begun_is_in_flight() {
    let setup = Setup::new(HoldScope::Vm);
    let mut disk = setup.daemon.connect();
    setup.valve.begins_before.store(true, Ordering::SeqCst);
    let tokens = setup.park_three(&mut disk);
    let backend = Arc::clone(setup.daemon.export.backend());
    let drain = std::thread::spawn(move || pollster::block_on(backend.drain()));
    std::thread::sleep(A_WHILE);
    assert_eq!((setup.waiting(), drain.is_finished()), (3, false));
    setup.shut(false);
    drop(drain.join().unwrap());
    expect(&mut disk, &tokens);
    assert_eq!(setup.writes(), 3);
    expect_clean(&disk);
    drop(disk);
    setup.daemon.close();
}

/// It has failed before, and what was to be made durable by it is given up: it must not succeed later.
#[test]
fn a_loss_that_is_accepted_ends_a_flush_that_is_parked() {
    let setup = Setup::new(HoldScope::Request);
    let mut disk = setup.daemon.connect();
    let flush = &setup.daemon.faults.flush;
    flush.store(libc::ENOSPC, Ordering::SeqCst);
    let token = disk.submit(0, Request::Flush).unwrap();
    disk.kick(0).unwrap();
    setup.daemon.wait_held(1);
    flush.store(0, Ordering::SeqCst);
    setup.valve.flushes.store(true, Ordering::SeqCst);
    setup.shut(true);
    let (control, export) = (&setup.daemon.control, &setup.daemon.export);
    pollster::block_on(control.cont_backend(export.id().to_owned())).unwrap();
    setup.wait_waiting(1);
    let id = export.backend().id();
    let accepted = control.call(move |run, wiring| run.fail_held_flushes(id, wiring));
    pollster::block_on(accepted).unwrap();
    let completion = disk.wait(0, SECONDS).unwrap().expect("a completion");
    assert!(completion.token == token && !completion.is_ok());
    setup.wait_waiting(0);
    setup.daemon.wait_held(0);
    setup.shut(false);
    expect_nothing(&mut disk);
    assert_eq!(setup.valve.passed.load(Ordering::SeqCst), 0);
    expect_clean(&disk);
    drop(disk);
    setup.daemon.close();
}

/// Held, released, parked, taken back: run control knows it as held until it has ended, and it ends once.
#[test]
fn a_held_request_is_parked_when_it_is_tried_again() {
    let setup = Setup::new(HoldScope::Vm);
    let mut disk = setup.daemon.connect();
    setup.daemon.fail_writes(libc::ENOSPC);
    let token = post(&mut disk, 0, 5);
    setup.daemon.wait_held(1);
    setup.daemon.fail_writes(0);
    setup.shut(true);
    setup.daemon.cont();
    setup.wait_waiting(1);
    assert_eq!(setup.daemon.held(), 1);
    // What overlaps it waits behind it, in the gate.
    let next = post(&mut disk, 0, 6);
    expect_nothing(&mut disk);
    assert_eq!(setup.waiting(), 1);
    disk.stop().unwrap();
    assert_eq!((setup.waiting(), setup.daemon.held()), (0, 1));
    disk.start().unwrap();
    setup.wait_waiting(1);
    setup.shut(false);
    expect(&mut disk, &[token, next]);
    assert_eq!(read(&mut disk, 0, 4096), vec![6; 4096]);
    setup.daemon.wait_held(0);
    assert_eq!(setup.writes(), 3);
    expect_clean(&disk);
    drop(disk);
    setup.daemon.close();
}
