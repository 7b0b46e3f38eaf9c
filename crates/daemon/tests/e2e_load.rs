//! Eight queues of depth 128 under faults on one request in seven, with stop, cont, reset and
//! reconnect at random: nothing is lost or done twice, and the daemon is as big as before.

mod harness;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use frontend::{Disk, Options};
use harness::footprint::Footprint;
use harness::{MIB, PATIENCE, Server, Setup, sparse};
use serde_json::{Value, json};
use testkit::{Driver, Rng, Workload, soak, wait_until};

const QUEUES: u16 = 8;
const DEPTH: usize = 128;
const BLOCKS: usize = 32768;
/// What the allocator may keep of its own accord, in KiB.
const GROWTH_KIB_MAX: u64 = 1024;

#[derive(Debug, Default)]
struct Count {
    stops: u64,
    conts: u64,
    resets: u64,
    reconnects: u64,
    holds: u64,
}

impl Count {
    fn is_complete(&self) -> bool {
        self.stops > 0 && self.resets > 0 && self.reconnects > 0
    }
}

struct Load {
    server: Server,
    /// Always there but while it reconnects.
    disk: Option<Disk>,
    driver: Driver,
    rng: Rng,
    count: Count,
}

impl Load {
    fn new(scope: &str, iothreads: usize, seed: u64) -> Result<Self> {
        let setup = Setup::new()?.iothreads(iothreads);
        let image = setup.path("disk0.img");
        sparse(&image, BLOCKS as u64 * 4096)?;
        let mut server = setup
            .blockdev(&json!({ "driver": "blkdebug", "node-name": "disk0",
                "image": { "driver": "file", "node-name": "file0", "filename": image,
                    "discard": "unmap" } }))
            .export(
                "vda",
                "disk0",
                json!({ "werror": "stop", "rerror": "stop", "hold-scope": scope,
                    "num-queues": QUEUES, "iothread": harness::iothreads(iothreads) }),
            )
            .start()?;
        for errno in [28, 5] {
            let rule = json!({ "event": "none", "errno": errno, "every-nth": 14 });
            server.inject("disk0", rule)?;
        }
        let disk = server.disk_with(
            "vda",
            Options {
                queues: QUEUES,
                memory_bytes: 256 * MIB,
                ..Options::default()
            },
        )?;
        let driver = Driver::new(Workload {
            seed,
            requests: u64::MAX,
            depth: DEPTH * usize::from(QUEUES),
            blocks: BLOCKS,
            blocks_max: 8,
            timeout: PATIENCE,
            ..Workload::default()
        });
        Ok(Self {
            server,
            disk: Some(disk),
            driver,
            rng: Rng::new(seed ^ 0x10ad),
            count: Count::default(),
        })
    }

    fn disk(&mut self) -> Result<&mut Disk> {
        self.disk.as_mut().context("a disk")
    }

    fn run(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        // On a busy machine the time is over before everything has happened.
        while Instant::now() < end || !self.count.is_complete() {
            let disk = self.disk.as_mut().context("a disk")?;
            self.driver.fill(disk)?;
            self.driver.reap_within(disk, Duration::from_millis(1))?;
            self.disturb()?;
            for event in self.server.qmp.take_events(Duration::ZERO)? {
                let held = event.name == "BLOCK_IO_ERROR" && event.data["action"] == "stop";
                self.count.holds += u64::from(held);
            }
        }
        Ok(())
    }

    fn disturb(&mut self) -> Result<()> {
        match self.rng.below(100) {
            0..5 => {
                self.count.stops += 1;
                self.server.qmp.execute("stop", Value::Null)?;
            }
            5..9 => {
                self.count.resets += 1;
                let disk = self.disk.as_mut().context("a disk")?;
                // The former ones have been watched for long enough.
                if let Err(stray) = disk.check_dropped() {
                    anyhow::bail!("{stray:?}");
                }
                disk.forget_dropped();
                let dropped = disk.reset()?;
                self.driver.dropped(&dropped)?;
            }
            9..13 => {
                self.count.reconnects += 1;
                let state = self.disk.take().context("a disk")?.disconnect();
                self.disk = Some(self.server.reconnect("vda", state)?);
            }
            13..17 => {
                let disk = self.disk()?;
                // The VM is stopped and goes on.
                disk.stop()?;
                disk.start()?;
            }
            _ => {
                self.count.conts += 1;
                self.server.qmp.execute("cont", Value::Null)?;
            }
        }
        Ok(())
    }

    /// Everything that is outstanding is done, in spite of the faults.
    fn drain(&mut self) -> Result<()> {
        let Self {
            server,
            disk,
            driver,
            ..
        } = self;
        let disk = disk.as_mut().context("a disk")?;
        wait_until("everything is done", PATIENCE, || {
            server.qmp.execute("cont", Value::Null)?;
            driver.reap_within(disk, Duration::from_millis(5))?;
            Ok(driver.outstanding() == 0)
        })
    }

    fn footprint(&self) -> Result<Footprint> {
        Footprint::of(self.server.daemon.pid())
    }
}

fn under_load(scope: &str, iothreads: usize, seed: u64) -> Result<()> {
    let time = Duration::from_secs(soak(3, 300));
    let mut load = Load::new(scope, iothreads, seed)?;
    // What is allocated once and kept is not what is looked for.
    load.run(time / 2)?;
    load.drain()?;
    let before = load.footprint()?;
    load.run(time)?;
    load.drain()?;
    // Descriptors of the last reconnect are closed when the old session has been cleared away.
    wait_until("the descriptors are back", PATIENCE, || {
        Ok(load.footprint()?.descriptors <= before.descriptors)
    })
    .with_context(|| format!("{before:?}, {:?}", load.footprint()))?;
    let after = load.footprint()?;
    ensure!(
        after.resident_kib <= before.resident_kib + GROWTH_KIB_MAX,
        "{before:?}, {after:?}"
    );

    let Load {
        mut server,
        disk,
        mut driver,
        count,
        ..
    } = load;
    let mut disk = disk.context("a disk")?;
    server.clear("disk0")?;
    driver.plan_no_more();
    server.run_to_end(&mut driver, &mut disk, |_| Ok(()))?;
    driver.read_back(&mut disk)?;
    let summary = driver.finish(&mut disk)?;
    println!(
        "{scope}, {iothreads} iothreads, seed {seed}: {count:?}, {summary:?}, {before:?}, {after:?}"
    );
    ensure!(count.holds > 100, "{count:?}");
    ensure!(server.held("vda")?.is_empty());
    drop(disk);
    server.finish()
}

#[test]
fn scope_vm() -> Result<()> {
    under_load("vm", 0, 31)
}

#[test]
fn scope_request() -> Result<()> {
    under_load("request", 0, 32)
}

#[test]
fn scope_vm_on_four_iothreads() -> Result<()> {
    under_load("vm", 4, 33)
}

#[test]
fn scope_request_on_three_iothreads() -> Result<()> {
    under_load("request", 3, 34)
}
