//! What the tests of qcow2 under a real guest share.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::guest::{BOOT, GUEST_PATIENCE, make_ext4_image};
use testkit::qcow2_image::{self, run};
use testkit::{Event, Guest, Place, VhostUserBlk};

use super::{Server, Setup, iothreads};

/// Options of images whose tables are small, large, or have more to say; of one, and then of the next.
pub fn options(number: u64) -> &'static str {
    match number % 4 {
        0 => "cluster_size=64k",
        1 => "cluster_size=4k,refcount_bits=64",
        2 => "cluster_size=64k,extended_l2=on",
        _ => "cluster_size=16k,lazy_refcounts=on",
    }
}

/// Puts an image with an ext4 file system of `bytes` into a file, or on a device.
pub fn make_ext4(path: &Path, options: &str, bytes: u64) -> Result<()> {
    let place = Place::new();
    let raw = place.file("raw");
    make_ext4_image(&raw, bytes)?;
    qcow2_image::convert(&raw, path, options)
}

/// The file system in an image that a guest has unmounted is whole.
pub fn check_ext4(path: &Path) -> Result<()> {
    let place = Place::new();
    let raw = place.file("raw");
    qcow2_image::to_raw(path, &raw)?;
    run("e2fsck", &["-fn", &place.name("raw")])?;
    Ok(())
}

/// The node `file0` of a file.
pub fn in_file(path: &Path, direct: bool) -> Value {
    json!({ "driver": "file", "node-name": "file0", "filename": path, "discard": "unmap",
        "cache": { "direct": direct } })
}

/// The node `file0` of a device.
pub fn on_device(path: &Path) -> Value {
    json!({ "driver": "host_device", "node-name": "file0", "filename": path,
        "cache": { "direct": true } })
}

/// A daemon with a state, and with the export `vda` of the image in `file`, on two iothreads. Whatever fails is held. A
/// guest with `write_through` knows of no write cache.
pub fn serve(file: &Value, write_through: bool) -> Result<Server> {
    Setup::new()?
        .iothreads(2)
        .with_state()
        .blockdev(
            &json!({ "driver": "qcow2", "node-name": "disk0", "discard": "unmap", "file": file }),
        )
        .export(
            "vda",
            "disk0",
            json!({ "werror": "stop", "rerror": "stop", "num-queues": 2, "iothread": iothreads(2),
                "writethrough": write_through }),
        )
        .start()
}

/// An event says that there is no space, and where.
pub fn is_nospace(event: &Event) -> Result<()> {
    ensure!(
        event.data["nospace"] == true && event.data["action"] == "stop",
        "{event:?}"
    );
    ensure!(event.data["x-cause"] == "nospace", "{event:?}");
    ensure!(event.data["x-error-node"] == "file0", "{event:?}");
    Ok(())
}

/// A guest with the disk `vda`.
pub fn boot(server: &mut Server, reconnects: bool) -> Result<Guest> {
    let disk = VhostUserBlk::new(server.socket("vda"));
    let disk = match reconnects {
        true => disk.reconnect(Duration::from_secs(1)),
        false => disk,
    };
    let mut guest = Guest::builder().disk(disk).start()?;
    let booted = guest.wait_boot(BOOT);
    booted.with_context(|| server.told("vda"))?;
    Ok(guest)
}

/// The same, with the file system at `/mnt`.
pub fn boot_and_mount(server: &mut Server, reconnects: bool) -> Result<Guest> {
    let guest = boot(server, reconnects)?;
    let mounted = guest.mount("vda", "/mnt", GUEST_PATIENCE);
    mounted.with_context(|| server.told("vda"))?;
    Ok(guest)
}
