//! A failed flush of a node that two exports share.

mod harness;

use anyhow::{Result, ensure};
use frontend::{Disk, Request};
use harness::{MIB, PATIENCE, Setup, sparse};
use serde_json::{Value, json};
use testkit::{LoopDevice, Tmpfs};

const IMAGE_BYTES: u64 = 16 * MIB;

fn flushes(disk: &mut Disk) -> Result<bool> {
    Ok(disk.execute(0, Request::Flush, PATIENCE)?.is_ok())
}

/// The flush of one export failed; a client of the other one reset its device, and that cleared the
/// latch for both: the next flush of the first one was answered with success, although what its
/// guest had written was lost. The latch is void for the client that was reset, and for no other,
/// also after a restart.
#[test]
fn a_reset_clears_nothing_of_the_other_export() -> Result<()> {
    let tmpfs = Tmpfs::new(8 * MIB)?;
    let backing = tmpfs.path().join("thin");
    sparse(&backing, IMAGE_BYTES)?;
    let device = LoopDevice::new(&backing, true)?;
    let policy = || json!({ "werror": "report", "hold-scope": "device" });
    let mut server = Setup::new()?
        .with_state()
        .blockdev(&json!({ "driver": "host_device", "node-name": "disk0",
            "filename": device.path(), "cache": { "direct": false } }))
        .export("vda", "disk0", policy())
        .export("vdb", "disk0", policy())
        .start()?;
    let mut first = server.disk("vda")?;
    let mut second = server.disk("vdb")?;
    let data = vec![0xa5; 128 << 10];
    for chunk in 0..(IMAGE_BYTES / (128 << 10)) {
        let write = Request::Write {
            sector: chunk * 256,
            data: &data,
        };
        ensure!(first.execute(0, write, PATIENCE)?.is_ok());
    }
    ensure!(!flushes(&mut first)?, "there is space for 8 MiB only");
    // The cause is gone; the data is, too.
    tmpfs.resize(40 * MIB)?;
    ensure!(!flushes(&mut second)?, "it counts for every user");
    second.reset()?;
    ensure!(flushes(&mut second)?, "it has lost nothing since its reset");
    ensure!(!flushes(&mut first)?, "its data is lost");
    let refused = server.qmp.execute("cont", Value::Null);
    let text = refused.expect_err("cont must be refused").to_string();
    ensure!(text.contains("'disk0' has lost data"), "{text}");

    ensure!(server.daemon.terminate(PATIENCE)?.success());
    let states = [first.disconnect(), second.disconnect()];
    server.start_again()?;
    let [first, second] = states;
    let mut first = server.reconnect("vda", first)?;
    let mut second = server.reconnect("vdb", second)?;
    ensure!(flushes(&mut second)? && !flushes(&mut first)?);

    // When the last one has been reset, nobody has lost anything.
    first.reset()?;
    ensure!(flushes(&mut first)?);
    server.qmp.execute("cont", Value::Null)?;
    let accept = json!({ "node-name": "disk0" });
    let nothing = server.qmp.execute("x-node-accept-loss", accept);
    ensure!(nothing.is_err(), "there is no loss left to accept");
    drop((first, second));
    server.finish()
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
