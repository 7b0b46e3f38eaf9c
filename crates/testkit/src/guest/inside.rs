//! What a test does inside a guest, whoever has started it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::agent::{Agent, Job, Output};
use super::files::Files;
use super::kernel_log::io_errors;

/// The inside of a guest that was booted as [`Boot`](super::Boot) says.
#[derive(Debug)]
pub struct Inside {
    pub(super) agent: Agent,
    kernel_log: PathBuf,
}

impl Inside {
    /// Connects to the guest's second serial port, on the unix socket `port`. Its first one is written to
    /// `kernel_log`.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn connect(port: &Path, kernel_log: &Path) -> Result<Self> {
        Ok(Self {
            agent: Agent::connect(port, kernel_log)?,
            kernel_log: kernel_log.to_owned(),
        })
    }

    /// Waits until a guest that was just started has booted and found its disks.
    ///
    /// # Errors
    /// If it takes longer than `timeout`; with the end of the kernel log.
    pub fn wait_first_boot(&self, timeout: Duration) -> Result<()> {
        self.agent.wait_boot(0, timeout).map(drop)
    }

    /// Starts a shell script in the guest, of at most 16 KiB; any number at the same time.
    ///
    /// It has ended when nobody has its output open any more: what it leaves in the background
    /// should write elsewhere.
    ///
    /// # Errors
    /// If the guest has not booted, or QEMU has ended.
    pub fn spawn(&self, script: &str) -> Result<Job> {
        self.agent.spawn(script)
    }

    /// Runs a shell script in the guest, to its end.
    ///
    /// # Errors
    /// As [`Self::spawn`]; if it takes longer than `timeout` or the guest is reset meanwhile.
    pub fn run(&self, script: &str, timeout: Duration) -> Result<Output> {
        self.spawn(script)?.wait(timeout)
    }

    /// Runs a shell script in the guest that must succeed; returns what it wrote.
    ///
    /// # Errors
    /// As [`Self::run`]; if its status is not 0, with what it wrote.
    pub fn run_ok(&self, script: &str, timeout: Duration) -> Result<String> {
        let Output { status, output } = self.run(script, timeout)?;
        ensure!(
            status == 0,
            "{script:?} in the guest: status {status}:\n{output}"
        );
        Ok(output)
    }

    /// Mounts a disk, such as `vda`, on a directory that is made.
    ///
    /// # Errors
    /// If the guest cannot.
    pub fn mount(&self, disk: &str, dir: &str, timeout: Duration) -> Result<()> {
        let script = format!("mkdir -p '{dir}' && mount -t ext4 '/dev/{disk}' '{dir}'");
        self.run_ok(&script, timeout).map(drop)
    }

    /// Writes files, each to the disk. [`Files::write_command`] with [`Self::spawn`] does it in
    /// the background.
    ///
    /// # Errors
    /// If one cannot be written.
    pub fn write_files(&self, files: &Files, timeout: Duration) -> Result<()> {
        self.run_ok(&files.write_command(), timeout).map(drop)
    }

    /// Reads files back from the disk.
    ///
    /// # Errors
    /// If one is not what was written; with the place and what is there.
    pub fn verify_files(&self, files: &Files, timeout: Duration) -> Result<()> {
        self.run_ok(&files.verify_command(), timeout).map(drop)
    }

    /// Writes everything to the disks and forgets what is cached.
    ///
    /// # Errors
    /// If the guest cannot.
    pub fn drop_caches(&self, timeout: Duration) -> Result<()> {
        let script = "sync && echo 3 >/proc/sys/vm/drop_caches";
        self.run_ok(script, timeout).map(drop)
    }

    /// The guest's own time since its boot; it stands still while the VM is stopped. In steps of
    /// 10 ms.
    ///
    /// # Errors
    /// If the guest does not say.
    pub fn uptime(&self, timeout: Duration) -> Result<Duration> {
        let text = self.run_ok("cat /proc/uptime", timeout)?;
        let seconds = text.split(' ').next().and_then(|first| first.parse().ok());
        let seconds = seconds.with_context(|| format!("/proc/uptime says {text:?}"))?;
        Ok(Duration::try_from_secs_f64(seconds)?)
    }

    /// What the kernel said on its console, in all boots so far. Of a boot only warnings and errors
    /// are there, everything thereafter.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn kernel_log(&self) -> Result<String> {
        let log = fs::read(&self.kernel_log).context("the kernel log")?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// Makes sure that the guest was not shown any storage error, in any boot so far.
    ///
    /// # Errors
    /// If it was; with those lines of the kernel log.
    pub fn check_no_io_errors(&self) -> Result<()> {
        let errors = io_errors(&self.kernel_log()?);
        ensure!(
            errors.is_empty(),
            "the guest's kernel tells of errors:\n{}",
            errors.join("\n")
        );
        Ok(())
    }
}
