//! The error path: how fast a failure is told, how fast a `cont` helps, and whether the monitor stays
//! quick while much is held.

use anyhow::{Context, Result, ensure};
use frontend::lane::{Lane, LaneOptions};
use frontend::{Disk, Options};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::Qmp;

use crate::beside;
use crate::hanging;
use crate::latency::{Latency, histogram, latency, record};
use crate::process;
use crate::release;
use crate::server::{Running, Server, Setup};

const QUEUES: u16 = 8;
const DEPTH: u16 = 128;
const BYTES: u32 = 4096;
const PATIENCE: Duration = Duration::from_secs(20);
const BLKDEBUG: [&str; 2] = [
    "driver=null-co,node-name=null0,size=1073741824",
    "driver=blkdebug,node-name=disk,image=null0",
];

/// Name of the latency that has a target.
pub const FAILURE_TO_EVENT: &str = "failing request sent to BLOCK_IO_ERROR received";

/// Measures all of it, with `rounds` failures.
///
/// # Errors
/// If the daemon does not do as it should.
pub fn measure(standfastd: &Path, cpus: [usize; 2], rounds: u32) -> Result<Vec<Latency>> {
    let before = process::allowed_cpus()?;
    process::pin(cpus[1])?;
    let result = measure_here(standfastd, cpus[0], rounds);
    process::allow_cpus(&before)?;
    result
}

fn measure_here(standfastd: &Path, cpu: usize, rounds: u32) -> Result<Vec<Latency>> {
    let mut latencies = failures(standfastd, cpu, rounds)?.to_vec();
    latencies.push(queries(standfastd, cpu, rounds * 10, Held::Everything)?);
    latencies.push(queries(standfastd, cpu, rounds * 10, Held::VmmSilent)?);
    latencies.extend(hanging::measure(standfastd, cpu, rounds)?);
    latencies.extend(beside::measure(standfastd, cpu, rounds)?);
    latencies.extend(release::measure(standfastd, cpu)?);
    Ok(latencies)
}

/// A daemon whose disk fails on demand, its monitor, and a client.
struct Scene {
    running: Running,
    qmp: Qmp,
    disk: Disk,
    lanes: Vec<Lane>,
}

impl Scene {
    fn new(standfastd: &Path, cpu: usize, queues: u16, depth: u16, more: &Extra) -> Result<Self> {
        let mut setup = Setup::new(Server::Standfast, BLKDEBUG[0]);
        setup.blockdevs.push(BLKDEBUG[1].to_owned());
        setup.queues = queues;
        setup.qmp = true;
        setup.cpu = Some(cpu);
        setup.export = more.export.to_owned();
        setup.more = more.arguments.clone();
        let running = setup.start(standfastd)?;
        let qmp = Qmp::connect(running.qmp())?;
        let options = Options {
            queues,
            queue_size: 128,
            memory_regions: 1,
            ..Options::default()
        };
        let mut disk = Disk::connect(running.socket(), options)?;
        let options = LaneOptions {
            depth,
            bytes: BYTES,
            read: false,
            indirect: true,
        };
        let lanes = (0..queues)
            .map(|queue| disk.lane(queue, options))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            running,
            qmp,
            disk,
            lanes,
        })
    }

    fn fail_writes(&mut self, once: bool) -> Result<()> {
        let rule = json!({
            "node-name": "disk", "event": "none", "iotype": "write", "errno": 28, "once": once
        });
        self.qmp.execute("x-blkdebug-inject", rule)?;
        Ok(())
    }

    /// Waits for a completion of one lane, looking all the time.
    fn spin(lane: &mut Lane) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !lane.has_completions() {
            std::hint::spin_loop();
            ensure!(
                Instant::now() < deadline,
                "a released request is not completed"
            );
        }
        let mut failed = false;
        lane.reap(|_, status| failed |= status != 0)?;
        ensure!(!failed, "a request that was held has failed");
        Ok(())
    }

    fn finish(self) -> Result<()> {
        drop(self.lanes);
        drop(self.disk);
        drop(self.qmp);
        self.running.finish()?;
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Extra {
    export: &'static str,
    arguments: Vec<String>,
}

/// One write fails, the event comes, `cont`, the write is completed.
fn failures(standfastd: &Path, cpu: usize, rounds: u32) -> Result<[Latency; 2]> {
    let mut scene = Scene::new(standfastd, cpu, 1, 1, &Extra::default())?;
    let (mut event, mut cont) = (histogram()?, histogram()?);
    for _ in 0..rounds {
        scene.fail_writes(true)?;
        let lane = &mut scene.lanes[0];
        lane.put(0, 0);
        lane.publish();
        let start = Instant::now();
        lane.kick()?;
        scene.qmp.wait_event("BLOCK_IO_ERROR", PATIENCE)?;
        record(&mut event, start);
        scene.qmp.wait_event("STOP", PATIENCE)?;
        let start = Instant::now();
        scene.qmp.send_raw(b"{\"execute\":\"cont\"}\n")?;
        Scene::spin(lane)?;
        record(&mut cont, start);
        while scene.qmp.receive_raw(PATIENCE)?.get("return").is_none() {}
    }
    scene.finish()?;
    Ok([
        latency(FAILURE_TO_EVENT, &event),
        latency("cont sent to the held request completed", &cont),
    ])
}

/// What goes on while the monitor is asked.
#[derive(Debug, Clone, Copy)]
enum Held {
    /// All requests of all queues are held.
    Everything,
    /// They are, the VM is to be paused, and its VMM does not answer.
    VmmSilent,
}

/// `query-status` while requests are held.
fn queries(standfastd: &Path, cpu: usize, rounds: u32, held: Held) -> Result<Latency> {
    let count = u64::from(QUEUES) * u64::from(DEPTH);
    let (extra, name) = match held {
        Held::Everything => (
            Extra {
                export: ",hold-scope=request",
                arguments: Vec::new(),
            },
            format!("query-status while {count} requests are held"),
        ),
        Held::VmmSilent => {
            let link =
                r#"{"qom-type":"vmm-command","id":"vm0","pause":["sleep","60"],"resume":["true"]}"#;
            let extra = Extra {
                export: ",hold-scope=request",
                arguments: vec!["--object".to_owned(), link.to_owned()],
            };
            (
                extra,
                format!("query-status while {count} are held and the VMM does not answer"),
            )
        }
    };
    let mut scene = Scene::new(standfastd, cpu, QUEUES, DEPTH, &extra)?;
    scene.fail_writes(false)?;
    for (queue, lane) in (0..).zip(&mut scene.lanes) {
        for slot in 0..DEPTH {
            // Each its own block: what overlaps a held write waits behind it, and is not held.
            let block = queue * u64::from(DEPTH) + u64::from(slot);
            lane.put(slot, block * u64::from(BYTES) / 512);
        }
        lane.publish();
        lane.kick()?;
    }
    let expected = usize::try_from(count)?;
    let deadline = Instant::now() + PATIENCE;
    while held_now(&mut scene.qmp)? < expected {
        ensure!(
            Instant::now() < deadline,
            "fewer than {expected} requests are held"
        );
    }
    if matches!(held, Held::VmmSilent) {
        hanging::stop_unanswered(&mut scene.qmp)?;
    }
    let mut times = histogram()?;
    for _ in 0..rounds {
        let start = Instant::now();
        scene.qmp.execute("query-status", Value::Null)?;
        record(&mut times, start);
    }
    scene
        .qmp
        .execute("x-blkdebug-clear", json!({"node-name": "disk"}))?;
    scene.qmp.execute("cont", Value::Null)?;
    for lane in &mut scene.lanes {
        let deadline = Instant::now() + PATIENCE;
        let (mut done, mut failed) = (0, 0);
        while done < DEPTH {
            lane.reap(|_, status| {
                done += 1;
                failed += u16::from(status != 0);
            })?;
            ensure!(Instant::now() < deadline, "{done} of {DEPTH} are completed");
        }
        ensure!(failed == 0, "{failed} of {DEPTH} held requests have failed");
    }
    scene.finish()?;
    Ok(latency(&name, &times))
}

fn held_now(qmp: &mut Qmp) -> Result<usize> {
    let held = qmp.execute("x-query-held", Value::Null)?;
    Ok(held
        .as_array()
        .context("x-query-held returns a list")?
        .len())
}
