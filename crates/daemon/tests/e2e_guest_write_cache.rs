//! A real guest that gives its write cache up: what it believes survives reboots and daemons, and is
//! true on the device below.

mod harness;

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{PATIENCE, Server, server_on_device};
use serde_json::json;
use testkit::guest::{BOOT, GUEST_PATIENCE};
use testkit::{Guest, LoopDevice, VhostUserBlk};

const WRITES: u64 = 16;

/// A guest with a raw disk on a loop device, which counts its flushes.
struct Rig {
    guest: Guest,
    server: Server,
    device: LoopDevice,
}

impl Rig {
    fn new(with_state: bool) -> Result<Self> {
        let options = json!({ "werror": "stop", "rerror": "stop" });
        let (server, device) = server_on_device(with_state, options)?;
        let disk = VhostUserBlk::new(server.socket("vda")).reconnect(Duration::from_secs(1));
        let mut guest = Guest::builder().disk(disk).start()?;
        guest.wait_boot(BOOT)?;
        Ok(Self {
            guest,
            server,
            device,
        })
    }

    /// What the guest takes its disk for, in the kernel's words; the driver and the block layer agree.
    fn check(&self, cache: &str) -> Result<()> {
        let script = "cat /sys/block/vda/cache_type /sys/block/vda/queue/write_cache";
        let found = self.guest.run_ok(script, GUEST_PATIENCE)?;
        ensure!(found.trim() == format!("{cache}\n{cache}"), "{found:?}");
        // Single writes, one after the other, around the guest's page cache.
        let before = self.device.flushes()?;
        let write = format!(
            "dd if=/dev/zero of=/dev/vda bs=4k count={WRITES} oflag=direct conv=notrunc status=none"
        );
        self.guest.run_ok(&write, GUEST_PATIENCE)?;
        let flushes = self.device.flushes()? - before;
        // Without a cache each write is durable; with one the guest does not ask for that here.
        match cache {
            "write through" => ensure!(flushes >= WRITES, "{flushes} flushes, {WRITES} writes"),
            _ => ensure!(flushes < WRITES / 2, "{flushes} flushes"),
        }
        Ok(())
    }

    fn set(&self, cache: &str) -> Result<()> {
        let script = format!("echo '{cache}' >/sys/block/vda/cache_type");
        self.guest.run_ok(&script, GUEST_PATIENCE).map(drop)
    }

    /// Another daemon, after this one has been killed or told to end.
    fn restart(&mut self, kill: bool) -> Result<()> {
        if kill {
            self.server.daemon.kill()?;
        } else {
            self.server.daemon.terminate(PATIENCE)?;
        }
        self.server.start_again()
    }
}

/// The guest believed in no cache, sent no flush, and its writes were not durable any more: after a
/// reboot, and after a restart of the daemon.
fn cache_type(with_state: bool) -> Result<()> {
    let mut rig = Rig::new(with_state)?;
    rig.check("write back")?;
    rig.restart(true)?;
    rig.check("write back")?;
    rig.set("write through")?;
    rig.check("write through")?;
    rig.restart(true)?;
    rig.check("write through")?;
    rig.guest.reboot(BOOT)?;
    rig.check("write through")?;
    rig.restart(false)?;
    rig.check("write through")?;
    rig.set("write back")?;
    rig.restart(true)?;
    rig.check("write back")?;
    rig.guest.check_no_io_errors()?;
    let stderr = rig.server.daemon.stderr();
    ensure!(!stderr.contains("nobody remembers"), "{stderr}");
    ensure!(rig.guest.power_off(GUEST_PATIENCE)?.success());
    rig.server.finish()
}

#[test]
fn with_a_state() -> Result<()> {
    cache_type(true)
}

#[test]
fn without_a_state() -> Result<()> {
    cache_type(false)
}
