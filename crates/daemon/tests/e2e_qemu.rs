//! What QEMU itself does with an export when the daemon is replaced, or the disk resized.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is one")]

mod harness;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{MIB, PATIENCE, Server, Setup, sparse};
use serde_json::{Value, json};
use testkit::guest::VhostUserBlk;
use testkit::{Guest, LoopDevice};

const DISK_BYTES: u64 = 16 * MIB;

/// Writes 4 KiB blocks in a row, each numbered, each waited for.
const WRITER: &str = "i=0
while [ $i -lt 400 ]; do
    printf '%04096d' $i | dd of=/dev/vda bs=4k seek=$i oflag=direct conv=notrunc 2>/dev/null || exit 1
    i=$((i + 1))
    echo $i
done
echo done";

fn serve() -> Result<Server> {
    with_disk(Setup::new()?)?.start()
}

/// The export `vda` on a file.
fn with_disk(setup: Setup) -> Result<Setup> {
    let image = setup.path("disk.img");
    sparse(&image, DISK_BYTES)?;
    let file = json!({
        "driver": "file", "node-name": "file", "filename": image, "cache": { "direct": true },
    });
    Ok(setup
        // All messages, for whoever has to find out why this fails.
        .env("STANDFAST_LOG", "trace")
        .blockdev(&file)
        .export("vda", "file", json!({})))
}

fn guest(server: &Server) -> Result<Guest> {
    let disk = VhostUserBlk::new(server.socket("vda")).reconnect(Duration::from_secs(1));
    let mut guest = Guest::builder().disk(disk).start()?;
    guest.wait_boot(PATIENCE * 2)?;
    Ok(guest)
}

/// QEMU 7.2, whose daemon goes away while the VM is stopped, believes that the device is still
/// connected: it takes the new connection without a word, and `cont` goes on from SET_FEATURES and
/// SET_INFLIGHT_FD as if all the rest had been said. The daemon once refused that, and the disk hung
/// for ever.
#[test]
fn the_daemon_is_replaced_under_a_stopped_vm() -> Result<()> {
    let mut server = serve()?;
    let mut guest = guest(&server)?;
    let writer = guest.spawn(WRITER)?;
    let progress = |server: &Server| {
        let next = (writer.lines().len() + 3).to_string();
        let waited = writer.wait_line(&next, PATIENCE);
        waited
            .with_context(|| format!("after line {next}; the daemon:\n{}", server.daemon.stderr()))
    };
    progress(&server)?;
    for round in 0..3 {
        // A running VM first: QEMU 7.2 that was disconnected while it was stopped listens to its
        // socket no more, and takes another end for silence.
        let stopped = round > 0;
        if stopped {
            guest.qmp().execute("stop", Value::Null)?;
        }
        server.daemon.kill()?;
        server.start_again()?;
        if stopped {
            server
                .daemon
                .wait_for_stderr("client connected", PATIENCE)?;
            // QEMU says what it has to say.
            std::thread::sleep(Duration::from_millis(500));
            guest.qmp().execute("cont", Value::Null)?;
        }
        progress(&server).with_context(|| format!("round {round}"))?;
    }
    let wrote = writer.wait(PATIENCE * 2)?;
    ensure!(
        wrote.status == 0 && wrote.output.ends_with("done"),
        "{wrote:?}"
    );
    let image = std::fs::read(server.path("disk.img"))?;
    for (number, block) in image.chunks(4096).take(400).enumerate() {
        let expected = format!("{number:04096}");
        ensure!(
            block == expected.as_bytes(),
            "block {number} is not what was written"
        );
    }
    guest.check_no_io_errors()?;
    server.end()
}

/// A new size, and the geometry of a device: the guest took 512 bytes for whatever the host knew better.
#[test]
fn the_guest_sees_size_and_geometry() -> Result<()> {
    let setup = Setup::new()?;
    let image = setup.path("device.img");
    sparse(&image, DISK_BYTES)?;
    let device = LoopDevice::with_sectors(&image, 4096)?;
    let mut server = with_disk(setup)?
        .blockdev(&json!({ "driver": "host_device", "node-name": "device",
            "filename": device.path(), "cache": { "direct": true }, "discard": "unmap" }))
        .export("vdb", "device", json!({}))
        .start()?;
    let disk = |id: &str| VhostUserBlk::new(server.socket(id)).reconnect(Duration::from_secs(1));
    let mut guest = Guest::builder()
        .disk(disk("vda"))
        .disk(disk("vdb"))
        .start()?;
    guest.wait_boot(PATIENCE * 2)?;
    let queue = "/sys/block/vdb/queue";
    let script = format!(
        "cd {queue} && cat logical_block_size physical_block_size minimum_io_size \
         discard_granularity"
    );
    let seen = guest.run_ok(&script, PATIENCE)?;
    let seen: Vec<_> = seen.split_whitespace().collect();
    let name = device.path().display().to_string().replace("/dev/", "");
    let granularity =
        std::fs::read_to_string(format!("/sys/block/{name}/queue/discard_granularity"))?;
    ensure!(
        seen == ["512", "4096", "4096", granularity.trim()],
        "{seen:?}"
    );
    let sectors = || guest.run_ok("cat /sys/block/vda/size", PATIENCE);
    ensure!(sectors()?.trim() == (DISK_BYTES / 512).to_string());
    let resize = json!({ "node-name": "file", "size": 2 * DISK_BYTES });
    server.qmp.execute("block_resize", resize)?;
    let grown = (2 * DISK_BYTES / 512).to_string();
    let script = format!("until grep -q {grown} /sys/block/vda/size; do sleep 0.1; done");
    guest.run_ok(&script, PATIENCE)?;
    let last = "dd if=/dev/zero of=/dev/vda bs=4k seek=8191 count=1 oflag=direct";
    guest.run_ok(last, PATIENCE)?;
    guest.check_no_io_errors()?;
    server.end()
}
