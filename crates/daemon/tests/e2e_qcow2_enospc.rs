//! A qcow2 image that grows until there is no space: held, extended, continued, and whole, by a vhost-user client. Needs
//! qemu-img (Debian: qemu-utils), and root.

mod harness;

use std::fs::OpenOptions;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::full::{DISK_BYTES, hold_extend_continue, load};
use harness::qcow2::{in_file, is_nospace, on_device};
use harness::{MIB, PATIENCE, Server, Setup, iothreads, sparse};
use serde_json::{Value, json};
use testkit::qcow2_image::{create, is_clean, run, to_raw};
use testkit::{Driver, Event, LoopDevice, Place, Tmpfs, soak};

/// A daemon with the image in `file`.
fn server(file: &Value, scope: &str) -> Result<Server> {
    Setup::new()?
        .iothreads(2)
        .blockdev(
            &json!({ "driver": "qcow2", "node-name": "disk0", "discard": "unmap", "file": file }),
        )
        .export(
            "vda",
            "disk0",
            json!({ "werror": "enospc", "rerror": "stop", "hold-scope": scope, "num-queues": 2,
                "iothread": iothreads(2) }),
        )
        .start()
}

/// The image is whole after a load for which there was no space at first, and then more.
fn held_and_continued(
    server: Server,
    image: &Path,
    seed: u64,
    mut extend: impl FnMut() -> Result<()>,
) -> Result<()> {
    let look = |_: &mut Server, event: &Event| is_nospace(event);
    let mut driver = hold_extend_continue(server, seed, look, |_| extend())?;
    is_whole(image, &mut driver)
}

/// QEMU finds nothing wrong, no leaks either, and every byte.
fn is_whole(image: &Path, driver: &mut Driver) -> Result<()> {
    let place = Place::new();
    let raw = place.file("raw");
    is_clean(image)?;
    to_raw(image, &raw)?;
    driver.check_image(&raw)
}

fn on_tmpfs(options: &str, direct: bool, scope: &str, seed: u64) -> Result<()> {
    let mut bytes = 4 * MIB;
    let tmpfs = Tmpfs::new(bytes)?;
    let image = tmpfs.path().join("disk0.qcow2");
    create(&image, options, DISK_BYTES)?;
    let server = server(&in_file(&image, direct), scope)?;
    held_and_continued(server, &image, seed, || {
        // Of all sizes, so that data and all kinds of tables are the first that find none.
        bytes += 300 << 10;
        if bytes > 8 * MIB {
            bytes += 40 * MIB;
        }
        tmpfs.resize(bytes)
    })
}

#[test]
fn a_file_on_a_tmpfs_that_is_full() -> Result<()> {
    for round in 0..soak(1, 20) {
        on_tmpfs("cluster_size=64k", false, "vm", 10 + round)?;
        on_tmpfs("cluster_size=4k,refcount_bits=64", true, "vm", 20 + round)?;
        on_tmpfs("cluster_size=64k,extended_l2=on", true, "vm", 30 + round)?;
    }
    Ok(())
}

/// As oVirt does it: the device becomes longer when it is full.
#[test]
fn a_device_that_grows() -> Result<()> {
    for round in 0..soak(1, 20) {
        let place = Place::new();
        let file = place.file("device");
        let mut bytes = 3 * MIB;
        sparse(&file, bytes)?;
        let device = LoopDevice::new(&file, true)?;
        create(device.path(), "cluster_size=64k", DISK_BYTES)?;
        let server = server(&on_device(device.path()), "vm")?;
        held_and_continued(server, device.path(), 40 + round, || {
            bytes += 5 * MIB / 2;
            OpenOptions::new().write(true).open(&file)?.set_len(bytes)?;
            device.update_size()
        })?;
    }
    Ok(())
}

/// A device that has become shorter is no device that is full: part of the image is gone, and is there again later.
#[test]
fn a_device_that_shrinks() -> Result<()> {
    let place = Place::new();
    let file = place.file("device");
    sparse(&file, 48 * MIB)?;
    let device = LoopDevice::new(&file, true)?;
    create(device.path(), "cluster_size=64k", DISK_BYTES)?;
    let mut server = Setup::new()?
        .blockdev(
            &json!({ "driver": "qcow2", "node-name": "disk0", "file": on_device(device.path()) }),
        )
        .export(
            "vda",
            "disk0",
            json!({ "werror": "stop", "rerror": "stop" }),
        )
        .start()?;
    let mut disk = server.disk("vda")?;
    let mut driver = load(50, 2000);
    let set_size = |bytes: u64| -> Result<()> {
        OpenOptions::new().write(true).open(&file)?.set_len(bytes)?;
        device.update_size()
    };
    // What is written by then lies below.
    while driver.checker_mut().summary().succeeded < 200 {
        driver.fill(&mut disk)?;
        driver.reap(&mut disk)?;
    }
    driver.drain(&mut disk)?;
    let end = frontend::Request::Flush;
    ensure!(disk.execute(0, end, PATIENCE)?.is_ok());
    let map = run(
        "qemu-img",
        &["check", "-Ufqcow2", device.path().to_str().context("text")?],
    )?;
    let end = map
        .lines()
        .find_map(|line| line.strip_prefix("Image end offset: "));
    let end: u64 = end
        .context("it says where the image ends")?
        .trim()
        .parse()?;
    set_size(end.next_multiple_of(MIB))?;
    let event = server.run_until_held(&mut driver, &mut disk, "vda")?;
    ensure!(event.data["nospace"] == false, "{event:?}");
    ensure!(event.data["x-cause"] == "backing-gone", "{event:?}");
    ensure!(server.io_status("vda")? == "failed");
    set_size(48 * MIB)?;
    server.qmp.execute("cont", Value::Null)?;
    server.run_to_end(&mut driver, &mut disk, |server| {
        if server.io_status("vda")? != "ok" {
            server.qmp.execute("cont", Value::Null)?;
        }
        Ok(())
    })?;
    driver.read_back(&mut disk)?;
    drop(disk);
    server.finish()?;
    is_whole(device.path(), &mut driver)
}
