//! `kill -9` of the daemon at any moment while it writes to qcow2 images: they are not corrupt, all that was flushed is there, and the
//! next daemon goes on where the dead one was. Needs qemu-img (Debian: qemu-utils).

mod harness;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use frontend::{Disk, FrontendError, Options};
use harness::{MIB, PATIENCE, Server, Setup, iothreads, soak};
use serde_json::{Value, json};
use testkit::qcow2_image::run;
use testkit::{Driver, Mix, Place, Rng, Workload};

const BLOCKS: usize = 4096;

/// How the image is, and how many queues there are.
#[derive(Debug, Clone, Copy)]
struct Shape {
    options: &'static str,
    queues: u16,
    scope: &'static str,
}

/// A disk on qcow2, with blkdebug below.
fn server(shape: Shape) -> Result<Server> {
    let mut setup = Setup::new()?.iothreads(2);
    let image = setup.path("disk0.qcow2");
    let name = image.to_str().context("text")?;
    let bytes = (BLOCKS as u64 * 4096 + MIB).to_string();
    run(
        "qemu-img",
        &["create", "-qfqcow2", "-o", shape.options, name, &bytes],
    )?;
    setup = setup.with_state();
    setup
        .blockdev(
            &json!({ "driver": "qcow2", "node-name": "disk0", "discard": "unmap",
            "file": { "driver": "blkdebug", "node-name": "debug0", "discard": "unmap",
                "image": { "driver": "file", "node-name": "file0", "filename": image,
                    "discard": "unmap" } } }),
        )
        .export(
            "vda",
            "disk0",
            json!({ "werror": "stop", "rerror": "stop", "hold-scope": shape.scope,
                "num-queues": shape.queues, "iothread": iothreads(2) }),
        )
        .start()
}

/// What qemu-img says of an image of which nobody has closed anything: leaks at worst.
fn is_not_corrupt(image: &Path) -> Result<()> {
    let output = Command::new("qemu-img")
        .args(["check", "-Ufqcow2"])
        .arg(image)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    ensure!(
        matches!(output.status.code(), Some(0 | 3)),
        "{}: {said}",
        output.status
    );
    Ok(())
}

/// Serves a load until the time is over.
fn load(driver: &mut Driver, disk: &mut Disk, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        driver.fill(disk)?;
        driver.reap_within(disk, Duration::from_millis(1))?;
    }
    Ok(())
}

/// Takes what the dead daemon has completed.
fn reap_rest(driver: &mut Driver, disk: &mut Disk) -> Result<()> {
    loop {
        match driver.reap_within(disk, Duration::ZERO) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => match error.downcast_ref() {
                Some(FrontendError::Closed { .. }) => return Ok(()),
                _ => return Err(error),
            },
        }
    }
}

/// All that is outstanding is done.
fn drain(server: &mut Server, driver: &mut Driver, disk: &mut Disk) -> Result<()> {
    server.clear("debug0")?;
    let deadline = Instant::now() + PATIENCE;
    while driver.outstanding() > 0 {
        server.qmp.execute("cont", Value::Null)?;
        driver.reap_within(disk, Duration::from_millis(100))?;
        if Instant::now() > deadline {
            let held = server.held("vda")?;
            bail!(
                "{} are lost; held: {held:?}; {}",
                driver.outstanding(),
                server.daemon.stderr()
            );
        }
    }
    Ok(())
}

/// Rounds under one load: while it runs, and while something is held.
fn killed_over_and_over(shape: Shape, seed: u64, rounds: u64) -> Result<()> {
    let mut server = server(shape)?;
    let image = server.path("disk0.qcow2");
    let mut rng = Rng::new(seed);
    let mut driver = Driver::new(Workload {
        seed,
        requests: u64::MAX,
        depth: 48,
        blocks: BLOCKS,
        mix: Mix {
            read: 25,
            write: 50,
            write_zeroes: 10,
            discard: 8,
            flush: 7,
        },
        timeout: PATIENCE,
        ..Workload::default()
    });
    driver.checker_mut().may_lose();
    let options = Options {
        queues: shape.queues,
        ..Options::default()
    };
    let mut disk = server.disk_with("vda", options)?;
    let (mut taken_over, mut held) = (0, 0);
    for round in 0..rounds {
        let is_held = rng.below(2) == 0;
        if is_held {
            server.qmp.take_events(Duration::ZERO)?;
            let errno = [5, 28][usize::try_from(rng.below(2))?];
            let fails = json!({ "event": "none", "iotype": "write", "errno": errno });
            server.inject("debug0", fails)?;
            server.run_until_held(&mut driver, &mut disk, "vda")?;
        }
        load(
            &mut driver,
            &mut disk,
            Duration::from_micros(rng.below(150_000)),
        )?;
        if is_held {
            held += server.held("vda")?.len();
        }
        server.daemon.kill()?;
        reap_rest(&mut driver, &mut disk)?;
        driver.checker_mut().lost();
        taken_over += driver.outstanding();
        is_not_corrupt(&image).with_context(|| format!("{shape:?}, seed {seed}, round {round}"))?;
        server.start_again()?;
        disk = server.reconnect("vda", disk.disconnect())?;
        server.qmp.execute("cont", Value::Null)?;
        if rng.below(3) == 0 {
            let drained = drain(&mut server, &mut driver, &mut disk);
            drained.with_context(|| format!("{shape:?}, seed {seed}, round {round}"))?;
            let read = driver.read_back(&mut disk);
            read.with_context(|| format!("{shape:?}, seed {seed}, round {round}"))?;
        }
    }
    drain(&mut server, &mut driver, &mut disk)?;
    driver.plan_no_more();
    server.run_to_end(&mut driver, &mut disk, |_| Ok(()))?;
    driver.read_back(&mut disk)?;
    let summary = driver.checker_mut().summary();
    println!("{shape:?}: {rounds} rounds, {taken_over} taken over, {held} held, {summary:?}");
    ensure!(taken_over > 0 && held > 0, "nothing was at stake");
    drop(disk);
    let place = Place::new();
    server.qmp.execute("stop", Value::Null)?;
    server.daemon.terminate(PATIENCE)?;
    is_not_corrupt(&image)?;
    let raw = place.name("raw");
    let name = image.to_str().context("text")?;
    run("qemu-img", &["convert", "-fqcow2", "-Oraw", name, &raw])?;
    driver.check_image(Path::new(&raw))?;
    // What the dead ones have leaked is found again.
    run("qemu-img", &["check", "-qfqcow2", "-rleaks", name])?;
    run("qemu-img", &["check", "-qfqcow2", name])?;
    Ok(())
}

#[test]
fn killed_with_clusters_of_64k() -> Result<()> {
    let shape = Shape {
        options: "cluster_size=64k",
        queues: 1,
        scope: "vm",
    };
    killed_over_and_over(shape, 1, soak(8, 100))
}

#[test]
fn killed_with_small_clusters_and_wide_counts() -> Result<()> {
    let shape = Shape {
        options: "cluster_size=4k,refcount_bits=64",
        queues: 4,
        scope: "request",
    };
    killed_over_and_over(shape, 2, soak(6, 100))
}

#[test]
fn killed_with_subclusters() -> Result<()> {
    let shape = Shape {
        options: "cluster_size=64k,extended_l2=on",
        queues: 2,
        scope: "device",
    };
    killed_over_and_over(shape, 3, soak(6, 100))
}
