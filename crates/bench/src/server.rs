//! The daemons that are measured, as processes.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;
use testkit::{Daemon, daemon::Builder};

use crate::process;

/// How long a daemon may take to listen, and to end. Under Valgrind everything takes long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which daemon, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// standfastd with `werror=stop,rerror=stop`.
    Standfast,
    /// standfastd with `werror=report,rerror=report`: what policy costs is the difference.
    StandfastReport,
    /// standfastd where io_uring is forbidden: it waits in an epoll, and threads make the calls.
    StandfastThreads,
    /// standfastd with a plain file in place of an image: what the format costs is the difference.
    StandfastRaw,
    /// qemu-storage-daemon.
    Qemu,
    /// qemu-storage-daemon with the I/O engine it takes if none is named.
    QemuThreads,
}

impl Server {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standfast => "standfastd",
            Self::StandfastReport => "standfastd (report)",
            Self::StandfastThreads => "standfastd (threads)",
            Self::StandfastRaw => "standfastd (raw)",
            Self::Qemu => "qemu-storage-daemon",
            Self::QemuThreads => "qemu-storage-daemon (threads)",
        }
    }

    /// Whether it is ours.
    pub fn is_ours(self) -> bool {
        !matches!(self, Self::Qemu | Self::QemuThreads)
    }
}

/// What a daemon is to serve.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Which daemon.
    pub server: Server,
    /// Arguments of each `--blockdev`; the last one is called `disk`.
    pub blockdevs: Vec<String>,
    /// Further arguments.
    pub more: Vec<String>,
    /// More options of the export.
    pub export: String,
    /// Queues.
    pub queues: u16,
    /// With a QMP socket.
    pub qmp: bool,
    /// With a state directory, as a daemon of ours that must outlive a kill has it.
    pub state: bool,
    /// CPU to run on.
    pub cpu: Option<usize>,
    /// Program and arguments that run the daemon, with variables: Valgrind.
    pub wrapper: Option<Wrapper>,
}

/// A program that runs the daemon.
#[derive(Debug, Clone)]
pub struct Wrapper {
    /// The program and its arguments.
    pub words: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, PathBuf)>,
}

/// A running daemon with its directory.
#[derive(Debug)]
pub struct Running {
    daemon: Daemon,
    dir: tempfile::TempDir,
}

impl Setup {
    /// The usual: one node.
    pub fn new(server: Server, blockdev: impl Into<String>) -> Self {
        Self {
            server,
            blockdevs: vec![blockdev.into()],
            more: Vec::new(),
            export: String::new(),
            queues: 1,
            qmp: false,
            state: false,
            cpu: None,
            wrapper: None,
        }
    }

    /// Starts the daemon. `standfastd` is the path of ours.
    ///
    /// # Errors
    /// If it does not start; with what it wrote to stderr.
    pub fn start(&self, standfastd: &Path) -> Result<Running> {
        let dir = tempfile::Builder::new()
            .prefix("standfast-bench-")
            .tempdir()?;
        let socket = dir.path().join("disk.sock");
        let mut export = format!(
            "type=vhost-user-blk,id=vda,node-name=disk,writable=on,addr.type=unix,addr.path={},\
             num-queues={}",
            socket.display(),
            self.queues
        );
        match self.server {
            Server::Standfast | Server::StandfastThreads | Server::StandfastRaw => {
                export += ",werror=stop,rerror=stop";
            }
            Server::StandfastReport => export += ",werror=report,rerror=report",
            Server::Qemu | Server::QemuThreads => {}
        }
        export += &self.export;
        let program = if self.server.is_ours() {
            standfastd
        } else {
            Path::new("qemu-storage-daemon")
        };
        let mut builder = self.program(program).args(&self.more);
        if self.server == Server::StandfastThreads {
            builder = builder.without_io_uring(libc::EPERM);
        }
        for blockdev in &self.blockdevs {
            builder = builder.args(["--blockdev", blockdev]);
        }
        builder = builder.args(["--export", &export]).socket(&socket);
        if self.qmp {
            let qmp = dir.path().join("qmp.sock");
            let chardev = format!("socket,id=qmp,path={},server=on,wait=off", qmp.display());
            builder = builder
                .args(["--chardev", &chardev, "--monitor", "chardev=qmp"])
                .socket(&qmp);
        }
        if self.state {
            builder = builder.arg("--state-dir").arg(dir.path().join("state"));
        }
        // What a thread starts runs where the thread does.
        let before = process::allowed_cpus()?;
        if let Some(cpu) = self.cpu {
            process::pin(cpu)?;
        }
        let started = builder.timeout(PATIENCE).start();
        process::allow_cpus(&before)?;
        let daemon = started.with_context(|| format!("cannot start {}", self.server.name()))?;
        Ok(Running { daemon, dir })
    }

    fn program(&self, program: &Path) -> Builder {
        let Some(wrapper) = &self.wrapper else {
            return Daemon::builder(program);
        };
        let mut builder = Daemon::builder(&wrapper.words[0])
            .args(&wrapper.words[1..])
            .arg(program);
        for (name, value) in &wrapper.env {
            builder = builder.env(name, value);
        }
        builder
    }
}

impl Running {
    /// The disk's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("disk.sock")
    }

    /// The QMP socket, if it was asked for.
    pub fn qmp(&self) -> PathBuf {
        self.dir.path().join("qmp.sock")
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Ends the daemon in order; returns what it wrote to stderr.
    ///
    /// # Errors
    /// If it does not end, or says that it failed.
    pub fn finish(mut self) -> Result<String> {
        let status = self.daemon.terminate(PATIENCE)?;
        let stderr = self.daemon.stderr();
        anyhow::ensure!(
            status.success(),
            "the daemon ended with {status}:\n{stderr}"
        );
        Ok(stderr)
    }
}
