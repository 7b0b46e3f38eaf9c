//! Snapshots over QMP, and the daemons that are started after one: what the old command line names is the base, which nobody
//! writes any more.
//!
//! In a soak the daemon is killed 200 times; `STANDFAST_SOAK_FROM=round` goes on. Needs qemu-img (Debian: qemu-utils).
#![allow(clippy::tests_outside_test_module, reason = "the whole file is a test")]

mod harness;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use frontend::{Disk, DiskState, Request, Token};
use harness::{MIB, PATIENCE, Server, Setup, eventually};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::cut::{BLOCK, chain_of, numbers_of};
use testkit::qcow2_image::{is_not_corrupt, run};
use testkit::{Rng, rounds};

const BLOCKS: u64 = MIB / BLOCK as u64;

/// Two images: a disk, and an overlay that says so.
fn images() -> Result<TempDir> {
    let images = tempfile::tempdir()?;
    let (base, over) = (images.path().join("base"), images.path().join("over"));
    let (base, over, size) = (text(&base)?, text(&over)?, MIB.to_string());
    run("qemu-img", &["create", "-qfqcow2", base, &size])?;
    let arguments = ["create", "-qufqcow2", "-Fqcow2", "-bbase", over, &size];
    run("qemu-img", &arguments)?;
    Ok(images)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path is text")
}

/// An image in a file through which requests can be made to fail.
fn node(images: &Path, name: &str, more: Value) -> Value {
    let mut options = json!({ "driver": "qcow2", "node-name": name,
        "file": { "driver": "blkdebug", "node-name": format!("{name}-faulty"),
            "image": { "driver": "file", "filename": images.join(name) } } });
    if let (Value::Object(options), Value::Object(more)) = (&mut options, more) {
        options.extend(more);
    }
    options
}

/// The command line before a snapshot: the overlay is there, and nobody uses it.
fn before(images: &Path, has_state: bool, export: Value) -> Result<Setup> {
    let setup = Setup::new()?
        .blockdev(&node(images, "base", json!({})))
        .blockdev(&node(images, "over", json!({ "backing": null })))
        .export("vda", "base", stopping(export));
    Ok(with_state(setup, images, has_state))
}

/// The command line after it.
fn after(images: &Path, has_state: bool) -> Result<Setup> {
    let setup = Setup::new()?
        .blockdev(&node(images, "base", json!({ "read-only": true })))
        .blockdev(&node(images, "over", json!({ "backing": "base" })))
        .export("vda", "over", stopping(json!({})));
    Ok(with_state(setup, images, has_state))
}

fn stopping(mut export: Value) -> Value {
    export["werror"] = json!("stop");
    export
}

fn with_state(setup: Setup, images: &Path, has_state: bool) -> Setup {
    match has_state {
        true => setup.option("--state-dir", images.join("state").display()),
        false => setup,
    }
}

fn data(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK / 8)
}

fn submit(disk: &mut Disk, block: u64, number: u64) -> Result<Token> {
    let data = data(number);
    let write = Request::Write {
        sector: block * (BLOCK as u64 / 512),
        data: &data,
    };
    Ok(disk.submit(0, write)?)
}

fn write(disk: &mut Disk, block: u64, number: u64) -> Result<()> {
    let data = data(number);
    let write = Request::Write {
        sector: block * (BLOCK as u64 / 512),
        data: &data,
    };
    ensure!(disk.execute(0, write, PATIENCE)?.is_ok());
    Ok(())
}

/// Without a state directory what is in tables in memory does not outlive a daemon that is killed.
fn flush(disk: &mut Disk) -> Result<()> {
    ensure!(disk.execute(0, Request::Flush, PATIENCE)?.is_ok());
    Ok(())
}

fn read(disk: &mut Disk, block: u64) -> Result<u64> {
    let read = Request::Read {
        sector: block * (BLOCK as u64 / 512),
        len: u32::try_from(BLOCK)?,
    };
    let done = disk.execute(0, read, PATIENCE)?;
    ensure!(done.is_ok());
    let first = done.data.first_chunk().context("it has data")?;
    let number = u64::from_le_bytes(*first);
    ensure!(done.data == data(number), "it is of two writes");
    Ok(number)
}

fn snapshot(server: &mut Server) -> Result<()> {
    let arguments = json!({ "node": "base", "overlay": "over" });
    server.qmp.execute("blockdev-snapshot", arguments)?;
    Ok(())
}

/// A daemon with a state directory that does not start.
fn is_refused(setup: Setup) -> Result<String> {
    let server = setup.start();
    match server {
        Ok(server) => bail!("it is served: {}", server.daemon.stderr()),
        Err(error) => Ok(format!("{error:?}")),
    }
}

/// Goes on with another daemon, which tries again what is handed back to it; or is refused by it.
fn reconnect(server: &mut Server, state: DiskState) -> Result<Disk, (String, Box<DiskState>)> {
    if let Err(error) = server.qmp.execute("cont", Value::Null) {
        return Err((error.to_string(), Box::new(state)));
    }
    match Disk::reconnect(state, server.socket("vda")) {
        // What has no answer was sent, and what was refused with it.
        Ok(mut disk) => match read(&mut disk, BLOCKS - 1) {
            Ok(_) => Ok(disk),
            Err(error) => Err((error.to_string(), Box::new(disk.disconnect()))),
        },
        Err((error, state)) => Err((error.to_string(), Box::new(state))),
    }
}

/// What a monitor shows: the chain, and where the guest's requests go.
#[test]
fn the_chain_is_shown() -> Result<()> {
    let images = images()?;
    let mut server = before(images.path(), false, json!({}))?.start()?;
    let mut disk = server.disk("vda")?;
    write(&mut disk, 0, 1)?;
    snapshot(&mut server)?;
    write(&mut disk, 1, 2)?;
    ensure!((read(&mut disk, 0)?, read(&mut disk, 1)?) == (1, 2));
    let (base, over) = (images.path().join("base"), images.path().join("over"));
    let block = server.block("vda")?;
    let inserted = &block["inserted"];
    ensure!(inserted["node-name"] == "over", "{block}");
    ensure!(inserted["backing_file_depth"] == 1, "{block}");
    let below = &inserted["image"]["backing-image"];
    ensure!(below["format"] == "qcow2", "{block}");
    let nodes = server.qmp.execute("query-named-block-nodes", Value::Null)?;
    let read_only = |name: &str| {
        let nodes = nodes.as_array().into_iter().flatten();
        let mut nodes = nodes.filter(|node| node["node-name"] == name);
        nodes.next().map(|node| node["ro"] == true)
    };
    ensure!(
        (read_only("base"), read_only("over")) == (Some(true), Some(false)),
        "{nodes}"
    );
    let exports = server.qmp.execute("query-block-exports", Value::Null)?;
    ensure!(exports[0]["node-name"] == "over", "{exports}");
    let stats = server.qmp.execute("query-blockstats", Value::Null)?;
    ensure!(stats[0]["node-name"] == "over", "{stats}");
    ensure!(stats[0]["backing"]["node-name"] == "base", "{stats}");
    let line = json!({ "command-line": "info block" });
    let shown = server.qmp.execute("human-monitor-command", line)?;
    let shown = shown.as_str().context("it is text")?;
    ensure!(
        shown.starts_with("vda (over)") || shown.contains("(over)"),
        "{shown}"
    );
    drop(disk.disconnect());
    server.end()?;
    ensure!(numbers_of(&chain_of([&base]))?[..2] == [1, 0]);
    ensure!(numbers_of(&chain_of([&base, &over]))?[..2] == [1, 2]);
    Ok(())
}

/// Errors of the overlay are held, the base is out of reach, and a snapshot of what cannot be written is refused.
#[test]
fn what_is_held_is_done_above() -> Result<()> {
    let images = images()?;
    let mut server = before(images.path(), false, json!({}))?.start()?;
    let mut disk = server.disk("vda")?;
    write(&mut disk, 0, 1)?;
    server.inject(
        "base-faulty",
        json!({ "iotype": "write", "errno": libc::ENOSPC }),
    )?;
    let token = submit(&mut disk, 9, 2)?;
    disk.kick(0)?;
    eventually("it is held", || Ok(server.held("vda")?.len() == 1))?;
    // Where the acknowledged cannot get to the disk there is no snapshot.
    server.inject("base-faulty", json!({ "iotype": "flush" }))?;
    let refused = snapshot(&mut server).err().context("it cannot be exact")?;
    let refused = format!("{refused:#}");
    ensure!(refused.contains("before all of it is on disk"), "{refused}");
    ensure!(server.block("vda")?["inserted"]["node-name"] == "base");
    server.clear("base-faulty")?;
    server.inject(
        "base-faulty",
        json!({ "iotype": "write", "errno": libc::ENOSPC, "sector": 1 << 30 }),
    )?;
    snapshot(&mut server)?;
    ensure!(server.held("vda")?.len() == 1 && server.run_state()? == "io-error");
    server.qmp.execute("cont", Value::Null)?;
    let done = disk.wait(0, PATIENCE)?.context("it is completed")?;
    ensure!(done.token == token && done.is_ok());
    ensure!(read(&mut disk, 9)? == 2);
    drop(disk.disconnect());
    server.end()?;
    let base = images.path().join("base");
    ensure!(
        numbers_of(&chain_of([base]))?[9] == 0,
        "it was held when the base was left"
    );
    Ok(())
}

/// What the old command line names was opened for writing, and held writes were done again in it: the guest's disk was two
/// halves, and the snapshot was none.
#[test]
fn the_old_command_line_is_refused() -> Result<()> {
    for has_state in [true, false] {
        for holds in [true, false] {
            old_command_line(has_state, holds)
                .with_context(|| format!("state: {has_state}, held: {holds}"))?;
        }
    }
    Ok(())
}

fn old_command_line(has_state: bool, holds: bool) -> Result<()> {
    let images = images()?;
    let (base, over) = (images.path().join("base"), images.path().join("over"));
    let mut server = before(images.path(), has_state, json!({}))?.start()?;
    let mut disk = server.disk("vda")?;
    for block in 0..8 {
        write(&mut disk, block, 1)?;
    }
    snapshot(&mut server)?;
    write(&mut disk, 0, 2)?;
    flush(&mut disk)?;
    let mut token = None;
    if holds {
        server.inject(
            "over-faulty",
            json!({ "iotype": "write", "errno": libc::ENOSPC }),
        )?;
        token = Some(submit(&mut disk, 100, 3)?);
        disk.kick(0)?;
        eventually("it is held", || Ok(server.held("vda")?.len() == 1))?;
    }
    if has_state {
        let saved = images
            .path()
            .join("state")
            .join(block::state_file::FILE_NAME);
        eventually("it is saved", || {
            let stored = block::state_file::parse(&fs::read(&saved)?)?;
            let saved = stored.and_then(|stored| stored.state.backends.into_iter().next());
            Ok(saved.is_some_and(|saved| saved.incident.is_some() == holds && saved.connected))
        })?;
    }
    server.daemon.kill()?;
    let state = disk.disconnect();
    drop(server);

    let (base_before, over_before) = (fs::read(&base)?, fs::read(&over)?);
    let unchanged = || -> Result<()> {
        ensure!(fs::read(&base)? == base_before, "the base was written");
        ensure!(fs::read(&over)? == over_before, "the overlay was written");
        Ok(())
    };
    let names_both = |text: &str| -> Result<()> {
        for name in [
            text_of(&base)?,
            text_of(&over)?,
            "x-other-image=on".to_owned(),
        ] {
            ensure!(text.contains(&name), "{name}: {text}");
        }
        Ok(())
    };
    let state = if has_state {
        let said = is_refused(before(images.path(), true, json!({}))?)?;
        ensure!(said.contains("Export 'vda' is refused"), "{said}");
        names_both(&said)?;
        state
    } else {
        // Only the client knows.
        let mut server = before(images.path(), false, json!({}))?.start()?;
        let Err((_, state)) = reconnect(&mut server, state) else {
            bail!("it is served: {}", server.daemon.stderr());
        };
        let mut trouble = String::new();
        eventually("it is told", || {
            let exports = server.qmp.execute("query-block-exports", Value::Null)?;
            trouble = exports[0]["x-trouble"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            Ok(!trouble.is_empty())
        })?;
        names_both(&trouble)?;
        server.end()?;
        *state
    };
    unchanged()?;

    // The administrator knows better, here of copies.
    let copies = tempfile::tempdir()?;
    for name in ["base", "over"] {
        fs::copy(images.path().join(name), copies.path().join(name))?;
    }
    if has_state {
        fs::create_dir(copies.path().join("state"))?;
        let file = block::state_file::FILE_NAME;
        let (from, to) = (images.path().join("state"), copies.path().join("state"));
        fs::copy(from.join(file), to.join(file))?;
    }
    let other = json!({ "x-other-image": true });
    let server = before(copies.path(), has_state, other)?.start()?;
    let text = "it is made, as x-other-image=on says";
    if has_state {
        server.daemon.wait_for_stderr(text, PATIENCE)?;
    }
    server.end()?;

    let mut server = after(images.path(), has_state)?.start()?;
    let mut disk = match reconnect(&mut server, state) {
        Ok(disk) => disk,
        Err((error, _)) => bail!("{error}: {}", server.daemon.stderr()),
    };
    if let Some(token) = token {
        let done = disk.wait(0, PATIENCE)?.context("it is completed")?;
        ensure!(done.token == token && done.is_ok());
        ensure!(read(&mut disk, 100)? == 3);
    }
    for block in 0..8 {
        ensure!(read(&mut disk, block)? == if block == 0 { 2 } else { 1 });
    }
    drop(disk.disconnect());
    server.end()?;
    ensure!(fs::read(&base)? == base_before, "the base was written");
    Ok(())
}

fn text_of(path: &Path) -> Result<String> {
    Ok(text(&fs::canonicalize(path)?)?.to_owned())
}

/// At any instant of a switch the next daemon is one with the old command line or one with the new one, never neither; what was
/// acknowledged is there, and what was not is done then.
#[test]
fn killed_at_any_instant_of_a_switch() -> Result<()> {
    let (mut old, mut new) = (0, 0);
    for round in rounds(8, 200) {
        let is_new = killed(round).with_context(|| format!("round {round}"))?;
        *if is_new { &mut new } else { &mut old } += 1;
    }
    println!("the old command line was right {old} times, the new one {new} times");
    Ok(())
}

/// Whether the new command line was right.
fn killed(round: u64) -> Result<bool> {
    let mut rng = Rng::new(round);
    let has_state = rng.below(3) > 0;
    let images = images()?;
    let mut server = before(images.path(), has_state, json!({}))?.start()?;
    let mut disk = server.disk("vda")?;
    let mut numbers = vec![0; usize::try_from(BLOCKS)?];
    for _ in 0..16 {
        let block = rng.below(BLOCKS);
        let number = 1 + rng.below(1000);
        write(&mut disk, block, number)?;
        numbers[usize::try_from(block)?] = number;
    }
    flush(&mut disk)?;
    // These may be completed before the end of the daemon, or by the next one.
    let mut later = numbers.clone();
    for block in 0..16 {
        let number = 2000 + rng.below(1000);
        submit(&mut disk, block, number)?;
        later[usize::try_from(block)?] = number;
    }
    disk.kick(0)?;
    let command = json!({ "execute": "blockdev-snapshot",
        "arguments": { "node": "base", "overlay": "over" } });
    server.qmp.send_raw(format!("{command}\n").as_bytes())?;
    std::thread::sleep(Duration::from_micros(rng.below(60_000)));
    server.daemon.kill()?;
    while disk.poll(0).is_some() {}
    let mut state = disk.disconnect();
    drop(server);

    let new_first = rng.below(2) == 0;
    for is_new in [new_first, !new_first] {
        let setup = match is_new {
            true => after(images.path(), has_state)?,
            false => before(images.path(), has_state, json!({}))?,
        };
        let server = match setup.start() {
            Ok(server) => server,
            Err(error) => {
                let said = format!("{error:?}");
                ensure!(said.contains("is refused"), "{said}");
                continue;
            }
        };
        let mut server = server;
        let mut disk = match reconnect(&mut server, state) {
            Ok(disk) => disk,
            Err((_, again)) => {
                state = *again;
                server.end()?;
                continue;
            }
        };
        while !disk.outstanding_tokens().is_empty() {
            let done = disk.wait(0, PATIENCE)?.context("it is completed")?;
            ensure!(done.is_ok());
        }
        for (block, (number, later)) in (0..).zip(numbers.iter().zip(&later)) {
            let there = read(&mut disk, block)?;
            ensure!(
                [number, later].contains(&&there),
                "block {block}: {there} instead of {number} or {later}"
            );
        }
        drop(disk.disconnect());
        server.end()?;
        // What a write had begun when the daemon was killed leaks, at most; the base was left in order.
        is_not_corrupt(&images.path().join("over"))?;
        is_not_corrupt(&images.path().join("base"))?;
        if is_new {
            run(
                "qemu-img",
                &["check", "-q", &chain_of([images.path().join("base")])],
            )?;
        }
        return Ok(is_new);
    }
    bail!("neither is served")
}
