//! The monitor while everything hangs at once: storage, stderr, clients and the VMM.

use anyhow::{Context, Result, ensure};
use frontend::{Disk, Options, Request};
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::{FuseFile, FuseOp, Qmp};

use crate::latency::{Latency, histogram, latency, record};
use crate::server::{Server, Setup, Wrapper};

/// Name of the latency that has a target.
pub const MONITOR_WHILE_ALL_HANG: &str =
    "monitor command while storage, stderr, 40 clients and the VMM hang";

const BYTES: usize = 4 << 20;
/// Monitor clients that do not read, and as many that leave while they wait.
const CLIENTS: usize = 40;
/// How long the kernel answers for the storage at most.
const ATTRIBUTES_VALID: Duration = Duration::from_millis(1200);

const HANGING: [FuseOp; 5] = [
    FuseOp::GetAttr,
    FuseOp::SetAttr,
    FuseOp::Read,
    FuseOp::Write,
    FuseOp::Fsync,
];

/// Measures `query-status`, `query-block`, `stop`, `cont` and a new session, `rounds` times each. None:
/// storage that hangs needs root.
///
/// # Errors
/// If the daemon does not do as it should.
pub fn measure(standfastd: &Path, cpu: usize, rounds: u32) -> Result<Option<Latency>> {
    if !rustix::process::geteuid().is_root() {
        println!("  left out, as only root can mount storage that hangs: {MONITOR_WHILE_ALL_HANG}");
        return Ok(None);
    }
    let dir = tempfile::tempdir()?;
    let stderr = dir.path().join("stderr");
    let _full = full_fifo(&stderr)?;
    let second = dir.path().join("second.sock");
    let fuse = FuseFile::new(BYTES)?;
    let mut setup = Setup::new(
        Server::Standfast,
        format!(
            "driver=file,node-name=disk,filename={}",
            fuse.path().display()
        ),
    );
    setup.qmp = true;
    setup.cpu = Some(cpu);
    let link = r#"{"qom-type":"vmm-command","id":"vm0","pause":["sleep","60"],"resume":["true"]}"#;
    let export = format!(
        "type=vhost-user-blk,id=second,node-name=null0,addr.type=unix,addr.path={}",
        second.display()
    );
    let more = [
        ["--object", link],
        ["--blockdev", "driver=null-co,node-name=null0"],
        ["--export", &export],
    ];
    setup.more = more.concat().into_iter().map(str::to_owned).collect();
    // The program and its arguments follow.
    let words = ["/bin/sh", "-c", r#"exec "$@" 2>"$STDERR""#, "sh"];
    setup.wrapper = Some(Wrapper {
        words: words.map(str::to_owned).to_vec(),
        env: vec![("STDERR".to_owned(), stderr.clone())],
    });
    let running = setup.start(standfastd)?;
    let mut scene = Scene {
        qmp: Qmp::connect(running.qmp())?,
        fuse: &fuse,
    };
    scene.qmp.execute("query-block", Value::Null)?;

    for op in HANGING {
        fuse.hang(op, true);
    }
    let mut disk = Disk::connect(running.socket(), Options::default())?;
    let read = Request::Read {
        sector: 0,
        len: 4096,
    };
    disk.submit(0, read)?;
    disk.kick(0)?;
    // A VMM that stops in the middle of a message.
    let mut half = UnixStream::connect(&second)?;
    half.write_all(&[1, 0, 0])?;
    let mut silent = Vec::new();
    std::thread::sleep(ATTRIBUTES_VALID);
    for _ in 0..CLIENTS {
        silent.push(Qmp::connect(running.qmp())?);
        let mut leaving = Qmp::connect(running.qmp())?;
        leaving.send_raw(b"{\"execute\":\"query-block\"}\n")?;
    }
    stop_unanswered(&mut scene.qmp)?;

    let mut times = histogram()?;
    for _ in 0..rounds {
        for command in ["query-status", "query-block", "cont", "stop"] {
            let start = Instant::now();
            scene.qmp.execute(command, Value::Null)?;
            record(&mut times, start);
        }
        let start = Instant::now();
        let session = Qmp::connect(running.qmp())?;
        record(&mut times, start);
        drop(session);
    }
    drop(scene);
    drop((silent, half, disk));
    running.finish()?;
    Ok(Some(latency(MONITOR_WHILE_ALL_HANG, &times)))
}

/// Stops a VM whose VMM does not answer.
///
/// # Errors
/// If it does.
pub fn stop_unanswered(qmp: &mut Qmp) -> Result<()> {
    qmp.execute("stop", Value::Null)?;
    let status = qmp.execute("query-status", Value::Null)?;
    let pending = &status["x-vmm"]["pending"];
    ensure!(pending == "pause", "the VMM has answered: {status}");
    Ok(())
}

/// What ends before the daemon is killed: a process that waits for FUSE cannot die.
struct Scene<'a> {
    qmp: Qmp,
    fuse: &'a FuseFile,
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        for op in HANGING {
            self.fuse.hang(op, false);
        }
    }
}

/// A named pipe in which there is no room; both ends.
fn full_fifo(path: &Path) -> Result<OwnedFd> {
    rustix::fs::mkfifoat(rustix::fs::CWD, path, Mode::RUSR | Mode::WUSR).context("mkfifo")?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let both = rustix::fs::open(path, flags, Mode::empty())?;
    while rustix::io::write(&both, &[b'.'; 4096]).is_ok() {}
    Ok(both)
}
