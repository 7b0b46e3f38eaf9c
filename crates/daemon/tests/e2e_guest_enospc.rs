//! A real guest whose disk runs out of space, or fails: it waits, and never knows. And the control:
//! what `werror=report` does to the same guest.

mod harness;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{MIB, PATIENCE, Server, Setup, allocated};
use serde_json::{Value, json};
use testkit::guest::{
    BOOT, Files, GUEST_PATIENCE, buffered_writers, io_errors, make_ext4_image, promptly,
};
use testkit::{Event, Guest, Tmpfs, VhostUserBlk};

const IMAGE_BYTES: u64 = 64 * MIB;

/// A guest with an ext4 file system at /mnt, on a node "disk0" over "file0".
struct Rig {
    guest: Guest,
    server: Server,
    image: PathBuf,
    tmpfs: Tmpfs,
}

impl Rig {
    fn new(policy: Value) -> Result<Self> {
        let tmpfs = Tmpfs::new(2 * IMAGE_BYTES)?;
        let image = tmpfs.path().join("disk0.img");
        make_ext4_image(&image, IMAGE_BYTES)?;
        let server = Setup::new()?
            .blockdev(&json!({ "driver": "blkdebug", "node-name": "disk0",
                "image": { "driver": "file", "node-name": "file0", "filename": image,
                    "cache": { "direct": true } } }))
            .export("vda", "disk0", policy)
            .start()?;
        let mut guest = Guest::builder()
            .disk(VhostUserBlk::new(server.socket("vda")))
            .start()?;
        guest.wait_boot(BOOT)?;
        guest.mount("vda", "/mnt", GUEST_PATIENCE)?;
        Ok(Self {
            guest,
            server,
            image,
            tmpfs,
        })
    }

    /// Leaves so much space below the disk.
    fn leave(&self, bytes: u64) -> Result<()> {
        self.tmpfs.resize(allocated(&self.image)? + bytes)
    }

    /// Waits for the next error and does what a management application does: the VM stops too.
    fn wait_held(&mut self, status: &str) -> Result<Event> {
        let event = self
            .server
            .qmp
            .wait_event("BLOCK_IO_ERROR", GUEST_PATIENCE)?;
        ensure!(self.server.io_status("vda")? == status, "{event:?}");
        ensure!(
            event.data["device"] == "vda" && event.data["node-name"] == "disk0",
            "{event:?}"
        );
        ensure!(event.data["action"] == "stop", "{event:?}");
        ensure!(
            event.data["nospace"] == json!(status == "nospace"),
            "{event:?}"
        );
        self.server.qmp.wait_event("STOP", PATIENCE)?;
        ensure!(self.server.run_state()? == "io-error");
        ensure!(!self.server.held("vda")?.is_empty());
        promptly(self.guest.qmp(), "stop")?;
        Ok(event)
    }

    /// The storage is well again.
    fn cont(&mut self) -> Result<()> {
        self.server.qmp.execute("cont", Value::Null)?;
        self.server.qmp.wait_event("RESUME", PATIENCE)?;
        // Failures of requests that were in flight at the first one are told of as well.
        self.server.qmp.take_events(Duration::ZERO)?;
        promptly(self.guest.qmp(), "cont")?;
        Ok(())
    }

    /// The files are there, now and after a reboot, and the guest was shown no error.
    fn check(mut self, sets: &[Files]) -> Result<()> {
        ensure!(self.server.io_status("vda")? == "ok" && self.server.held("vda")?.is_empty());
        for after_reboot in [false, true] {
            if after_reboot {
                self.guest.reboot(BOOT)?;
                self.guest.mount("vda", "/mnt", GUEST_PATIENCE)?;
            }
            for files in sets {
                self.guest.verify_files(files, GUEST_PATIENCE)?;
            }
        }
        self.guest.check_no_io_errors()?;
        let stats = self.server.stats("vda")?;
        for count in ["failed_wr_operations", "failed_rd_operations"] {
            ensure!(stats[count] == 0, "{stats}");
        }
        ensure!(self.guest.power_off(GUEST_PATIENCE)?.success());
        self.server.finish()
    }
}

fn files(name: &str, seed: u32, count: u32, kib: u32) -> Files {
    Files {
        dir: format!("/mnt/{name}"),
        seed,
        count,
        kib,
    }
}

#[test]
fn a_guest_out_of_space_waits_and_finishes() -> Result<()> {
    let mut rig = Rig::new(json!({ "werror": "enospc", "rerror": "report" }))?;
    let synced = files("synced", 1, 12, 512);
    let buffered = files("buffered", 2, 12, 512);
    // Twice: the space added first is not enough. Once synced, once out of the page cache.
    rig.leave(2 * MIB)?;
    let writing = rig.guest.spawn(&synced.write_command())?;
    for space in [2 * MIB, 64 * MIB] {
        let event = rig.wait_held("nospace")?;
        ensure!(event.data["operation"] == "write", "{event:?}");
        let lines = writing.lines().len();
        std::thread::sleep(Duration::from_millis(300));
        ensure!(!writing.has_ended() && writing.lines().len() == lines);
        rig.leave(space)?;
        rig.cont()?;
    }
    let output = writing.wait(GUEST_PATIENCE)?;
    ensure!(output.status == 0, "{output:?}");

    rig.leave(2 * MIB)?;
    let writing = rig
        .guest
        .spawn(&format!("{}\nsync", buffered_writers(&buffered)))?;
    rig.wait_held("nospace")?;
    rig.leave(64 * MIB)?;
    rig.cont()?;
    let output = writing.wait(GUEST_PATIENCE)?;
    ensure!(output.status == 0, "{output:?}");
    rig.check(&[synced, buffered])
}

#[test]
fn a_guest_does_not_see_eio() -> Result<()> {
    let mut rig = Rig::new(json!({ "werror": "stop", "rerror": "stop" }))?;
    let first = files("first", 3, 4, 512);
    rig.guest.write_files(&first, GUEST_PATIENCE)?;

    // Writes: one in three, then all. Whatever is retried while they fail is held again.
    let second = files("second", 4, 6, 512);
    let fails = json!({ "event": "none", "iotype": "write", "errno": 5, "every-nth": 3 });
    rig.server.inject("disk0", fails)?;
    let writing = rig.guest.spawn(&second.write_command())?;
    let event = rig.wait_held("failed")?;
    ensure!(event.data["reason"] == "Input/output error", "{event:?}");
    rig.cont()?;
    rig.wait_held("failed")?;
    rig.server.clear("disk0")?;
    rig.cont()?;
    let output = writing.wait(GUEST_PATIENCE)?;
    ensure!(output.status == 0, "{output:?}");

    // Reads.
    rig.server.inject(
        "disk0",
        json!({ "event": "none", "iotype": "read", "errno": 5 }),
    )?;
    let reading = rig.guest.spawn(&first.verify_command())?;
    let event = rig.wait_held("failed")?;
    ensure!(event.data["operation"] == "read", "{event:?}");
    rig.server.clear("disk0")?;
    rig.cont()?;
    let output = reading.wait(GUEST_PATIENCE)?;
    ensure!(output.status == 0, "{output:?}");
    rig.check(&[first, second])
}

/// The control: with `werror=report` the same lack of space costs the guest its file system.
#[test]
fn a_guest_told_of_the_error_loses_data() -> Result<()> {
    let mut rig = Rig::new(json!({ "werror": "report", "rerror": "report" }))?;
    let files = files("set", 5, 12, 512);
    rig.leave(2 * MIB)?;
    let writing = rig
        .guest
        .spawn(&format!("{}\nsync", buffered_writers(&files)))?;
    let event = rig
        .server
        .qmp
        .wait_event("BLOCK_IO_ERROR", GUEST_PATIENCE)?;
    ensure!(event.data["action"] == "report", "{event:?}");
    writing.wait(GUEST_PATIENCE)?;
    ensure!(rig.server.run_state()? == "running");
    ensure!(rig.server.io_status("vda")? == Value::Null);
    rig.leave(64 * MIB)?;

    let errors = io_errors(&rig.guest.kernel_log()?);
    let told = |sign: &str| errors.iter().any(|line| line.contains(sign));
    ensure!(told("I/O error, dev vda"), "{errors:?}");
    let verified = rig.guest.verify_files(&files, GUEST_PATIENCE);
    ensure!(verified.is_err(), "nothing was lost");
    println!(
        "{} lines of errors, {:#}",
        errors.len(),
        verified.unwrap_err()
    );
    ensure!(rig.server.stats("vda")?["failed_wr_operations"] != 0);
    drop(rig.guest);
    rig.server.finish()
}
