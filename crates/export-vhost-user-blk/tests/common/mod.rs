//! A daemon in small: run control, an iothread, a disk in memory that fails on demand, an export.

#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper of tests fails as tests do"
)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use block::run_control::BackendState;
use block::{
    Backend, BlockError, Child, Control, Driver, Export, HoldScope, Io, IoFuture, Node, NodeInfo,
    OnError, Operation, Policy, RunState,
};
use frontend::protocol::message;
use frontend::{Connection, Disk, Request};
use iothread::{Config, Engine, IoThread};
use listener::{Access, bind_socket};
use standfast_export_vhost_user_blk::{ExportError, Options, VhostUserBlkExport};

pub const DISK_BYTES: usize = 8 << 20;
pub const SECONDS: Duration = Duration::from_secs(10);
/// Long enough for a completion that must not come to be seen.
pub const A_WHILE: Duration = Duration::from_millis(50);

/// The disk in memory, and what it does wrong.
#[derive(Debug)]
pub struct Faults {
    pub data: Mutex<Vec<u8>>,
    /// Errno of every write, or 0.
    pub write: AtomicI32,
    pub flush: AtomicI32,
    pub read: AtomicI32,
    /// Requests take until this is cleared.
    pub stall: AtomicBool,
    /// How long each request takes at least.
    pub latency_us: AtomicU64,
    pub fua: AtomicU64,
    pub writes: AtomicU64,
    pub discards: AtomicU64,
    /// What the disk says about its length, in bytes.
    pub length: AtomicU64,
    /// Offsets of writes in the order they were submitted.
    pub order: Mutex<Vec<u64>>,
}

impl Faults {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            data: Mutex::new(vec![0; DISK_BYTES]),
            write: AtomicI32::default(),
            flush: AtomicI32::default(),
            read: AtomicI32::default(),
            stall: AtomicBool::default(),
            latency_us: AtomicU64::default(),
            fua: AtomicU64::default(),
            writes: AtomicU64::default(),
            discards: AtomicU64::default(),
            length: AtomicU64::new(DISK_BYTES as u64),
            order: Mutex::default(),
        })
    }
}

#[derive(Debug)]
pub struct RamDisk {
    pub faults: Arc<Faults>,
}

impl RamDisk {
    fn execute(&self, io: &Io<'_>) -> block::Result<()> {
        let errno = match io.op {
            Operation::Read => &self.faults.read,
            Operation::Flush => &self.faults.flush,
            _ => &self.faults.write,
        };
        match errno.load(Ordering::SeqCst) {
            0 => {}
            errno => return Err(BlockError::from_errno(errno)),
        }
        let mut data = self.faults.data.lock().unwrap();
        let (start, len) = (
            usize::try_from(io.offset).unwrap(),
            usize::try_from(io.bytes).unwrap(),
        );
        let range = &mut data[start..start + len];
        match io.op {
            Operation::Read | Operation::Write => {
                let moved = match io.op {
                    Operation::Read => io.buffers.copy_from(range),
                    _ => io.buffers.copy_to(range),
                };
                assert_eq!(moved, range.len(), "buffers and length differ");
            }
            Operation::Discard => {
                self.faults.discards.fetch_add(1, Ordering::SeqCst);
            }
            Operation::WriteZeroes { .. } => range.fill(0),
            Operation::Flush => {}
        }
        Ok(())
    }
}

impl Driver for RamDisk {
    fn name(&self) -> &'static str {
        "ram"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }

    fn length(&self) -> u64 {
        self.faults.length.load(Ordering::SeqCst)
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        if io.op == Operation::Write {
            self.faults.writes.fetch_add(1, Ordering::SeqCst);
            self.faults
                .fua
                .fetch_add(u64::from(io.fua), Ordering::SeqCst);
            self.faults.order.lock().unwrap().push(io.offset);
        }
        IoFuture::new(async move {
            let latency_us = self.faults.latency_us.load(Ordering::SeqCst);
            if latency_us > 0 {
                iothread::time::sleep(Duration::from_micros(latency_us)).await;
            }
            while self.faults.stall.load(Ordering::SeqCst) {
                iothread::time::sleep(Duration::from_millis(1)).await;
            }
            self.execute(&io)
        })
    }
}

/// Everything up to the export; dropped in the right order.
pub struct Daemon {
    pub control: Control,
    pub faults: Arc<Faults>,
    pub export: Arc<dyn Export>,
    pub socket: PathBuf,
    pub iothread: IoThread,
    /// Further iothreads of the export.
    pub others: Vec<IoThread>,
    task: JoinHandle<()>,
    dir: tempfile::TempDir,
}

pub fn writable() -> Options {
    Options {
        writable: true,
        ..Options::new("disk0")
    }
}

/// A daemon that offers CONFIGURE_MEM_SLOTS.
pub fn with_slots() -> Daemon {
    Daemon::with(options_with_slots())
}

pub fn options_with_slots() -> Options {
    Options {
        configure_mem_slots: true,
        ..writable()
    }
}

impl Daemon {
    pub fn new() -> Self {
        Self::with(writable())
    }

    pub fn with(options: Options) -> Self {
        Self::try_with(options).unwrap()
    }

    pub fn try_with(options: Options) -> Result<Self, ExportError> {
        Self::over(options, Faults::new())
    }

    /// A daemon that serves a disk which another one has served before.
    pub fn over(options: Options, faults: Arc<Faults>) -> Result<Self, ExportError> {
        Self::on(1, HoldScope::Vm, options, faults)
    }

    /// A daemon whose export is spread over `iothreads` iothreads.
    pub fn on(
        iothreads: usize,
        scope: HoldScope,
        options: Options,
        faults: Arc<Faults>,
    ) -> Result<Self, ExportError> {
        let disk = RamDisk {
            faults: Arc::clone(&faults),
        };
        Self::serving(iothreads, scope, options, faults, Box::new(disk))
    }

    /// A daemon whose disk is below another node, which `driver` makes of its edge to it.
    pub fn below<D: Driver + 'static>(
        iothreads: usize,
        scope: HoldScope,
        options: Options,
        driver: impl FnOnce(Child) -> D,
    ) -> Self {
        let faults = Faults::new();
        let disk = RamDisk {
            faults: Arc::clone(&faults),
        };
        let file = Node::new("file0", Box::new(disk));
        let driver = driver(Child::of(&"node0".into(), "file", file));
        Self::serving(iothreads, scope, options, faults, Box::new(driver)).unwrap()
    }

    /// A daemon that serves what `driver` makes of a disk with these `faults`.
    fn serving(
        iothreads: usize,
        scope: HoldScope,
        options: Options,
        faults: Arc<Faults>,
        driver: Box<dyn Driver>,
    ) -> Result<Self, ExportError> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("disk.sock");
        let (control, task) = block::control();
        let task = std::thread::spawn(move || pollster::block_on(task.run()));
        let engine = testkit::engine::is_threads().then_some(Engine::Threads);
        let spawn = || {
            IoThread::spawn(Config {
                engine,
                ..Config::default()
            })
            .unwrap()
        };
        let iothread = spawn();
        let others: Vec<_> = (1..iothreads).map(|_| spawn()).collect();
        let handles: Vec<_> = (std::iter::once(&iothread).chain(&others))
            .map(IoThread::handle)
            .collect();
        let export = pollster::block_on(async {
            let node = Node::new("node0", driver);
            let policy = Policy::new(OnError::Enospc, OnError::Report);
            let backend = Backend::new(
                &control,
                &options.id,
                Child::root(&options.id, node),
                policy,
                scope,
            )
            .await;
            let bound = bind_socket(&socket, Access::default()).unwrap();
            VhostUserBlkExport::new(options, backend.unwrap(), &handles, bound).await
        })?;
        Ok(Self {
            control,
            faults,
            export,
            socket,
            iothread,
            others,
            task,
            dir,
        })
    }

    /// One more export on the same iothreads. To be closed before the daemon.
    pub fn add_export(&self, id: &str) -> (Arc<dyn Export>, PathBuf) {
        let socket = self.dir.path().join(id);
        let disk = RamDisk {
            faults: Faults::new(),
        };
        let options = Options {
            writable: true,
            ..Options::new(id)
        };
        let handles: Vec<_> = (std::iter::once(&self.iothread).chain(&self.others))
            .map(IoThread::handle)
            .collect();
        let export = pollster::block_on(async {
            let node = Node::new(id, Box::new(disk));
            let policy = Policy::new(OnError::Enospc, OnError::Report);
            let backend = Backend::new(
                &self.control,
                id,
                Child::root(id, node),
                policy,
                HoldScope::Vm,
            )
            .await;
            let bound = bind_socket(&socket, Access::default()).unwrap();
            VhostUserBlkExport::new(options, backend.unwrap(), &handles, bound).await
        });
        (export.unwrap(), socket)
    }

    pub fn connect(&self) -> Disk {
        self.connect_with(frontend::Options::default())
    }

    pub fn connect_with(&self, options: frontend::Options) -> Disk {
        Disk::connect(&self.socket, options).unwrap()
    }

    /// Waits until the former client's rings have ended: only then is the next one answered.
    pub fn wait_disconnected(&self) {
        let mut next = Connection::connect(&self.socket, SECONDS).unwrap();
        next.get_u64(message::GET_FEATURES).unwrap();
    }

    pub fn cont(&self) {
        pollster::block_on(self.control.cont(false)).unwrap();
    }

    /// Waits until run control has taken all that was posted to it before: who has seen a request
    /// complete does not find it held any more, on however busy a machine.
    pub fn settle(&self) {
        // None at the end of the daemon.
        let _ = pollster::block_on(self.control.call(|_, _| ()));
    }

    pub fn run_state(&self) -> RunState {
        self.settle();
        self.control.read(|state| state.state())
    }

    pub fn held(&self) -> usize {
        self.backend(|backend| backend.held().len())
    }

    pub fn backend<R>(&self, f: impl FnOnce(&BackendState) -> R) -> R {
        self.settle();
        let id = self.export.backend().id();
        self.control.read(|state| f(state.backend(id).unwrap()))
    }

    pub fn wait_held(&self, count: usize) {
        wait_until(&format!("{count} held requests"), || self.held() == count);
    }

    pub fn fail_writes(&self, errno: i32) {
        self.faults.write.store(errno, Ordering::SeqCst);
    }

    pub fn stall(&self, on: bool) {
        self.faults.stall.store(on, Ordering::SeqCst);
    }

    /// Closes the export and everything else, which must leave nothing behind.
    pub fn close(self) {
        pollster::block_on(self.export.close());
        let Self {
            control,
            export,
            iothread,
            others,
            task,
            dir,
            ..
        } = self;
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(control.read(|state| state.backends().count()), 0);
        drop((export, iothread, others, control));
        task.join().unwrap();
    }
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SECONDS;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn write(disk: &mut Disk, sector: u64, byte: u8, len: usize) -> u8 {
    let data = vec![byte; len];
    let request = Request::Write {
        sector,
        data: &data,
    };
    disk.execute(0, request, SECONDS).unwrap().status
}

pub fn read(disk: &mut Disk, sector: u64, len: u32) -> Vec<u8> {
    let completion = disk
        .execute(0, Request::Read { sector, len }, SECONDS)
        .unwrap();
    assert!(completion.is_ok(), "{completion:?}");
    completion.data
}

/// Submits a write of one block and returns at once.
pub fn post(disk: &mut Disk, sector: u64, byte: u8) -> frontend::Token {
    let token = disk
        .submit(
            0,
            Request::Write {
                sector,
                data: &[byte; 4096],
            },
        )
        .unwrap();
    disk.kick(0).unwrap();
    token
}

/// Waits for exactly these completions, in any order, all good.
pub fn expect(disk: &mut Disk, tokens: &[frontend::Token]) {
    let mut left = tokens.to_vec();
    while !left.is_empty() {
        let completion = disk.wait(0, SECONDS).unwrap().expect("a completion");
        assert!(completion.is_ok(), "{completion:?}");
        let at = left.iter().position(|token| *token == completion.token);
        left.remove(at.unwrap_or_else(|| panic!("unexpected {completion:?}")));
    }
}

pub fn expect_nothing(disk: &mut Disk) {
    assert_eq!(disk.wait(0, A_WHILE).unwrap(), None);
}

pub fn expect_clean(disk: &Disk) {
    assert_eq!(disk.violations(), []);
}
