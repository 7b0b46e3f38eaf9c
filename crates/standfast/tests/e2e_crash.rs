//! `kill -9` of the daemon at any moment: every acknowledged write is there, everything else is
//! done by the next daemon, nothing is completed twice. And two daemons that want the same thing.

mod harness;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use frontend::{Disk, Options};
use harness::guest::{BOOT, GUEST_PATIENCE, reach};
use harness::{MIB, PATIENCE, Server, Setup, soak, sparse, standfastd};
use serde_json::{Value, json};
use testkit::guest::{Files, make_ext4_image};
use testkit::{Driver, Guest, Rng, Tmpfs, VhostUserBlk, Workload};

const BLOCKS: usize = 4096;

/// A disk on blkdebug over a file, served on so many queues.
fn server(queues: u16, scope: &str) -> Result<Server> {
    let setup = Setup::new()?;
    let image = setup.path("disk0.img");
    sparse(&image, BLOCKS as u64 * 4096)?;
    setup
        .blockdev(&json!({ "driver": "blkdebug", "node-name": "disk0",
            "image": { "driver": "file", "node-name": "file0", "filename": image,
                "discard": "unmap" } }))
        .export(
            "vda",
            "disk0",
            json!({ "werror": "stop", "rerror": "stop", "hold-scope": scope,
                "num-queues": queues }),
        )
        .start()
}

/// What a daemon finds itself in when it is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Moment {
    Running,
    /// With requests held.
    Held,
    /// With requests held that a former daemon had held.
    HeldAgain,
}

/// Serves a load until the time is over. What is held stays so.
fn load(driver: &mut Driver, disk: &mut Disk, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        driver.fill(disk)?;
        driver.reap_within(disk, Duration::from_millis(1))?;
    }
    Ok(())
}

/// Takes what the dead daemon has completed. The front end sees each completion in the ring before
/// it sees that the connection is closed.
fn reap_rest(driver: &mut Driver, disk: &mut Disk) -> Result<()> {
    loop {
        match driver.reap_within(disk, Duration::ZERO) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => match error.downcast_ref() {
                Some(frontend::FrontendError::Closed { .. }) => return Ok(()),
                _ => return Err(error),
            },
        }
    }
}

/// Rounds of load, `kill -9`, restart and reconnect under one workload, verified all the time.
fn killed_over_and_over(queues: u16, scope: &str, seed: u64, rounds: u64) -> Result<()> {
    let mut server = server(queues, scope)?;
    let options = Options {
        queues,
        ..Options::default()
    };
    let mut disk = server.disk_with("vda", options)?;
    let mut rng = Rng::new(seed);
    let mut driver = Driver::new(Workload {
        seed,
        requests: u64::MAX,
        depth: 64,
        blocks: BLOCKS,
        timeout: PATIENCE,
        ..Workload::default()
    });
    let write_fails = json!({ "event": "none", "iotype": "write", "errno": 28 });
    let (mut taken_over, mut held) = (0, 0);
    let begin = Instant::now();
    for round in 0..rounds {
        let moment = match rng.below(3) {
            0 => Moment::Running,
            1 => Moment::Held,
            _ => Moment::HeldAgain,
        };
        let what = || format!("{queues} queues, {scope}, seed {seed}, round {round}: {moment:?}");
        if moment != Moment::Running {
            // What former rounds have left to be read.
            server.qmp.take_events(Duration::ZERO)?;
            server.inject("disk0", write_fails.clone())?;
            server
                .run_until_held(&mut driver, &mut disk, "vda")
                .with_context(what)?;
        }
        // Also at once, in the middle of things.
        let time = Duration::from_micros(rng.below(40_000));
        load(&mut driver, &mut disk, time).with_context(what)?;
        if moment != Moment::Running {
            held += server.held("vda")?.len();
        }
        server.daemon.kill()?;
        reap_rest(&mut driver, &mut disk).with_context(what)?;
        let outstanding = disk.outstanding_tokens().len();
        ensure!(outstanding == driver.outstanding(), "{}", what());
        taken_over += outstanding;
        server.start_again().with_context(what)?;
        if moment == Moment::HeldAgain {
            server.inject("disk0", write_fails.clone())?;
        }
        disk = server
            .reconnect("vda", disk.disconnect())
            .with_context(what)?;
        if moment == Moment::HeldAgain {
            server
                .run_until_held(&mut driver, &mut disk, "vda")
                .with_context(what)?;
            server.clear("disk0")?;
        }
        server.qmp.execute("cont", Value::Null)?;
        if rng.below(3) == 0 {
            drain(&mut server, &mut driver, &mut disk).with_context(what)?;
        }
    }
    drain(&mut server, &mut driver, &mut disk)?;
    driver.plan_no_more();
    server.run_to_end(&mut driver, &mut disk, |_| Ok(()))?;
    driver.read_back(&mut disk)?;
    let summary = driver.finish(&mut disk)?;
    println!(
        "{queues} queues, {scope}: {rounds} rounds in {:.1?}, {taken_over} requests taken over, \
         {held} of them held, {summary:?}",
        begin.elapsed()
    );
    ensure!(taken_over > 0 && held > 0, "nothing was at stake");
    drop(disk);
    server.finish()
}

/// Everything that is outstanding is done.
fn drain(server: &mut Server, driver: &mut Driver, disk: &mut Disk) -> Result<()> {
    server.clear("disk0")?;
    server.qmp.execute("cont", Value::Null)?;
    let deadline = Instant::now() + PATIENCE;
    while driver.outstanding() > 0 {
        driver.reap_within(disk, Duration::from_millis(100))?;
        if Instant::now() > deadline {
            bail!(
                "{} requests are lost; held: {:?}, {}; stderr:\n{}",
                driver.outstanding(),
                server.held("vda")?,
                server.run_state()?,
                server.daemon.stderr()
            );
        }
    }
    Ok(())
}

#[test]
fn killed_with_one_queue() -> Result<()> {
    killed_over_and_over(1, "vm", 11, soak(8, 100))?;
    killed_over_and_over(1, "request", 12, soak(4, 100))
}

#[test]
fn killed_with_four_queues() -> Result<()> {
    killed_over_and_over(4, "device", 13, soak(8, 100))
}

#[test]
fn killed_with_eight_queues() -> Result<()> {
    killed_over_and_over(8, "vm", 14, soak(8, 100))
}

/// QEMU reconnects, and its guest does not notice: killed while it writes, and while it is held.
#[test]
fn killed_under_a_guest() -> Result<()> {
    let tmpfs = Tmpfs::new(256 * MIB)?;
    let image = tmpfs.path().join("disk0.img");
    make_ext4_image(&image, 96 * MIB)?;
    let mut server = Setup::new()?
        .blockdev(&json!({ "driver": "file", "node-name": "disk0", "filename": image }))
        .export(
            "vda",
            "disk0",
            json!({ "werror": "stop", "rerror": "stop" }),
        )
        .start()?;
    let disk = VhostUserBlk::new(server.socket("vda")).reconnect(Duration::from_secs(1));
    let mut guest = Guest::builder().disk(disk).start()?;
    guest.wait_boot(BOOT)?;
    guest.mount("vda", "/mnt", GUEST_PATIENCE)?;
    let mut rng = Rng::new(21);
    let rounds = soak(2, 10);
    let mut sets = Vec::new();
    for round in 0..rounds {
        let files = Files {
            dir: format!("/mnt/set{round}"),
            seed: u32::try_from(round)?,
            count: 8,
            kib: 512,
        };
        let held = round % 2 == 1;
        if held {
            // Less than the round will need.
            tmpfs.resize(harness::allocated(&image)? + MIB)?;
        }
        let writing = guest.spawn(&files.write_command())?;
        if held {
            server.qmp.wait_event("BLOCK_IO_ERROR", GUEST_PATIENCE)?;
            server.qmp.wait_event("STOP", PATIENCE)?;
        } else {
            writing.wait_line("synced 0", GUEST_PATIENCE)?;
        }
        sleep(Duration::from_millis(rng.below(500)));
        server.daemon.kill()?;
        server.start_again()?;
        if held {
            // The next one is no better off: it holds the same again.
            reach("the requests are held again", PATIENCE, || {
                Ok(!server.held("vda")?.is_empty())
            })?;
            ensure!(!writing.has_ended());
            tmpfs.resize(256 * MIB)?;
            server.qmp.execute("cont", Value::Null)?;
        }
        let output = writing.wait(GUEST_PATIENCE)?;
        ensure!(output.status == 0, "round {round}: {output:?}");
        sets.push(files);
    }
    for files in &sets {
        guest.verify_files(files, GUEST_PATIENCE)?;
    }
    guest.reboot(BOOT)?;
    guest.mount("vda", "/mnt", GUEST_PATIENCE)?;
    for files in &sets {
        guest.verify_files(files, GUEST_PATIENCE)?;
    }
    guest.check_no_io_errors()?;
    ensure!(guest.power_off(GUEST_PATIENCE)?.success());
    println!("{rounds} rounds with a guest");
    server.finish()
}

/// A second daemon is refused and told why; the first one goes on.
#[test]
fn the_second_of_two_daemons_is_refused() -> Result<()> {
    let mut server = server(1, "vm")?;
    let mut disk = server.disk("vda")?;
    let mut driver = harness::writes(5, 2000, BLOCKS, 16);
    let image = server.path("disk0.img").display().to_string();
    let other = server.path("other.sock").display().to_string();
    let socket = server.socket("vda").display().to_string();
    let export = |node: &str, socket: &str| {
        json!({ "type": "vhost-user-blk", "id": "vda", "node-name": node, "writable": true,
            "addr": { "type": "unix", "path": socket } })
        .to_string()
    };
    let same_image = [
        "--blockdev".to_owned(),
        json!({ "driver": "file", "node-name": "disk0", "filename": image }).to_string(),
        "--export".to_owned(),
        export("disk0", &other),
    ];
    let same_socket = [
        "--blockdev".to_owned(),
        json!({ "driver": "null-co", "node-name": "null", "size": MIB }).to_string(),
        "--export".to_owned(),
        export("null", &socket),
    ];
    for (args, names) in [(same_image, &image), (same_socket, &socket)] {
        let mut second = standfastd(&args).start()?;
        let deadline = Instant::now() + PATIENCE;
        // The first one serves its client while the second one tries.
        let status = loop {
            driver.fill(&mut disk)?;
            driver.reap_within(&mut disk, Duration::from_millis(20))?;
            if let Some(status) = second.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "{}", second.stderr());
        };
        second.wait(PATIENCE)?;
        let stderr = second.stderr();
        ensure!(status.code() == Some(1), "{status}: {stderr}");
        ensure!(stderr.contains(names.as_str()), "{names}: {stderr}");
        ensure!(stderr.lines().count() <= 3, "a clear word: {stderr}");
        println!("refused: {stderr}");
    }
    server.run_to_end(&mut driver, &mut disk, |_| Ok(()))?;
    driver.read_back(&mut disk)?;
    driver.finish(&mut disk)?;
    drop(disk);
    server.finish()
}

/// Daemons started at the same moment: exactly one serves, the others are refused.
#[test]
fn of_daemons_that_race_one_serves() -> Result<()> {
    for round in 0..soak(3, 30) {
        let mut server = server(1, "vm")?;
        server.daemon.kill()?;
        let args = server.args().to_vec();
        let mut racers = (0..3)
            .map(|_| standfastd(&args).start())
            .collect::<Result<Vec<_>>>()?;
        let mut left = Vec::new();
        reach("all but one have given up", PATIENCE, || {
            left.clear();
            for (index, racer) in racers.iter_mut().enumerate() {
                match racer.try_wait()? {
                    None => left.push(index),
                    Some(status) => {
                        ensure!(status.code() == Some(1), "{status}: {}", racer.stderr());
                    }
                }
            }
            Ok(left.len() <= 1)
        })?;
        let [winner] = left[..] else {
            bail!("round {round}: nobody serves: {racers:?}");
        };
        for (index, racer) in racers.iter_mut().enumerate() {
            if index != winner {
                racer.wait(PATIENCE)?;
                let stderr = racer.stderr();
                let named = ["disk0.img", "vda.sock", "qmp.sock"];
                ensure!(named.iter().any(|name| stderr.contains(name)), "{stderr}");
            }
        }
        reach("the winner listens", PATIENCE, || {
            Ok(Disk::connect(server.socket("vda"), Options::default()).is_ok())
        })?;
        let mut disk = server.disk("vda")?;
        let summary = harness::writes(round, 300, 1024, 8).run(&mut disk)?;
        ensure!(summary.failed == 0, "{summary:?}");
        drop(disk);
        ensure!(racers[winner].terminate(PATIENCE)?.success());
    }
    Ok(())
}
