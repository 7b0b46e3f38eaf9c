//! Restarts of `standfastd`: in order and by `kill -9`, with requests held, paused, with a client
//! that comes back and with one that does not. Needs root, for tmpfs.

mod harness;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use block::RunState;
use block::state_file::{self, FILE_NAME};
use frontend::{Disk, Options, Request};
use harness::{MIB, PATIENCE, Server, Setup, eventually, sparse, writes};
use serde_json::{Value, json};
use testkit::{Driver, LoopDevice, Tmpfs};

const IMAGE_BYTES: u64 = 24 * MIB;
const BLOCKS: usize = 6144;

/// How long nothing must happen for the tests to believe that nothing will.
const QUIET: Duration = Duration::from_millis(300);

/// How long the end of a daemon that holds requests may take: a small part of a second, and more on
/// a busy machine. If it waited for what is held, it would never end.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A small file system with an image that does not fit, the export "vda" on it, and what lies beside.
struct Thin {
    tmpfs: Tmpfs,
    setup: Setup,
}

impl Thin {
    fn new(export: Value) -> Result<Self> {
        let tmpfs = Tmpfs::new(8 * MIB)?;
        let image = tmpfs.path().join("disk0.img");
        sparse(&image, IMAGE_BYTES)?;
        let setup = Setup::new()?
            .blockdev(&json!({ "driver": "file", "node-name": "disk0", "filename": image }))
            .export("vda", "disk0", export);
        Ok(Self { tmpfs, setup })
    }

    fn with_state(self) -> Self {
        let dir = self.setup.path("state");
        let setup = self.setup.option("--state-dir", dir.display());
        Self { setup, ..self }
    }

    fn control(self) -> Self {
        let setup = self.setup.control();
        Self { setup, ..self }
    }

    fn start(self) -> Result<(Server, Tmpfs)> {
        Ok((self.setup.start()?, self.tmpfs))
    }
}

fn end_in_order(server: &mut Server) -> Result<()> {
    let begin = Instant::now();
    let status = server.daemon.terminate(PATIENCE)?;
    let stderr = server.daemon.stderr();
    ensure!(status.code() == Some(0), "{status}; stderr:\n{stderr}");
    println!("ended after {:?}", begin.elapsed());
    ensure!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
    ensure!(stderr.contains("export 'vda'"), "no word of it:\n{stderr}");
    Ok(())
}

fn quit(server: &mut Server) -> Result<()> {
    server.qmp.execute("quit", Value::Null)?;
    let status = server.daemon.wait(AT_ONCE)?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

fn kill(server: &mut Server) -> Result<()> {
    // The state is written beside the events, not before them.
    let file = server.path("state").join(FILE_NAME);
    let saved = || {
        let stored = state_file::parse(&std::fs::read(&file).unwrap_or_default());
        stored.is_ok_and(|stored| {
            stored.is_some_and(|stored| {
                let vda = stored.state.backends.iter().find(|b| b.device == "vda");
                stored.state.run_state == RunState::IoError
                    && vda.is_some_and(|vda| vda.incident.is_some())
            })
        })
    };
    eventually("the state is saved", || Ok(saved()))?;
    server.daemon.kill()?;
    Ok(())
}

/// Runs a workload until the storage is full and nothing moves any more.
fn run_full(server: &mut Server, disk: &mut Disk) -> Result<Driver> {
    let mut driver = writes(7, 1500, BLOCKS, 16);
    server.run_until_held(&mut driver, disk, "vda")?;
    server.qmp.wait_event("STOP", PATIENCE)?;
    while driver.reap_within(disk, QUIET)? > 0 {}
    Ok(driver)
}

fn reconnect(server: &Server, state: frontend::DiskState) -> Result<Disk> {
    Disk::reconnect(state, server.socket("vda")).map_err(|(error, _)| error.into())
}

/// What the client's inflight region has marked.
fn marked(state: &frontend::DiskState) -> Result<usize> {
    let region = state.inflight().context("a region was negotiated")?;
    Ok(region.marked(0).len())
}

/// After the space has come: everything completes, once, and is there.
fn run_out(
    mut server: Server,
    mut disk: Disk,
    mut driver: Driver,
    tmpfs: &Tmpfs,
) -> Result<Server> {
    server.run_to_end(&mut driver, &mut disk, |server| {
        if server.io_status("vda")? != "ok" {
            server.qmp.execute("cont", Value::Null)?;
        }
        Ok(())
    })?;
    eventually("nothing is held", || Ok(server.held("vda")?.is_empty()))?;
    ensure!(server.block("vda")?.get("x-incident").is_none());
    ensure!(server.io_status("vda")? == "ok");
    driver.read_back(&mut disk)?;
    driver.check_image(&tmpfs.path().join("disk0.img"))?;
    println!("{:?}", driver.finish(&mut disk)?);
    Ok(server)
}

/// What `query-block` says that a restart must not change.
fn visible(block: &Value) -> Value {
    let names = [
        "io-status",
        "x-incident",
        "x-incident-since",
        "x-incidents",
        "x-first-error",
        "x-last-error",
    ];
    names.iter().map(|name| block[name].clone()).collect()
}

fn held_over(end: fn(&mut Server) -> Result<()>) -> Result<()> {
    let (mut server, tmpfs) = Thin::new(json!({}))?.with_state().start()?;
    let mut disk = server.disk("vda")?;
    let driver = run_full(&mut server, &mut disk)?;
    let (block, stats) = (server.block("vda")?, server.stats("vda")?);
    let held = server.held("vda")?.len();
    ensure!(held > 0 && block["io-status"] == "nospace", "{block}");
    end(&mut server)?;
    let state = disk.disconnect();
    let marked = marked(&state)?;
    ensure!(marked >= held, "{marked} marked, {held} were held");

    server.start_again()?;
    ensure!(server.run_state()? == "io-error");
    let again = server.block("vda")?;
    ensure!(visible(&again) == visible(&block), "{again}, was {block}");
    let mut disk = reconnect(&server, state)?;
    eventually("all is held that was marked", || {
        Ok(server.held("vda")?.len() == marked)
    })?;
    for request in server.held("vda")? {
        let new = request["attempts"] == 0 && request.get("errno").is_none();
        ensure!(new, "a request that has not been tried again: {request}");
    }
    let mut driver = driver;
    ensure!(driver.reap_within(&mut disk, QUIET)? == 0, "before cont");
    ensure!(server.run_state()? == "io-error");
    let again = server.block("vda")?;
    ensure!(visible(&again) == visible(&block), "{again}, was {block}");
    ensure!(again["x-held"] == marked, "{again}");
    let events = server.qmp.take_events(Duration::ZERO)?;
    ensure!(events.is_empty(), "a restart is no event: {events:?}");

    tmpfs.resize(40 * MIB)?;
    server.qmp.execute("cont", Value::Null)?;
    server.qmp.wait_event("RESUME", PATIENCE)?;
    let mut server = run_out(server, disk, driver, &tmpfs)?;
    ensure!(server.block("vda")?["x-incidents"] == 1);
    let after = server.stats("vda")?;
    let count = |stats: &Value| stats["wr_operations"].as_u64().context("a number");
    ensure!(count(&after)? > count(&stats)?, "{after}, was {stats}");
    ensure!(after["failed_wr_operations"] == 0, "{after}");
    server.finish()
}

#[test]
fn held_over_sigterm() -> Result<()> {
    held_over(end_in_order)
}

#[test]
fn held_over_quit() -> Result<()> {
    held_over(quit)
}

#[test]
fn held_over_kill() -> Result<()> {
    held_over(kill)
}

#[test]
fn without_state_it_runs_and_retries_at_once() -> Result<()> {
    let (mut server, tmpfs) = Thin::new(json!({}))?.start()?;
    let mut disk = server.disk("vda")?;
    let driver = run_full(&mut server, &mut disk)?;
    server.daemon.kill()?;
    let state = disk.disconnect();
    server.start_again()?;
    ensure!(server.run_state()? == "running");
    ensure!(server.io_status("vda")? == Value::Null, "no client yet");
    // There is still no space.
    let disk = reconnect(&server, state)?;
    let event = server.qmp.wait_event("BLOCK_IO_ERROR", PATIENCE)?;
    ensure!(event.data["nospace"] == true, "{event:?}");
    server.qmp.wait_event("STOP", PATIENCE)?;
    let state = disk.disconnect();
    server.daemon.kill()?;
    // Now there is: nothing needs a cont.
    tmpfs.resize(40 * MIB)?;
    server.start_again()?;
    let disk = reconnect(&server, state)?;
    run_out(server, disk, driver, &tmpfs)?.finish()
}

#[test]
fn paused_survives() -> Result<()> {
    let (mut server, _tmpfs) = Thin::new(json!({}))?.with_state().start()?;
    let mut disk = server.disk("vda")?;
    server.qmp.execute("stop", Value::Null)?;
    let data = vec![0x77; 4096];
    let write = Request::Write {
        sector: 0,
        data: &data,
    };
    let token = disk.submit(0, write)?;
    disk.kick(0)?;
    ensure!(server.daemon.terminate(PATIENCE)?.success());
    let state = disk.disconnect();
    server.start_again()?;
    ensure!(server.run_state()? == "paused");
    let mut disk = reconnect(&server, state)?;
    ensure!(disk.wait(0, QUIET)?.is_none(), "it runs");
    server.qmp.execute("cont", Value::Null)?;
    let completion = disk.wait(0, PATIENCE)?;
    ensure!(completion.is_some_and(|c| c.token == token && c.is_ok()));
    drop(disk);
    // That it runs is a state, too.
    ensure!(server.daemon.terminate(PATIENCE)?.success());
    server.start_again()?;
    ensure!(server.run_state()? == "running");
    server.end()
}

#[test]
fn a_fresh_client_ends_the_io_error() -> Result<()> {
    let (mut server, tmpfs) = Thin::new(json!({}))?.control().with_state().start()?;
    let mut disk = server.disk("vda")?;
    run_full(&mut server, &mut disk)?;
    end_in_order(&mut server)?;
    drop(disk);
    server.start_again()?;
    // vda's client may come back with what was held.
    let mut control = server.disk("control")?;
    let read = Request::Read {
        sector: 0,
        len: 4096,
    };
    control.submit(0, read)?;
    control.kick(0)?;
    ensure!(control.wait(0, QUIET)?.is_none(), "the control export runs");
    ensure!(server.run_state()? == "io-error");
    tmpfs.resize(40 * MIB)?;
    let mut disk = server.disk("vda")?;
    server.qmp.wait_event("RESUME", PATIENCE)?;
    ensure!(server.run_state()? == "running" && server.io_status("vda")? == "ok");
    let data = vec![0x77; 4096];
    let write = Request::Write {
        sector: 0,
        data: &data,
    };
    ensure!(disk.execute(0, write, PATIENCE)?.is_ok());
    ensure!(control.wait(0, PATIENCE)?.is_some_and(|c| c.is_ok()));
    drop((disk, control));
    server.end()
}

/// What is held under scope `device` freezes the export over a restart; the others run.
#[test]
fn an_export_that_froze_alone_is_frozen_again() -> Result<()> {
    let thin = Thin::new(json!({ "hold-scope": "device" }))?;
    let (mut server, tmpfs) = thin.control().with_state().start()?;
    let mut disk = server.disk("vda")?;
    let mut driver = writes(7, 1500, BLOCKS, 16);
    server.run_until_held(&mut driver, &mut disk, "vda")?;
    while driver.reap_within(&mut disk, QUIET)? > 0 {}
    let held = server.held("vda")?.len();
    end_in_order(&mut server)?;
    let state = disk.disconnect();
    server.start_again()?;
    ensure!(server.run_state()? == "running" && server.io_status("vda")? == "nospace");
    let mut control = server.disk("control")?;
    let mut disk = reconnect(&server, state)?;
    server.control_progresses(&mut control)?;
    ensure!(driver.reap_within(&mut disk, QUIET)? == 0, "before cont");
    ensure!(server.held("vda")?.len() >= held);
    tmpfs.resize(40 * MIB)?;
    let cont = ("x-block-export-cont", json!({ "id": "vda" }));
    server.qmp.execute(cont.0, cont.1)?;
    drop(control);
    run_out(server, disk, driver, &tmpfs)?.finish()
}

/// Thousands of held requests do not delay the end, and all come back.
#[test]
fn thousands_are_held_over_a_restart() -> Result<()> {
    const QUEUES: u16 = 16;
    const SIZE: u16 = 128;
    let thin = Thin::new(json!({ "hold-scope": "request", "num-queues": QUEUES }))?;
    let (mut server, tmpfs) = thin.with_state().start()?;
    let options = Options {
        queues: QUEUES,
        queue_size: SIZE,
        ..Options::default()
    };
    let mut disk = server.disk_with("vda", options)?;
    // Nothing is left from the first block on.
    std::fs::write(tmpfs.path().join("ballast"), vec![1; 9 << 20]).unwrap_err();
    let count = usize::from(QUEUES) * usize::from(SIZE);
    let mut expected = Vec::new();
    for number in 0..count {
        let data = vec![u8::try_from(number % 251)? + 1; 4096];
        let queue = u16::try_from(number % usize::from(QUEUES))?;
        let sector = u64::try_from(number * 8)?;
        let write = Request::Write {
            sector,
            data: &data,
        };
        expected.push(disk.submit(queue, write)?);
    }
    (0..QUEUES).try_for_each(|queue| disk.kick(queue))?;
    eventually("all are held", || {
        Ok(server.block("vda")?["x-held"] == count)
    })?;
    end_in_order(&mut server)?;
    let state = disk.disconnect();
    ensure!(state.outstanding_tokens().len() == count);
    server.start_again()?;
    // Under this scope they are tried at once, and are held again.
    let mut disk = reconnect(&server, state)?;
    eventually("all are held again", || {
        Ok(server.stats("vda")?["x-holds"] == 2 * count)
    })?;
    let block = server.block("vda")?;
    ensure!(
        block["x-held"] == count && block["x-incident"] == 1,
        "{block}"
    );
    tmpfs.resize(40 * MIB)?;
    let cont = ("x-block-export-cont", json!({ "id": "vda" }));
    server.qmp.execute(cont.0, cont.1)?;
    while !expected.is_empty() {
        let (_, completion) = disk.wait_any(PATIENCE)?.context("all complete")?;
        ensure!(completion.is_ok());
        let place = expected.iter().position(|&token| token == completion.token);
        expected.swap_remove(place.context("once")?);
    }
    let image = std::fs::read(tmpfs.path().join("disk0.img"))?;
    for (number, block) in image.chunks(4096).take(count).enumerate() {
        let byte = u8::try_from(number % 251)? + 1;
        ensure!(block.iter().all(|&found| found == byte), "block {number}");
    }
    drop(disk);
    server.finish()
}

/// Once a flush of a buffered device has failed, a second one would succeed although the data is lost.
/// The next daemon must know that.
#[test]
fn a_loss_is_not_forgotten() -> Result<()> {
    let tmpfs = Tmpfs::new(8 * MIB)?;
    let backing = tmpfs.path().join("thin");
    sparse(&backing, IMAGE_BYTES)?;
    let device = LoopDevice::new(&backing, true)?;
    let setup = Setup::new()?
        .blockdev(&json!({ "driver": "host_device", "node-name": "disk0",
            "filename": device.path(), "cache": { "direct": false } }))
        .export("vda", "disk0", json!({ "werror": "stop" }));
    let dir = setup.path("state");
    let mut server = setup.option("--state-dir", dir.display()).start()?;
    let mut disk = server.disk("vda")?;
    let data = vec![0xa5; 128 << 10];
    for chunk in 0..(IMAGE_BYTES / (128 << 10)) {
        let write = Request::Write {
            sector: chunk * 256,
            data: &data,
        };
        ensure!(disk.execute(0, write, PATIENCE)?.is_ok());
    }
    let flush = disk.submit(0, Request::Flush)?;
    disk.kick(0)?;
    server.qmp.wait_event("STOP", PATIENCE)?;
    end_in_order(&mut server)?;
    let state = disk.disconnect();
    tmpfs.resize(40 * MIB)?;

    server.start_again()?;
    let mut disk = reconnect(&server, state)?;
    eventually("the flush is held", || Ok(server.held("vda")?.len() == 1))?;
    let refused = server.qmp.execute("cont", Value::Null);
    let text = refused.expect_err("cont must be refused").to_string();
    ensure!(text.contains("x-node-accept-loss"), "{text}");
    ensure!(disk.wait(0, QUIET)?.is_none(), "the flush was completed");
    let node = json!({ "node-name": "disk0" });
    server.qmp.execute("x-node-accept-loss", node)?;
    let completion = disk.wait(0, PATIENCE)?;
    ensure!(completion.is_some_and(|c| c.token == flush && !c.is_ok()));
    // That is known to the next one, too.
    ensure!(server.daemon.terminate(PATIENCE)?.success());
    let state = disk.disconnect();
    server.start_again()?;
    let mut disk = reconnect(&server, state)?;
    server.qmp.execute("cont", Value::Null)?;
    ensure!(disk.execute(0, Request::Flush, PATIENCE)?.is_ok());
    drop(disk);
    server.finish()
}

#[test]
fn without_inflight_region_the_end_says_what_is_lost() -> Result<()> {
    let (mut server, tmpfs) = Thin::new(json!({}))?.with_state().start()?;
    let options = Options {
        inflight: false,
        ..Options::default()
    };
    let mut disk = server.disk_with("vda", options)?;
    run_full(&mut server, &mut disk)?;
    end_in_order(&mut server)?;
    let stderr = server.daemon.stderr();
    let said = |line: &str| line.contains("export 'vda'") && line.contains("no inflight region");
    ensure!(stderr.lines().any(said), "{stderr}");
    let state = disk.disconnect();
    server.start_again()?;
    ensure!(server.run_state()? == "io-error");
    // It brings nothing back, so it is a client like any new one.
    tmpfs.resize(40 * MIB)?;
    let disk = reconnect(&server, state)?;
    server.qmp.wait_event("RESUME", PATIENCE)?;
    ensure!(server.held("vda")?.is_empty());
    drop(disk);
    server.end()
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
