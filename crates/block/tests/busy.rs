//! What is in flight, asked while storage does not answer: on real iothreads, with a driver that hangs.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "the whole file is a test"
)]

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use common::{Guest, start_control};
use iothread::{Config, IoThread};
use pollster::block_on;
use standfast_block::run_control::{BusyPart, RunControl};
use standfast_block::{
    Backend, BlockError, Child, Connection, Control, Driver, HoldScope, Io, IoFuture, LocalBackend,
    Node, NodeInfo, OnError, Operation, Policy, Request, Tag, Wiring,
};

/// How requests end, by offset (0: well, else the errno), and who waits for that.
#[derive(Debug, Default)]
struct State {
    ended: BTreeMap<u64, i32>,
    waiting: Vec<Waker>,
}

/// Reads are answered at once, all else when the test says so.
#[derive(Clone, Debug, Default)]
struct Hanging(Arc<Mutex<State>>);

impl Hanging {
    fn end(&self, offset: u64, errno: i32) {
        let mut state = self.0.lock().unwrap();
        state.ended.insert(offset, errno);
        state.waiting.drain(..).for_each(Waker::wake);
    }
}

impl Driver for Hanging {
    fn name(&self) -> &'static str {
        "hanging"
    }
    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }
    fn length(&self) -> u64 {
        1 << 20
    }
    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        if io.op == Operation::Read {
            return IoFuture::ready(Ok(()));
        }
        let offset = io.offset;
        IoFuture::new(poll_fn(move |cx| {
            let mut state = self.0.lock().unwrap();
            match state.ended.remove(&offset) {
                Some(0) => Poll::Ready(Ok(())),
                Some(errno) => Poll::Ready(Err(BlockError::from_errno(errno))),
                None => {
                    state.waiting.push(cx.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }
}

thread_local! {
    /// The part of this iothread.
    static PART: RefCell<Option<LocalBackend>> = const { RefCell::new(None) };
}

fn part() -> LocalBackend {
    PART.with_borrow(|part| part.clone().unwrap())
}

struct Daemon {
    control: Control,
    backend: Arc<Backend>,
    connection: Arc<Connection>,
    storage: Hanging,
    threads: Vec<IoThread>,
}

impl Daemon {
    fn start(threads: usize) -> Self {
        let (control, _) = start_control();
        let storage = Hanging::default();
        let node = Node::new("disk", Box::new(storage.clone()));
        let policy = Policy::new(OnError::Stop, OnError::Report);
        let backend = Backend::new(
            &control,
            "vda",
            Child::root("vda", node),
            policy,
            HoldScope::Request,
        );
        let backend = block_on(backend).unwrap();
        let connection = Arc::new(backend.connect_device());
        let start = |_| IoThread::spawn(Config::default()).unwrap();
        let threads: Vec<_> = (0..threads).map(start).collect();
        for thread in &threads {
            let here = Arc::clone(&connection);
            let opened = thread.handle().run_blocking(move || async move {
                let local = LocalBackend::open(&here, Rc::<Guest>::default(), 1)
                    .await
                    .unwrap();
                PART.set(Some(local));
            });
            opened.unwrap();
        }
        block_on(backend.attach()).unwrap();
        let daemon = Self {
            control,
            backend,
            connection,
            storage,
            threads,
        };
        // Frozen until they have heard from run control.
        for thread in 0..daemon.threads.len() {
            daemon.until(thread, || part().may_pop(0));
        }
        daemon
    }

    fn on<R: Send + 'static>(&self, thread: usize, f: impl FnOnce() -> R + Send + 'static) -> R {
        let handle = self.threads[thread].handle();
        handle.run_blocking(move || async move { f() }).unwrap()
    }

    fn until(&self, thread: usize, condition: impl Fn() -> bool + Copy + Send + 'static) {
        let start = Instant::now();
        while !self.on(thread, condition) {
            assert!(start.elapsed() < Duration::from_secs(60), "it never comes");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn submit(&self, thread: usize, op: Operation, offset: u64) {
        self.on(thread, move || {
            part().submit(Request {
                tag: Tag { queue: 0, head: 0 },
                op,
                offset,
                bytes: 512,
            });
        });
    }

    fn write(&self, thread: usize, block: u64) {
        self.submit(thread, Operation::Write, block * 512);
    }

    /// What each part answers, in the order of the answers.
    fn ask(&self, most: usize) -> Vec<BusyPart> {
        let mut answers = self.backend.busy(most);
        let mut all = Vec::new();
        while let Some(part) = block_on(answers.recv()) {
            all.push(part);
        }
        all
    }

    /// Of the only part.
    fn busy(&self, most: usize) -> (u32, Vec<u64>) {
        let parts = self.ask(most);
        assert_eq!(parts.len(), 1);
        let blocks = parts[0].oldest.iter().map(|busy| busy.request.offset / 512);
        (parts[0].in_flight, blocks.collect())
    }

    /// Lets the write of `block` end; returns when it has.
    fn end(&self, block: u64, errno: i32) {
        let (before, _) = self.busy(0);
        self.storage.end(block * 512, errno);
        let start = Instant::now();
        while self.busy(0).0 == before {
            assert!(start.elapsed() < Duration::from_secs(60), "it never ends");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn close(self) {
        for thread in &self.threads {
            let closed = thread.handle().run_blocking(|| async {
                let part = PART.take().unwrap();
                part.close().await;
            });
            closed.unwrap();
        }
        assert!(self.ask(9).is_empty(), "nobody is there any more");
        self.threads.into_iter().for_each(IoThread::shutdown);
    }
}

#[test]
fn what_hangs_is_listed_oldest_first_whatever_waits_for_it() {
    let daemon = Daemon::start(1);
    assert_eq!(daemon.busy(9), (0, vec![]));
    let start = Instant::now();
    for block in [30, 10, 20] {
        // Answered at once, each by a worker that is used again for what hangs.
        daemon.submit(0, Operation::Read, 0);
        daemon.write(0, block);
    }
    assert_eq!(daemon.busy(9), (3, vec![30, 10, 20]));
    assert_eq!(daemon.busy(2), (3, vec![30, 10]));
    assert_eq!(daemon.busy(0), (3, vec![]));
    let oldest = daemon.on(0, || part().oldest().unwrap());
    let all = daemon.ask(9).remove(0).oldest;
    assert_eq!((oldest, all[0].request.op), (all[0], Operation::Write));
    let now = Instant::now();
    for two in all.windows(2) {
        assert!(two[0].order < two[1].order && two[0].started <= two[1].started);
    }
    // Late by a round of the iothread at most.
    assert!(all.iter().all(|busy| busy.started <= now));
    assert!(all[2].started + Duration::from_secs(60) > start);

    // A drain waits for them; who asks does not.
    let mut drain = Box::pin(daemon.backend.drain());
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(drain.as_mut().poll(cx).is_pending());
    assert_eq!(daemon.busy(9), (3, vec![30, 10, 20]));
    daemon.end(10, 0);
    assert_eq!(daemon.busy(9), (2, vec![30, 20]));
    // Parked while it is drained: not in flight.
    daemon.write(0, 40);
    assert_eq!(daemon.busy(9), (2, vec![30, 20]));
    assert!(drain.as_mut().poll(cx).is_pending());
    daemon.end(20, 0);
    daemon.end(30, 0);
    drop(block_on(drain));
    daemon.until(0, || part().oldest().is_some());
    assert_eq!(daemon.busy(9), (1, vec![40]));
    daemon.write(0, 50);
    daemon.write(0, 60);

    // What is held is not in flight; tried again it is, as the last that was started.
    daemon.end(40, libc::EIO);
    assert_eq!(daemon.busy(9), (2, vec![50, 60]));
    block_on(daemon.control.cont(false)).unwrap();
    daemon.until(0, || part().busy(9).len() == 3);
    let again = daemon.ask(9).remove(0).oldest;
    let blocks: Vec<_> = again.iter().map(|busy| busy.request.offset / 512).collect();
    assert_eq!(blocks, [50, 60, 40]);
    assert!(again[2].order < again[0].order, "its place is the old one");
    assert!(again[0].started <= again[2].started);

    // A reset drops what is held, and what hangs goes on hanging.
    let id = daemon.backend.id();
    let reset = move |run: &mut RunControl, wiring: &mut Wiring| run.reset_device(id, wiring);
    assert!(daemon.control.call_blocking(reset).flatten().is_some());
    assert_eq!(daemon.busy(9), (3, vec![50, 60, 40]));
    for block in [60, 40, 50] {
        daemon.end(block, 0);
    }
    assert_eq!(daemon.busy(9), (0, vec![]));
    daemon.close();
}

#[test]
fn many_come_and_go_and_the_order_is_kept() {
    let daemon = Daemon::start(1);
    let mut expected: Vec<u64> = (0..64).collect();
    expected.iter().for_each(|&block| daemon.write(0, block));
    assert_eq!(daemon.busy(100), (64, expected.clone()));
    for round in 0..3 {
        for block in (round..64).step_by(5) {
            daemon.end(block, 0);
            expected.retain(|&other| other != block);
            if block % 2 == 0 {
                daemon.write(0, block);
                expected.push(block);
            }
        }
        let in_flight = u32::try_from(expected.len()).unwrap();
        assert_eq!(daemon.busy(100), (in_flight, expected.clone()));
        assert_eq!(daemon.busy(3), (in_flight, expected[..3].to_vec()));
    }
    for block in expected {
        daemon.end(block, 0);
    }
    daemon.close();
}

/// One that is stuck itself keeps nobody from hearing what the others say.
#[test]
fn each_part_answers_for_itself() {
    let daemon = Daemon::start(2);
    daemon.write(0, 1);
    daemon.write(1, 2);
    daemon.write(1, 3);
    let (go_on, stuck) = mpsc::channel::<()>();
    let handle = daemon.threads[0].handle();
    handle
        .spawn(move || {
            // Ended by the other end, whatever becomes of the test.
            let _ = stuck.recv();
            async {}
        })
        .unwrap();
    let mut answers = daemon.backend.busy(9);
    let first = block_on(answers.recv()).unwrap();
    let blocks = |part: &BusyPart| -> Vec<_> {
        let offsets = part.oldest.iter().map(|busy| busy.request.offset / 512);
        offsets.collect()
    };
    assert_eq!((first.in_flight, blocks(&first)), (2, vec![2, 3]));
    assert!(answers.try_recv().is_none());
    drop(go_on);
    let second = block_on(answers.recv()).unwrap();
    assert_eq!((second.in_flight, blocks(&second)), (1, vec![1]));
    assert_ne!(first.local, second.local);
    assert!(block_on(answers.recv()).is_none());
    for block in [1, 2, 3] {
        daemon.storage.end(block * 512, 0);
    }
    daemon.close();
}

/// A client has left with a request that hangs: the daemon still has it.
#[test]
fn what_a_client_has_left_in_flight_is_told_until_it_ends() {
    let daemon = Daemon::start(1);
    daemon.write(0, 1);
    daemon.write(0, 2);
    block_on(daemon.connection.close());
    assert_eq!(daemon.busy(9), (2, vec![1, 2]));
    daemon.end(1, 0);
    assert_eq!(daemon.busy(9), (1, vec![2]));
    daemon.storage.end(2 * 512, 0);
    daemon.close();
}
