//! An assembly in this process, and a disk of it under a load that is checked.

#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper of tests fails as tests do"
)]

pub mod snapshot;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use block::{Registry, control};
use frontend::{Disk, Options, Request};
use qapi::Object;
use qapi::command::{Transaction, TransactionActionVariant};
use qapi::de::{self, Mode};
use qapi::options::{BlockdevOptions, ExportOptions};
use serde_json::{Value, json};
use standfast_assembly::{Assembly, SetupError, TimeLimits};
use testkit::place::PATIENCE;
use testkit::{Driver, Workload};

/// Blocks of 4 KiB that the load uses.
pub const BLOCKS: usize = 1024;

/// An assembly, and its files.
#[derive(Debug)]
pub struct House {
    runtime: tokio::runtime::Runtime,
    pub registry: Arc<Registry>,
    pub assembly: Assembly,
    pub dir: tempfile::TempDir,
}

impl House {
    pub fn new() -> Self {
        let (control, task) = control();
        std::thread::spawn(|| pollster::block_on(task.run()));
        let (registry, _quit) = Registry::new(control);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        Self {
            runtime,
            assembly: Assembly::new(Arc::clone(&registry)),
            registry,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A sparse image that the load fits into.
    pub fn image(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(BLOCKS as u64 * 4096).unwrap();
        path
    }

    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub fn node(&self, options: &Value) -> Result<(), String> {
        let options = BlockdevOptions::parse(&options.to_string()).unwrap();
        said(self.wait(self.assembly.add_node(options, TimeLimits::START)))
    }

    pub fn file(&self, name: &str, image: &str) -> Result<(), String> {
        let path = self.path(image);
        self.node(&json!({ "driver": "file", "node-name": name, "filename": path }))
    }

    /// An export with a stop policy, whose socket is named after it.
    pub fn export(&self, id: &str, node: &str, writable: bool) -> Result<(), String> {
        self.add_export(
            json!({ "type": "vhost-user-blk", "id": id, "node-name": node,
            "writable": writable, "werror": "stop", "rerror": "stop",
            "addr": { "type": "unix", "path": self.path(id) } }),
        )
    }

    /// The same, writable, with another hold scope.
    pub fn export_of_scope(&self, id: &str, node: &str, scope: &str) -> Result<(), String> {
        self.add_export(
            json!({ "type": "vhost-user-blk", "id": id, "node-name": node,
            "writable": true, "werror": "stop", "rerror": "stop", "hold-scope": scope,
            "addr": { "type": "unix", "path": self.path(id) } }),
        )
    }

    fn add_export(&self, options: Value) -> Result<(), String> {
        let options = ExportOptions::parse(&options.to_string()).unwrap();
        said(self.wait(self.assembly.add_export(options, TimeLimits::START)))
    }

    pub fn delete_node(&self, name: &str) -> Result<(), String> {
        said(self.wait(self.assembly.delete_node(name)))
    }

    pub fn delete_export(&self, id: &str, force: bool) -> Result<(), String> {
        said(self.wait(self.assembly.delete_export(id, force)))
    }

    pub fn replace(&self, from: &str, to: &str) -> Result<(), String> {
        said(self.wait(self.assembly.replace_node(from, to)))
    }

    pub fn reopen(&self, options: &Value, limit: Option<Duration>) -> Result<(), String> {
        let options = BlockdevOptions::parse(&options.to_string()).unwrap();
        said(self.wait(self.assembly.reopen_nodes(vec![options], limit)))
    }

    /// Several nodes.
    pub fn reopen_all(&self, options: &[Value]) -> Result<(), String> {
        let parse = |options: &Value| BlockdevOptions::parse(&options.to_string()).unwrap();
        let options = options.iter().map(parse).collect();
        said(self.wait(self.assembly.reopen_nodes(options, None)))
    }

    /// `transaction`.
    pub fn transact(&self, actions: Value, limit: Option<Duration>) -> Result<(), String> {
        let actions = actions_of(actions);
        said(self.wait(self.assembly.transact(actions, limit)))
    }

    /// What the guest of an export sees in the sectors at these bytes, each of which is one byte again and again.
    pub fn look(&self, id: &str, offsets: &[u64]) -> Vec<u8> {
        let mut disk = self.connect(id);
        let first = |offset: &u64| {
            let read = Request::Read {
                sector: offset / 512,
                len: 512,
            };
            let done = disk.execute(0, read, PATIENCE).unwrap();
            assert!(done.is_ok());
            assert!(done.data.iter().all(|byte| *byte == done.data[0]));
            done.data[0]
        };
        offsets.iter().map(first).collect()
    }

    /// The requests of an export that are held.
    pub fn held(&self, id: &str) -> usize {
        let backend = self.registry.export(id).unwrap().backend().id();
        let control = self.registry.control();
        control.read(|run| run.backend(backend).map_or(0, |b| b.held().len()))
    }

    /// `cont`.
    pub fn go_on(&self) -> Result<(), block::Refusal> {
        self.wait(self.registry.control().cont(false))
    }

    pub fn connect(&self, id: &str) -> Disk {
        Disk::connect(self.path(id), Options::default()).unwrap()
    }

    /// The load runs on an export until it is ended.
    pub fn load(&self, id: &str) -> Load {
        let mut disk = self.connect(id);
        let end = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            let workload = Workload {
                requests: u64::MAX,
                blocks: BLOCKS,
                ..Workload::default()
            };
            let mut load = Driver::new(workload);
            // Once at least, however soon it ends.
            loop {
                load.fill(&mut disk)?;
                load.reap(&mut disk)?;
                if ends.load(Ordering::Relaxed) {
                    break;
                }
            }
            load.plan_no_more();
            load.drain(&mut disk)?;
            load.read_back(&mut disk)?;
            let summary = load.finish(&mut disk)?;
            Ok(summary.succeeded)
        });
        Load { end, thread }
    }

    /// The end of a daemon.
    pub fn close(self) {
        self.wait(async {
            let settled = self.assembly.settle("host-qmp-quit").await;
            self.assembly.close_exports(settled).await;
        });
    }
}

/// What is to be done, of a list as QMP has it.
pub fn actions_of(actions: Value) -> Vec<TransactionActionVariant> {
    let arguments = Object::from_iter([("actions".to_owned(), actions)]);
    let wanted: Transaction = de::from_object(&arguments, Mode::Json).unwrap();
    let actions = wanted.actions.into_iter();
    actions.map(|action| action.variant).collect()
}

fn said(result: Result<(), SetupError>) -> Result<(), String> {
    result.map_err(|error| error.desc)
}

/// A load under way.
#[derive(Debug)]
pub struct Load {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Load {
    /// Ends it, and says how many requests there were: each has been completed rightly, and all blocks read back as they should.
    pub fn end(self) -> u64 {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap()
    }
}

/// Writes as another process.
pub fn qemu_io(path: &Path) -> Result<(), String> {
    let arguments = ["-f", "raw", "-c", "write 0 512"];
    let output = Command::new("qemu-io").args(arguments).arg(path).output();
    let output = output.expect("qemu-io is needed for this test");
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// How many descriptors refer to `path`.
pub fn descriptors(path: &Path) -> usize {
    let all = fs::read_dir("/proc/self/fd").unwrap();
    let links = all.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    links.filter(|link| link == path).count()
}
