//! Many machines, and a watcher that is killed again and again.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Script, Setup, disk, event, standfast, usage};
use frontend::{Disk, Options};
use serde_json::{Value, json};
use testkit::place::{LIMIT_BYTES, PATIENCE, Place, eventually, stderr};
use testkit::{Daemon, Driver, Mix, Qmp, Rng, Workload, soak};

const STEP: u64 = 64 << 10;

/// Each of them runs out of space several times; what happens while no watcher is there is found by the next
/// one. Nothing is extended twice for one want, and the journal has no gap.
#[test]
fn machines_go_on_whatever_becomes_of_the_watcher() {
    let (machines, kills): (usize, u64) = soak((6, 4), (50, 60));
    let places: Vec<_> = (0..machines).map(|_| Place::new()).collect();
    let start = |place: &Place| {
        let daemon = Daemon::builder(env!("CARGO_BIN_EXE_standfast")).arg("demo-daemon");
        place.with_disk(daemon.timeout(PATIENCE)).start().unwrap()
    };
    let mut daemons: Vec<_> = places.iter().map(start).collect();
    let sockets: Vec<_> = places.iter().map(|place| place.name("qmp.sock")).collect();
    let setup = Setup::new(&format!(
        "[limits]\nextensions-per-hour = 100000\n[[machines]]\nsockets = {sockets:?}\nstrategy = \"quota\"\nearly = false\nstep = {STEP}\n"
    ));
    let running = AtomicUsize::new(places.len());
    std::thread::scope(|scope| {
        for (seed, place) in (1..).zip(&places) {
            let running = &running;
            scope.spawn(move || {
                let mut disk = Disk::connect(place.file("vda.sock"), Options::default()).unwrap();
                let mut driver = Driver::new(Workload {
                    seed,
                    requests: 600,
                    depth: 8,
                    blocks: 256,
                    blocks_max: 4,
                    mix: Mix {
                        read: 10,
                        write: 85,
                        write_zeroes: 0,
                        discard: 0,
                        flush: 5,
                    },
                    timeout: Duration::from_secs(120),
                    ..Workload::default()
                });
                while !driver.is_exhausted() {
                    driver.fill(&mut disk).unwrap();
                    driver.reap(&mut disk).unwrap();
                    // So that it runs out of space over some time.
                    std::thread::sleep(Duration::from_millis(8));
                }
                driver.drain(&mut disk).unwrap();
                driver.read_back(&mut disk).unwrap();
                driver.finish(&mut disk).unwrap();
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        let mut chance = Rng::new(5);
        for _ in 0..kills {
            let mut watcher = setup.start(&[]);
            std::thread::sleep(Duration::from_millis(300 + chance.next_u64() % 900));
            watcher.kill().unwrap();
            std::thread::sleep(Duration::from_millis(chance.next_u64() % 200));
        }
        let mut watcher = setup.watch(places.len());
        while running.load(Ordering::Relaxed) > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(watcher.terminate(PATIENCE).unwrap().success());
    });

    let mut needed = 0;
    for (place, daemon) in places.iter().zip(&mut daemons) {
        let mut qmp = Qmp::connect(place.file("qmp.sock")).unwrap();
        let status = qmp.execute("query-status", Value::Null).unwrap();
        assert_eq!(status["status"], "running");
        let nodes = qmp.execute("query-named-block-nodes", Value::Null).unwrap();
        let mut figures = nodes.as_array().unwrap().iter().filter_map(|node| {
            Some((
                node["x-quota-limit"].as_u64()?,
                node["x-quota-used"].as_u64()?,
            ))
        });
        let (limit, used) = figures.next().unwrap();
        assert!(used > LIMIT_BYTES && limit >= used, "{limit} {used}");
        // No step more than the last one that was needed.
        assert!(limit < used + STEP, "{limit} for {used}");
        needed += (limit - LIMIT_BYTES) / STEP;
        assert!(daemon.terminate(PATIENCE).unwrap().success());
    }
    let records = setup.records();
    let grown = records
        .iter()
        .filter(|record| record["result"] == "grown")
        .count() as u64;
    let began = records
        .iter()
        .filter(|record| record["event"] == "incident-began")
        .count();
    println!("{needed} extensions, {grown} told of, {began} incidents, {kills} kills");
    // What was done in the moment of a kill may not be told; nothing is told twice.
    assert!(
        grown <= needed && grown + kills * machines as u64 >= needed,
        "{grown} {needed}"
    );
    let output = standfast(&["history", &setup.journal()]);
    assert!(
        output.status.success() && stderr(&output).is_empty(),
        "{}",
        stderr(&output)
    );
    let continued = setup.history();
    let continued = continued
        .iter()
        .filter(|told| told["ending"] == json!("continued"))
        .count();
    assert!(continued >= machines, "{continued}");
}

/// Hundreds of machines in one process: nothing happens, and nothing is done.
#[test]
fn many_machines_cost_little() {
    let machines = soak(50, 500);
    let setup = Setup::new(
        "[[machines]]\nsockets = [\"@PLACE@/*.qmp\"]\nstrategy = \"command\"\ncommand = [\"/bin/true\"]\n",
    );
    let start = |number: usize| {
        let image = setup.place.file(&format!("{number}.img"));
        std::fs::write(&image, "").unwrap();
        let script = Script::start(
            setup.place.file(&format!("{number}.qmp")),
            disk(&image, 1 << 30),
        );
        script.state.lock().unwrap().stats = json!([{"device": "vda", "qdev": "vda", "node-name": "disk0",
            "stats": {"wr_highest_offset": 0, "wr_bytes": 0}}]);
        script
    };
    let mut watcher = setup.start(&[]);
    setup.wait_status("it is there", |status| status["machines"].is_array());
    let (_, alone) = usage(watcher.pid());
    let scripts: Vec<_> = (0..machines).map(start).collect();
    setup.wait_status("all are watched", |status| {
        let seen = status["machines"].as_array().into_iter().flatten();
        seen.filter(|machine| machine["early"][0]["head-room"].is_u64())
            .count()
            == machines
    });
    let idle = Duration::from_secs(soak(3, 60));
    let (before, _) = usage(watcher.pid());
    std::thread::sleep(idle);
    let (after, memory) = usage(watcher.pid());
    let used = after - before;
    let each = memory.saturating_sub(alone) / machines as u64;
    println!(
        "{machines} machines: {used:?} of a processor in {idle:?} without anything to do; {} KiB each, {} MiB in all",
        each >> 10,
        memory >> 20
    );
    assert!(used < idle / 10, "{used:?}");
    assert!(each < 256 << 10, "{each} bytes for each machine");
    // They are all heard, still.
    for script in &scripts {
        script.send(format!("{}\n", event("STOP")).as_bytes());
    }
    let asked = |script: &Script| {
        let state = script.state.lock().unwrap();
        let asked = state
            .heard
            .iter()
            .filter(|(name, _)| name == "query-status");
        asked.count() >= 2
    };
    eventually("all are asked", || scripts.iter().all(asked));
    assert!(watcher.terminate(PATIENCE).unwrap().success());
}
