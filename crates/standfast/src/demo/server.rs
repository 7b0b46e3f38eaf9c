//! The daemon of the demo: a process of its own, started as an operator would.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::guest::check_interrupt;
use crate::tool::client::Client;

/// The hidden subcommand that is the demo's daemon.
pub const DAEMON_COMMAND: &str = "demo-daemon";

/// The node with the limit.
pub const NODE: &str = "disk0";
/// The export.
pub const EXPORT: &str = "vda";

const START_PATIENCE: Duration = Duration::from_secs(20);
const END_PATIENCE: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(10);

/// A running daemon; dropping it ends it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    dir: PathBuf,
}

impl Server {
    /// Makes a sparse image of `disk_bytes` in `dir`, starts a daemon that exports it with a limit of
    /// `limit_bytes` under the given `werror`, and waits until it is set up.
    ///
    /// # Errors
    /// If it does not start: with what it said.
    pub fn start(dir: &Path, disk_bytes: u64, limit_bytes: u64, werror: &str) -> Result<Self> {
        std::fs::create_dir(dir).context("cannot make a directory for the daemon")?;
        let image = dir.join("disk0.img");
        let file = std::fs::File::create(&image).context("cannot make the image")?;
        file.set_len(disk_bytes).context("cannot make the image")?;
        drop(file);
        let direct = if takes_direct(&image) { "on" } else { "off" };
        let path = |name: &str| keyval_text(&dir.join(name));
        let arguments = [
            "--blockdev".to_owned(),
            format!(
                "driver=quota,node-name={NODE},limit={limit_bytes},file.driver=file,\
                 file.filename={},file.cache.direct={direct}",
                keyval_text(&image)
            ),
            "--export".to_owned(),
            format!(
                "type=vhost-user-blk,id={EXPORT},node-name={NODE},writable=on,werror={werror},\
                 addr.type=unix,addr.path={}",
                path("vda.sock")
            ),
            "--chardev".to_owned(),
            format!("socket,id=qmp,path={},server=on,wait=off", path("qmp.sock")),
            "--monitor".to_owned(),
            "chardev=qmp".to_owned(),
            "--pidfile".to_owned(),
            dir.join("pid").to_string_lossy().into_owned(),
        ];
        let program = std::env::current_exe().context("cannot find this program itself")?;
        let child = Command::new(program)
            .arg0("standfastd")
            .arg(DAEMON_COMMAND)
            .args(&arguments)
            // Whoever debugs the daemon says so himself.
            .env(
                "STANDFAST_LOG",
                std::env::var_os("STANDFAST_LOG").unwrap_or_else(|| "error".into()),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for the demo, which then ends the daemon.
            .process_group(0)
            .spawn()
            .context("cannot start the daemon")?;
        let mut server = Self {
            child,
            dir: dir.to_owned(),
        };
        server.wait_until_set_up()?;
        Ok(server)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The socket of the export.
    pub fn disk_socket(&self) -> PathBuf {
        self.dir.join("vda.sock")
    }

    /// A connection to its monitor.
    ///
    /// # Errors
    /// If it is gone.
    pub fn monitor(&self) -> Result<Client> {
        Client::connect(&self.dir.join("qmp.sock")).context("cannot reach the daemon's monitor")
    }

    fn wait_until_set_up(&mut self) -> Result<()> {
        let begin = Instant::now();
        // The pid file is written last.
        while !self.dir.join("pid").exists() {
            check_interrupt()?;
            if let Some(status) = self.child.try_wait()? {
                bail!("the daemon ended with {status}: {}", self.said());
            }
            ensure!(
                begin.elapsed() < START_PATIENCE,
                "the daemon was not set up within {} s",
                START_PATIENCE.as_secs()
            );
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    fn said(&mut self) -> String {
        let mut text = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            // What cannot be read is not said.
            let _ = stderr.read_to_string(&mut text);
        }
        text.trim_end().to_owned()
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// If it does not end, or not with status 0.
    pub fn stop(mut self) -> Result<()> {
        let status = self.terminate()?;
        ensure!(
            status.success(),
            "the daemon ended with {status}: {}",
            self.said()
        );
        Ok(())
    }

    fn terminate(&mut self) -> Result<std::process::ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM)?;
        }
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if begin.elapsed() > END_PATIENCE {
                self.child.kill()?;
                let status = self.child.wait()?;
                bail!(
                    "the daemon did not end within {} s: {status}",
                    END_PATIENCE.as_secs()
                );
            }
            std::thread::sleep(TICK);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Whatever fails has been told, or follows from something that has.
        let _ = self.terminate();
    }
}

/// A path as a keyval value.
fn keyval_text(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// Whether the file system takes O_DIRECT.
fn takes_direct(path: &Path) -> bool {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .is_ok()
}
