//! A guest whose root is an overlay of a cloud image: a compressed qcow2 image of a root file system, as they are handed out, under an
//! overlay that is served. It boots, writes, and boots again; the cloud image stays what it is, byte for byte. Needs qemu-img (Debian:
//! qemu-utils), and what guests need.

mod harness;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use harness::{MIB, Server, Setup};
use serde_json::{Value, json};
use testkit::guest::{BOOT, Files, GUEST_PATIENCE, make_root};
use testkit::qcow2_image::{is_clean, run, to_raw};
use testkit::{Guest, Place, VhostUserBlk};

const DISK_BYTES: u64 = 128 * MIB;

/// A root file system, in an image as Debian's: compressed, with a file of its own that says so.
fn cloud_image(place: &Place) -> Result<PathBuf> {
    let raw = place.file("root.raw");
    make_root(&raw, DISK_BYTES)?;
    let image = place.file("cloud.qcow2");
    let (from, to) = (name(&raw)?, name(&image)?);
    run("qemu-img", &["convert", "-c", "-fraw", "-Oqcow2", from, to])?;
    let map = run("qemu-img", &["check", "-fqcow2", to])?;
    ensure!(map.contains("compressed"), "{map}");
    Ok(image)
}

fn name(path: &Path) -> Result<&str> {
    path.to_str().context("text")
}

fn overlay(place: &Place, number: usize, below: &Path) -> Result<PathBuf> {
    let path = place.file(&format!("overlay{number}.qcow2"));
    let arguments = [
        "create",
        "-qfqcow2",
        "-Fqcow2",
        "-b",
        name(below)?,
        name(&path)?,
    ];
    run("qemu-img", &arguments)?;
    Ok(path)
}

fn serve(image: &Path, more: &[(&str, Value)]) -> Result<Server> {
    let mut node = json!({ "driver": "qcow2", "node-name": "disk0", "discard": "unmap",
        "file": { "driver": "file", "filename": image, "discard": "unmap", "cache": { "direct": true } } });
    for (option, value) in more {
        node[option] = value.clone();
    }
    Setup::new()?
        .blockdev(&node)
        .export(
            "vda",
            "disk0",
            json!({ "werror": "stop", "rerror": "stop" }),
        )
        .start()
}

/// It has the disk as its root.
fn boot(server: &mut Server) -> Result<Guest> {
    let disk = VhostUserBlk::new(server.socket("vda"));
    let mut guest = Guest::builder()
        .disk(disk)
        .kernel_arg("root=/dev/vda")
        .start()?;
    let booted = guest.wait_boot(BOOT);
    booted.with_context(|| server.told("vda"))?;
    let mounts = guest.run_ok("cat /proc/mounts", GUEST_PATIENCE)?;
    let is_root = |line: &str| line.starts_with("/dev/vda / ext4 rw");
    ensure!(mounts.lines().any(is_root), "{mounts}");
    Ok(guest)
}

fn files(number: usize) -> Result<Files> {
    Ok(Files {
        dir: format!("/root/set{number}"),
        seed: u32::try_from(number)?,
        count: 6,
        kib: 256,
    })
}

fn ends(guest: Guest, server: Server) -> Result<()> {
    guest.check_no_io_errors()?;
    ensure!(guest.power_off(GUEST_PATIENCE)?.success());
    server.finish()
}

/// The file system of an image is whole.
fn is_whole(place: &Place, image: &Path) -> Result<()> {
    is_clean(image)?;
    let raw = place.file("all.raw");
    to_raw(image, &raw)?;
    run("e2fsck", &["-fn", name(&raw)?])?;
    Ok(())
}

#[test]
fn a_guest_boots_from_an_overlay_of_a_cloud_image() -> Result<()> {
    let place = Place::new();
    let base = cloud_image(&place)?;
    let before = std::fs::read(&base)?;
    let top = overlay(&place, 0, &base)?;
    for number in 0..2 {
        let mut server = serve(&top, &[])?;
        let guest = boot(&mut server)?;
        for written in 0..number {
            guest.verify_files(&files(written)?, GUEST_PATIENCE)?;
        }
        guest.run_ok(&files(number)?.write_command(), GUEST_PATIENCE)?;
        guest.run_ok("echo changed >/etc/issue; rm /bin/vi; sync", GUEST_PATIENCE)?;
        guest.verify_files(&files(number)?, GUEST_PATIENCE)?;
        ends(guest, server)?;
        is_whole(&place, &top)?;
    }
    ensure!(
        std::fs::read(&base)? == before,
        "the cloud image was written"
    );
    Ok(())
}

/// Five overlays, of which each guest writes to the next; what is discarded keeps its clusters.
#[test]
fn a_guest_boots_from_a_chain_of_five() -> Result<()> {
    let place = Place::new();
    let base = cloud_image(&place)?;
    let mut images = vec![base];
    let mut before = Vec::new();
    for number in 0..5 {
        let below = images.last().context("there is one")?;
        before.push(std::fs::read(below)?);
        let top = overlay(&place, number, below)?;
        images.push(top.clone());
        // Each of them has something of its own, and only the first and the last guest look.
        if (1..4).contains(&number) {
            let write = format!("write -q -P {number} {}k 64k", 120 * 1024 + number * 64);
            run("qemu-io", &["-fqcow2", "-c", &write, name(&top)?])?;
            continue;
        }
        let mut server = serve(&top, &[("discard-no-unref", true.into())])?;
        let guest = boot(&mut server)?;
        if number > 0 {
            guest.verify_files(&files(0)?, GUEST_PATIENCE)?;
            guest.run_ok("rm -r /root/set0 && sync && fstrim /", GUEST_PATIENCE)?;
        }
        guest.run_ok(&files(number)?.write_command(), GUEST_PATIENCE)?;
        guest.verify_files(&files(number)?, GUEST_PATIENCE)?;
        ends(guest, server)?;
        is_clean(&top)?;
    }
    for (image, before) in images.iter().zip(&before) {
        ensure!(
            std::fs::read(image)? == *before,
            "{} was written",
            image.display()
        );
    }
    Ok(())
}
