//! A backend with several clients: real iothreads, run control on a thread, storage that does what the
//! test says.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use iothread::{Config, IoThread};
use pollster::block_on;
use standfast_block::run_control::BackendState;
use standfast_block::{
    Backend, BlockError, Child, Client, ClientError, Connection, Control, Driver, HoldScope, Io,
    IoFuture, LocalBackend, Node, NodeInfo, OnError, Operation, Policy, Request, RunState, Status,
    Tag, Unmapped, control,
};

pub const SECONDS: Duration = Duration::from_secs(60);
/// Long enough for something that must not happen to be seen.
pub const A_WHILE: Duration = Duration::from_millis(50);
pub const THREADS: usize = 2;
const LENGTH: u64 = 1 << 30;
/// A block that is always full.
pub const BROKEN: u64 = 1 << 29;

/// What storage has seen of a write: where it began, and by its length whose it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    Began(u64, u64),
    Ended(u64, u64),
    Failed(u64, u64),
}

#[derive(Debug, Default)]
struct Faults {
    errno: i32,
    /// Requests that begin there do not come back.
    hangs: BTreeSet<u64>,
    seen: Vec<Seen>,
    /// Nothing is written down.
    quiet: bool,
}

impl Faults {
    fn see(&mut self, seen: Seen) {
        if !self.quiet {
            self.seen.push(seen);
        }
    }
}

#[derive(Debug, Default)]
pub struct Storage(Mutex<Faults>);

impl Storage {
    /// From now on every request that comes back fails; 0: none does.
    pub fn fail(&self, errno: i32) {
        self.0.lock().unwrap().errno = errno;
    }

    pub fn hang(&self, offset: u64) {
        self.0.lock().unwrap().hangs.insert(offset);
    }

    pub fn let_go(&self) {
        self.0.lock().unwrap().hangs.clear();
    }

    /// All that has happened so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.0.lock().unwrap().seen.clone()
    }

    pub fn forget(&self) {
        self.0.lock().unwrap().seen.clear();
    }

    /// From now on nothing is written down.
    pub fn be_quiet(&self) {
        self.0.lock().unwrap().quiet = true;
    }

    fn began(&self, offset: u64, bytes: u64) {
        let seen = Seen::Began(offset, bytes);
        self.0.lock().unwrap().see(seen);
    }

    fn hangs(&self, offset: u64) -> bool {
        self.0.lock().unwrap().hangs.contains(&offset)
    }

    fn end(&self, offset: u64, bytes: u64) -> standfast_block::Result<()> {
        let mut faults = self.0.lock().unwrap();
        let errno = match offset {
            BROKEN => libc::ENOSPC,
            _ => faults.errno,
        };
        match errno {
            0 => {
                faults.see(Seen::Ended(offset, bytes));
                Ok(())
            }
            errno => {
                faults.see(Seen::Failed(offset, bytes));
                Err(BlockError::from_errno(errno))
            }
        }
    }
}

#[derive(Debug)]
struct Disk(Arc<Storage>);

impl Driver for Disk {
    fn name(&self) -> &'static str {
        "test"
    }
    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }
    fn length(&self) -> u64 {
        LENGTH
    }
    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let (offset, bytes) = (io.offset, io.bytes);
        self.0.began(offset, bytes);
        if !self.0.hangs(offset) {
            return IoFuture::ready(self.0.end(offset, bytes));
        }
        IoFuture::new(async move {
            while self.0.hangs(offset) {
                iothread::time::sleep(Duration::from_millis(1)).await;
            }
            self.0.end(offset, bytes)
        })
    }
}

/// What a client has been told, by the heads of its requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub completed: Vec<u16>,
    pub failed: Vec<u16>,
    pub dropped: Vec<u16>,
}

#[derive(Debug, Default)]
pub struct Front(Mutex<Told>);

impl Front {
    pub fn told(&self) -> Told {
        self.0.lock().unwrap().clone()
    }
}

struct Heard(Arc<Front>);

impl Client for Heard {
    fn map(&self, _: &Request, _: &mut Vec<libc::iovec>) -> Result<(), Unmapped> {
        Ok(())
    }
    fn unmap(&self, _: &Request) {}
    fn has_lost(&self, _: &Request, _: &[libc::iovec]) -> bool {
        false
    }
    fn complete(&self, request: &Request, result: Result<(), ClientError>) {
        let mut told = self.0.0.lock().unwrap();
        match result {
            Ok(()) => told.completed.push(request.tag.head),
            Err(_) => told.failed.push(request.tag.head),
        }
    }
    fn dropped(&self, request: &Request) {
        self.0.0.lock().unwrap().dropped.push(request.tag.head);
    }
    fn resume(&self) {}
}

pub fn front_client(front: &Arc<Front>) -> Rc<dyn Client> {
    Rc::new(Heard(Arc::clone(front)))
}

thread_local! {
    /// The parts on this iothread, by the number of their client.
    static PARTS: RefCell<BTreeMap<u64, LocalBackend>> = RefCell::default();
}

pub fn write(head: u16, offset: u64, bytes: u64) -> Request {
    Request {
        tag: Tag { queue: 0, head },
        op: Operation::Write,
        offset,
        bytes,
    }
}

pub struct World {
    pub control: Control,
    pub backend: Arc<Backend>,
    pub storage: Arc<Storage>,
    pub threads: Vec<IoThread>,
    task: JoinHandle<()>,
}

impl World {
    pub fn new(scope: HoldScope) -> Self {
        let (control, task) = control();
        let task = std::thread::spawn(|| block_on(task.run()));
        let storage = Arc::new(Storage::default());
        let node = Node::new("disk", Box::new(Disk(Arc::clone(&storage))));
        let policy = Policy::new(OnError::Stop, OnError::Report);
        let backend = block_on(Backend::new(
            &control,
            "nbd0",
            Child::root("nbd0", node),
            policy,
            scope,
        ))
        .unwrap();
        let threads = (0..THREADS).map(|_| IoThread::spawn(Config::default()).unwrap());
        Self {
            threads: threads.collect(),
            control,
            backend,
            storage,
            task,
        }
    }

    /// A client with a part on each iothread.
    pub fn client(&self) -> Guest<'_> {
        let connection = block_on(self.backend.connect()).unwrap();
        let connection = Arc::new(connection);
        let front = Arc::new(Front::default());
        let id = connection.id().0;
        for thread in &self.threads {
            let (connection, front) = (Arc::clone(&connection), Arc::clone(&front));
            let open = move || async move {
                let client = front_client(&front);
                let part = LocalBackend::open(&connection, client, 1).await.unwrap();
                PARTS.with_borrow_mut(|parts| parts.insert(id, part));
            };
            thread.handle().run_blocking(open).unwrap();
        }
        Guest {
            world: self,
            connection,
            front,
        }
    }

    /// Run control has taken all that was told it before.
    pub fn state<R>(&self, read: impl FnOnce(&BackendState) -> R) -> R {
        block_on(self.control.call(|_, _| ())).unwrap();
        let id = self.backend.id();
        self.control.read(|run| read(run.backend(id).unwrap()))
    }

    pub fn run_state(&self) -> RunState {
        self.control.read(|run| run.state())
    }

    pub fn status(&self) -> Option<Status> {
        self.state(BackendState::io_status)
    }

    /// Offsets of what run control knows as held.
    pub fn held(&self) -> Vec<u64> {
        let mut held: Vec<_> =
            self.state(|state| state.held().map(|held| held.request.offset).collect());
        held.sort_unstable();
        held
    }

    pub fn incident(&self) -> Option<u64> {
        self.state(|state| state.incident().map(|incident| incident.number))
    }

    pub fn dropped(&self) -> u64 {
        self.backend.stats().dropped
    }

    /// `cont`, of all or of this backend, as its scope wants it.
    pub fn cont(&self) {
        let refused = match self.backend.scope() {
            HoldScope::Vm => block_on(self.control.cont(false)),
            _ => block_on(self.control.cont_backend("nbd0".to_owned())),
        };
        refused.unwrap();
    }

    /// How many parts run control reaches.
    pub fn reached(&self) -> String {
        let shown = |wiring: &_| format!("{wiring:?}");
        block_on(self.control.call(move |_, wiring| shown(wiring))).unwrap()
    }

    /// Removes the backend and ends everything.
    pub fn end(self) {
        block_on(async {
            self.backend.detach().await;
            self.backend.remove().await;
        });
        assert_eq!(self.control.read(|run| run.backends().count()), 0);
        let Self {
            control,
            backend,
            threads,
            task,
            ..
        } = self;
        drop((backend, control, threads));
        task.join().unwrap();
    }
}

/// One of the clients.
pub struct Guest<'a> {
    world: &'a World,
    pub connection: Arc<Connection>,
    pub front: Arc<Front>,
}

impl Guest<'_> {
    /// Submits on one of the iothreads.
    pub fn submit(&self, thread: usize, request: Request) {
        let id = self.connection.id().0;
        let submit = move || async move {
            let part = PARTS.with_borrow(|parts| parts[&id].clone());
            part.submit(request);
        };
        let handle = self.world.threads[thread].handle();
        handle.run_blocking(submit).unwrap();
    }

    /// Whether the part on each iothread takes anything new.
    pub fn may_pop(&self) -> Vec<bool> {
        self.on_each(|part| part.may_pop(0))
    }

    pub fn on_each<R: Send + 'static>(
        &self,
        ask: impl Fn(&LocalBackend) -> R + Clone + Send + 'static,
    ) -> Vec<R> {
        let id = self.connection.id().0;
        let asked = self.world.threads.iter().map(|thread| {
            let ask = ask.clone();
            let asked = move || async move {
                // What has been posted to the part before is taken first.
                iothread::yield_now().await;
                ask(&PARTS.with_borrow(|parts| parts[&id].clone()))
            };
            thread.handle().run_blocking(asked).unwrap()
        });
        asked.collect()
    }

    /// It leaves. What it has been told by then.
    pub fn leave(self) -> (Arc<Front>, Told) {
        block_on(self.connection.close());
        let told = self.front.told();
        let id = self.connection.id().0;
        for thread in &self.world.threads {
            let let_go =
                move || async move { PARTS.with_borrow_mut(|parts| parts.remove(&id)).is_some() };
            assert!(thread.handle().run_blocking(let_go).unwrap());
        }
        (self.front, told)
    }

    pub fn wait_completed(&self, heads: &[u16]) {
        wait_until(&format!("completion of {heads:?}"), || {
            let mut completed = self.front.told().completed;
            completed.sort_unstable();
            completed == heads
        });
    }
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SECONDS;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
