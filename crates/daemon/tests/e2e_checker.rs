//! None lost, none completed twice: numbered requests under random faults on one request in
//! seven, with `stop` and `cont` over and over, for every scope and for depths from 1 to 128.

mod harness;

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{MIB, PATIENCE, Setup, sparse};
use serde_json::{Value, json};
use testkit::{Driver, Rng, Workload, soak};

/// Requests of one run; the runs below add up to 10^5 in a soak.
fn run(scope: &str, depth: usize, seed: u64, requests: u64) -> Result<()> {
    let setup = Setup::new()?;
    let image = setup.path("disk0.img");
    sparse(&image, 16 * MIB)?;
    let mut server = setup
        .blockdev(&json!({ "driver": "blkdebug", "node-name": "disk0",
            "image": { "driver": "file", "node-name": "file0", "filename": image,
                "discard": "unmap" } }))
        .export(
            "vda",
            "disk0",
            json!({ "werror": "stop", "rerror": "stop", "hold-scope": scope }),
        )
        .start()?;
    // Two rules of 1 in 14 each; retries are counted too, so the faults wander over the requests.
    for errno in [28, 5] {
        let rule =
            json!({ "node-name": "disk0", "event": "none", "errno": errno, "every-nth": 14 });
        server.qmp.execute("x-blkdebug-inject", rule)?;
    }
    let mut disk = server.disk("vda")?;
    let mut driver = Driver::new(Workload {
        seed,
        requests,
        depth,
        blocks: 4096,
        timeout: PATIENCE,
        ..Workload::default()
    });
    let mut rng = Rng::new(seed ^ 0x5eed);
    let mut rounds = 0u64;
    let mut holds = 0u64;
    let mut last_progress = std::time::Instant::now();
    while !driver.is_exhausted() || driver.outstanding() > 0 {
        driver.fill(&mut disk)?;
        if driver.reap_within(&mut disk, Duration::from_millis(1))? > 0 {
            last_progress = std::time::Instant::now();
        }
        ensure!(
            last_progress.elapsed() < PATIENCE,
            "{scope} depth {depth}: no progress"
        );
        rounds += 1;
        match rng.below(8) {
            0 => {
                server.qmp.execute("stop", Value::Null)?;
                server.qmp.execute("cont", Value::Null)?;
            }
            1 if scope != "vm" => {
                server
                    .qmp
                    .execute("x-block-export-cont", json!({ "id": "vda" }))?;
            }
            _ => {
                server.qmp.execute("cont", Value::Null)?;
            }
        }
        for event in server.qmp.take_events(Duration::ZERO)? {
            holds += u64::from(event.name == "BLOCK_IO_ERROR" && event.data["action"] == "stop");
        }
    }
    server
        .qmp
        .execute("x-blkdebug-clear", json!({ "node-name": "disk0" }))?;
    server.qmp.execute("cont", Value::Null)?;
    driver.read_back(&mut disk)?;
    let summary = driver.finish(&mut disk)?;
    println!("{scope} depth {depth} seed {seed}: {summary:?}, {holds} holds, {rounds} rounds");
    ensure!(
        holds > requests / 20,
        "only {holds} of {requests} were held"
    );
    ensure!(server.held("vda")?.is_empty());
    drop(disk);
    server.finish()
}

fn scope(scope: &str) -> Result<()> {
    for (index, depth) in [1, 8, 32, 128].into_iter().enumerate() {
        let seed = 100 + u64::try_from(index)?;
        run(scope, depth, seed, soak(800, 8400))?;
    }
    Ok(())
}

#[test]
fn scope_vm() -> Result<()> {
    scope("vm")
}

#[test]
fn scope_device() -> Result<()> {
    scope("device")
}

#[test]
fn scope_request() -> Result<()> {
    scope("request")
}
