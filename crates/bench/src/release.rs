//! What a `cont` costs when much is held: the time per request must not grow with their number.

use anyhow::{Context, Result, ensure};
use frontend::lane::{Lane, LaneOptions};
use frontend::{Disk, Options};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::Qmp;

use crate::latency::{Latency, histogram, latency};
use crate::server::{Running, Server, Setup};

const DEPTH: u16 = 1024;
const BYTES: u32 = 512;
const PATIENCE: Duration = Duration::from_secs(120);
const ROUNDS: u32 = 3;

/// Few and many, each its own sector and all the same one: the time of each request.
///
/// # Errors
/// If the daemon does not do as it should, or takes minutes.
pub fn measure(standfastd: &Path, cpu: usize) -> Result<Vec<Latency>> {
    let mut rows = Vec::new();
    for one_sector in [false, true] {
        let few = release(standfastd, cpu, 8, one_sector)?;
        let many = release(standfastd, cpu, 64, one_sector)?;
        rows.extend([few, many]);
    }
    Ok(rows)
}

fn release(standfastd: &Path, cpu: usize, queues: u16, one_sector: bool) -> Result<Latency> {
    let count = u32::from(queues) * u32::from(DEPTH);
    let name = match one_sector {
        false => format!("cont, per request of {count} held writes"),
        true => format!("cont, per request of {count} held and waiting writes of one sector"),
    };
    let mut times = histogram()?;
    for _ in 0..ROUNDS {
        let time = round(standfastd, cpu, queues, one_sector).context(name.clone())? / count;
        times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(latency(&name, &times))
}

/// From `cont` to the end of the last request.
fn round(standfastd: &Path, cpu: usize, queues: u16, one_sector: bool) -> Result<Duration> {
    let mut setup = Setup::new(
        Server::Standfast,
        "driver=null-co,node-name=null0,size=1073741824",
    );
    setup
        .blockdevs
        .push("driver=blkdebug,node-name=disk,image=null0".to_owned());
    setup.queues = queues;
    setup.qmp = true;
    setup.cpu = Some(cpu);
    setup.export = ",hold-scope=request".to_owned();
    let running = setup.start(standfastd)?;
    let options = Options {
        queues,
        queue_size: DEPTH,
        memory_bytes: 512 << 20,
        memory_regions: 1,
        ..Options::default()
    };
    let mut disk = Disk::connect(running.socket(), options)?;
    let lane = LaneOptions {
        depth: DEPTH,
        bytes: BYTES,
        read: false,
        indirect: true,
    };
    let lanes = (0..queues).map(|queue| disk.lane(queue, lane));
    let mut lanes = lanes.collect::<Result<Vec<Lane>, _>>()?;
    let rule = json!({ "node-name": "disk", "event": "none", "iotype": "write", "errno": 28 });
    command(&running, "x-blkdebug-inject", rule)?;
    for (queue, lane) in (0..).zip(&mut lanes) {
        for slot in 0..DEPTH {
            let sector = queue * u64::from(DEPTH) + u64::from(slot);
            lane.put(slot, if one_sector { 0 } else { sector });
        }
        lane.publish();
        lane.kick()?;
    }
    let all_are_taken = |disk: &Disk| {
        let region = disk.inflight()?;
        let taken = |queue| region.marked(queue).len() == usize::from(DEPTH);
        Some((0..queues).all(taken))
    };
    let deadline = Instant::now() + PATIENCE;
    while !all_are_taken(&disk).context("there is an inflight region")?
        || held(&running)?
            < if one_sector {
                1
            } else {
                u64::from(queues) * u64::from(DEPTH)
            }
    {
        ensure!(Instant::now() < deadline, "not all are held");
        std::thread::sleep(Duration::from_millis(100));
    }
    command(&running, "x-blkdebug-clear", json!({ "node-name": "disk" }))?;
    let start = Instant::now();
    command(&running, "cont", Value::Null)?;
    let (mut left, mut failed) = (u32::from(queues) * u32::from(DEPTH), 0);
    while left > 0 {
        for lane in &mut lanes {
            lane.reap(|_, status| {
                left -= 1;
                failed += u32::from(status != 0);
            })?;
        }
        ensure!(start.elapsed() < PATIENCE, "{left} are not completed");
    }
    let time = start.elapsed();
    ensure!(failed == 0, "{failed} held requests have failed");
    drop((lanes, disk));
    running.finish()?;
    Ok(time)
}

/// By a connection of its own: there is an event for each failure, which nobody shall read here.
fn command(running: &Running, name: &str, arguments: Value) -> Result<Value> {
    let mut qmp = Qmp::connect(running.qmp())?;
    qmp.set_timeout(PATIENCE);
    Ok(qmp.execute(name, arguments)?)
}

fn held(running: &Running) -> Result<u64> {
    let list = command(running, "query-block", Value::Null)?;
    list[0]["x-held"].as_u64().context("x-held is a number")
}
