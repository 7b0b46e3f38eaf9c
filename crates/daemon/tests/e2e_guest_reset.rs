//! Reset while requests are held, by a real guest and by the test front end: what is held is
//! dropped and never done later, and the disk works again.

mod harness;

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{PATIENCE, Server, Setup, allocated, sparse};
use serde_json::{Value, json};
use testkit::guest::{BOOT, DirectWriters, GUEST_PATIENCE};
use testkit::{Driver, Guest, Rng, Tmpfs, VhostUserBlk, Workload, soak, wait_until};

const WRITERS: DirectWriters = DirectWriters {
    seed: 8,
    writers: 24,
    pages: 4,
};
const PAGE: u64 = 4096;

/// A guest with a raw disk on a tmpfs without any space.
struct Rig {
    guest: Guest,
    server: Server,
    image: PathBuf,
    tmpfs: Tmpfs,
    scope: &'static str,
}

impl Rig {
    fn new(scope: &'static str) -> Result<Self> {
        let tmpfs = Tmpfs::new(PAGE)?;
        let image = tmpfs.path().join("raw.img");
        sparse(&image, WRITERS.bytes())?;
        std::fs::write(tmpfs.path().join("ballast"), vec![1; 4096])?;
        let server = Setup::new()?
            .blockdev(&json!({ "driver": "file", "node-name": "disk0", "filename": image }))
            .export(
                "vda",
                "disk0",
                json!({ "werror": "stop", "rerror": "stop", "hold-scope": scope }),
            )
            .start()?;
        let mut guest = Guest::builder()
            .disk(VhostUserBlk::new(server.socket("vda")))
            .start()?;
        guest.wait_boot(BOOT)?;
        Ok(Self {
            guest,
            server,
            image,
            tmpfs,
            scope,
        })
    }

    /// Starts writers on a disk without space and waits until each of them waits.
    fn hold(&mut self) -> Result<testkit::guest::Job> {
        let image = OpenOptions::new().write(true).open(&self.image)?;
        image.set_len(0)?;
        image.set_len(WRITERS.bytes())?;
        self.tmpfs.resize(PAGE)?;
        self.server.qmp.take_events(Duration::ZERO)?;
        let job = self.guest.spawn(&WRITERS.script("vda"))?;
        job.wait_line("started", GUEST_PATIENCE)?;
        let guest = &self.guest;
        wait_until("all writers wait", GUEST_PATIENCE, || {
            let inflight = guest.run_ok("cat /sys/block/vda/inflight", GUEST_PATIENCE)?;
            let count = inflight.split_whitespace().last().context("two numbers")?;
            Ok(count.parse::<u64>()? == WRITERS.writers)
        })?;
        ensure!(!self.server.held("vda")?.is_empty());
        ensure!(self.server.io_status("vda")? == "nospace");
        Ok(job)
    }

    /// After a reset: the guest boots, nothing of what was held is ever done.
    fn check_dropped(&mut self) -> Result<()> {
        if self.scope == "vm" {
            // The guest looks at its disk before it has booted, and the disk is frozen.
            let server = &mut self.server;
            wait_until("the reset drops what is held", BOOT, || {
                Ok(server.held("vda")?.is_empty())
            })?;
            ensure!(self.server.run_state()? == "io-error");
            self.server.qmp.execute("cont", Value::Null)?;
        }
        let boot = self.guest.wait_boot(BOOT)?;
        println!("{}: booted within {boot:?}", self.scope);
        ensure!(self.server.held("vda")?.is_empty());
        ensure!(self.server.io_status("vda")? == "ok");
        ensure!(self.server.run_state()? == "running");
        self.tmpfs.resize(2 * WRITERS.bytes())?;
        self.server.qmp.execute("cont", Value::Null)?;
        sleep(Duration::from_millis(300));
        ensure!(
            allocated(&self.image)? == 0,
            "a dropped request was done later"
        );
        self.check_works(9)
    }

    fn check_works(&self, seed: u32) -> Result<()> {
        let writers = DirectWriters { seed, ..WRITERS };
        self.guest.run_ok(&writers.script("vda"), GUEST_PATIENCE)?;
        writers.check(&self.image)
    }

    fn resets(mut self) -> Result<()> {
        let rounds = soak(1, 5);
        for _ in 0..rounds {
            let job = self.hold()?;
            self.guest.system_reset(GUEST_PATIENCE)?;
            self.check_dropped()?;
            ensure!(job.wait(GUEST_PATIENCE).is_err());

            let _job = self.hold()?;
            self.guest.reboot_at_once(GUEST_PATIENCE)?;
            self.check_dropped()?;
        }
        self.unbound()?;
        self.guest.check_no_io_errors()?;
        ensure!(self.guest.power_off(GUEST_PATIENCE)?.success());
        self.server.finish()
    }

    /// Linux does not unbind a disk before all its requests are completed: it waits, they are not
    /// dropped. Then the device is reset, and works for the next driver.
    fn unbound(&mut self) -> Result<()> {
        let writing = self.hold()?;
        let unbinding = self.guest.spawn(
            "device=$(readlink /sys/block/vda/device)
basename $device >/run/device
cat /run/device >/sys/bus/virtio/drivers/virtio_blk/unbind",
        )?;
        sleep(Duration::from_secs(1));
        ensure!(!unbinding.has_ended() && !writing.has_ended());
        ensure!(!self.server.held("vda")?.is_empty());
        self.tmpfs.resize(2 * WRITERS.bytes())?;
        self.server.qmp.execute("cont", Value::Null)?;
        let output = unbinding.wait(GUEST_PATIENCE)?;
        ensure!(output.status == 0, "{output:?}");
        self.guest.run_ok(
            "[ ! -e /dev/vda ] || exit
cat /run/device >/sys/bus/virtio/drivers/virtio_blk/bind
while [ ! -e /dev/vda ]; do sleep 0.1; done",
            GUEST_PATIENCE,
        )?;
        ensure!(self.server.held("vda")?.is_empty());
        self.check_works(10)
    }
}

#[test]
fn guest_scope_vm() -> Result<()> {
    Rig::new("vm")?.resets()
}

#[test]
fn guest_scope_device() -> Result<()> {
    Rig::new("device")?.resets()
}

#[test]
fn guest_scope_request() -> Result<()> {
    Rig::new("request")?.resets()
}

/// Reads and writes are held or in flight when the device is reset: none of their buffers is
/// written to any more, and none of them is completed.
fn front_end(scope: &str, queues: u16, seed: u64) -> Result<()> {
    const BLOCKS: usize = 2048;
    let setup = Setup::new()?;
    let image = setup.path("disk0.img");
    sparse(&image, BLOCKS as u64 * 4096)?;
    let mut server = setup
        .blockdev(&json!({ "driver": "blkdebug", "node-name": "disk0",
            "image": { "driver": "file", "node-name": "file0", "filename": image } }))
        .export(
            "vda",
            "disk0",
            json!({ "werror": "stop", "rerror": "stop", "hold-scope": scope,
                "num-queues": queues }),
        )
        .start()?;
    let options = frontend::Options {
        queues,
        ..frontend::Options::default()
    };
    let mut disk = server.disk_with("vda", options)?;
    let mut driver = Driver::new(Workload {
        seed,
        requests: u64::MAX,
        depth: 64,
        blocks: BLOCKS,
        timeout: PATIENCE,
        ..Workload::default()
    });
    let mut rng = Rng::new(seed);
    let (rounds, mut dropped, mut held) = (soak(10, 200), 0, 0);
    for round in 0..rounds {
        let what = || format!("{scope}, seed {seed}, round {round}");
        server.qmp.take_events(Duration::ZERO)?;
        let kind = ["read", "write", "flush"][usize::try_from(rng.below(3))?];
        server.inject(
            "disk0",
            json!({ "event": "none", "iotype": kind, "errno": 5 }),
        )?;
        server
            .run_until_held(&mut driver, &mut disk, "vda")
            .with_context(what)?;
        driver.fill(&mut disk)?;
        sleep(Duration::from_micros(rng.below(3000)));
        held += server.held("vda")?.len();
        let tokens = disk.reset().with_context(what)?;
        driver.dropped(&tokens).with_context(what)?;
        dropped += tokens.len();
        server.clear("disk0")?;
        ensure!(server.held("vda")?.is_empty(), "{}", what());
        ensure!(server.io_status("vda")? == "ok", "{}", what());
        if scope == "vm" {
            ensure!(server.run_state()? == "io-error", "{}", what());
            server.qmp.execute("cont", Value::Null)?;
        }
        // The new life works at once.
        let end = Instant::now() + Duration::from_millis(20);
        while Instant::now() < end {
            driver.fill(&mut disk)?;
            driver.reap(&mut disk).with_context(what)?;
        }
        server.qmp.execute("cont", Value::Null)?;
        driver.drain(&mut disk).with_context(what)?;
        if let Err(stray) = disk.check_dropped() {
            anyhow::bail!("{}: {stray:?}", what());
        }
        disk.forget_dropped();
    }
    driver.plan_no_more();
    server.run_to_end(&mut driver, &mut disk, |_| Ok(()))?;
    driver.read_back(&mut disk)?;
    let summary = driver.finish(&mut disk)?;
    println!("{scope}: {rounds} resets, {held} held, {dropped} dropped, {summary:?}");
    drop(disk);
    server.finish()
}

#[test]
fn front_end_scope_vm() -> Result<()> {
    front_end("vm", 1, 51)
}

#[test]
fn front_end_scope_device() -> Result<()> {
    front_end("device", 4, 52)
}

#[test]
fn front_end_scope_request() -> Result<()> {
    front_end("request", 1, 53)
}
