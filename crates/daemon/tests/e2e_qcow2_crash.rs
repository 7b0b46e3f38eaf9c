//! `kill -9` of the daemon at any moment while it writes to qcow2 images, under a client that lives on: they are not corrupt, all that was
//! acknowledged is there, flushed or not, and the next daemon goes on where the dead one was. In a soak 100 rounds of each; `STANDFAST_SOAK_FROM=round` goes on. Needs qemu-img (Debian:
//! qemu-utils).

mod harness;

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use frontend::{Options, Request};
use harness::{MIB, PATIENCE, Server, Setup, eventually, iothreads};
use serde_json::{Value, json};
use testkit::qcow2_image::{create, is_clean, is_not_corrupt, run, to_raw};
use testkit::{Driver, Mix, Place, Rng, Workload, lives, rounds};

const BLOCKS: usize = 4096;
/// After so many rounds image and load are others.
const LIFE: u64 = 20;

/// How the image is, and how many queues there are.
#[derive(Debug, Clone, Copy)]
struct Shape {
    options: &'static str,
    queues: u16,
    scope: &'static str,
}

/// A disk on qcow2, with blkdebug below, of the data file if there is one.
fn server(shape: Shape) -> Result<Server> {
    let mut setup = Setup::new()?.iothreads(2);
    let image = setup.path("disk0.qcow2");
    let data = setup.path("disk0.data");
    let options = shape
        .options
        .replace("data_file=x", &format!("data_file={}", data.display()));
    create(&image, &options, BLOCKS as u64 * 4096 + MIB)?;
    setup = setup.with_state();
    let file = |name: &str, path: &Path| json!({ "driver": "file", "node-name": name, "filename": path, "discard": "unmap" });
    let failing = |file: Value| json!({ "driver": "blkdebug", "node-name": "debug0", "discard": "unmap", "image": file });
    let mut node = json!({ "driver": "qcow2", "node-name": "disk0", "discard": "unmap" });
    match shape.options.contains("data_file=x") {
        false => node["file"] = failing(file("file0", &image)),
        true => {
            node["file"] = file("file0", &image);
            node["data-file"] = failing(file("data0", &data));
        }
    }
    setup
        .blockdev(&node)
        .export(
            "vda",
            "disk0",
            json!({ "werror": "stop", "rerror": "stop", "hold-scope": shape.scope,
                "num-queues": shape.queues, "iothread": iothreads(2) }),
        )
        .start()
}

/// What has been at stake.
#[derive(Debug, Default)]
struct Count {
    killed: u64,
    leaks: u64,
    taken_over: usize,
    held: usize,
    blocks_verified: u64,
}

/// Rounds under loads on images: while one runs, and while something is held.
fn killed_over_and_over(shape: Shape, seed: u64, rounds: Range<u64>) -> Result<()> {
    let mut count = Count::default();
    for life in lives(rounds, LIFE) {
        let (seed, end) = (seed << 32 | life.start, life.end);
        let killed = killed(shape, seed, life, &mut count);
        killed.with_context(|| format!("{shape:?}, seed {seed}"))?;
        println!("{shape:?}: {count:?}; a soak goes on with STANDFAST_SOAK_FROM={end}");
    }
    ensure!(
        count.taken_over > 0 && count.held > 0,
        "nothing was at stake"
    );
    Ok(())
}

fn killed(shape: Shape, seed: u64, life: Range<u64>, count: &mut Count) -> Result<()> {
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
    let options = Options {
        queues: shape.queues,
        ..Options::default()
    };
    let mut disk = server.disk_with("vda", options)?;
    for round in life {
        let is_held = rng.below(2) == 0;
        if is_held {
            server.qmp.take_events(Duration::ZERO)?;
            let errno = [5, 28][usize::try_from(rng.below(2))?];
            let fails = json!({ "event": "none", "iotype": "write", "errno": errno });
            server.inject("debug0", fails)?;
            server.run_until_held(&mut driver, &mut disk, "vda")?;
        }
        driver.go_on_for(&mut disk, Duration::from_micros(rng.below(150_000)))?;
        if is_held {
            count.held += server.held("vda")?.len();
        }
        server.daemon.kill()?;
        driver.reap_rest(&mut disk)?;
        count.killed += 1;
        count.taken_over += driver.outstanding();
        let leaks = is_not_corrupt(&image).with_context(|| format!("round {round}"))?;
        count.leaks += u64::from(leaks);
        server.start_again()?;
        disk = server.reconnect("vda", disk.disconnect())?;
        server.qmp.execute("cont", Value::Null)?;
        if rng.below(3) == 0 {
            let drained = server.drain("debug0", &mut driver, &mut disk);
            drained.with_context(|| format!("round {round}"))?;
            let read = driver.read_back(&mut disk);
            read.with_context(|| format!("round {round}"))?;
        }
    }
    server.drain("debug0", &mut driver, &mut disk)?;
    driver.plan_no_more();
    server.run_to_end(&mut driver, &mut disk, |_| Ok(()))?;
    driver.read_back(&mut disk)?;
    count.blocks_verified += driver.checker_mut().summary().blocks_verified;
    drop(disk);
    let place = Place::new();
    server.qmp.execute("stop", Value::Null)?;
    server.daemon.terminate(PATIENCE)?;
    is_not_corrupt(&image)?;
    let raw = place.file("raw");
    to_raw(&image, &raw)?;
    driver.check_image(&raw)?;
    // What the dead ones have leaked is found again.
    let name = image.to_str().context("text")?;
    run("qemu-img", &["check", "-qfqcow2", "-rleaks", name])?;
    is_clean(&image)
}

#[test]
fn killed_with_clusters_of_64k() -> Result<()> {
    let shape = Shape {
        options: "cluster_size=64k",
        queues: 1,
        scope: "vm",
    };
    killed_over_and_over(shape, 1, rounds(8, 100))
}

#[test]
fn killed_with_small_clusters_and_wide_counts() -> Result<()> {
    let shape = Shape {
        options: "cluster_size=4k,refcount_bits=64",
        queues: 4,
        scope: "request",
    };
    killed_over_and_over(shape, 2, rounds(6, 100))
}

#[test]
fn killed_with_data_files() -> Result<()> {
    let shape = |options| Shape {
        options,
        queues: 2,
        scope: "vm",
    };
    let mapped = shape("cluster_size=64k,data_file=x");
    killed_over_and_over(mapped, 4, rounds(6, 100))?;
    let raw = shape("cluster_size=64k,data_file=x,data_file_raw=on");
    killed_over_and_over(raw, 5, rounds(4, 100))
}

#[test]
fn killed_with_subclusters() -> Result<()> {
    let shape = Shape {
        options: "cluster_size=64k,extended_l2=on",
        queues: 2,
        scope: "device",
    };
    killed_over_and_over(shape, 3, rounds(6, 100))
}

/// Between two daemons: what the next one says, and what the image has. Nothing of the dead one is made again over what others have written.
#[test]
fn the_next_one_says_what_has_become_of_it() -> Result<()> {
    let shape = Shape {
        options: "cluster_size=64k",
        queues: 1,
        scope: "vm",
    };
    for others_write in [false, true] {
        let mut server = server(shape)?;
        let image = server.path("disk0.qcow2");
        let name = image.to_str().context("text")?;
        let mut driver = Driver::new(Workload {
            seed: 7,
            requests: u64::MAX,
            depth: 4,
            blocks: BLOCKS,
            mix: Mix {
                read: 0,
                write: 100,
                write_zeroes: 0,
                discard: 0,
                flush: 0,
            },
            timeout: PATIENCE,
            ..Workload::default()
        });
        let mut disk = server.disk_with("vda", Options::default())?;
        driver.go_on_for(&mut disk, Duration::from_millis(50))?;
        server.daemon.kill()?;
        drop(disk);
        if others_write {
            run("qemu-io", &["-fqcow2", "-c", "write -q -P 9 0 64k", name])?;
        }
        server.start_again()?;
        let texts = [
            "are made again",
            "are lost: somebody else has written the image since",
        ];
        let [other, one] = if others_write {
            texts
        } else {
            [texts[1], texts[0]]
        };
        let said = || server.daemon.stderr();
        eventually("it says what has become of it", || Ok(said().contains(one)))?;
        ensure!(!said().contains(other), "{}", said());
        server.daemon.terminate(PATIENCE)?;
        let left = std::fs::read_dir(server.path("state"))?.count();
        ensure!(left == 1, "{left} files are left beside the state");
        is_not_corrupt(&image)?;
        if others_write {
            run("qemu-io", &["-rfqcow2", "-c", "read -q -P 9 0 64k", name])?;
        }
    }
    Ok(())
}

/// A daemon that was started without the record of the dead one (its state directory was another one, or empty, or not said at all) served
/// what there was without a word: the guest's acknowledged writes were gone, and nobody knew while they could still be had.
#[test]
fn a_record_that_is_elsewhere_is_asked_for() -> Result<()> {
    let shape = Shape {
        options: "cluster_size=64k",
        queues: 1,
        scope: "vm",
    };
    let mut server = server(shape)?;
    let image = server.path("disk0.qcow2");
    let mut disk = server.disk_with("vda", Options::default())?;
    let data = vec![1; 4096];
    let write = Request::Write {
        sector: 0,
        data: &data,
    };
    ensure!(disk.execute(0, write, PATIENCE)?.is_ok());
    server.daemon.kill()?;
    drop(disk);
    let serve = |with_state: bool, writable: bool| -> Result<Server> {
        let file = json!({ "driver": "file", "filename": image });
        let node = json!({ "driver": "qcow2", "node-name": "disk0", "read-only": !writable, "file": file });
        let setup = Setup::new()?.blockdev(&node);
        let setup = setup.export("vda", "disk0", json!({ "writable": writable }));
        match with_state {
            true => setup.with_state().start(),
            false => setup.start(),
        }
    };
    for (with_state, writable, why) in [
        (true, true, "has no record of it"),
        (false, true, "this daemon has no --state-dir"),
        (false, false, "it is only read"),
    ] {
        let other = serve(with_state, writable)?;
        let said = || other.daemon.stderr();
        eventually("it says so", || {
            Ok(said().contains(why) && said().contains("start with that directory first"))
        })?;
        other.end()?;
    }
    // Nobody has written: so the right one has it still.
    server.start_again()?;
    let mut disk = server.disk_with("vda", Options::default())?;
    let read = Request::Read {
        sector: 0,
        len: 4096,
    };
    let done = disk.execute(0, read, PATIENCE)?;
    ensure!(
        done.is_ok() && done.data == data,
        "{}",
        server.daemon.stderr()
    );
    ensure!(!server.daemon.stderr().contains("did not end in order"));
    drop(disk);
    server.finish()
}
