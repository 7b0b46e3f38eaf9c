//! qcow2 images that QEMU has made, served over vhost-user-blk and compared byte for byte. Needs qemu-img and qemu-io
//! (Debian: qemu-utils).

mod harness;

use anyhow::{Context, Result, ensure};
use frontend::{Disk, Options, Request};
use harness::{PATIENCE, Setup, iothreads};
use serde_json::{Value, json};
use std::time::Duration;
use testkit::qcow2_image::{self, DISK_BYTES, KINDS};

/// How long nothing is to happen.
const QUIET: Duration = Duration::from_millis(100);

/// One export for each kind of image, on two iothreads.
#[test]
fn a_guest_sees_what_qemu_has_written() -> Result<()> {
    let mut setup = Setup::new()?.iothreads(2);
    let mut contents = Vec::new();
    for (number, kind) in KINDS.iter().enumerate() {
        let path = setup.path(&format!("disk{number}.qcow2"));
        qcow2_image::make(&path, kind)?;
        contents.push(qcow2_image::content(&path)?);
        let node = format!("disk{number}");
        setup = setup
            .blockdev(&json!({ "driver": "qcow2", "node-name": node, "read-only": true,
                "backing": null, "l2-cache-size": 65536, "lazy-refcounts": false,
                "overlap-check": "all", "pass-discard-request": true,
                "file": { "driver": "file", "node-name": format!("file{number}"), "filename": path } }))
            .export(&format!("vd{number}"), &node, json!({ "writable": false, "num-queues": 2,
                "iothread": iothreads(2) }));
    }
    let mut server = setup.start()?;
    for (number, content) in contents.iter().enumerate() {
        let options = Options {
            queues: 2,
            ..Options::default()
        };
        let mut disk = server.disk_with(&format!("vd{number}"), options)?;
        ensure!(disk.config().capacity == DISK_BYTES / 512, "{number}");
        compare(&mut disk, content).with_context(|| KINDS[number].to_owned())?;
        let data = [1; 512];
        let write = Request::Write {
            sector: 0,
            data: &data,
        };
        ensure!(
            !disk.execute(0, write, PATIENCE)?.is_ok(),
            "it is read-only"
        );
    }
    let nodes = server.qmp.execute("query-named-block-nodes", Value::Null)?;
    let nodes = nodes.as_array().context("a list")?;
    for (number, kind) in KINDS.iter().enumerate() {
        let path = server.path(&format!("disk{number}.qcow2"));
        let path = path.to_str().context("text")?;
        let info = qcow2_image::run("qemu-img", &["info", "--output=json", "-U", path])?;
        let info: Value = serde_json::from_str(&info)?;
        let name = format!("disk{number}");
        let node = nodes.iter().find(|node| node["node-name"] == *name);
        let node = node.context("it is there")?;
        ensure!(node["ro"] == true && node["drv"] == "qcow2", "{node}");
        let cache = &node["x-l2-cache"];
        let number = |member: &str| cache[member].as_u64().context("a number");
        let (size, used) = (number("size")?, number("used")?);
        ensure!(used > 0 && used <= size && size <= 65536, "{cache}");
        ensure!(number("misses")? > 0, "{cache}");
        let counts = &node["x-refcount-cache"];
        ensure!(counts["used"] == 0 && counts["misses"] == 0, "{counts}");
        for member in [
            "filename",
            "format",
            "virtual-size",
            "cluster-size",
            "dirty-flag",
            "format-specific",
        ] {
            let (ours, qemu) = (&node["image"][member], &info[member]);
            ensure!(ours == qemu, "{kind} {member}: {ours} / {qemu}");
        }
    }
    Ok(())
}

/// In requests of several lengths that begin in all places, on both queues.
fn compare(disk: &mut Disk, content: &[u8]) -> Result<()> {
    let sectors = content.len() / 512;
    let lengths = [1, 7, 64, 200, 900];
    let (mut sector, mut turn) = (0, 0);
    while sector < sectors {
        let count = lengths[turn % lengths.len()].min(sectors - sector);
        let request = Request::Read {
            sector: sector as u64,
            len: u32::try_from(count * 512)?,
        };
        let completion = disk.execute(u16::try_from(turn % 2)?, request, PATIENCE)?;
        ensure!(completion.is_ok(), "sector {sector}");
        let expected = &content[sector * 512..(sector + count) * 512];
        ensure!(
            completion.data == expected,
            "sector {sector}, {count} sectors"
        );
        sector += count;
        turn += 1;
    }
    Ok(())
}

/// An entry that cannot be is told once for each opening, as the requests fail that meet it.
#[test]
fn a_corrupt_image_is_told() -> Result<()> {
    let setup = Setup::new()?;
    let path = setup.path("disk.qcow2");
    let name = path.to_str().context("text")?.to_owned();
    qcow2_image::run("qemu-img", &["create", "-qfqcow2", &name, "8M"])?;
    qcow2_image::run("qemu-io", &["-fqcow2", "-c", "write -q 0 256k", &name])?;
    let mut image = std::fs::read(&path)?;
    let be64 = |image: &[u8], at: usize| -> Result<usize> {
        let word = image.get(at..at + 8).context("it is there")?;
        Ok(usize::try_from(
            u64::from_be_bytes(word.try_into()?) & 0x00ff_ffff_ffff_fe00,
        )?)
    };
    let l1 = be64(&image, 40)?;
    let entry = be64(&image, l1)? + 8;
    image[entry..entry + 8].copy_from_slice(&0x8000_0000_0005_0200_u64.to_be_bytes());
    std::fs::write(&path, image)?;
    let options = json!({ "driver": "qcow2", "node-name": "disk0", "read-only": true,
        "file": { "driver": "file", "node-name": "file0", "filename": path } });
    let export = json!({ "writable": false, "rerror": "report" });
    let setup = setup.blockdev(&options);
    let mut server = setup.export("vda", "disk0", export).start()?;
    let mut disk = server.disk("vda")?;
    for is_reopened in [false, true] {
        if is_reopened {
            let mut options = options.clone();
            options["l2-cache-size"] = json!(65536);
            let arguments = json!({ "options": [options] });
            server.qmp.execute("blockdev-reopen", arguments)?;
        }
        for _ in 0..2 {
            let read = Request::Read {
                sector: 128,
                len: 512,
            };
            ensure!(!disk.execute(0, read, PATIENCE)?.is_ok(), "it is corrupt");
        }
        let event = server.qmp.wait_event("BLOCK_IMAGE_CORRUPTED", PATIENCE)?;
        let data = &event.data;
        ensure!(
            data["device"] == "vda" && data["node-name"] == "disk0",
            "{data}"
        );
        ensure!(data["fatal"] == false, "{data}");
        let msg = data["msg"].as_str().context("text")?;
        ensure!(
            msg.contains("L2 table at") && msg.contains("entry 1"),
            "{msg}"
        );
        let again = server.qmp.wait_event("BLOCK_IMAGE_CORRUPTED", QUIET);
        ensure!(again.is_err(), "it is told once");
    }
    Ok(())
}

/// What is not there yet is refused before anything is served, and says what helps.
#[test]
fn what_cannot_be_served_is_refused() -> Result<()> {
    let setup = Setup::new()?;
    let path = setup.path("disk.qcow2");
    let name = path.to_str().context("text")?.to_owned();
    qcow2_image::run("qemu-img", &["create", "-qfqcow2", &name, "8M"])?;
    let mut server = setup.start()?;
    let file = json!({ "driver": "file", "filename": path });
    let mut refused = |more: Value, words: &str| {
        let mut options = json!({ "driver": "qcow2", "node-name": "disk0", "file": file });
        let both = options.as_object_mut().zip(more.as_object());
        let (options_of, more) = both.context("objects")?;
        options_of.extend(more.clone());
        let error = server.qmp.execute("blockdev-add", options);
        let said = error.err().context("it is refused")?.to_string();
        ensure!(said.contains(words), "{said} / {words}");
        Ok(())
    };
    refused(
        json!({ "read-only": true, "backing": "none0" }),
        &format!("Could not open backing file of '{name}': Cannot find device='none0'"),
    )?;
    refused(
        json!({ "read-only": true, "data-file": "none0" }),
        "Cannot find device='none0'",
    )?;
    refused(
        json!({ "read-only": true, "data-file": { "driver": "null-co", "read-zeroes": true } }),
        "'data-file' can only be set for images with an external data file",
    )?;
    refused(
        json!({ "read-only": true, "l2-cache-entry-size": 100 }),
        "power of two",
    )?;
    refused(
        json!({ "read-only": true, "cache-size": 1, "l2-cache-size": 2 }),
        "l2-cache-size may not exceed cache-size",
    )?;
    refused(
        json!({ "read-only": true, "overlap-check": "some" }),
        "overlap-check",
    )?;
    // Nothing is left of any of them.
    let open =
        json!({ "driver": "qcow2", "node-name": "disk0", "auto-read-only": true, "file": file });
    server.qmp.execute("blockdev-add", open)?;
    Ok(())
}

/// Internal snapshots and persistent bitmaps are shown as QEMU shows them, and so is what becomes of them.
#[test]
fn snapshots_and_bitmaps_are_listed() -> Result<()> {
    let setup = Setup::new()?;
    let path = setup.path("disk.qcow2");
    let name = path.to_str().context("text")?.to_owned();
    let qemu_img = |arguments: &[&str]| qcow2_image::run("qemu-img", arguments);
    qemu_img(&["create", "-qfqcow2", &name, "8M"])?;
    qcow2_image::run("qemu-io", &["-fqcow2", "-c", "write -q 0 256k", &name])?;
    for snapshot in ["one", "two"] {
        qemu_img(&["snapshot", "-c", snapshot, &name])?;
    }
    qemu_img(&["bitmap", "--add", &name, "follows"])?;
    qemu_img(&["bitmap", "--add", "--disable", &name, "kept"])?;
    let node = json!({ "driver": "qcow2", "node-name": "disk0",
        "file": { "driver": "file", "filename": path } });
    let setup = setup.blockdev(&node);
    let export = json!({ "writable": true, "num-queues": 1 });
    let mut server = setup.export("vda", "disk0", export).start()?;
    server
        .daemon
        .wait_for_stderr("follows: incremental backups begin anew", PATIENCE)?;
    let mut disk = server.disk("vda")?;
    for is_written in [false, true] {
        if is_written {
            let data = [7; 512];
            let write = Request::Write {
                sector: 0,
                data: &data,
            };
            ensure!(disk.execute(0, write, PATIENCE)?.is_ok());
        }
        let info = qemu_img(&["info", "--output=json", "-U", &name])?;
        let info: Value = serde_json::from_str(&info)?;
        let nodes = server.qmp.execute("query-named-block-nodes", Value::Null)?;
        let nodes = nodes.as_array().context("a list")?;
        let node = nodes.iter().find(|node| node["node-name"] == "disk0");
        let image = &node.context("it is there")?["image"];
        ensure!(
            image["snapshots"]
                .as_array()
                .is_some_and(|all| all.len() == 2),
            "{image}"
        );
        for member in ["snapshots", "format-specific"] {
            let (ours, qemu) = (&image[member], &info[member]);
            ensure!(ours == qemu, "{member}: {ours} / {qemu}");
        }
        let flags = &image["format-specific"]["data"]["bitmaps"][0]["flags"];
        let expected = match is_written {
            true => json!(["in-use", "auto"]),
            false => json!(["auto"]),
        };
        ensure!(*flags == expected, "{flags}");
    }
    Ok(())
}
