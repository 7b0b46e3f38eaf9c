//! Failures that are reported or ignored: how often they become events, and that run control leaves
//! others their turn, however many there are.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "the whole file is a test"
)]

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant, SystemTime};

use pollster::block_on;
use standfast_block::run_control::{
    BackendConfig, Effects, Failed, GateMessage, REPORT_INTERVAL, Reported, RunControl,
};
use standfast_block::{
    Action, BackendId, Cause, Event, EventKind, HoldScope, Image, LocalId, Observer, OnError,
    Operation, Policy, Request, Tag, VmOrder, control,
};

/// What each event says: the action and the offset.
#[derive(Default)]
struct Outbox(Vec<(Action, u64)>);

impl Effects for Outbox {
    fn event(&mut self, event: Event) {
        if let EventKind::BlockIoError(error) = event.kind {
            self.0.push((error.action, error.offset));
        }
    }
    fn post(&mut self, _: LocalId, _: GateMessage) {}
    fn vm(&mut self, _: VmOrder) {}
}

fn config(device: &str) -> BackendConfig {
    BackendConfig {
        device: device.into(),
        node: "disk".into(),
        policy: Policy::new(OnError::Enospc, OnError::Report),
        scope: HoldScope::Request,
        image: Image::default(),
    }
}

fn request(offset: u64) -> Request {
    Request {
        tag: Tag { queue: 0, head: 0 },
        op: Operation::Read,
        offset,
        bytes: 512,
    }
}

fn reported(backend: BackendId, generation: u64, offset: u64) -> Reported {
    Reported {
        backend,
        generation,
        request: request(offset),
        action: Action::Report,
        cause: Cause::of_errno(libc::EIO),
        node: None,
        at: SystemTime::UNIX_EPOCH,
    }
}

fn failed(backend: BackendId, seq: u64, offset: u64) -> Failed {
    Failed {
        backend,
        local: LocalId(1),
        generation: 1,
        seq,
        order: seq,
        request: request(offset),
        cause: Cause::of_errno(libc::ENOSPC),
        node: None,
        at: SystemTime::UNIX_EPOCH,
    }
}

/// A guest that reads a broken disk again and again sent an event for each failure to every monitor:
/// one that read, and was slower than the disk, was cut off at 16 MiB.
#[test]
fn one_event_a_second_and_device_tells_of_the_last_failure() {
    let mut control = RunControl::new();
    let mut outbox = Outbox::default();
    let [vda, vdb] = ["vda", "vdb"].map(|device| {
        let id = control.add_backend(config(device));
        control.add_local(id, LocalId(id.0), &mut outbox).unwrap();
        control.attach(id, &mut outbox);
        id
    });
    let merged = |control: &RunControl, id| {
        let accounting = control.backend(id).unwrap().accounting();
        accounting.read().events_merged
    };
    let start = Instant::now();
    let ms = |ms| start + Duration::from_millis(ms);
    for n in 0..1000 {
        control.reported(&reported(vda, 1, n), ms(n / 2), &mut outbox);
    }
    control.reported(&reported(vdb, 1, 7), ms(500), &mut outbox);
    let report = |offset| (Action::Report, offset);
    assert_eq!(outbox.0, [report(0), report(7)], "each device has its own");
    assert_eq!(merged(&control, vda), 998, "the last one waits");
    // A stop is told at once, and does not count.
    for seq in 1..4 {
        control.failed(&failed(vda, seq, 5000 + seq), &mut outbox);
    }
    let stops = [5001, 5002, 5003].map(|offset| (Action::Stop, offset));
    assert_eq!(outbox.0[2..], stops);
    outbox.0.clear();
    assert_eq!(control.wake_at(), Some(start + REPORT_INTERVAL));
    control.wake(ms(999), &mut outbox);
    assert!(outbox.0.is_empty());
    control.wake(ms(1003), &mut outbox);
    assert_eq!(outbox.0, [report(999)]);
    assert_eq!(control.wake_at(), None);
    // The next second begins with that one.
    control.reported(&reported(vda, 1, 1), ms(1500), &mut outbox);
    assert_eq!(control.wake_at(), Some(ms(2003)));
    control.reported(&reported(vda, 1, 2), ms(2100), &mut outbox);
    assert_eq!(outbox.0, [report(999), report(2)]);
    assert_eq!(merged(&control, vda), 999);
    // A new life of the device is not told of the former one.
    control.reported(&reported(vda, 1, 3), ms(2200), &mut outbox);
    control.attach(vda, &mut outbox);
    control.wake(ms(9000), &mut outbox);
    control.reported(&reported(vda, 1, 4), ms(9000), &mut outbox);
    assert_eq!(outbox.0.len(), 2);
    assert_eq!(merged(&control, vda), 1000);
    let last = control.backend(vda).unwrap().last_error().unwrap();
    assert_eq!(last.request.offset, 3, "merged or not");
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The mailbox of run control was never empty under a disk that fails at once, and nothing else on
/// its thread had a turn: no QMP, no signal, no watchdog.
#[test]
fn others_have_their_turn() {
    let (control, task) = control();
    let count = Arc::new(AtomicUsize::new(0));
    for _ in 0..1000 {
        let counts = Arc::clone(&count);
        let mut call = Box::pin(control.call(move |_, _| counts.fetch_add(1, Ordering::Relaxed)));
        // Sends it.
        let _ = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut task = pin!(task.run());
    let mut polls = 0;
    while count.load(Ordering::Relaxed) < 1000 {
        let before = count.load(Ordering::Relaxed);
        assert!(
            task.as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        let taken = count.load(Ordering::Relaxed) - before;
        assert!((1..=32).contains(&taken), "{taken} messages in one turn");
        polls += 1;
        assert_eq!(
            woken.0.load(Ordering::Relaxed),
            polls,
            "it asks for another"
        );
    }
}

#[derive(Default)]
struct Log(Mutex<Vec<u64>>);

impl Observer for Log {
    fn event(&self, event: &Event) -> bool {
        if let EventKind::BlockIoError(error) = &event.kind {
            self.0.lock().unwrap().push(error.offset);
        }
        true
    }
}

#[test]
fn the_last_failure_is_told_without_another_one() {
    let (control, task) = control();
    let thread = std::thread::spawn(|| block_on(task.run()));
    let log = Arc::new(Log::default());
    let start = Instant::now();
    block_on(async {
        control.observe(Arc::clone(&log) as Arc<dyn Observer>).await;
        let fail = |state: &mut RunControl, wiring: &mut _| {
            let id = state.add_backend(config("vda"));
            state.attach(id, wiring);
            for n in 0..10 {
                state.reported(&reported(id, 1, n), Instant::now(), wiring);
            }
        };
        control.call(fail).await.unwrap();
    });
    assert_eq!(*log.0.lock().unwrap(), [0]);
    while log.0.lock().unwrap().len() < 2 {
        assert!(start.elapsed() < Duration::from_secs(60), "it never comes");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(start.elapsed() >= REPORT_INTERVAL);
    assert_eq!(*log.0.lock().unwrap(), [0, 9]);
    drop(control);
    thread.join().unwrap();
}
