//! A real guest: QEMU with Debian's cloud kernel, and busybox as its whole user space.
//!
//! It needs the Debian packages qemu-system-x86, linux-image-cloud-amd64 and busybox-static, and
//! e2fsprogs for [`make_ext4_image`]; no root and no KVM. QEMU always emulates (TCG): a boot costs
//! some seconds of CPU time, wherever it runs.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use standfast_testkit::guest::{Guest, VhostUserBlk};
//! # fn main() -> anyhow::Result<()> {
//! let mut guest = Guest::builder().disk(VhostUserBlk::new("/tmp/disk.sock")).start()?;
//! guest.wait_boot(Duration::from_secs(120))?;
//! let listing = guest.run_ok("mount /dev/vda /mnt; ls /mnt", Duration::from_secs(20))?;
//! guest.check_no_io_errors()?;
//! # Ok(())
//! # }
//! ```

mod agent;
mod cpio;
mod disk;
mod files;
mod initramfs;
mod kernel;
mod kernel_log;
mod start;

use std::fs;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

pub use self::agent::{Job, Output};
pub use self::disk::{Disk, VhostUserBlk, VirtioBlk};
pub use self::files::{Files, make_ext4_image, stamp};
pub use self::kernel_log::io_errors;
pub use self::start::Builder;

use self::agent::Agent;
use crate::daemon::Daemon;
use crate::qmp::Qmp;

/// Unmounts every disk. A file system in use is an error, not a lazy unmount.
const UNMOUNT: &str = "sync
for dir in $(awk '/^\\/dev\\// { print $2 }' /proc/mounts); do umount \"$dir\" || exit; done";

/// A running guest. QEMU is killed on drop.
#[derive(Debug)]
pub struct Guest {
    // Dropped in this order: QEMU first, its directory last.
    qemu: Daemon,
    agent: Agent,
    qmp: Qmp,
    kernel_log: PathBuf,
    /// How often it had booted when [`Guest::wait_boot`] last looked.
    boots: u64,
    /// When it was started or reset.
    since: Instant,
    _dir: TempDir,
}

impl Guest {
    /// Waits until the guest, started or reset, has booted and found its disks. Returns how long
    /// it took since then.
    ///
    /// # Errors
    /// If it takes longer than `timeout`; with the end of the kernel log.
    pub fn wait_boot(&mut self, timeout: Duration) -> Result<Duration> {
        self.boots = self
            .agent
            .wait_boot(self.boots, timeout)
            .with_context(|| format!("QEMU's stderr: {}", self.qemu.stderr()))?;
        Ok(self.since.elapsed())
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
    /// As [`Guest::spawn`]; if it takes longer than `timeout` or the guest is reset meanwhile.
    pub fn run(&self, script: &str, timeout: Duration) -> Result<Output> {
        self.spawn(script)?.wait(timeout)
    }

    /// Runs a shell script in the guest that must succeed; returns what it wrote.
    ///
    /// # Errors
    /// As [`Guest::run`]; if its status is not 0, with what it wrote.
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

    /// Writes files, each to the disk. [`Files::write_command`] with [`Guest::spawn`] does it in
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

    /// Lets the guest unmount its disks and reboot; returns how long the boot took.
    ///
    /// # Errors
    /// If a disk is in use, or each of unmounting, reset and boot takes longer than `timeout`.
    pub fn reboot(&mut self, timeout: Duration) -> Result<Duration> {
        self.run_ok(UNMOUNT, timeout)?;
        self.reboot_at_once(timeout)?;
        self.wait_boot(timeout)
    }

    /// Lets the guest reboot at once, whatever waits for its disks. [`Guest::wait_boot`] waits for
    /// the boot.
    ///
    /// # Errors
    /// If it takes longer than `timeout`.
    pub fn reboot_at_once(&mut self, timeout: Duration) -> Result<()> {
        let _job = self.spawn("reboot -f")?;
        self.wait_reset(timeout)
    }

    /// Presses the reset button. What the guest has not written is lost. [`Guest::wait_boot`]
    /// waits for the boot.
    ///
    /// # Errors
    /// If QEMU refuses, or takes longer than `timeout`.
    pub fn system_reset(&mut self, timeout: Duration) -> Result<()> {
        self.qmp.execute("system_reset", Value::Null)?;
        self.wait_reset(timeout)
    }

    fn wait_reset(&mut self, timeout: Duration) -> Result<()> {
        self.qmp.wait_event("RESET", timeout)?;
        self.since = Instant::now();
        self.boots = self.agent.boots();
        Ok(())
    }

    /// Lets the guest unmount its disks and power off; returns QEMU's exit status.
    ///
    /// # Errors
    /// If a disk is in use, or it takes longer than `timeout`.
    pub fn power_off(mut self, timeout: Duration) -> Result<ExitStatus> {
        self.run_ok(UNMOUNT, timeout)?;
        let _job = self.spawn("poweroff -f")?;
        self.qemu.wait(timeout)
    }

    /// QEMU's own monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// QEMU as a process.
    pub fn qemu(&mut self) -> &mut Daemon {
        &mut self.qemu
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
