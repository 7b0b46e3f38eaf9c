//! The data of a qcow2 image in a file of their own, on a file system that has no space: held, extended, continued, and whole, by a
//! vhost-user client. The node that has no space is the one that is named. Needs qemu-img (Debian: qemu-utils), and root.

mod harness;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use harness::full::{DISK_BYTES, hold_extend_continue, load};
use harness::{MIB, Server, Setup, iothreads};
use serde_json::{Value, json};
use testkit::qcow2_image::{is_clean, run, to_raw};
use testkit::{Place, Tmpfs, soak};

/// An image, and its data file on a tmpfs.
struct Images {
    place: Place,
    tmpfs: Tmpfs,
    image: PathBuf,
    data: PathBuf,
}

impl Images {
    fn new(options: &str, bytes: u64) -> Result<Self> {
        let (place, tmpfs) = (Place::new(), Tmpfs::new(bytes)?);
        let (image, data) = (place.file("disk0.qcow2"), tmpfs.path().join("disk0.data"));
        let options = format!("{options},data_file={}", data.display());
        let (name, length) = (place.name("disk0.qcow2"), DISK_BYTES.to_string());
        run(
            "qemu-img",
            &["create", "-qfqcow2", "-o", &options, &name, &length],
        )?;
        Ok(Self {
            place,
            tmpfs,
            image,
            data,
        })
    }
}

fn file(name: &str, path: &Path) -> Value {
    json!({ "driver": "file", "node-name": name, "filename": path, "discard": "unmap" })
}

fn serve(nodes: &[Value]) -> Result<Server> {
    let setup = Setup::new()?.iothreads(2);
    let setup = nodes.iter().fold(setup, |setup, node| setup.blockdev(node));
    setup
        .export(
            "vda",
            "disk0",
            json!({ "werror": "enospc", "rerror": "stop", "num-queues": 2, "iothread": iothreads(2) }),
        )
        .start()
}

fn is_named(server: &mut Server, event: &testkit::Event) -> Result<()> {
    let data = &event.data;
    ensure!(
        data["nospace"] == true && data["x-cause"] == "nospace",
        "{data}"
    );
    ensure!(
        data["x-error-node"] == "data0" && data["node-name"] == "disk0",
        "{data}"
    );
    let held = server.held("vda")?;
    ensure!(
        held.iter().all(|held| held["error-node"] == "data0"),
        "{held:?}"
    );
    Ok(())
}

/// What is told of the image.
fn is_shown(server: &mut Server, raw: bool, data: &Path) -> Result<()> {
    let nodes = server
        .qmp
        .execute("query-named-block-nodes", json!({ "flat": true }))?;
    let nodes = nodes.as_array().context("a list")?;
    let disk = nodes.iter().find(|node| node["node-name"] == "disk0");
    let disk = disk.context("it is there")?;
    let specific = &disk["image"]["format-specific"]["data"];
    ensure!(
        specific["data-file"] == data.to_str().context("text")?,
        "{specific}"
    );
    ensure!(specific["data-file-raw"] == raw, "{specific}");
    let child = json!({ "child": "data-file", "node-name": "data0" });
    let children = disk["children"].as_array().context("a list")?;
    ensure!(children.contains(&child), "{children:?}");
    let stats = server.qmp.execute("query-blockstats", Value::Null)?;
    ensure!(stats[0]["parent"]["node-name"] == "data0", "{stats}");
    let command = json!({ "command-line": "info block -v vda" });
    let text = server.qmp.execute("human-monitor-command", command)?;
    let text = text.as_str().context("text")?;
    ensure!(text.contains(&format!("data file raw: {raw}")), "{text}");
    Ok(())
}

/// A load runs into the end of the space of the data file again and again.
fn held_and_continued(options: &str, raw: bool, seed: u64) -> Result<()> {
    let mut bytes = 4 * MIB;
    let images = Images::new(options, bytes)?;
    let mut server = serve(&[
        file("data0", &images.data),
        json!({ "driver": "qcow2", "node-name": "disk0", "discard": "unmap",
            "file": file("file0", &images.image), "data-file": "data0" }),
    ])?;
    is_shown(&mut server, raw, &images.data)?;
    let mut driver = hold_extend_continue(server, seed, is_named, |holds| {
        bytes += if holds > 8 { 40 * MIB } else { 300 << 10 };
        images.tmpfs.resize(bytes)
    })?;
    is_clean(&images.image)?;
    let copy = images.place.file("raw");
    to_raw(&images.image, &copy)?;
    driver.check_image(&copy)?;
    if raw {
        driver.check_image(&images.data)?;
    }
    Ok(())
}

#[test]
fn a_data_file_on_a_tmpfs_that_is_full() -> Result<()> {
    for round in 0..soak(1, 20) {
        held_and_continued("cluster_size=64k", false, 10 + round)?;
        held_and_continued("cluster_size=64k,extended_l2=on", false, 20 + round)?;
        held_and_continued("cluster_size=256k,data_file_raw=on", true, 30 + round)?;
    }
    Ok(())
}

/// As the image names it, by QMP; and it goes with the image.
#[test]
fn the_data_file_that_an_image_names() -> Result<()> {
    let images = Images::new("cluster_size=64k", 64 * MIB)?;
    let mut server = Setup::new()?.start()?;
    let disk =
        json!({ "driver": "qcow2", "node-name": "disk0", "file": file("file0", &images.image) });
    server.qmp.execute("blockdev-add", disk.clone())?;
    let export = json!({ "type": "vhost-user-blk", "id": "vda", "node-name": "disk0", "writable": true,
        "addr": { "type": "unix", "path": server.socket("vda") } });
    server.qmp.execute("block-export-add", export)?;
    let mut client = server.disk("vda")?;
    let driver = load(5, 500);
    driver.run(&mut client)?;
    drop(client);
    // Nobody else may change its length, or write it as what it is not.
    let name = images.data.to_str().context("text")?;
    run("qemu-io", &["-fraw", "-c", "truncate 1M", name]).unwrap_err();
    server
        .qmp
        .execute("block-export-del", json!({ "id": "vda", "mode": "hard" }))?;
    harness::eventually("the image goes", || {
        Ok(server
            .qmp
            .execute("blockdev-del", json!({ "node-name": "disk0" }))
            .is_ok())
    })?;
    let left = server.qmp.execute("query-named-block-nodes", Value::Null)?;
    ensure!(left == json!([]), "{left}");
    is_clean(&images.image)?;
    // One that is gone is refused by its name.
    std::fs::remove_file(&images.data)?;
    let refused = server
        .qmp
        .execute("blockdev-add", disk)
        .unwrap_err()
        .to_string();
    ensure!(refused.contains(name), "{refused}");
    server.finish()
}
