//! The graph changes while the daemon runs, and verified I/O goes on beside.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is a test")]

mod harness;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use frontend::{Options, Request};
use harness::footprint::Footprint;
use harness::{MIB, PATIENCE, Server, Setup, eventually, sparse};
use serde_json::{Value, json};
use testkit::{Driver, Qmp, Workload};

const DATA: [u8; 4096] = [0x5a; 4096];
const WRITE: Request<'static> = Request::Write {
    sector: 8,
    data: &DATA,
};

fn command(server: &mut Server, name: &str, arguments: Value) -> Result<()> {
    let answer = server.qmp.execute(name, arguments.clone());
    let answer = answer.with_context(|| format!("{name} {arguments}"))?;
    ensure!(answer == json!({}), "{name}: {answer}");
    Ok(())
}

fn refused(server: &mut Server, name: &str, arguments: Value) -> Result<String> {
    match server.qmp.execute(name, arguments.clone()) {
        Ok(answer) => bail!("{name} {arguments}: {answer}"),
        Err(error) => {
            let (class, desc) = error.command().context("an answer")?;
            ensure!(class == "GenericError", "{class}");
            Ok(desc.to_owned())
        }
    }
}

fn image(server: &Server, name: &str, bytes: u64) -> Result<PathBuf> {
    let path = server.path(name);
    sparse(&path, bytes)?;
    Ok(path)
}

fn export(server: &Server, id: &str, node: &str) -> Value {
    json!({ "type": "vhost-user-blk", "id": id, "node-name": node, "writable": true,
        "werror": "stop", "hold-scope": "device",
        "addr": { "type": "unix", "path": server.socket(id) } })
}

/// The words are those of qemu-storage-daemon.
#[test]
fn nodes_and_exports_come_and_go() -> Result<()> {
    let mut server = Setup::new()?.iothreads(2).start()?;
    let server = &mut server;
    let path = image(server, "disk0.img", MIB)?;
    let file = json!({ "driver": "file", "node-name": "file0", "filename": path });
    let nested = json!({ "driver": "quota", "node-name": "top", "limit": 16 * MIB,
        "file": { "driver": "blkdebug", "node-name": "middle", "image": file } });
    command(server, "blockdev-add", nested.clone())?;
    let cases = [
        (
            "blockdev-add",
            nested,
            "Duplicate nodes with node-name='top'",
        ),
        (
            "blockdev-add",
            json!({ "driver": "blkdebug", "node-name": "b", "image": "none" }),
            "Cannot find device='none' nor node-name='none'",
        ),
        (
            "blockdev-add",
            json!({ "driver": "file", "node-name": "b", "filename": "/nonexistent/b" }),
            "Could not open '/nonexistent/b': No such file or directory",
        ),
        (
            "blockdev-del",
            json!({ "node-name": "file0" }),
            "Node file0 is not owned by the monitor",
        ),
        (
            "blockdev-del",
            json!({ "node-name": "none" }),
            "Failed to find node with node-name='none'",
        ),
        (
            "block-export-add",
            export(server, "vda", "none"),
            "Cannot find device='' nor node-name='none'",
        ),
        (
            "block-export-del",
            json!({ "id": "vda" }),
            "Export 'vda' is not found",
        ),
        (
            "x-blockdev-set-iothread",
            json!({ "node-name": "none", "iothread": "io0" }),
            "Failed to find node with node-name='none'",
        ),
        (
            "x-blockdev-set-iothread",
            json!({ "node-name": "top", "iothread": "none" }),
            "Cannot find iothread none",
        ),
    ];
    for (name, arguments, words) in cases {
        ensure!(refused(server, name, arguments)? == words, "{words}");
    }

    // An export that names no iothread is on that of its node.
    let home = json!({ "node-name": "top", "iothread": "io1" });
    command(server, "x-blockdev-set-iothread", home.clone())?;
    command(server, "block-export-add", export(server, "vda", "top"))?;
    let in_use = refused(server, "object-del", json!({ "id": "io1" }))?;
    ensure!(in_use == "object 'io1' is in use, can not be deleted");
    command(server, "object-del", json!({ "id": "io0" }))?;
    let words = refused(server, "x-blockdev-set-iothread", home)?;
    ensure!(
        words
            == "Node top is associated with a BlockBackend and could be in use (use force=true to \
                override this check)",
        "{words}"
    );
    for iothread in [json!("io1"), Value::Null] {
        let same = iothread == "io1";
        let forced = json!({ "node-name": "top", "iothread": iothread, "force": true });
        match server.qmp.execute("x-blockdev-set-iothread", forced) {
            Ok(_) => ensure!(same),
            Err(error) => ensure!(
                !same
                    && error.command().is_some_and(
                        |(_, desc)| desc == "Cannot change iothread of active block backend"
                    ),
                "{error}"
            ),
        }
    }
    let twice = refused(server, "block-export-add", export(server, "vda", "top"))?;
    ensure!(twice == "Block export id 'vda' is already in use");
    let used = refused(server, "blockdev-del", json!({ "node-name": "top" }))?;
    ensure!(used == "Node top is in use");

    let mut disk = server.disk("vda")?;
    ensure!(disk.execute(0, WRITE, PATIENCE)?.is_ok());
    let safe = json!({ "id": "vda" });
    let words = refused(server, "block-export-del", safe.clone())?;
    ensure!(words == "export 'vda' still in use", "{words}");
    let rule = json!({ "event": "write_aio", "errno": 28 });
    server.inject("middle", rule)?;
    disk.submit(0, WRITE)?;
    disk.kick(0)?;
    eventually("it is held", || Ok(server.held("vda")?.len() == 1))?;
    command(
        server,
        "block-export-del",
        json!({ "id": "vda", "mode": "hard" }),
    )?;
    let event = server.qmp.wait_event("BLOCK_EXPORT_DELETED", PATIENCE)?;
    ensure!(
        event.data == json!({ "id": "vda", "x-dropped": 1 }),
        "{event:?}"
    );
    ensure!(!server.socket("vda").exists());
    server.clear("middle")?;
    drop(disk);

    // At once, though the wait for a lock at the start is 5 s.
    let other = Setup::new()?
        .blockdev(&json!({ "driver": "file", "node-name": "file0", "filename": path }))
        .export("vda", "file0", json!({}))
        .start()?;
    let begin = Instant::now();
    let words = refused(server, "block-export-add", export(server, "vda", "top"))?;
    let wanted = format!("Failed to get \"write\" lock on '{}'", path.display());
    ensure!(words == wanted, "{words}");
    ensure!(
        begin.elapsed() < Duration::from_secs(4),
        "{:?}",
        begin.elapsed()
    );
    let again = json!({ "driver": "file", "node-name": "file1", "filename": path });
    command(server, "blockdev-add", again)?;
    other.end()?;
    command(server, "block-export-add", export(server, "vda", "top"))?;
    let disk = server.disk("vda")?;
    drop(disk.disconnect());
    eventually("it has left", || {
        let exports = server.qmp.execute("query-block-exports", Value::Null)?;
        Ok(exports[0]["x-client"] == false)
    })?;
    command(server, "block-export-del", safe)?;
    let event = server.qmp.wait_event("BLOCK_EXPORT_DELETED", PATIENCE)?;
    ensure!(event.data == json!({ "id": "vda" }), "{event:?}");
    command(server, "blockdev-del", json!({ "node-name": "file1" }))?;
    command(server, "blockdev-del", json!({ "node-name": "top" }))?;
    let nodes = server.qmp.execute("query-named-block-nodes", Value::Null)?;
    ensure!(nodes == json!([]), "{nodes}");
    command(server, "object-del", json!({ "id": "io1" }))
}

/// A verified load on an export, until it is ended.
struct Load {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Load {
    fn start(server: &Server, id: &str, seed: u64) -> Result<Self> {
        let mut disk = server.disk(id)?;
        let end = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            let mut driver = Driver::new(Workload {
                seed,
                requests: u64::MAX,
                blocks: 512,
                depth: 8,
                timeout: PATIENCE,
                ..Workload::default()
            });
            while !ends.load(Ordering::Relaxed) {
                driver.fill(&mut disk)?;
                driver.reap_within(&mut disk, Duration::from_millis(20))?;
                // Not all of the machine.
                std::thread::sleep(Duration::from_millis(1));
            }
            driver.plan_no_more();
            driver.drain(&mut disk)?;
            driver.read_back(&mut disk)?;
            Ok(driver.finish(&mut disk)?.succeeded)
        });
        Ok(Self { end, thread })
    }

    /// How many requests there were; each was completed once and rightly, and all reads back as it should.
    fn end(self) -> Result<u64> {
        self.end.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.map_err(|_| anyhow!("the load panicked"))?
    }
}

/// How long answers of the monitor take, until it is dropped.
struct Watch {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Duration>>>,
}

impl Watch {
    fn start(server: &Server) -> Result<Self> {
        let mut qmp = Qmp::connect(server.path("qmp.sock"))?;
        qmp.set_timeout(PATIENCE);
        let end = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            let mut answers = Vec::new();
            while !ends.load(Ordering::Relaxed) {
                for command in ["query-status", "query-block-exports"] {
                    let begin = Instant::now();
                    qmp.execute(command, Value::Null)?;
                    answers.push(begin.elapsed());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(answers)
        });
        Ok(Self { end, thread })
    }

    fn p99(self) -> Result<Duration> {
        self.end.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        let mut answers = ended.map_err(|_| anyhow!("the watch panicked"))??;
        answers.sort();
        let last = answers.len().checked_sub(1).context("no answers")?;
        Ok(answers[last * 99 / 100])
    }
}

/// One node more, an export of it with a client, errors that are held, and all of it goes again.
fn one_comes_and_goes(server: &mut Server, round: u64) -> Result<()> {
    let path = image(server, "extra.img", 4 * MIB)?;
    let file = json!({ "driver": "file", "filename": path,
        "cache": { "direct": round.is_multiple_of(2) } });
    let debug = json!({ "driver": "blkdebug", "node-name": "extra-debug", "image": file });
    let node = json!({ "driver": "quota", "node-name": "extra", "limit": 64 * MIB, "file": debug });
    command(server, "blockdev-add", node)?;
    let mut options = export(server, "extra", "extra");
    if round.is_multiple_of(3) {
        options["iothread"] = json!(["io0", "io1"]);
    }
    command(server, "block-export-add", options.clone())?;
    let mut disk = server.disk_with(
        "extra",
        Options {
            queues: 2,
            ..Options::default()
        },
    )?;
    ensure!(disk.execute(1, WRITE, PATIENCE)?.is_ok());
    let longer = json!({ "node-name": "extra", "size": 8 * MIB });
    command(server, "block_resize", longer)?;
    let sector = 8 * MIB / 512 - 8;
    let at_the_end = Request::Write {
        sector,
        data: &DATA,
    };
    ensure!(disk.execute(0, at_the_end, PATIENCE)?.is_ok());
    server.inject("extra-debug", json!({ "event": "write_aio", "errno": 5 }))?;
    disk.submit(0, WRITE)?;
    disk.kick(0)?;
    eventually("it is held", || Ok(server.held("extra")?.len() == 1))?;
    refused(server, "block-export-del", json!({ "id": "extra" }))?;
    if round.is_multiple_of(2) {
        server.clear("extra-debug")?;
        command(server, "x-block-export-cont", json!({ "id": "extra" }))?;
        let done = disk.wait(0, PATIENCE)?.context("it goes on")?;
        ensure!(done.is_ok());
    }
    let hard = json!({ "id": "extra", "mode": "hard" });
    command(server, "block-export-del", hard.clone())?;
    let event = server.qmp.wait_event("BLOCK_EXPORT_DELETED", PATIENCE)?;
    let dropped = &event.data["x-dropped"];
    let expected = match round.is_multiple_of(2) {
        true => Value::Null,
        false => json!(1),
    };
    ensure!(*dropped == expected, "{event:?}");
    drop(disk);
    command(server, "block-export-add", options)?;
    command(server, "block-export-del", json!({ "id": "extra" }))?;
    server.qmp.wait_event("BLOCK_EXPORT_DELETED", PATIENCE)?;
    command(server, "blockdev-del", json!({ "node-name": "extra" }))
}

/// What carries the load is opened anew, and made longer.
fn the_loaded_ones_change(server: &mut Server, round: u64) -> Result<()> {
    let direct = |number: u64| (round + number).is_multiple_of(2);
    let options: Vec<_> = (0..2)
        .map(|number| {
            let path = server.path(&format!("disk{number}.img"));
            json!({ "driver": "file", "node-name": format!("file{number}"), "filename": path,
                "cache": { "direct": direct(number) }, "discard": "unmap" })
        })
        .collect();
    command(server, "blockdev-reopen", json!({ "options": options }))?;
    let bytes = (8 + round % 8) * MIB;
    command(
        server,
        "block_resize",
        json!({ "node-name": "debug1", "size": bytes }),
    )
}

/// Nothing is lost, whatever is added, removed, reopened, resized and held beside; and nothing is left of it.
#[test]
fn under_load() -> Result<()> {
    let mut setup = Setup::new()?.iothreads(2);
    for number in 0..2 {
        let path = setup.path(&format!("disk{number}.img"));
        sparse(&path, 8 * MIB)?;
        let (file, debug) = (format!("file{number}"), format!("debug{number}"));
        setup = setup
            .blockdev(&json!({ "driver": "file", "node-name": file, "filename": path }))
            .blockdev(&json!({ "driver": "blkdebug", "node-name": debug, "image": file }))
            .export(
                &format!("vd{number}"),
                &debug,
                json!({ "werror": "stop", "rerror": "stop", "hold-scope": "device",
                    "iothread": format!("io{number}") }),
            );
    }
    let mut server = setup.start()?;
    let loads = [
        Load::start(&server, "vd0", 3)?,
        Load::start(&server, "vd1", 4)?,
    ];
    let watch = Watch::start(&server)?;
    // What is made once is made by the first rounds.
    for round in 0..4 {
        one_comes_and_goes(&mut server, round)?;
        the_loaded_ones_change(&mut server, round)?;
    }
    let before = Footprint::of(server.daemon.pid())?;
    let (begin, soak) = (Instant::now(), Duration::from_secs(60));
    let mut round = 0;
    while round < 6 || (begin.elapsed() < soak && std::env::var_os("STANDFAST_SOAK").is_some()) {
        round += 1;
        let victim = round % 2;
        let rule = json!({ "event": "write_aio", "errno": if round % 3 == 0 { 5 } else { 28 },
            "every-nth": 7, "limit": 3 });
        server.inject(&format!("debug{victim}"), rule)?;
        one_comes_and_goes(&mut server, round)?;
        the_loaded_ones_change(&mut server, round)?;
        server.clear(&format!("debug{victim}"))?;
        command(&mut server, "cont", json!({}))?;
    }
    eventually("nothing is held", || {
        command(&mut server, "cont", json!({}))?;
        Ok(server.held("vd0")?.is_empty() && server.held("vd1")?.is_empty())
    })?;
    // Reads may be held, too, if a rule has outlived its round.
    let after = || Footprint::of(server.daemon.pid());
    let counted = eventually("descriptors are as before", || {
        Ok(after()?.descriptors <= before.descriptors)
    });
    counted.with_context(|| format!("{before:?}, then {:?}", after()))?;
    let after = after()?;
    ensure!(
        after.resident_kib < before.resident_kib + 16 * 1024,
        "{before:?}, then {after:?}"
    );
    let p99 = watch.p99()?;
    let mut requests = 0;
    for load in loads {
        requests += load.end()?;
    }
    println!("{round} rounds, {requests} requests, the monitor's p99 {p99:?}, {after:?}");
    ensure!(requests > 100);
    ensure!(p99 < Duration::from_secs(2), "{p99:?}");
    server.finish()
}

/// What was made at run time is made at run time again: its state has waited for that.
#[test]
fn killed_after_changes_and_started_with_the_old_command_line() -> Result<()> {
    let setup = Setup::new()?.with_state();
    let path = setup.path("disk0.img");
    sparse(&path, MIB)?;
    let mut server = setup
        .blockdev(&json!({ "driver": "file", "node-name": "file0", "filename": path }))
        .export("vda", "file0", json!({}))
        .start()?;
    let extra = image(&server, "disk1.img", MIB)?;
    let nodes = [
        json!({ "driver": "file", "node-name": "file1", "filename": extra }),
        json!({ "driver": "blkdebug", "node-name": "debug1", "image": "file1" }),
    ];
    let options = export(&server, "vdb", "debug1");
    for node in &nodes {
        command(&mut server, "blockdev-add", node.clone())?;
    }
    command(&mut server, "block-export-add", options.clone())?;
    let mut steady = server.disk("vda")?;
    ensure!(steady.execute(0, WRITE, PATIENCE)?.is_ok());
    let mut disk = server.disk("vdb")?;
    server.inject("debug1", json!({ "event": "write_aio", "errno": 28 }))?;
    let token = disk.submit(0, WRITE)?;
    disk.kick(0)?;
    eventually("it is saved", || {
        let saved = server.saved()?.unwrap_or_default();
        let vdb = saved.backends.iter().find(|saved| saved.device == "vdb");
        Ok(vdb.is_some_and(|vdb| vdb.incident.is_some()))
    })?;
    server.daemon.kill()?;
    let (steady, held) = (steady.disconnect(), disk.disconnect());

    server.start_again()?;
    let mut steady = server.reconnect("vda", steady)?;
    ensure!(steady.execute(0, WRITE, PATIENCE)?.is_ok());
    let exports = server.qmp.execute("query-block-exports", Value::Null)?;
    ensure!(
        exports.as_array().is_some_and(|all| all.len() == 1),
        "{exports}"
    );
    // Another image under the names of the former one is none of that guest's.
    let other = image(&server, "other.img", MIB)?;
    let wrong = json!({ "driver": "file", "node-name": "file1", "filename": other });
    command(&mut server, "blockdev-add", wrong)?;
    command(&mut server, "blockdev-add", nodes[1].clone())?;
    let words = refused(&mut server, "block-export-add", options.clone())?;
    ensure!(
        words.contains("disk1.img") && words.contains("other.img"),
        "{words}"
    );
    command(
        &mut server,
        "blockdev-del",
        json!({ "node-name": "debug1" }),
    )?;
    command(&mut server, "blockdev-del", json!({ "node-name": "file1" }))?;
    for node in nodes {
        command(&mut server, "blockdev-add", node)?;
    }
    command(&mut server, "block-export-add", options)?;
    ensure!(server.block("vdb")?["x-incident"] == 1);
    let mut disk = server.reconnect("vdb", held)?;
    command(&mut server, "cont", json!({}))?;
    let done = disk.wait(0, PATIENCE)?.context("it goes on")?;
    ensure!(done.token == token && done.is_ok(), "{done:?}");
    drop((disk, steady));
    server.finish()
}
