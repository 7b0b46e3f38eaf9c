//! What the end-to-end tests share: `standfastd` as a process, a QMP client, disks of a VM.

#![allow(dead_code, reason = "each test target uses its part")]
#![allow(missing_docs, reason = "tests")]

pub mod footprint;
pub mod full;
pub mod qcow2;
pub mod state;
pub mod vmm;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use block::SavedState;
use block::state_file;
use frontend::{Disk, DiskState, Options};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Daemon, Driver, Event, LogEntry, LoopDevice, Qmp, Workload};

pub const MIB: u64 = 1 << 20;

/// How long anything that should happen may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl FnMut() -> Result<bool>) -> Result<()> {
    testkit::wait_until(what, PATIENCE, condition)
}

/// A daemon with the export `vda` on a loop device, which counts the flushes that reach it. `options`
/// are the export's.
pub fn server_on_device(with_state: bool, options: Value) -> Result<(Server, LoopDevice)> {
    let mut setup = Setup::new()?;
    let image = setup.path("disk0.img");
    sparse(&image, 4 * MIB)?;
    let device = LoopDevice::new(&image, false)?;
    if with_state {
        setup = setup.with_state();
    }
    let node = json!({ "driver": "host_device", "node-name": "disk0", "filename": device.path(),
        "cache": { "direct": true } });
    let server = setup.blockdev(&node).export("vda", "disk0", options);
    Ok((server.start()?, device))
}

/// A running `standfastd` with a QMP connection.
pub struct Server {
    pub qmp: Qmp,
    pub daemon: Daemon,
    command: CommandLine,
    /// Sockets lie here; it goes last.
    dir: TempDir,
}

/// What a daemon is started with.
#[derive(Default)]
struct CommandLine {
    args: Vec<String>,
    env: Vec<(String, String)>,
    sockets: Vec<PathBuf>,
}

/// A daemon that is not waited for.
pub fn standfastd<A: AsRef<std::ffi::OsStr>>(args: &[A]) -> testkit::daemon::Builder {
    Daemon::builder(env!("CARGO_BIN_EXE_standfastd")).args(args)
}

impl CommandLine {
    fn start(&self) -> Result<Daemon> {
        let mut builder = standfastd(&self.args);
        for (name, value) in &self.env {
            builder = builder.env(name, value);
        }
        for socket in &self.sockets {
            builder = builder.socket(socket);
        }
        builder.timeout(PATIENCE).start()
    }
}

/// The options of a daemon to be.
pub struct Setup {
    dir: TempDir,
    command: CommandLine,
}

impl Setup {
    pub fn new() -> Result<Self> {
        Ok(Self {
            dir: tempfile::Builder::new()
                .prefix("standfast-e2e-")
                .tempdir()?,
            command: CommandLine::default(),
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Any option with its argument.
    #[must_use]
    pub fn option(mut self, name: &str, argument: impl ToString) -> Self {
        let words = [name.to_owned(), argument.to_string()];
        self.command.args.extend(words);
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.command.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// Iothreads `io0`, `io1`... for the exports that follow; [`iothreads`] names them.
    #[must_use]
    pub fn iothreads(mut self, count: usize) -> Self {
        for index in 0..count {
            self = self.option("--object", format!("iothread,id=io{index}"));
        }
        self
    }

    /// The daemon keeps its state in the directory `state`.
    #[must_use]
    pub fn with_state(self) -> Self {
        let dir = self.path("state");
        self.option("--state-dir", dir.display())
    }

    #[must_use]
    pub fn blockdev(self, options: &Value) -> Self {
        self.option("--blockdev", options)
    }

    /// A vhost-user-blk export; its socket is `ID.sock`.
    #[must_use]
    pub fn export(mut self, id: &str, node: &str, more: Value) -> Self {
        let socket = self.path(&format!("{id}.sock"));
        let mut options = json!({
            "type": "vhost-user-blk", "id": id, "node-name": node, "writable": true,
            // The default, said, so that the daemon need not warn of it.
            "werror": "auto",
            "addr": { "type": "unix", "path": socket },
        });
        if let (Value::Object(options), Value::Object(more)) = (&mut options, more) {
            options.extend(more.into_iter().filter(|(_, value)| !value.is_null()));
        }
        self.command.sockets.push(socket);
        self.option("--export", options)
    }

    /// A control export on a node of its own that never fails; it freezes alone.
    #[must_use]
    pub fn control(self) -> Self {
        self.blockdev(
            &json!({ "driver": "null-co", "node-name": "control", "size": 16 * MIB,
            "read-zeroes": true }),
        )
        .export("control", "control", json!({ "hold-scope": "device" }))
    }

    pub fn start(mut self) -> Result<Server> {
        let qmp = self.path("qmp.sock");
        let chardev = format!("socket,id=qmp,path={},server=on,wait=off", qmp.display());
        self = self
            .option("--chardev", chardev)
            .option("--monitor", "chardev=qmp");
        self.command.sockets.push(qmp.clone());
        let Self { dir, command } = self;
        let daemon = command.start()?;
        Ok(Server {
            qmp: connect(&qmp)?,
            daemon,
            command,
            dir,
        })
    }
}

/// The value of the option `iothread` for an export on so many of them; the default if there are none.
pub fn iothreads(count: usize) -> Value {
    match count {
        0 => Value::Null,
        1 => json!("io0"),
        _ => (0..count).map(|index| format!("io{index}")).collect(),
    }
}

fn connect(qmp: &Path) -> Result<Qmp> {
    let mut qmp = Qmp::connect(qmp)?;
    qmp.set_timeout(PATIENCE);
    Ok(qmp)
}

impl Server {
    /// Starts the daemon again, with the same command line, after it has ended.
    pub fn start_again(&mut self) -> Result<()> {
        self.check_order()?;
        self.daemon = self.command.start()?;
        self.qmp = connect(&self.path("qmp.sock"))?;
        if self.run_state()? != "running" {
            // Its STOP was an event of the daemon before.
            let log = self.qmp.log_mut();
            log.push(LogEntry::StopRequested);
            log.push(LogEntry::Event(Event {
                name: "STOP".to_owned(),
                data: Value::Null,
                message: Value::Null,
            }));
        }
        Ok(())
    }

    /// From the next start on these are the options of the first node. Returns what they were.
    pub fn set_blockdev(&mut self, options: &Value) -> Result<String> {
        let mut args = self.command.args.iter_mut();
        let found = args
            .find(|arg| *arg == "--blockdev")
            .and_then(|_| args.next());
        let found = found.context("there is no node")?;
        Ok(std::mem::replace(found, options.to_string()))
    }

    /// From the next start on the first export is of that node.
    pub fn set_export_node(&mut self, node: &str) -> Result<()> {
        let mut args = self.command.args.iter_mut();
        let found = args
            .find(|arg| *arg == "--export")
            .and_then(|_| args.next());
        let found = found.context("there is no export")?;
        let mut options: Value = serde_json::from_str(found)?;
        options["node-name"] = json!(node);
        *found = options.to_string();
        Ok(())
    }

    /// What the daemon's state file has; none before anything has been written.
    pub fn saved(&self) -> Result<Option<SavedState>> {
        let content = std::fs::read(self.path("state").join(state_file::FILE_NAME))?;
        Ok(state_file::parse(&content)?.map(|stored| stored.state))
    }

    /// The daemon's command line.
    pub fn args(&self) -> &[String] {
        &self.command.args
    }

    /// Connects a disk that has lost its daemon.
    pub fn reconnect(&self, id: &str, state: DiskState) -> Result<Disk> {
        Disk::reconnect(state, self.socket(id))
            .map_err(|(error, _)| error)
            .with_context(|| format!("reconnect; stderr:\n{}", self.daemon.stderr()))
    }

    /// Lets requests of a blkdebug node fail. `rule` goes without the node's name.
    pub fn inject(&mut self, node: &str, mut rule: Value) -> Result<()> {
        rule["node-name"] = json!(node);
        self.qmp.execute("x-blkdebug-inject", rule)?;
        Ok(())
    }

    /// No request fails any more.
    pub fn clear(&mut self, node: &str) -> Result<()> {
        let node = json!({ "node-name": node });
        self.qmp.execute("x-blkdebug-clear", node)?;
        Ok(())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self, id: &str) -> PathBuf {
        self.path(&format!("{id}.sock"))
    }

    pub fn disk(&self, id: &str) -> Result<Disk> {
        self.disk_with(id, Options::default())
    }

    pub fn disk_with(&self, id: &str, options: Options) -> Result<Disk> {
        let path = self.socket(id);
        Disk::connect(&path, options).with_context(|| format!("{}", path.display()))
    }

    pub fn run_state(&mut self) -> Result<String> {
        let status = self.qmp.execute("query-status", Value::Null)?;
        ensure!(
            status["running"] == json!(status["status"] == "running"),
            "{status}"
        );
        Ok(status["status"]
            .as_str()
            .context("status is a string")?
            .to_owned())
    }

    /// The entry of an export in query-block.
    pub fn block(&mut self, id: &str) -> Result<Value> {
        let list = self.qmp.execute("query-block", Value::Null)?;
        let found = list
            .as_array()
            .into_iter()
            .flatten()
            .find(|entry| entry["device"] == id);
        found
            .cloned()
            .with_context(|| format!("no '{id}' in {list}"))
    }

    pub fn io_status(&mut self, id: &str) -> Result<Value> {
        Ok(self.block(id)?["io-status"].clone())
    }

    pub fn stats(&mut self, id: &str) -> Result<Value> {
        let list = self.qmp.execute("query-blockstats", Value::Null)?;
        let found = list
            .as_array()
            .into_iter()
            .flatten()
            .find(|entry| entry["device"] == id);
        Ok(found.with_context(|| format!("no '{id}' in {list}"))?["stats"].clone())
    }

    /// What the daemon says of an export, and has said, when something does not happen.
    pub fn told(&mut self, id: &str) -> String {
        let (state, block, held) = (self.run_state(), self.block(id), self.held(id));
        let stats = self.stats(id);
        format!(
            "{state:?}, {block:?}, held: {held:?}, {stats:?}; stderr:\n{}",
            self.daemon.stderr()
        )
    }

    pub fn held(&mut self, id: &str) -> Result<Vec<Value>> {
        let list = self.qmp.execute("x-query-held", json!({ "id": id }))?;
        Ok(list.as_array().cloned().unwrap_or_default())
    }

    /// Drives a workload up to the first held request: returns its event. The error is published
    /// before its event: the status is there as soon as the event is. What is planned is no limit: which of the
    /// requests meets the error depends on the order in which those in flight are served.
    pub fn run_until_held(
        &mut self,
        driver: &mut Driver,
        disk: &mut Disk,
        id: &str,
    ) -> Result<Event> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if driver.is_exhausted() {
                driver.plan_more(64);
            }
            driver.fill(disk)?;
            driver.reap_within(disk, Duration::from_millis(20))?;
            match self
                .qmp
                .wait_event("BLOCK_IO_ERROR", Duration::from_millis(1))
            {
                Ok(event) => {
                    let status = self.io_status(id)?;
                    ensure!(
                        status == "nospace" || status == "failed",
                        "event, but status {status}"
                    );
                    ensure!(event.data["device"] == id, "{event:?}");
                    return Ok(event);
                }
                Err(testkit::QmpError::Timeout { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            if Instant::now() > deadline {
                bail!(
                    "no event; {} outstanding; {}, held: {:?}",
                    driver.outstanding(),
                    self.block(id)?,
                    self.held(id)?
                );
            }
        }
    }

    /// Goes on with a workload to its end; `mend` is called whenever something is held.
    pub fn run_to_end(
        &mut self,
        driver: &mut Driver,
        disk: &mut Disk,
        mut mend: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let mut progress = Instant::now();
        while !driver.is_exhausted() || driver.outstanding() > 0 {
            driver.fill(disk)?;
            if driver.reap_within(disk, Duration::from_millis(20))? > 0 {
                progress = Instant::now();
            } else {
                mend(self)?;
            }
            if progress.elapsed() > PATIENCE {
                bail!(
                    "no progress; {} outstanding\n{}",
                    driver.outstanding(),
                    self.daemon.stderr()
                );
            }
        }
        Ok(())
    }

    /// All that is outstanding is done: no request of the blkdebug node `debug` fails any more, and what is held is tried.
    pub fn drain(&mut self, debug: &str, driver: &mut Driver, disk: &mut Disk) -> Result<()> {
        self.clear(debug)?;
        let deadline = Instant::now() + PATIENCE;
        while driver.outstanding() > 0 {
            self.qmp.execute("cont", Value::Null)?;
            driver.reap_within(disk, Duration::from_millis(100))?;
            if Instant::now() > deadline {
                bail!(
                    "{} requests are lost; held: {:?}, {}; stderr:\n{}",
                    driver.outstanding(),
                    self.held("vda")?,
                    self.run_state()?,
                    self.daemon.stderr()
                );
            }
        }
        Ok(())
    }

    /// A control export goes on: requests on it complete.
    pub fn control_progresses(&mut self, control: &mut Disk) -> Result<()> {
        for sector in 0..32 {
            let read = frontend::Request::Read {
                sector: sector * 8,
                len: 4096,
            };
            let completion = control.execute(0, read, PATIENCE)?;
            ensure!(
                completion.is_ok(),
                "control export: status {}",
                completion.status
            );
        }
        Ok(())
    }

    /// G2 over everything this connection has seen.
    fn check_order(&self) -> Result<()> {
        let checked = self.qmp.log().check_order(true);
        checked.map_err(anyhow::Error::msg)
    }

    /// G2 over everything this connection has seen, and an end in order.
    pub fn finish(self) -> Result<()> {
        self.check_order()?;
        self.end()
    }

    /// An end in order.
    pub fn end(mut self) -> Result<()> {
        let status = self.daemon.terminate(PATIENCE)?;
        ensure!(
            status.success(),
            "exit status {status}; stderr:\n{}",
            self.daemon.stderr()
        );
        Ok(())
    }
}

/// An image of `bytes`, all of it a hole.
pub fn sparse(path: &Path, bytes: u64) -> Result<()> {
    std::fs::File::create(path)?.set_len(bytes)?;
    Ok(())
}

/// Bytes that a file occupies.
pub fn allocated(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(path)?.blocks() * 512)
}

/// Mostly writes, of up to `blocks_max` of the first `blocks` blocks of 4 KiB.
pub fn writes(seed: u64, requests: u64, blocks: usize, blocks_max: usize) -> Driver {
    Driver::new(Workload {
        seed,
        requests,
        blocks,
        blocks_max,
        mix: testkit::Mix {
            read: 10,
            write: 85,
            write_zeroes: 0,
            discard: 0,
            flush: 5,
        },
        timeout: PATIENCE,
        ..Workload::default()
    })
}
