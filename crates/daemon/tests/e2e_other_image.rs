//! A daemon that is started again serves the image that the guest has seen, or says why it does not.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is a test")]

mod harness;

use std::fs;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use frontend::Request;
use harness::{MIB, PATIENCE, Server, Setup, eventually, sparse, standfastd};
use serde_json::{Value, json};

fn setup(images: &Path, name: &str, export: Value) -> Result<Setup> {
    let image = images.join(name);
    if !image.exists() {
        sparse(&image, MIB)?;
    }
    let node = json!({ "driver": "file", "node-name": "disk0", "filename": image });
    Ok(Setup::new()?.blockdev(&node).export("vda", "disk0", export))
}

/// A daemon with another image under the name of the one that the guest has seen, at the same socket.
fn again(before: Server, other: Setup) -> Result<Server> {
    let (from, to) = (before.socket("vda"), other.path("old.sock"));
    drop(before);
    ensure!(!from.exists() || fs::rename(from, to).is_ok());
    other.start()
}

/// The base of a snapshot: the old command line names it, and the guest's data is in the other one.
#[test]
fn a_guest_that_has_seen_another_image_is_refused() -> Result<()> {
    let images = tempfile::tempdir()?;
    let server = setup(images.path(), "snapshot.img", json!({}))?.start()?;
    let mut disk = server.disk("vda")?;
    let data = vec![0x5a; 4096];
    let write = Request::Write {
        sector: 0,
        data: &data,
    };
    ensure!(disk.execute(0, write, PATIENCE)?.is_ok());
    let state = disk.disconnect();
    let mut server = again(server, setup(images.path(), "base.img", json!({}))?)?;
    let socket = server.socket("vda");
    let state = match frontend::Disk::reconnect(state, &socket) {
        // Messages without an answer have been sent, the one that was refused among them.
        Ok(mut disk) => {
            let read = Request::Read {
                sector: 0,
                len: 4096,
            };
            if disk.execute(0, read, PATIENCE).is_ok() {
                bail!("it was served: {}", server.daemon.stderr());
            }
            disk.disconnect()
        }
        Err((_, state)) => state,
    };
    let trouble = || -> Result<String> {
        let exports = server.qmp.execute("query-block-exports", Value::Null)?;
        Ok(exports[0]["x-trouble"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    };
    let mut trouble = trouble;
    let mut text = String::new();
    eventually("it is told", || {
        text = trouble()?;
        Ok(!text.is_empty())
    })?;
    for name in [
        "snapshot.img",
        "base.img",
        "'vda'",
        "'disk0'",
        "x-other-image=on",
    ] {
        ensure!(text.contains(name), "{name}: {text}");
    }
    // A VM that is started anew has seen none.
    let mut fresh = server.disk("vda")?;
    let read = Request::Read {
        sector: 0,
        len: 4096,
    };
    ensure!(fresh.execute(0, read, PATIENCE)?.is_ok());
    drop(fresh.disconnect());
    server.end()?;

    // The administrator knows better.
    let other = setup(images.path(), "base.img", json!({ "x-other-image": true }))?;
    let server = other.start()?;
    let mut disk = server.reconnect("vda", state)?;
    let read = Request::Read {
        sector: 0,
        len: 4096,
    };
    ensure!(disk.execute(0, read, PATIENCE)?.is_ok());
    // The log is written beside.
    server.daemon.wait_for_stderr("snapshot.img", PATIENCE)?;
    // From now on it has seen this one.
    let state = disk.disconnect();
    server.end()?;
    let server = setup(images.path(), "base.img", json!({}))?.start()?;
    let mut disk = server.reconnect("vda", state)?;
    let read = Request::Read {
        sector: 0,
        len: 4096,
    };
    ensure!(disk.execute(0, read, PATIENCE)?.is_ok());
    drop(disk.disconnect());
    server.end()
}

/// Moved, copied, and changed while the daemon runs: the guest's image is where it is now.
#[test]
fn an_image_may_be_moved_copied_and_changed_by_hand() -> Result<()> {
    let images = tempfile::tempdir()?;
    let at = |name: &str| images.path().join(name);
    let server = setup(images.path(), "a.img", json!({}))?.start()?;
    let state = server.disk("vda")?.disconnect();
    server.end()?;
    fs::rename(at("a.img"), at("b.img"))?;
    let server = setup(images.path(), "b.img", json!({}))?.start()?;
    let state = server.reconnect("vda", state)?.disconnect();
    server.end()?;
    fs::copy(at("b.img"), at("copy"))?;
    fs::rename(at("copy"), at("b.img"))?;
    let mut server = setup(images.path(), "b.img", json!({}))?.start()?;
    let disk = server.reconnect("vda", state)?;
    // By hand, with the client there; then with the client away.
    sparse(&at("c.img"), MIB)?;
    fs::remove_file(at("b.img"))?;
    std::os::unix::fs::symlink(at("c.img"), at("b.img"))?;
    let options = json!({ "driver": "file", "node-name": "disk0", "filename": at("b.img") });
    let reopen = json!({ "options": [options] });
    server.qmp.execute("blockdev-reopen", reopen.clone())?;
    let state = disk.disconnect();
    let state = server.reconnect("vda", state)?.disconnect();
    server.end()?;
    let mut server = setup(images.path(), "c.img", json!({}))?.start()?;
    let state = server.reconnect("vda", state)?.disconnect();
    fs::rename(at("c.img"), at("d.img"))?;
    sparse(&at("e.img"), MIB)?;
    std::os::unix::fs::symlink(at("e.img"), at("c.img"))?;
    let options = json!({ "driver": "file", "node-name": "disk0", "filename": at("c.img") });
    server
        .qmp
        .execute("blockdev-reopen", json!({ "options": [options] }))?;
    let mut disk = server.reconnect("vda", state)?;
    let read = Request::Read {
        sector: 0,
        len: 4096,
    };
    ensure!(disk.execute(0, read, PATIENCE)?.is_ok(), "it was away");
    drop(disk.disconnect());
    server.end()
}

/// A client without an inflight region cannot say what it has seen; the state can.
#[test]
fn an_export_whose_guest_is_alive_is_refused() -> Result<()> {
    let images = tempfile::tempdir()?;
    let state = images.path().join("state");
    let with_state = |name: &str, export: Value| -> Result<Setup> {
        let dir = format!("{}", state.display());
        Ok(setup(images.path(), name, export)?.option("--state-dir", dir))
    };
    let connected = |connected: bool| {
        let file = state.join(block::state_file::FILE_NAME);
        move || -> Result<bool> {
            let stored = block::state_file::parse(&fs::read(&file).unwrap_or_default())?;
            let saved = stored.and_then(|stored| stored.state.backends.into_iter().next());
            Ok(saved.is_some_and(|saved| saved.connected == connected))
        }
    };
    let mut server = with_state("a.img", json!({}))?.start()?;
    let disk = server.disk("vda")?;
    eventually("it is saved", connected(true))?;
    server.daemon.kill()?;
    drop((server, disk));

    let other = with_state("b.img", json!({}))?;
    let mut command = standfastd(&[
        "--state-dir",
        &state.display().to_string(),
        "--blockdev",
        &json!({ "driver": "file", "node-name": "disk0",
            "filename": images.path().join("b.img") })
        .to_string(),
        "--export",
        &json!({ "type": "vhost-user-blk", "id": "vda", "node-name": "disk0",
            "addr": { "type": "unix", "path": images.path().join("sock") } })
        .to_string(),
    ])
    .start()?;
    let status = command.wait(PATIENCE)?;
    let text = command.stderr();
    ensure!(status.code() == Some(1), "{status}: {text}");
    for name in [
        "a.img",
        "b.img",
        "Export 'vda' is refused",
        "x-other-image=on",
    ] {
        ensure!(text.contains(name), "{name}: {text}");
    }
    drop(other);

    // Nothing of the state is lost by that; and it is no business of a guest that has left.
    let server = with_state("a.img", json!({}))?.start()?;
    let disk = server.disk("vda")?;
    eventually("it is saved", connected(true))?;
    drop(disk.disconnect());
    eventually("it is saved", connected(false))?;
    server.end()?;
    with_state("b.img", json!({}))?.start()?.end()?;
    let server = with_state("a.img", json!({}))?.start()?;
    let disk = server.disk("vda")?;
    eventually("it is saved", connected(true))?;
    server.end()?;
    drop(disk);
    with_state("b.img", json!({ "x-other-image": true }))?
        .start()?
        .end()
}
