//! qcow2 images that something is wrong with, written through vhost-user-blk. Needs qemu-img and qemu-io (Debian:
//! qemu-utils).

mod harness;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use frontend::{Request, Segment};
use harness::{PATIENCE, Setup, eventually};
use serde_json::json;
use testkit::qcow2_image;

/// Offset of the byte of the header with the dirty bit and the corrupt bit.
const MARKS_AT: usize = 79;
const DIRTY: u8 = 1;
const CORRUPT: u8 = 2;

fn marks(path: &Path) -> Result<u8> {
    let image = std::fs::read(path)?;
    image.get(MARKS_AT).copied().context("a header")
}

fn write(sector: u64, data: &[u8]) -> Request<'_> {
    Request::Write { sector, data }
}

/// Ended when it is dropped.
struct Locker(Child);

impl Locker {
    /// Has the file open for writing, as a machine would.
    fn new(path: &Path) -> Result<Self> {
        let mut locker = Command::new("qemu-io");
        locker.args(["-fraw", "-c", "sleep 600000"]).arg(path);
        let locker = Self(locker.stdout(Stdio::null()).spawn()?);
        let name = path.to_str().context("text")?;
        eventually("it has the lock", || {
            Ok(qcow2_image::run("qemu-img", &["info", name]).is_err())
        })?;
        Ok(locker)
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// It is repaired when nobody else has it any more, and not before: whoever has it may be in the middle of writing.
#[test]
fn a_dirty_image_is_repaired_before_it_is_written() -> Result<()> {
    let setup = Setup::new()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("disk.qcow2");
    let name = path.to_str().context("text")?.to_owned();
    let create = ["create", "-qfqcow2", "-olazy_refcounts=on", &name, "8M"];
    qcow2_image::run("qemu-img", &create)?;
    let mut qemu = Command::new("qemu-io");
    qemu.args(["-fqcow2", "-c", "write -q -P 7 0 300k", "-c", "abort"]);
    qemu.arg(&name)
        .current_dir(path.parent().context("a directory")?);
    ensure!(!qemu.output()?.status.success(), "it was aborted");
    ensure!(marks(&path)? == DIRTY, "it is dirty");
    let image = std::fs::read(&path)?;
    let file = json!({ "driver": "file", "node-name": "file0", "filename": path });
    let node = json!({ "driver": "qcow2", "node-name": "disk0", "file": file });
    let mut server = setup.blockdev(&node).start()?;
    let export = json!({ "type": "vhost-user-blk", "id": "vda", "node-name": "disk0", "writable": true,
        "addr": { "type": "unix", "path": server.socket("vda") } });
    let locker = Locker::new(&path)?;
    let refused = server.qmp.execute("block-export-add", export.clone());
    let refused = refused.err().context("it is refused")?.to_string();
    ensure!(refused.contains("lock"), "{refused}");
    ensure!(std::fs::read(&path)? == image, "nobody has written to it");
    drop(locker);
    server.qmp.execute("block-export-add", export)?;
    ensure!(marks(&path)? == 0, "it is repaired");
    let mut disk = server.disk("vda")?;
    let (old, new) = ([7; 4096], [8; 4096]);
    let read = disk.execute(
        0,
        Request::Read {
            sector: 0,
            len: 4096,
        },
        PATIENCE,
    )?;
    ensure!(read.is_ok() && read.data == old);
    ensure!(disk.execute(0, write(1 << 12, &new), PATIENCE)?.is_ok());
    ensure!(disk.execute(0, Request::Flush, PATIENCE)?.is_ok());
    drop(disk);
    let log = server.daemon.stderr();
    ensure!(log.contains("was not closed cleanly"), "{log}");
    server.finish()?;
    qcow2_image::run("qemu-img", &["check", "-qfqcow2", &name])?;
    let content = qcow2_image::content(&path)?;
    ensure!(content[..300 << 10].iter().all(|byte| *byte == 7));
    ensure!(content[2 << 20..][..4096] == new);
    Ok(())
}

/// A cluster of the guest that is a table, too: the write that would destroy it ends the image, is told, and is reported
/// although errors are to be held; what was there can be read.
#[test]
fn a_write_that_would_destroy_a_table_is_reported_and_ends_the_image() -> Result<()> {
    let setup = Setup::new()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("disk.qcow2");
    let name = path.to_str().context("text")?.to_owned();
    qcow2_image::run("qemu-img", &["create", "-qfqcow2", &name, "8M"])?;
    qcow2_image::run("qemu-io", &["-fqcow2", "-c", "write -q -P 5 0 256k", &name])?;
    let mut image = std::fs::read(&path)?;
    let be64 = |image: &[u8], at: usize| -> Result<u64> {
        let word = image.get(at..at + 8).context("it is there")?;
        Ok(u64::from_be_bytes(word.try_into()?) & 0x00ff_ffff_ffff_fe00)
    };
    let l1 = usize::try_from(be64(&image, 40)?)?;
    let table = be64(&image, l1)?;
    let at = usize::try_from(table)?;
    image[at + 8..at + 16].copy_from_slice(&(table | 1 << 63).to_be_bytes());
    std::fs::write(&path, &image)?;
    let file = json!({ "driver": "file", "node-name": "file0", "filename": path });
    let node = json!({ "driver": "qcow2", "node-name": "disk0", "file": file });
    let export = json!({ "writable": true, "werror": "stop", "rerror": "stop" });
    let mut server = setup
        .blockdev(&node)
        .export("vda", "disk0", export)
        .start()?;
    let mut disk = server.disk("vda")?;
    let data = [9; 4096];
    let cluster = 128;
    ensure!(!disk.execute(0, write(cluster, &data), PATIENCE)?.is_ok());
    let event = server.qmp.wait_event("BLOCK_IMAGE_CORRUPTED", PATIENCE)?;
    let found = &event.data;
    ensure!(
        found["fatal"] == true && found["node-name"] == "disk0",
        "{found}"
    );
    ensure!(found["device"] == "vda", "{found}");
    let event = server.qmp.wait_event("BLOCK_IO_ERROR", PATIENCE)?;
    let error = &event.data;
    ensure!(
        error["action"] == "report" && error["x-cause"] == "corrupt",
        "{error}"
    );
    // Whatever is written, and also where nothing is yet.
    for sector in [0, 8192] {
        ensure!(!disk.execute(0, write(sector, &data), PATIENCE)?.is_ok());
    }
    ensure!(server.run_state()? == "running" && server.held("vda")?.is_empty());
    let block = server.block("vda")?;
    let image_now = &block["inserted"]["image"]["format-specific"]["data"];
    ensure!(image_now["corrupt"] == true, "{block}");
    ensure!(
        block["x-warnings"]
            .as_array()
            .is_some_and(|all| !all.is_empty()),
        "{block}"
    );
    let read = disk.execute(
        0,
        Request::Read {
            sector: 0,
            len: 4096,
        },
        PATIENCE,
    )?;
    ensure!(read.is_ok() && read.data == [5; 4096]);
    drop(disk);
    server.finish()?;
    ensure!(marks(&path)? == CORRUPT, "it is marked");
    let after = std::fs::read(&path)?;
    let clusters = |image: &[u8]| image[at..at + 65536].to_vec();
    ensure!(
        clusters(&after) == clusters(&image),
        "the table is what it was"
    );
    // Nobody writes it any more.
    let setup = Setup::new()?;
    let mut server = setup.start()?;
    // Nor is it read-only unless somebody asks for that, as in QEMU: its disk was, without a word.
    for auto in [false, true] {
        let mut node = node.clone();
        node["auto-read-only"] = json!(auto);
        let refused = server.qmp.execute("blockdev-add", node);
        let refused = refused.err().context("it is refused")?.to_string();
        ensure!(
            refused.contains("Image is corrupt; cannot be opened read/write"),
            "{refused}"
        );
    }
    Ok(())
}

/// There was a line in the log for each cluster.
#[test]
fn one_line_tells_of_all_clusters_that_were_not_counted() -> Result<()> {
    let setup = Setup::new()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("disk.qcow2");
    let name = path.to_str().context("text")?.to_owned();
    qcow2_image::run("qemu-img", &["create", "-qfqcow2", &name, "8M"])?;
    qcow2_image::run("qemu-io", &["-fqcow2", "-c", "write -q 0 1M", &name])?;
    let mut image = std::fs::read(&path)?;
    let be64 = |at: usize| -> Result<usize> {
        let word = image.get(at..at + 8).context("it is there")?;
        Ok(usize::try_from(u64::from_be_bytes(word.try_into()?))?)
    };
    // Header, refcount table, its block, L1 and L2 table, and then the data.
    let data = be64(be64(48)?)? + 5 * 2..;
    image
        .get_mut(data)
        .context("a block")?
        .get_mut(..16 * 2)
        .context("16 clusters")?
        .fill(0);
    std::fs::write(&path, &image)?;
    let file = json!({ "driver": "file", "node-name": "file0", "filename": path });
    let node = json!({ "driver": "qcow2", "node-name": "disk0", "discard": "unmap", "file": file });
    let mut server = setup
        .blockdev(&node)
        .export("vda", "disk0", json!({}))
        .start()?;
    let mut disk = server.disk("vda")?;
    let all = [Segment::new(0, 2048)];
    ensure!(disk.execute(0, Request::Discard(&all), PATIENCE)?.is_ok());
    ensure!(disk.execute(0, Request::Flush, PATIENCE)?.is_ok());
    ensure!(server.run_state()? == "running");
    drop(disk);
    let text = "node 'disk0': 16 clusters were used, and not counted, ";
    let patience = std::time::Duration::from_secs(10);
    server.daemon.wait_for_stderr(text, patience)?;
    let log = server.daemon.stderr();
    ensure!(log.matches("and not counted").count() == 1, "{log}");
    server.finish()
}

/// The daemon ended with status 0 although tables were not on disk: systemd saw a success, and the first write of the guest,
/// which had been acknowledged, was gone.
#[test]
fn an_end_without_all_tables_is_no_success() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("disk.qcow2");
    let name = path.to_str().context("text")?.to_owned();
    qcow2_image::run("qemu-img", &["create", "-qfqcow2", &name, "8M"])?;
    let file = json!({ "driver": "file", "node-name": "file0", "filename": path });
    let faults = json!({ "driver": "blkdebug", "node-name": "faults0", "image": file });
    let node = json!({ "driver": "qcow2", "node-name": "disk0", "file": faults });
    let setup = Setup::new()?.blockdev(&node);
    let mut server = setup.export("vda", "disk0", json!({})).start()?;
    let mut disk = server.disk("vda")?;
    ensure!(
        disk.execute(0, write(0, &[7; 4096]), PATIENCE)?.is_ok(),
        "it is acknowledged"
    );
    let rule = json!({ "node-name": "faults0", "iotype": "write", "errno": 28, "once": false });
    server.qmp.execute("x-blkdebug-inject", rule)?;
    drop(disk);
    let status = server.daemon.terminate(PATIENCE)?;
    let log = server.daemon.stderr();
    ensure!(
        log.contains("node 'disk0'") && log.contains("ends without it"),
        "{log}"
    );
    ensure!(status.code() == Some(1), "{status}: {log}");
    Ok(())
}
