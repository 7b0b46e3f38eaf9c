//! A guest that reads a broken disk as fast as it can, under `rerror=report`.

mod harness;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use frontend::lane::LaneOptions;
use frontend::{Disk, Options};
use harness::{PATIENCE, Server, Setup};
use serde_json::{Value, json};

const QUEUES: u16 = 2;
const DEPTH: u16 = 64;
const FLOOD: Duration = Duration::from_secs(3);

/// Reads until it is told to end. Returns how many have failed.
fn read_on(disk: &mut Disk, ended: &AtomicBool) -> Result<u64> {
    let options = LaneOptions {
        depth: DEPTH,
        bytes: 4096,
        read: true,
        indirect: true,
    };
    let mut lanes = (0..QUEUES)
        .map(|queue| disk.lane(queue, options))
        .collect::<Result<Vec<_>, _>>()?;
    for lane in &mut lanes {
        (0..DEPTH).for_each(|slot| lane.put(slot, 0));
        lane.publish();
        lane.kick()?;
    }
    let (mut failed, mut under_way) = (0, u64::from(QUEUES) * u64::from(DEPTH));
    let deadline = Instant::now() + PATIENCE;
    while under_way > 0 {
        ensure!(Instant::now() < deadline, "{under_way} do not come back");
        let goes_on = !ended.load(Ordering::Relaxed);
        for lane in &mut lanes {
            let mut done = Vec::new();
            lane.reap(|slot, status| {
                failed += u64::from(status == 1);
                done.push(slot);
            })?;
            if goes_on {
                done.iter().for_each(|&slot| lane.put(slot, 0));
                lane.publish();
                lane.kick()?;
            } else {
                under_way -= done.len() as u64;
            }
        }
    }
    Ok(failed)
}

/// Each failure was an event of its own, and run control, whose mailbox was never empty, left nobody
/// else on its thread a turn: no answer on QMP, no end by SIGTERM, and a monitor that did not read as
/// fast as the disk failed was cut off.
#[test]
fn the_monitor_answers_and_is_told_once_a_second() -> Result<()> {
    let mut server = Setup::new()?
        .blockdev(&json!({ "driver": "blkdebug", "node-name": "disk0",
            "image": { "driver": "null-co", "node-name": "null0", "size": 1 << 20 } }))
        .export(
            "vda",
            "disk0",
            json!({ "rerror": "report", "num-queues": QUEUES }),
        )
        .start()?;
    server.inject(
        "disk0",
        json!({ "event": "none", "iotype": "read", "errno": 5 }),
    )?;
    let mut disk = server.disk_with(
        "vda",
        Options {
            queues: QUEUES,
            ..Options::default()
        },
    )?;
    let ended = AtomicBool::new(false);
    let start = Instant::now();
    let failed = std::thread::scope(|scope| {
        let reads = scope.spawn(|| read_on(&mut disk, &ended));
        let asked = flood(&mut server);
        ended.store(true, Ordering::Relaxed);
        let failed = reads.join().expect("it does not panic")?;
        asked?;
        anyhow::Ok(failed)
    })?;
    ensure!(failed > 1000, "that was no flood: {failed}");
    // Each failure is told of or counted; the last one is told of when its second is over.
    let deadline = Instant::now() + PATIENCE;
    let mut told = 0;
    loop {
        let stats = server.stats("vda")?;
        ensure!(stats["failed_rd_operations"] == failed, "{stats}");
        told += server.qmp.take_events(Duration::from_millis(10))?.len() as u64;
        if stats["x-events-merged"] == failed - told {
            break;
        }
        ensure!(Instant::now() < deadline, "{told} told, {stats}");
    }
    let seconds = start.elapsed().as_secs();
    ensure!(
        (2..=seconds + 2).contains(&told),
        "{told} events in {seconds} seconds"
    );
    drop(disk);
    server.finish()
}

/// Asks while the guest reads.
fn flood(server: &mut Server) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < FLOOD {
        server.qmp.execute("query-status", Value::Null)?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
