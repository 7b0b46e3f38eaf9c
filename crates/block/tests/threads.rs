//! What drivers have on each iothread: several iothreads and exports on one node, filters, and nodes that
//! take each other's place.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "the whole file is a test"
)]

mod common;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Guest, start_control};
use iothread::{Config, IoThread};
use pollster::block_on;
use standfast_block::{
    Backend, Capabilities, Child, Client, Connection, Control, Driver, HoldScope, Io, IoFuture,
    LocalBackend, Node, NodeInfo, OnError, Operation, PerThread, Policy, Request, Tag, ThreadState,
};

/// What was called, where, on which node.
type Log = Arc<Mutex<Vec<(&'static str, String, &'static str)>>>;

/// Counts its requests on each iothread by itself.
#[derive(Debug)]
struct Counter {
    name: &'static str,
    log: Log,
    here: ThreadState<Cell<u64>>,
    all: Arc<AtomicU64>,
    children: Vec<Child>,
}

fn thread_name() -> String {
    std::thread::current().name().unwrap().to_owned()
}

impl Counter {
    fn note(&self, what: &'static str) {
        let mut log = self.log.lock().unwrap();
        log.push((what, thread_name(), self.name));
    }
}

impl PerThread for Counter {
    fn attach(&self) {
        self.note("attach");
        let before = self.here.put(Cell::new(0));
        assert_eq!(before, None, "attached twice");
        for child in &self.children {
            let node = child.node();
            let below = node.driver().capabilities().per_thread.is_some();
            assert!(below, "it is attached already, and can be used");
        }
    }

    fn detach(&self) {
        self.note("detach");
        let counted = self.here.take().expect("it was attached");
        self.all.fetch_add(counted.get(), Ordering::SeqCst);
    }
}

impl Driver for Counter {
    fn name(&self) -> &'static str {
        "counter"
    }
    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }
    fn length(&self) -> u64 {
        1 << 20
    }
    fn children(&self) -> Vec<&Child> {
        self.children.iter().collect()
    }
    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            per_thread: Some(self),
            ..Capabilities::default()
        }
    }
    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let here = self.here.get().expect("attached before the first request");
        here.set(here.get() + 1);
        match self.children.last() {
            Some(child) => child.submit(io),
            None => IoFuture::ready(Ok(())),
        }
    }
}

thread_local! {
    /// The parts on an iothread, in the order in which they were opened.
    static PARTS: RefCell<Vec<(LocalBackend, Rc<Guest>)>> = const { RefCell::new(Vec::new()) };
}

struct World {
    control: Control,
    log: Log,
    threads: Vec<IoThread>,
}

impl World {
    fn new() -> Self {
        let (control, _) = start_control();
        let spawn = |name: &str| {
            let config = Config {
                name: name.to_owned(),
                ..Config::default()
            };
            IoThread::spawn(config).unwrap()
        };
        Self {
            control,
            log: Log::default(),
            threads: vec![spawn("one"), spawn("two")],
        }
    }

    /// A node, and how many requests it has counted on iothreads that it is detached from.
    fn node(&self, name: &'static str, children: &[&Arc<Node>]) -> (Arc<Node>, Arc<AtomicU64>) {
        let all = Arc::new(AtomicU64::new(0));
        let driver = Counter {
            name,
            log: Arc::clone(&self.log),
            here: ThreadState::new(),
            all: Arc::clone(&all),
            children: children
                .iter()
                .map(|child| Child::of(&name.into(), "file", Arc::clone(child)))
                .collect(),
        };
        (Node::new(name, Box::new(driver)), all)
    }

    fn backend(&self, device: &str, node: &Arc<Node>) -> (Arc<Backend>, Arc<Connection>) {
        let policy = Policy::new(OnError::Report, OnError::Report);
        let root = Child::root(device, Arc::clone(node));
        let backend = Backend::new(&self.control, device, root, policy, HoldScope::Vm);
        let backend = block_on(backend).unwrap();
        block_on(backend.attach()).unwrap();
        let connection = block_on(backend.connect()).unwrap();
        (backend, Arc::new(connection))
    }

    fn open(&self, thread: usize, connection: &Arc<Connection>) {
        let connection = Arc::clone(connection);
        let opened = self.threads[thread]
            .handle()
            .run_blocking(move || async move {
                let guest = Rc::new(Guest::default());
                let client = Rc::clone(&guest) as Rc<dyn Client>;
                let part = LocalBackend::open(&connection, client, 1).await.unwrap();
                while !part.may_pop(0) {
                    let control = connection.backend().control();
                    control.call(|_, _| ()).await.unwrap();
                }
                PARTS.with_borrow_mut(|parts| parts.push((part, guest)));
            });
        opened.unwrap();
    }

    /// `count` writes to the part that was opened as the `nth` one there.
    fn write(&self, thread: usize, nth: usize, count: u16) {
        let written = self.threads[thread]
            .handle()
            .run_blocking(move || async move {
                let (part, guest) = PARTS.with_borrow(|parts| parts[nth].clone());
                let before = guest.completed.get();
                for head in 0..count {
                    part.submit(Request {
                        tag: Tag { queue: 0, head },
                        op: Operation::Write,
                        offset: 0,
                        bytes: 512,
                    });
                }
                assert_eq!(guest.completed.get() - before, u64::from(count));
            });
        written.unwrap();
    }

    /// Waits until the first part there has heard of the end of a drain.
    fn wait_taken(&self, thread: usize) {
        let taken = self.threads[thread].handle().run_blocking(|| async {
            while PARTS.with_borrow(|parts| !parts[0].0.may_pop(0)) {
                iothread::yield_now().await;
            }
        });
        taken.unwrap();
    }

    /// Between any two tasks of an iothread something else takes long there, until the end.
    fn slow(&self, thread: usize) -> Arc<AtomicBool> {
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let begun = self.threads[thread].handle().run_blocking(|| async {
            let task = iothread::spawn_local(async move {
                while !ended.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(20));
                    iothread::yield_now().await;
                }
            });
            task.detach();
        });
        begun.unwrap();
        end
    }

    /// Ends the part that was opened first of those that are left there.
    fn close(&self, thread: usize) {
        let closed = self.threads[thread].handle().run_blocking(|| async {
            let (part, _) = PARTS.with_borrow_mut(|parts| parts.remove(0));
            part.close().await;
        });
        closed.unwrap();
    }

    /// What has been called since the last time.
    fn calls(&self) -> Vec<(&'static str, String, &'static str)> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    fn expect(&self, expected: &[(&'static str, &str, &'static str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|&(what, thread, name)| (what, thread.to_owned(), name))
            .collect();
        assert_eq!(self.calls(), expected);
    }
}

#[test]
fn each_iothread_attaches_once_and_from_the_bottom_up() {
    let world = World::new();
    let (file, in_file) = world.node("file", &[]);
    let (filter, in_filter) = world.node("filter", &[&file]);
    let (_a, a) = world.backend("a", &filter);
    let (_b, b) = world.backend("b", &file);
    world.expect(&[]);
    world.open(0, &a);
    world.expect(&[("attach", "one", "file"), ("attach", "one", "filter")]);
    // Another export on the file, on both iothreads, and a second part of the first one.
    world.open(0, &b);
    world.open(0, &a);
    world.expect(&[]);
    world.open(1, &b);
    world.expect(&[("attach", "two", "file")]);
    world.write(0, 0, 1);
    world.write(0, 1, 20);
    world.write(0, 2, 300);
    world.write(1, 0, 4000);
    world.close(0);
    world.expect(&[]);
    world.close(1);
    world.expect(&[("detach", "two", "file")]);
    assert_eq!(in_file.load(Ordering::SeqCst), 4000);
    world.close(0);
    world.expect(&[]);
    world.close(0);
    world.expect(&[("detach", "one", "filter"), ("detach", "one", "file")]);
    assert_eq!(in_filter.load(Ordering::SeqCst), 301);
    assert_eq!(in_file.load(Ordering::SeqCst), 4321);
    // All is as at the beginning.
    world.open(1, &a);
    world.expect(&[("attach", "two", "file"), ("attach", "two", "filter")]);
    world.close(1);
    world.expect(&[("detach", "two", "filter"), ("detach", "two", "file")]);
}

/// A file below a node and below its other child, too: it is the first to come, and the last to go.
#[test]
fn what_is_below_comes_first_however_it_is_reached() {
    let world = World::new();
    let (file, _) = world.node("file", &[]);
    let (low, _) = world.node("low", &[&file]);
    let (high, _) = world.node("high", &[&file, &low]);
    let (_a, a) = world.backend("a", &high);
    world.open(0, &a);
    let order = ["file", "low", "high"];
    world.expect(&order.map(|name| ("attach", "one", name)));
    world.close(0);
    world.expect(&["high", "low", "file"].map(|name| ("detach", "one", name)));
}

#[test]
fn nodes_come_and_go_below_an_export() {
    let world = World::new();
    let (old, in_old) = world.node("old", &[]);
    let (new, in_new) = world.node("new", &[]);
    let (filter, _) = world.node("filter", &[&old]);
    let (backend, connection) = world.backend("a", &filter);
    world.open(0, &connection);
    world.open(1, &connection);
    world.write(0, 0, 3);
    world.write(1, 0, 4);
    world.calls();

    let drained = block_on(backend.drain());
    let driver = filter.driver();
    drop(driver.children()[0].set_node(Arc::clone(&new)));
    block_on(backend.graph_changed());
    drop(drained);
    let mut calls = world.calls();
    // The iothreads in any order; on each the new one first.
    calls.sort_by(|a, b| a.1.cmp(&b.1));
    let expected = [
        ("attach", "one", "new"),
        ("detach", "one", "old"),
        ("attach", "two", "new"),
        ("detach", "two", "old"),
    ];
    let expected = expected.map(|(what, thread, name)| (what, thread.to_owned(), name));
    assert_eq!(calls, expected);
    assert_eq!(in_old.load(Ordering::SeqCst), 7);
    assert_eq!(Arc::strong_count(&old), 1, "nobody on an iothread has it");
    world.wait_taken(1);
    world.write(1, 0, 50);

    // Another root, and nobody waits for it: what starts after the drain finds it attached.
    let drained = block_on(backend.drain());
    drop(block_on(backend.set_node(Arc::clone(&old), &drained)));
    drop(drained);
    world.wait_taken(1);
    world.write(1, 0, 6);

    // And once more, where nobody has the former root when that is said.
    let (last, _) = world.node("last", &[]);
    let drained = block_on(backend.drain());
    drop(block_on(backend.set_node(last, &drained)));
    let end = world.slow(0);
    block_on(backend.graph_changed());
    assert_eq!(Arc::strong_count(&old), 1, "nor has a worker");
    end.store(true, Ordering::SeqCst);
    drop(drained);
    world.close(0);
    world.close(1);
    assert_eq!(in_new.load(Ordering::SeqCst), 50);
    assert_eq!(in_old.load(Ordering::SeqCst), 13);
}
