//! `kill -9` of the daemon at any moment: every acknowledged write is there, everything else is
//! done by the next daemon, nothing is completed twice. And two daemons that want the same thing.

mod harness;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use block::{RunState, SavedBackend, SavedState};
use frontend::{Disk, Options};
use harness::{MIB, PATIENCE, Server, Setup, sparse, standfastd};
use serde_json::{Value, json};
use testkit::guest::{BOOT, Files, GUEST_PATIENCE, make_ext4_image};
use testkit::{Driver, Guest, Rng, Tmpfs, VhostUserBlk, Workload, soak, wait_until};

const BLOCKS: usize = 4096;

/// What is killed.
#[derive(Debug, Clone, Copy)]
struct Shape {
    queues: u16,
    scope: &'static str,
    /// Of the export; 0 for the daemon's own one.
    iothreads: usize,
    /// With `--state-dir`.
    state: bool,
}

impl Shape {
    fn new(queues: u16, scope: &'static str) -> Self {
        Self {
            queues,
            scope,
            iothreads: 0,
            state: false,
        }
    }

    fn on(self, iothreads: usize) -> Self {
        Self { iothreads, ..self }
    }

    fn with_state(self) -> Self {
        Self {
            state: true,
            ..self
        }
    }
}

/// A disk on blkdebug over a file.
fn server(shape: Shape) -> Result<Server> {
    let Shape {
        queues,
        scope,
        iothreads,
        state,
    } = shape;
    let mut setup = Setup::new()?.iothreads(iothreads);
    if state {
        setup = setup.with_state();
    }
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
                "num-queues": queues, "iothread": harness::iothreads(iothreads) }),
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

/// What a daemon has left of its export.
fn saved_export(saved: &SavedState) -> Option<&SavedBackend> {
    saved
        .backends
        .iter()
        .find(|backend| backend.device == "vda")
}

/// Whether what comes back is held until `cont`.
fn stands_still(shape: Shape, saved: &SavedState) -> bool {
    match shape.scope {
        "vm" => saved.run_state != RunState::Running,
        "device" => saved_export(saved).is_some_and(|export| export.incident.is_some()),
        // What of it was held nobody knows, so it is tried.
        _ => false,
    }
}

/// The state is written beside the events, not before them.
fn wait_saved(server: &Server, shape: Shape) -> Result<()> {
    wait_until("the state is saved", PATIENCE, || {
        // The first one may not be whole.
        let saved = server.saved().ok().flatten();
        Ok(saved.is_some_and(|saved| {
            let incident = saved_export(&saved).is_some_and(|export| export.incident.is_some());
            incident && (shape.scope != "vm" || saved.run_state == RunState::IoError)
        }))
    })
}

/// The new daemon is where the dead one has left its state, before any client is there.
fn check_restored(server: &mut Server, saved: &SavedState) -> Result<()> {
    let state = server.run_state()?;
    ensure!(state == saved.run_state.name(), "{state}, {saved:?}");
    let Some(export) = saved_export(saved) else {
        return Ok(());
    };
    let (block, stats) = (server.block("vda")?, server.stats("vda")?);
    let status = match export.io_status.has_device() {
        true => json!(export.io_status.get().name()),
        false => Value::Null,
    };
    ensure!(block["io-status"] == status, "{block}, {saved:?}");
    ensure!(
        block["x-incidents"] == export.incidents,
        "{block}, {saved:?}"
    );
    let incident = export.incident.as_ref().map(|incident| incident.number);
    ensure!(block["x-incident"] == json!(incident), "{block}, {saved:?}");
    for (name, value) in [
        ("wr_operations", export.stats.wr.operations),
        ("failed_wr_operations", export.stats.wr.failed),
        ("x-holds", export.stats.holds),
    ] {
        ensure!(stats[name] == value, "{stats}, {saved:?}");
    }
    Ok(())
}

/// Everything that was handed back is held, and nothing moves.
fn check_still(server: &mut Server, driver: &mut Driver, disk: &mut Disk) -> Result<()> {
    wait_until("all is held that is marked", PATIENCE, || {
        let region = disk.inflight().context("a region was negotiated")?;
        let marked: usize = (0..disk.queues())
            .map(|queue| region.marked(queue).len())
            .sum();
        Ok(server.held("vda")?.len() == marked)
    })?;
    let moved = driver.reap_within(disk, Duration::from_millis(20))?;
    ensure!(moved == 0, "{moved} requests done before cont");
    let events = server.qmp.take_events(Duration::ZERO)?;
    ensure!(events.is_empty(), "a restart is no event: {events:?}");
    Ok(())
}

/// How often what has happened.
#[derive(Debug, Default)]
struct Count {
    taken_over: usize,
    held: usize,
    /// Restarts that stood still until `cont`.
    still: u64,
}

/// Daemon, workload and disk; the disk is replaced with each daemon.
struct Rounds {
    shape: Shape,
    server: Server,
    driver: Driver,
    rng: Rng,
    count: Count,
}

impl Rounds {
    fn new(shape: Shape, seed: u64) -> Result<Self> {
        Ok(Self {
            shape,
            server: server(shape)?,
            driver: Driver::new(Workload {
                seed,
                requests: u64::MAX,
                depth: 64,
                blocks: BLOCKS,
                timeout: PATIENCE,
                ..Workload::default()
            }),
            rng: Rng::new(seed),
            count: Count::default(),
        })
    }

    /// Load, `kill -9`, restart, reconnect. Returns the disk on the new daemon.
    fn round(&mut self, moment: Moment, mut disk: Disk) -> Result<Disk> {
        let Self {
            shape,
            server,
            driver,
            rng,
            count,
        } = self;
        let write_fails = json!({ "event": "none", "iotype": "write", "errno": 28 });
        if moment != Moment::Running {
            go_on(server, driver, &mut disk)?;
            // What former rounds have left to be read.
            server.qmp.take_events(Duration::ZERO)?;
            server.inject("disk0", write_fails.clone())?;
            server.run_until_held(driver, &mut disk, "vda")?;
        }
        // Also at once, in the middle of things.
        driver.go_on_for(&mut disk, Duration::from_micros(rng.below(40_000)))?;
        let mut settled = false;
        if moment != Moment::Running {
            count.held += server.held("vda")?.len();
            settled = shape.state && rng.below(2) == 0;
            if settled {
                wait_saved(server, *shape)?;
            }
        }
        server.daemon.kill()?;
        driver.reap_rest(&mut disk)?;
        let outstanding = disk.outstanding_tokens().len();
        ensure!(outstanding == driver.outstanding());
        count.taken_over += outstanding;
        let saved = match shape.state {
            true => server.saved()?.unwrap_or_default(),
            false => SavedState::default(),
        };
        let still = shape.state && stands_still(*shape, &saved);
        ensure!(still || !settled || shape.scope == "request", "{saved:?}");
        server.start_again()?;
        if shape.state {
            check_restored(server, &saved)?;
        } else {
            ensure!(server.run_state()? == "running");
        }
        if moment == Moment::HeldAgain {
            server.inject("disk0", write_fails)?;
        }
        let mut disk = server.reconnect("vda", disk.disconnect())?;
        if still {
            count.still += 1;
            check_still(server, driver, &mut disk)?;
        }
        if moment == Moment::HeldAgain {
            if still {
                server.qmp.execute("cont", Value::Null)?;
            }
            server.run_until_held(driver, &mut disk, "vda")?;
            server.clear("disk0")?;
        }
        server.qmp.execute("cont", Value::Null)?;
        if rng.below(3) == 0 {
            server.drain("disk0", driver, &mut disk)?;
        }
        Ok(disk)
    }
}

/// Rounds under one workload, verified all the time.
fn killed_over_and_over(shape: Shape, seed: u64, rounds: u64) -> Result<()> {
    let mut all = Rounds::new(shape, seed)?;
    let options = Options {
        queues: shape.queues,
        ..Options::default()
    };
    let mut disk = all.server.disk_with("vda", options)?;
    let begin = Instant::now();
    for round in 0..rounds {
        let moment = match all.rng.below(3) {
            0 => Moment::Running,
            1 => Moment::Held,
            _ => Moment::HeldAgain,
        };
        let done = all.round(moment, disk);
        disk =
            done.with_context(|| format!("{shape:?}, seed {seed}, round {round}: {moment:?}"))?;
    }
    let Rounds {
        mut server,
        mut driver,
        count,
        ..
    } = all;
    server.drain("disk0", &mut driver, &mut disk)?;
    driver.plan_no_more();
    server.run_to_end(&mut driver, &mut disk, |_| Ok(()))?;
    driver.read_back(&mut disk)?;
    let summary = driver.finish(&mut disk)?;
    println!(
        "{shape:?}: {rounds} rounds in {:.1?}, {count:?}, {summary:?}",
        begin.elapsed()
    );
    ensure!(
        count.taken_over > 0 && count.held > 0,
        "nothing was at stake"
    );
    ensure!(count.still > 0 || !shape.state || shape.scope == "request");
    drop(disk);
    server.finish()
}

/// Nothing is held any more. What another iothread had in flight when the faults ended may have
/// failed after the `cont`, which does not cover it then.
fn go_on(server: &mut Server, driver: &mut Driver, disk: &mut Disk) -> Result<()> {
    wait_until("nothing is held", PATIENCE, || {
        server.qmp.execute("cont", Value::Null)?;
        driver.go_on_for(disk, Duration::from_millis(5))?;
        Ok(server.held("vda")?.is_empty())
    })
}

#[test]
fn killed_with_one_queue() -> Result<()> {
    killed_over_and_over(Shape::new(1, "vm"), 11, soak(8, 100))?;
    killed_over_and_over(Shape::new(1, "request"), 12, soak(4, 100))?;
    killed_over_and_over(Shape::new(1, "vm").with_state(), 15, soak(6, 100))
}

#[test]
fn killed_with_four_queues() -> Result<()> {
    killed_over_and_over(Shape::new(4, "device").on(2), 13, soak(6, 100))?;
    killed_over_and_over(Shape::new(4, "device").on(3).with_state(), 16, soak(8, 100))?;
    killed_over_and_over(
        Shape::new(4, "request").on(2).with_state(),
        18,
        soak(4, 100),
    )
}

#[test]
fn killed_with_eight_queues() -> Result<()> {
    killed_over_and_over(Shape::new(8, "vm").on(4), 14, soak(6, 100))?;
    killed_over_and_over(Shape::new(8, "vm").on(4).with_state(), 17, soak(8, 100))
}

/// QEMU reconnects, and its guest does not notice: killed while it writes, and while it is held.
fn killed_under_a_guest(state: bool, seed: u64) -> Result<()> {
    let tmpfs = Tmpfs::new(256 * MIB)?;
    let image = tmpfs.path().join("disk0.img");
    make_ext4_image(&image, 96 * MIB)?;
    let mut setup = Setup::new()?.iothreads(2);
    if state {
        setup = setup.with_state();
    }
    let mut server = setup
        .blockdev(&json!({ "driver": "file", "node-name": "disk0", "filename": image }))
        .export(
            "vda",
            "disk0",
            json!({ "werror": "stop", "rerror": "stop", "num-queues": 2,
                "iothread": harness::iothreads(2) }),
        )
        .start()?;
    let shape = Shape::new(2, "vm").on(2);
    let disk = VhostUserBlk::new(server.socket("vda")).reconnect(Duration::from_secs(1));
    let mut guest = Guest::builder().disk(disk).start()?;
    guest.wait_boot(BOOT)?;
    guest.mount("vda", "/mnt", GUEST_PATIENCE)?;
    let mut rng = Rng::new(seed);
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
        if held && state {
            wait_saved(&server, shape)?;
        }
        server.daemon.kill()?;
        server.start_again()?;
        if state {
            ensure!(server.run_state()? == if held { "io-error" } else { "running" });
        }
        if held {
            // The next one is no better off: it holds the same again. What is handed back counts as
            // held before it has failed here.
            wait_until("the requests are held again", PATIENCE, || {
                Ok(!server.held("vda")?.is_empty() && server.io_status("vda")? == "nospace")
            })?;
            wait_until("it stands still", PATIENCE, || {
                Ok(server.run_state()? == "io-error")
            })?;
            ensure!(!writing.has_ended());
            tmpfs.resize(256 * MIB)?;
            server.qmp.execute("cont", Value::Null)?;
            // A request of the other iothread that had failed, but was not heard of before that
            // `cont`, counts as after it.
            let written = wait_until("the guest has written", GUEST_PATIENCE, || {
                if !writing.has_ended() && server.run_state()? == "io-error" {
                    println!("round {round}: once more: {:?}", server.held("vda")?);
                    server.qmp.execute("cont", Value::Null)?;
                }
                Ok(writing.has_ended())
            });
            written.with_context(|| {
                format!("{:?}, held: {:?}", server.run_state(), server.held("vda"))
            })?;
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
    println!("{rounds} rounds with a guest, state: {state}");
    server.finish()
}

#[test]
fn killed_under_a_guest_without_state() -> Result<()> {
    killed_under_a_guest(false, 21)
}

#[test]
fn killed_under_a_guest_with_state() -> Result<()> {
    killed_under_a_guest(true, 22)
}

/// A second daemon is refused and told why; the first one goes on.
#[test]
fn the_second_of_two_daemons_is_refused() -> Result<()> {
    let mut server = server(Shape::new(1, "vm"))?;
    let mut disk = server.disk("vda")?;
    let mut driver = harness::writes(5, 2000, BLOCKS, 16);
    let image = server.path("disk0.img").display().to_string();
    let other = server.path("other.sock").display().to_string();
    let socket = server.socket("vda").display().to_string();
    let export = |node: &str, socket: &str| {
        json!({ "type": "vhost-user-blk", "id": "vda", "node-name": node, "writable": true,
            "werror": "auto", "addr": { "type": "unix", "path": socket } })
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
        let other_words = |line: &&str| !line.contains("io_uring is not available");
        let lines = stderr.lines().filter(other_words).count();
        ensure!(lines <= 3, "a clear word: {stderr}");
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
        let mut server = server(Shape::new(1, "vm"))?;
        server.daemon.kill()?;
        let args = server.args().to_vec();
        let mut racers = (0..3)
            .map(|_| standfastd(&args).start())
            .collect::<Result<Vec<_>>>()?;
        let mut left = Vec::new();
        wait_until("all but one have given up", PATIENCE, || {
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
        wait_until("the winner listens", PATIENCE, || {
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
