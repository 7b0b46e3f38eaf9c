//! Exports hear when their nodes have become longer by what others write to them.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "the whole file is a test"
)]

mod common;

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

use common::start_control;
use iothread::{Config, IoThread};
use pollster::block_on;
use standfast_block::{
    Access, Backend, BlockError, BoxFuture, Capabilities, Child, Driver, Export, Grow, HoldScope,
    Io, IoFuture, Node, NodeInfo, OnError, Permissions, Policy, Registry, Reopen, Resize,
};

const KIB: u64 = 1 << 10;
const FORMAT_BYTES: u64 = 1 << 40;

/// Storage that keeps nothing but its length.
#[derive(Debug, Default)]
struct Storage {
    length: AtomicU64,
    /// Writes end when they are submitted.
    at_once: AtomicBool,
    /// Writes fail when they have made it longer.
    fails: AtomicBool,
    /// Can be made longer ahead of writes.
    reserves: AtomicBool,
    /// Writes do not end when they have made it longer.
    hangs: AtomicBool,
}

impl Storage {
    fn grow(&self, io: &Io<'_>) -> standfast_block::Result<()> {
        self.length
            .fetch_max(io.offset + io.bytes, Ordering::SeqCst);
        match self.fails.load(Ordering::SeqCst) {
            true => Err(BlockError::from_errno(libc::EIO)),
            false => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Leaf(Arc<Storage>);

impl Driver for Leaf {
    fn name(&self) -> &'static str {
        "leaf"
    }
    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }
    fn length(&self) -> u64 {
        self.0.length.load(Ordering::SeqCst)
    }
    fn submit<'a>(&'a self, _: Io<'a>) -> IoFuture<'a> {
        IoFuture::ready(Ok(()))
    }
    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            grow: Some(self),
            resize: Some(self),
            reopen: Some(self),
            ..Capabilities::default()
        }
    }
}

impl Grow for Leaf {
    fn submit_beyond<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        if self.0.at_once.load(Ordering::SeqCst) {
            return IoFuture::ready(self.0.grow(&io));
        }
        IoFuture::new(async move {
            let result = self.0.grow(&io);
            if self.0.hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            result
        })
    }

    /// And as much behind it.
    fn reserve(&self, end: u64) -> Option<IoFuture<'_>> {
        let reserves = self.0.reserves.load(Ordering::SeqCst);
        reserves.then(|| self.submit_beyond(zeroes(end, end)))
    }
}

impl Resize for Leaf {
    fn resized_length(&self, length: u64) -> standfast_block::Result<u64> {
        Ok(length)
    }
    fn resize(&self, length: u64) -> standfast_block::Result<()> {
        self.0.length.store(length, Ordering::SeqCst);
        Ok(())
    }
}

impl Reopen for Leaf {
    fn hand_over(&self) -> standfast_block::Result<()> {
        Ok(())
    }
}

/// As long as its child.
#[derive(Debug)]
struct Filter(Child);

impl Driver for Filter {
    fn name(&self) -> &'static str {
        "filter"
    }
    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }
    fn length(&self) -> u64 {
        self.0.length()
    }
    fn children(&self) -> Vec<&Child> {
        vec![&self.0]
    }
    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        self.0.submit(io)
    }
    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            grow: Some(self),
            ..Capabilities::default()
        }
    }
}

impl Grow for Filter {
    fn submit_beyond<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        self.0.submit(io)
    }
}

/// Has a length of its own, and makes its child as long as it takes.
#[derive(Debug)]
struct Format {
    child: Child,
    resizes: bool,
}

impl Driver for Format {
    fn name(&self) -> &'static str {
        "format"
    }
    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }
    fn length(&self) -> u64 {
        FORMAT_BYTES
    }
    fn children(&self) -> Vec<&Child> {
        vec![&self.child]
    }
    fn child_access(&self, _: &Child, above: Access) -> Access {
        let held = above.held.and(Permissions::WRITE);
        Access {
            held: match self.resizes {
                true => held.and(Permissions::RESIZE),
                false => held,
            },
            shared: Permissions::ALL,
        }
    }
    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        self.child.submit(io)
    }
}

/// Remembers how long its node was whenever it was told of a new length.
#[derive(Debug)]
struct Listener {
    backend: Arc<Backend>,
    told: Mutex<Vec<u64>>,
}

impl Listener {
    fn take_told(&self) -> Vec<u64> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }
}

impl Export for Listener {
    fn id(&self) -> &str {
        self.backend.device()
    }
    fn type_name(&self) -> &'static str {
        "listener"
    }
    fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
    fn writable(&self) -> bool {
        false
    }
    fn has_client(&self) -> bool {
        false
    }
    fn resized(&self) {
        // Run control is not locked meanwhile.
        self.backend.control().read(|_| ());
        let length = self.backend.node().driver().length();
        self.told.lock().unwrap().push(length);
    }
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.backend.remove().await })
    }
}

/// A registry with nodes, and iothreads that write to them.
struct House {
    registry: Arc<Registry>,
    task: JoinHandle<()>,
}

impl House {
    fn new() -> Self {
        let (control, task) = start_control();
        let (registry, _) = Registry::new(control);
        Self { registry, task }
    }

    fn add(&self, name: &str, driver: impl Driver + 'static) -> Arc<Node> {
        let node = Node::new(name, Box::new(driver));
        block_on(self.registry.add_node(&node)).unwrap();
        node
    }

    /// A leaf and its storage, of 4 KiB.
    fn leaf(&self, name: &str) -> (Arc<Node>, Arc<Storage>) {
        let storage = Arc::<Storage>::default();
        storage.length.store(4 * KIB, Ordering::SeqCst);
        (self.add(name, Leaf(Arc::clone(&storage))), storage)
    }

    fn filter(&self, name: &str, below: &Arc<Node>) -> Arc<Node> {
        let child = Child::of(&name.into(), "file", Arc::clone(below));
        self.add(name, Filter(child))
    }

    fn format(&self, name: &str, below: &Arc<Node>, resizes: bool) -> Arc<Node> {
        let child = Child::of(&name.into(), "file", Arc::clone(below));
        self.add(name, Format { child, resizes })
    }

    /// An export that is made, and not taken in.
    fn make(&self, id: &str, node: &str) -> Arc<Listener> {
        let access = Access {
            held: Permissions::CONSISTENT_READ,
            shared: Permissions::ALL,
        };
        let lease = block_on(self.registry.begin_use(id, node, access)).unwrap();
        let backend = Backend::new(
            self.registry.control(),
            id,
            lease.root,
            Policy::new(OnError::Stop, OnError::Stop),
            HoldScope::Vm,
        );
        Arc::new(Listener {
            backend: block_on(backend).unwrap(),
            told: Mutex::default(),
        })
    }

    fn export(&self, id: &str, node: &str) -> Arc<Listener> {
        let export = self.make(id, node);
        self.registry.add_export(export.clone()).unwrap();
        export
    }

    /// Waits until run control has taken all that came before.
    fn settle(&self) {
        block_on(self.registry.control().call(|_, _| ())).unwrap();
    }

    /// Run control takes nothing more until the sender goes.
    fn stop_control(&self) -> mpsc::Sender<()> {
        let (go_on, goes_on) = mpsc::channel::<()>();
        let (here, stopped) = mpsc::channel();
        let control = self.registry.control().clone();
        std::thread::spawn(move || {
            block_on(control.call(move |_, _| {
                here.send(()).unwrap();
                assert!(goes_on.recv().is_err());
            }))
        });
        stopped.recv().unwrap();
        go_on
    }

    fn close(self) {
        block_on(self.registry.close_exports());
        drop(self.registry.close_nodes());
        drop(self.registry);
        self.task.join().unwrap();
    }
}

fn zeroes(offset: u64, bytes: u64) -> Io<'static> {
    Io::write_zeroes(offset, bytes, false)
}

/// Writes on this thread, which is none that anything waits on.
fn write(node: &Arc<Node>, offset: u64, bytes: u64) -> standfast_block::Result<()> {
    block_on(node.submit(zeroes(offset, bytes)))
}

#[test]
fn those_that_see_it_hear_of_it() {
    let house = House::new();
    let (leaf, storage) = house.leaf("leaf0");
    let filter = house.filter("filter0", &leaf);
    let format = house.format("format0", &filter, true);
    let (other, _) = house.leaf("other0");
    let beside = house.format("beside0", &leaf, false);
    let beyond_filter = house.filter("filter1", &format);
    let all = ["leaf0", "filter0", "format0", "filter1", "other0"].map(|node| {
        let id = format!("vd-{node}");
        house.export(&id, node)
    });
    let told = || {
        house.settle();
        all.each_ref().map(|export| export.take_told())
    };
    let none = || Vec::<u64>::new();
    for (at_once, length) in [(false, 12 * KIB), (true, 20 * KIB)] {
        storage.at_once.store(at_once, Ordering::SeqCst);
        // Inside, and what makes nothing longer.
        write(&format, 0, 4 * KIB).unwrap();
        block_on(format.submit(Io::read(length, standfast_block::Buffers::EMPTY))).unwrap();
        let refused = write(&beside, length - 4 * KIB, 4 * KIB).unwrap_err();
        assert_eq!(refused.errno(), libc::EINVAL);
        assert_eq!(told(), [none(), none(), none(), none(), none()]);
        write(&beyond_filter, length - 8 * KIB, 8 * KIB).unwrap();
        assert_eq!(leaf.driver().length(), length);
        let twice = [vec![length], vec![length], none(), none(), none()];
        assert_eq!(told(), twice, "{at_once}");
        write(&format, 0, length).unwrap();
        assert_eq!(told(), [none(), none(), none(), none(), none()]);
    }
    // Failed or dropped, it is longer.
    storage.fails.store(true, Ordering::SeqCst);
    for (at_once, length) in [(false, 24 * KIB), (true, 28 * KIB)] {
        storage.at_once.store(at_once, Ordering::SeqCst);
        write(&format, length - KIB, KIB).unwrap_err();
        assert_eq!(told()[0], [length]);
    }
    storage.at_once.store(false, Ordering::SeqCst);
    storage.hangs.store(true, Ordering::SeqCst);
    {
        let mut hangs = pin!(format.submit(zeroes(28 * KIB, 4 * KIB)));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(hangs.as_mut().poll(&mut cx), Poll::Pending));
        assert_eq!(told()[0], none());
    }
    assert_eq!(told()[0], [32 * KIB]);
    drop((leaf, filter, format, other, beside, beyond_filter, all));
    house.close();
}

/// What is reserved for a parent that may resize makes the node longer like any write.
#[test]
fn what_is_reserved_is_told_and_for_whom_may_resize() {
    let house = House::new();
    let (leaf, storage) = house.leaf("leaf0");
    let format = house.format("format0", &leaf, true);
    let beside = house.format("beside0", &leaf, false);
    let export = house.export("vda", "leaf0");
    let reserve = |format: &Arc<Node>, end| {
        for child in format.driver().children() {
            block_on(child.reserve(end));
        }
        house.settle();
        export.take_told()
    };
    let nothing: [u64; 0] = [];
    assert_eq!(reserve(&format, 8 * KIB), nothing, "the storage cannot");
    storage.reserves.store(true, Ordering::SeqCst);
    assert_eq!(reserve(&beside, 8 * KIB), nothing);
    assert_eq!(reserve(&format, 4 * KIB), nothing, "it is that long");
    assert_eq!(leaf.driver().length(), 4 * KIB);
    for at_once in [false, true] {
        storage.at_once.store(at_once, Ordering::SeqCst);
        let end = leaf.driver().length() + KIB;
        assert_eq!(reserve(&format, end), [2 * end]);
        assert_eq!(leaf.driver().length(), 2 * end);
    }
    // However it has ended.
    storage.fails.store(true, Ordering::SeqCst);
    assert_eq!(reserve(&format, 32 * KIB), [64 * KIB]);
    drop((leaf, format, beside, export));
    house.close();
}

/// A resize tells it itself, and nobody hears of that again when another node gets longer.
#[test]
fn nothing_is_told_twice() {
    let house = House::new();
    let (leaf, _) = house.leaf("leaf0");
    let (other, _) = house.leaf("leaf1");
    let format = house.format("format0", &other, true);
    let (export, second) = (house.export("vda", "leaf0"), house.export("vdb", "leaf1"));
    block_on(house.registry.resize("leaf0", 64 * KIB)).unwrap();
    assert_eq!(export.take_told(), [64 * KIB]);
    write(&format, 8 * KIB, KIB).unwrap();
    house.settle();
    assert_eq!(
        (export.take_told(), second.take_told()),
        (vec![], vec![9 * KIB])
    );
    let (third, _) = house.leaf("leaf2");
    let replacement = block_on(house.registry.prepare_replace("leaf0", "leaf2")).unwrap();
    drop(block_on(house.registry.commit(replacement)).unwrap());
    assert_eq!(export.take_told(), [4 * KIB]);
    write(&format, 9 * KIB, KIB).unwrap();
    house.settle();
    assert_eq!(
        (export.take_told(), second.take_told()),
        (vec![], vec![10 * KIB])
    );
    drop((leaf, other, format, third, export, second));
    house.close();
}

/// Another opening of a node has its name and its place, and what grows then is that one.
#[test]
fn a_node_that_was_opened_anew_goes_on_telling() {
    let house = House::new();
    let (leaf, _) = house.leaf("leaf0");
    let format = house.format("format0", &leaf, true);
    let export = house.export("vda", "leaf0");
    write(&format, 4 * KIB, KIB).unwrap();
    house.settle();
    assert_eq!(export.take_told(), [5 * KIB]);
    let storage = Arc::<Storage>::default();
    storage.length.store(5 * KIB, Ordering::SeqCst);
    let again = Node::new("leaf0", Box::new(Leaf(storage)));
    let replacement = block_on(
        house
            .registry
            .prepare_reopen(vec![Arc::clone(&again)], || true),
    )
    .unwrap();
    drop(block_on(house.registry.commit(replacement)).unwrap());
    export.take_told();
    write(&format, 5 * KIB, KIB).unwrap();
    house.settle();
    assert_eq!(
        (again.driver().length(), leaf.driver().length()),
        (6 * KIB, 5 * KIB)
    );
    assert_eq!(export.take_told(), [6 * KIB]);
    drop((leaf, again, format, export));
    house.close();
}

/// Its client may have read the length already when the export is not yet known.
#[test]
fn an_export_that_is_being_made_misses_nothing() {
    let house = House::new();
    let (leaf, _) = house.leaf("leaf0");
    let format = house.format("format0", &leaf, true);
    let (before, after) = (house.make("vda", "leaf0"), house.make("vdb", "leaf0"));
    house.registry.add_export(before.clone()).unwrap();
    write(&format, 8 * KIB, KIB).unwrap();
    house.settle();
    assert_eq!(
        (before.take_told(), after.take_told()),
        (vec![9 * KIB], vec![])
    );
    house.registry.add_export(after.clone()).unwrap();
    assert_eq!(
        (before.take_told(), after.take_told()),
        (vec![], vec![9 * KIB])
    );
    drop((leaf, format, before, after));
    house.close();
}

/// Two iothreads make a node longer with every write. While run control has something else to do, that is
/// one message however many they are; and in the end all know the length.
#[test]
fn a_burst_from_two_iothreads_is_told_once() {
    const WRITES: u64 = 2000;
    let house = House::new();
    let (leaf, _) = house.leaf("leaf0");
    let filter = house.filter("filter0", &leaf);
    let format = house.format("format0", &filter, true);
    let exports = [house.export("vda", "leaf0"), house.export("vdb", "filter0")];
    let threads = [(), ()].map(|()| IoThread::spawn(Config::default()).unwrap());
    let mut end = 4 * KIB;
    for stopped in [true, false, true] {
        let control = stopped.then(|| house.stop_control());
        std::thread::scope(|scope| {
            for (number, thread) in (0..).zip(&threads) {
                let (format, handle, begin) = (Arc::clone(&format), thread.handle(), end);
                scope.spawn(move || {
                    let burst = move || async move {
                        for write in (number..WRITES).step_by(2) {
                            let io = zeroes(begin + write * 512, 512);
                            format.submit(io).await.unwrap();
                        }
                    };
                    handle.run_blocking(burst).unwrap();
                });
            }
        });
        end += WRITES * 512;
        assert_eq!(leaf.driver().length(), end);
        if control.is_some() {
            assert!(exports.iter().all(|export| export.take_told().is_empty()));
        }
        drop(control);
        house.settle();
        for export in &exports {
            let told = export.take_told();
            assert_eq!(told.last(), Some(&end));
            assert!(told.len() == 1 || !stopped, "{told:?}");
            assert!(told.is_sorted(), "{told:?}");
        }
    }
    drop((leaf, filter, format, exports, threads));
    house.close();
}
