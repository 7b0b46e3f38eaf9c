//! `block_resize` with other nodes above, several exports, and clients that may hand requests back.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is a test")]

mod harness;

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use frontend::{Disk, Request};
use harness::{MIB, PATIENCE, Server, Setup, eventually};
use serde_json::{Value, json};
use testkit::LoopDevice;

fn image(setup: &Setup, name: &str, bytes: u64) -> Result<String> {
    let path = setup.path(name);
    harness::sparse(&path, bytes)?;
    Ok(path.display().to_string())
}

fn file(name: &str, path: &str) -> Value {
    json!({ "driver": "file", "node-name": name, "filename": path, "cache": { "direct": true } })
}

fn resize(server: &mut Server, node: &str, size: u64) -> Result<Value, String> {
    let arguments = json!({ "node-name": node, "size": size });
    let answer = server.qmp.execute("block_resize", arguments);
    answer.map_err(|error| {
        error
            .command()
            .map_or(String::new(), |(_, desc)| desc.to_owned())
    })
}

fn refused(server: &mut Server, node: &str, size: u64) -> Result<String> {
    match resize(server, node, size) {
        Ok(_) => bail!("{node} was resized to {size}"),
        Err(desc) => Ok(desc),
    }
}

fn resized(server: &mut Server, node: &str, size: u64) -> Result<()> {
    resize(server, node, size)
        .map(drop)
        .map_err(anyhow::Error::msg)
}

/// The guest hears of the new length, and sees it.
fn sees(disk: &mut Disk, bytes: u64) -> Result<()> {
    eventually("a new length is told", || {
        Ok(disk.take_config_changes()? > 0)
    })?;
    let capacity = disk.refresh_config()?.capacity;
    ensure!(capacity == bytes / 512, "{capacity} sectors");
    Ok(())
}

/// The quota counted each write beyond the old end anew, and said "no space" with next to nothing
/// allocated.
#[test]
fn below_a_quota_it_is_refused() -> Result<()> {
    let setup = Setup::new()?;
    let path = image(&setup, "image", MIB)?;
    let setup = setup
        .blockdev(&file("file0", &path))
        .blockdev(&json!({ "driver": "blkdebug", "node-name": "debug0", "image": "file0" }))
        .blockdev(
            &json!({ "driver": "quota", "node-name": "quota0", "file": "debug0",
            "limit": MIB }),
        )
        .export("vda", "quota0", json!({ "werror": "stop" }))
        .export("vdb", "file0", json!({}));
    let mut server = setup.start()?;
    let (mut disk, mut below) = (server.disk("vda")?, server.disk("vdb")?);
    for node in ["file0", "debug0"] {
        let text = refused(&mut server, node, 8 * MIB)?;
        let expected = format!(
            "Permission conflict on node 'debug0': permissions 'resize' are both required by an \
             unnamed block device (uses node '{node}' as 'root' child) and unshared by node \
             'quota0' (uses node 'debug0' as 'file' child). Resize node 'quota0' instead."
        );
        ensure!(text == expected, "{text}");
    }
    ensure!(std::fs::metadata(&path)?.len() == MIB);
    // Through the quota it goes, and all exports hear of it.
    resized(&mut server, "quota0", 8 * MIB)?;
    sees(&mut disk, 8 * MIB)?;
    sees(&mut below, 8 * MIB)?;
    let data = vec![7; 4096];
    for _ in 0..400 {
        let write = Request::Write {
            sector: 4 * MIB / 512,
            data: &data,
        };
        ensure!(disk.execute(0, write, PATIENCE)?.is_ok());
    }
    drop((disk, below));
    server.finish()
}

/// Two quotas on one node: what one does the other would not know.
#[test]
fn beside_a_quota_it_is_refused() -> Result<()> {
    let setup = Setup::new()?;
    let path = image(&setup, "image", MIB)?;
    let quota =
        |name: &str| json!({ "driver": "quota", "node-name": name, "file": "file0", "limit": MIB });
    let setup = setup
        .blockdev(&file("file0", &path))
        .blockdev(&quota("quota0"))
        .blockdev(&quota("quota1"));
    let mut server = setup.start()?;
    let text = refused(&mut server, "quota0", 2 * MIB)?;
    ensure!(text.contains("unshared by node 'quota1'"), "{text}");
    server.finish()
}

/// A write of `vda` at 4 MiB is held.
fn hold(server: &mut Server, disk: &mut Disk) -> Result<()> {
    let data = vec![9; 4096];
    let write = Request::Write {
        sector: 4 * MIB / 512,
        data: &data,
    };
    disk.submit(0, write)?;
    disk.kick(0)?;
    server.qmp.wait_event("BLOCK_IO_ERROR", PATIENCE)?;
    Ok(())
}

fn two_exports() -> Result<Server> {
    let setup = Setup::new()?;
    let path = image(&setup, "image", 8 * MIB)?;
    let always = json!([{ "event": "none", "iotype": "write", "errno": 28 }]);
    setup
        .blockdev(&file("file0", &path))
        .blockdev(
            &json!({ "driver": "blkdebug", "node-name": "debug0", "image": "file0",
            "inject-error": always }),
        )
        .export("vda", "debug0", json!({ "werror": "stop" }))
        .export("vdb", "file0", json!({ "werror": "stop" }))
        .start()
}

/// A node was made shorter while a client could still hand requests back that lay beyond: its guest
/// got an error for what it had sent validly.
#[test]
fn nothing_that_may_be_handed_back_is_cut_off() -> Result<()> {
    let mut server = two_exports()?;
    // Nobody knows what a client of a former daemon would bring.
    let may_come = "served by a former daemon may still hand its requests back on export 'vda'";
    let text = refused(&mut server, "file0", 4 * MIB)?;
    ensure!(text.contains(may_come), "{text}");
    resized(&mut server, "file0", 9 * MIB)?;
    resized(&mut server, "debug0", 9 * MIB)?;
    let (mut disk, below) = (server.disk("vda")?, server.disk("vdb")?);
    resized(&mut server, "file0", 8 * MIB)?;

    hold(&mut server, &mut disk)?;
    let held = "export 'vda' holds a write of 4096 bytes at offset 4194304";
    let cut_off = |server: &mut Server| -> Result<()> {
        for node in ["file0", "debug0"] {
            let text = refused(server, node, 4 * MIB)?;
            ensure!(text.contains(held), "{text}");
        }
        resized(server, "file0", 8 * MIB)
    };
    cut_off(&mut server)?;
    let state = disk.disconnect();
    eventually("the client has left", || {
        let exports = server.qmp.execute("query-block-exports", Value::Null)?;
        let mut exports = exports.as_array().into_iter().flatten();
        Ok(exports.any(|export| export["id"] == "vda" && export["x-client"] == false))
    })?;
    cut_off(&mut server)?;

    server.daemon.kill()?;
    let below = below.disconnect();
    server.start_again()?;
    let below = server.reconnect("vdb", below)?;
    let text = refused(&mut server, "file0", 4 * MIB)?;
    ensure!(text.contains(may_come), "{text}");
    let disk = server.reconnect("vda", state)?;
    eventually("it is held again", || Ok(server.held("vda")?.len() == 1))?;
    cut_off(&mut server)?;
    resized(&mut server, "file0", 4 * MIB + 4096)?;
    drop((disk, below));
    server.finish()
}

/// Who extends a volume gets more than he asked for, and asks the daemon for that: "Cannot resize device
/// files".
#[test]
fn a_device_has_its_own_length() -> Result<()> {
    let setup = Setup::new()?;
    let path = image(&setup, "image", 8 * MIB)?;
    let device = LoopDevice::new(path.as_ref(), false)?;
    let setup = setup
        .blockdev(&json!({ "driver": "host_device", "node-name": "disk0",
            "filename": device.path(), "cache": { "direct": true } }))
        .blockdev(
            &json!({ "driver": "blkdebug", "node-name": "debug0", "image": "disk0",
            "inject-error": [{ "event": "none", "iotype": "write", "errno": 28 }] }),
        )
        .export("vda", "debug0", json!({ "werror": "stop" }));
    let mut server = setup.start()?;
    let mut disk = server.disk("vda")?;
    hold(&mut server, &mut disk)?;
    let set_size = |bytes: u64| -> Result<()> {
        std::fs::File::options()
            .write(true)
            .open(&path)?
            .set_len(bytes)?;
        device.update_size()
    };
    set_size(12 * MIB)?;
    // What counts is the size of the device, also for what is held.
    resized(&mut server, "disk0", MIB)?;
    sees(&mut disk, 12 * MIB)?;
    let text = refused(&mut server, "debug0", 16 * MIB)?;
    let numbers = format!("has {} bytes, asked for {}", 12 * MIB, 16 * MIB);
    ensure!(
        text.contains("Cannot grow device files") && text.ends_with(&numbers),
        "{text}"
    );
    set_size(2 * MIB)?;
    let text = refused(&mut server, "disk0", MIB)?;
    ensure!(text.contains("holds a write"), "{text}");
    ensure!(
        disk.wait(0, Duration::from_millis(200))?.is_none(),
        "it has ended"
    );
    set_size(12 * MIB)?;
    drop(disk);
    server.finish()
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
