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
mod boot;
mod cpio;
mod disk;
mod files;
mod initramfs;
mod inside;
mod kernel;
mod kernel_log;
mod root;
mod start;
mod writers;

use std::ops::Deref;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

pub use self::agent::{Job, Output};
pub use self::boot::Boot;
pub use self::disk::{Disk, VhostUserBlk, VirtioBlk};
pub use self::files::{Files, make_ext4_image, stamp};
pub use self::inside::Inside;
pub use self::kernel_log::io_errors;
pub use self::root::make_root;
pub use self::start::Builder;
pub use self::writers::{BOOT, DirectWriters, GUEST_PATIENCE, PROMPT, buffered_writers, promptly};

use crate::daemon::Daemon;
use crate::qmp::Qmp;

/// Unmounts every disk; one that is the root becomes read-only. A file system in use is an error, not a lazy unmount.
const UNMOUNT: &str = "sync
for dir in $(awk '/^\\/dev\\// { print $2 }' /proc/mounts); do
    if [ \"$dir\" = / ]; then mount -o remount,ro /; else umount \"$dir\"; fi || exit
done";

/// A running guest. QEMU is killed on drop.
#[derive(Debug)]
pub struct Guest {
    // Dropped in this order: QEMU first, its directory last.
    qemu: Daemon,
    inside: Inside,
    qmp: Qmp,
    /// How often it had booted when [`Guest::wait_boot`] last looked.
    boots: u64,
    /// When it was started or reset.
    since: Instant,
    _dir: TempDir,
}

impl Deref for Guest {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}

impl Guest {
    /// Waits until the guest, started or reset, has booted and found its disks. Returns how long
    /// it took since then.
    ///
    /// # Errors
    /// If it takes longer than `timeout`; with the end of the kernel log.
    pub fn wait_boot(&mut self, timeout: Duration) -> Result<Duration> {
        self.boots = self
            .inside
            .agent
            .wait_boot(self.boots, timeout)
            .with_context(|| format!("QEMU's stderr: {}", self.qemu.stderr()))?;
        Ok(self.since.elapsed())
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
        self.boots = self.inside.agent.boots();
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
}
