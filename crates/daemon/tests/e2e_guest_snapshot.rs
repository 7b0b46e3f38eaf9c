//! A real guest across live switches to overlays: while it writes, and while it is held because there is no space, when it goes on
//! in an overlay that lies elsewhere. Then the daemon is killed: the old command lines are refused, and with the new one the guest
//! has all of its files. Needs qemu-img (Debian: qemu-utils), and root.

mod harness;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use harness::qcow2::{boot_and_mount, check_ext4, in_file, make_ext4, options, serve};
use harness::{MIB, PATIENCE, Server, allocated};
use serde_json::{Value, json};
use testkit::guest::{Files, GUEST_PATIENCE};
use testkit::qcow2_image::is_not_corrupt;
use testkit::{Place, Tmpfs};

const DISK_BYTES: u64 = 64 * MIB;
const PLENTY: u64 = 2 * DISK_BYTES;

fn files(number: u32) -> Files {
    Files {
        dir: format!("/mnt/set{number}"),
        seed: number,
        count: 4,
        kib: 512,
    }
}

/// The node `name` gets an overlay of its own in `file`.
fn snapshot(server: &mut Server, node: &str, file: &Path, name: &str) -> Result<()> {
    let arguments = json!({ "node-name": node, "snapshot-file": file, "snapshot-node-name": name });
    server.qmp.execute("blockdev-snapshot-sync", arguments)?;
    ensure!(server.block("vda")?["inserted"]["node-name"] == name);
    Ok(())
}

/// The command line's node, when `image` is the disk.
fn disk(image: &Path) -> Value {
    json!({ "driver": "qcow2", "node-name": "disk0", "discard": "unmap", "file": in_file(image, true) })
}

/// A daemon that has been killed is started again with `image` as the disk, and refuses that.
fn is_refused(server: &mut Server, image: &Path, top: &Path) -> Result<()> {
    server.set_blockdev(&disk(image))?;
    let Err(error) = server.start_again() else {
        bail!("{} is served", image.display());
    };
    let said = format!("{error:?}");
    ensure!(said.contains("Export 'vda' is refused"), "{said}");
    for image in [image, top] {
        let name = image.to_str().context("a path is text")?;
        ensure!(said.contains(name), "{name}: {said}");
    }
    Ok(())
}

#[test]
fn a_guest_goes_on_in_the_overlay() -> Result<()> {
    let (tmpfs, place) = (Tmpfs::new(PLENTY)?, Place::new());
    let image = |name: &str| tmpfs.path().join(name);
    let (base, first, second) = (image("base"), image("first"), place.file("second"));
    make_ext4(&base, options(0), DISK_BYTES)?;
    let mut server = serve(&in_file(&base, true), false)?;
    let guest = boot_and_mount(&mut server, true)?;
    guest.write_files(&files(0), GUEST_PATIENCE)?;

    // While it writes.
    let writes = guest.spawn(&files(1).write_command())?;
    writes.wait_line("synced 0", GUEST_PATIENCE)?;
    snapshot(&mut server, "disk0", &first, "first")?;
    let before = std::fs::read(&base)?;
    ensure!(writes.wait(GUEST_PATIENCE)?.status == 0);
    ensure!(server.run_state()? == "running");

    // While it is held.
    let used = allocated(&base)? + allocated(&first)?;
    tmpfs.resize(used + 600 * 1024)?;
    let writes = guest.spawn(&files(2).write_command())?;
    let event = server.qmp.wait_event("BLOCK_IO_ERROR", GUEST_PATIENCE)?;
    ensure!(
        event.data["x-cause"] == "nospace" && event.data["node-name"] == "first",
        "{event:?}"
    );
    server.qmp.wait_event("STOP", PATIENCE)?;
    ensure!(!server.held("vda")?.is_empty() && !writes.has_ended());
    snapshot(&mut server, "first", &second, "second")?;
    ensure!(!server.held("vda")?.is_empty() && server.run_state()? == "io-error");
    server.qmp.execute("cont", Value::Null)?;
    ensure!(writes.wait(GUEST_PATIENCE)?.status == 0);
    guest.write_files(&files(3), GUEST_PATIENCE)?;
    ensure!(server.run_state()? == "running" && server.io_status("vda")? == "ok");

    server.daemon.kill()?;
    is_refused(&mut server, &base, &second)?;
    is_refused(&mut server, &first, &second)?;
    server.set_blockdev(&disk(&second))?;
    server.start_again()?;
    for number in 0..4 {
        guest.verify_files(&files(number), GUEST_PATIENCE)?;
    }
    guest.run_ok("umount /mnt", GUEST_PATIENCE)?;
    guest.check_no_io_errors()?;
    ensure!(guest.power_off(GUEST_PATIENCE)?.success());
    server.finish()?;
    ensure!(std::fs::read(&base)? == before, "the base was written");
    for image in [&base, &first, &second] {
        is_not_corrupt(image)?;
    }
    check_ext4(&second)
}
