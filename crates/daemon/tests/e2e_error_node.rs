//! Which node has failed, wherever an error is shown: the export's own, or one below. Needs qemu-img (Debian: qemu-utils), and root.
//!
//! Events, queries and the log named the export's node alone, whether the image was full, or its file system, or its account.

mod harness;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use frontend::{Disk, Request};
use harness::{MIB, PATIENCE, Server, Setup, eventually};
use serde_json::{Value, json};
use testkit::qcow2_image::run;
use testkit::{Place, Tmpfs};

const CLUSTER: usize = 65536;

fn create(path: &Path) -> Result<()> {
    let path = path.to_str().context("text")?;
    run("qemu-img", &["create", "-qfqcow2", path, "24M"])?;
    Ok(())
}

fn file(path: &Path) -> Value {
    json!({ "driver": "file", "node-name": "file0", "filename": path })
}

fn qcow2(below: &Value) -> Value {
    json!({ "driver": "qcow2", "node-name": "disk0", "file": below })
}

fn server(node: &Value) -> Result<Server> {
    Setup::new()?
        .with_state()
        .blockdev(node)
        .export(
            "vda",
            "disk0",
            json!({ "werror": "stop", "rerror": "stop" }),
        )
        .start()
}

/// Writes cluster after cluster until one does not end.
fn fill(server: &mut Server, disk: &mut Disk, id: &str) -> Result<()> {
    let data = vec![7; CLUSTER];
    for sector in (0..).step_by(CLUSTER / 512) {
        disk.submit(
            0,
            Request::Write {
                sector,
                data: &data,
            },
        )?;
        disk.kick(0)?;
        loop {
            if let Some(completion) = disk.poll(0) {
                ensure!(completion.is_ok());
                break;
            }
            if !server.held(id)?.is_empty() {
                return Ok(());
            }
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// Everything that tells of what is held names `node`.
fn is_named(server: &mut Server, node: &str, operation: &str) -> Result<()> {
    let event = server.qmp.wait_event("BLOCK_IO_ERROR", PATIENCE)?;
    let data = &event.data;
    ensure!(data["node-name"] == "disk0", "{data}");
    ensure!(
        data["x-error-node"] == node && data["x-request"] == operation,
        "{data}"
    );
    let held = server.held("vda")?;
    ensure!(
        held.iter().all(|held| held["error-node"] == node),
        "{held:?}"
    );
    is_remembered(server, node)?;
    let log = server.daemon.stderr();
    let text = format!("on node 'disk0': node '{node}': No space left on device (nospace)");
    ensure!(log.contains(&text) == (node != "disk0"), "{log}");
    Ok(())
}

fn is_remembered(server: &mut Server, node: &str) -> Result<()> {
    let block = server.block("vda")?;
    for error in ["x-first-error", "x-last-error"] {
        ensure!(block[error]["error-node"] == node, "{block}");
    }
    ensure!(block["x-incident-node"] == node, "{block}");
    let command = json!({ "command-line": "info block vda" });
    let text = server.qmp.execute("human-monitor-command", command)?;
    let text = text.as_str().context("text")?;
    let below = format!("(node '{node}': No space left on device)");
    ensure!(text.contains(&below) == (node != "disk0"), "{text}");
    Ok(())
}

/// `cont`, and all that is held ends well.
fn goes_on(server: &mut Server, disk: &mut Disk) -> Result<()> {
    server.qmp.execute("cont", Value::Null)?;
    let completion = disk.wait(0, PATIENCE)?;
    ensure!(completion.context("it has not ended")?.is_ok());
    ensure!(disk.execute(0, Request::Flush, PATIENCE)?.is_ok());
    Ok(())
}

#[test]
fn the_file_of_an_image_that_is_full() -> Result<()> {
    let tmpfs = Tmpfs::new(2 * MIB)?;
    let image = tmpfs.path().join("image");
    create(&image)?;
    let mut server = server(&qcow2(&file(&image)))?;
    let mut disk = server.disk("vda")?;
    fill(&mut server, &mut disk, "vda")?;
    is_named(&mut server, "file0", "write")?;
    // The next daemon knows it, too, once it is saved.
    eventually("it is saved", || {
        let saved = server.saved().ok().flatten();
        Ok(saved.is_some_and(|saved| saved.backends.iter().any(|one| one.incident.is_some())))
    })?;
    let state = disk.disconnect();
    server.daemon.kill()?;
    server.start_again()?;
    let block = server.block("vda")?;
    ensure!(block["x-first-error"]["error-node"] == "file0", "{block}");
    ensure!(block["x-incident-node"] == "file0", "{block}");
    tmpfs.resize(48 * MIB)?;
    let mut disk = server.reconnect("vda", state)?;
    goes_on(&mut server, &mut disk)?;
    drop(disk);
    server.finish()
}

#[test]
fn the_account_of_an_image_that_is_used_up() -> Result<()> {
    let place = Place::new();
    let image = place.file("image");
    create(&image)?;
    let account =
        json!({ "driver": "quota", "node-name": "quota0", "limit": 2 * MIB, "file": file(&image) });
    let mut server = server(&qcow2(&account))?;
    let mut disk = server.disk("vda")?;
    fill(&mut server, &mut disk, "vda")?;
    is_named(&mut server, "quota0", "write")?;
    let more = json!({ "node-name": "quota0", "limit": 48 * MIB });
    server.qmp.execute("x-quota-set", more)?;
    goes_on(&mut server, &mut disk)?;
    drop(disk);
    server.finish()
}

/// The data has been written, and the tables that say where it is find no space.
#[test]
fn the_node_that_has_no_space_for_metadata() -> Result<()> {
    let place = Place::new();
    let image = place.file("image");
    create(&image)?;
    let below = json!({ "driver": "blkdebug", "node-name": "debug0", "image": file(&image) });
    let mut server = server(&qcow2(&below))?;
    let mut disk = server.disk("vda")?;
    let data = vec![7; CLUSTER];
    let write = Request::Write {
        sector: 0,
        data: &data,
    };
    ensure!(disk.execute(0, write, PATIENCE)?.is_ok());
    server.inject("debug0", json!({ "iotype": "write", "errno": 28 }))?;
    disk.submit(0, Request::Flush)?;
    disk.kick(0)?;
    is_named(&mut server, "debug0", "flush")?;
    server.clear("debug0")?;
    goes_on(&mut server, &mut disk)?;
    drop(disk);
    server.finish()?;
    run(
        "qemu-img",
        &["check", "-qfqcow2", image.to_str().context("text")?],
    )?;
    Ok(())
}

/// With nothing below it, the export's node is the one.
#[test]
fn a_file_without_a_format_is_named_itself() -> Result<()> {
    let tmpfs = Tmpfs::new(MIB)?;
    let image = tmpfs.path().join("image");
    harness::sparse(&image, 24 * MIB)?;
    let mut node = file(&image);
    node["node-name"] = json!("disk0");
    let mut server = server(&node)?;
    let mut disk = server.disk("vda")?;
    fill(&mut server, &mut disk, "vda")?;
    is_named(&mut server, "disk0", "write")?;
    tmpfs.resize(48 * MIB)?;
    goes_on(&mut server, &mut disk)?;
    drop(disk);
    server.finish()
}
