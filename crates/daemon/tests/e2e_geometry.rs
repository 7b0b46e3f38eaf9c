//! What the guest is told of a disk on odd storage, and what it can do with it.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is a test")]

mod harness;

use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use frontend::Request;
use harness::{MIB, PATIENCE, Setup};
use serde_json::json;
use testkit::LoopDevice;

fn file(setup: &Setup, bytes: u64) -> Result<String> {
    let path = setup.path("image");
    harness::sparse(&path, bytes)?;
    Ok(path.display().to_string())
}

/// Sectors of 4 KiB under a guest's of 512 bytes, behind filters. The guest took 512 bytes for what the
/// device likes, and partitions for aligned that were not.
#[test]
fn a_device_of_large_sectors() -> Result<()> {
    let setup = Setup::new()?;
    let path = file(&setup, MIB)?;
    let device = LoopDevice::with_sectors(path.as_ref(), 4096)?;
    let setup = setup
        .blockdev(&json!({ "driver": "host_device", "node-name": "disk0",
            "filename": device.path(), "cache": { "direct": true }, "discard": "unmap" }))
        .blockdev(
            &json!({ "driver": "quota", "node-name": "quota0", "file": "disk0",
            "limit": MIB }),
        )
        .blockdev(&json!({ "driver": "blkdebug", "node-name": "debug0", "image": "quota0" }))
        .export("vda", "debug0", json!({}))
        .export("vdb", "debug0", json!({ "logical-block-size": 4096 }));
    let server = setup.start()?;
    let (mut small, large) = (server.disk("vda")?, server.disk("vdb")?);
    let (config, blocks) = (small.config(), large.config());
    ensure!((config.blk_size, blocks.blk_size) == (512, 4096));
    ensure!((config.physical_block_exp, config.alignment_offset) == (3, 0));
    ensure!((blocks.physical_block_exp, blocks.alignment_offset) == (0, 0));
    ensure!((config.min_io_size, blocks.min_io_size) == (8, 1));
    let queue = format!("/sys/block/{}/queue", device.path().display());
    let granularity = queue.replace("/dev/", "") + "/discard_granularity";
    let granularity: u32 = std::fs::read_to_string(granularity)?.trim().parse()?;
    ensure!(config.discard_sector_alignment == granularity / 512);
    ensure!(granularity >= 4096, "the device says {granularity}");

    // One sector of eight changes.
    for (sector, byte) in [(0, 1), (7, 2), (9, 3), (MIB / 512 - 1, 4)] {
        let data = vec![byte; 512];
        let write = Request::Write {
            sector,
            data: &data,
        };
        ensure!(small.execute(0, write, PATIENCE)?.is_ok());
    }
    ensure!(small.execute(0, Request::Flush, PATIENCE)?.is_ok());
    let mut expected = vec![0; 8192];
    for (sector, byte) in [(0, 1), (7, 2), (9, 3)] {
        expected[sector * 512..(sector + 1) * 512].fill(byte);
    }
    let mut found = vec![0; 8192];
    std::fs::File::open(device.path())?.read_exact_at(&mut found, 0)?;
    ensure!(found == expected);
    drop((small, large));
    server.finish()
}

/// The guest had one sector less than the image. What it writes to the last one it finds again after a
/// restart, in a disk of the same length, however the daemon ends.
#[test]
fn an_image_of_odd_length_over_a_restart() -> Result<()> {
    let setup = Setup::new()?;
    let path = file(&setup, MIB + 100)?;
    let setup = setup
        .blockdev(
            &json!({ "driver": "file", "node-name": "disk0", "filename": path,
            "cache": { "direct": true } }),
        )
        .export("vda", "disk0", json!({}))
        .export("vdb", "disk0", json!({ "logical-block-size": 4096 }));
    let mut server = setup.start()?;
    let said = "the last 512 of its 1049088 bytes are out of the guest's reach";
    server.daemon.wait_for_stderr(said, PATIENCE)?;
    for round in 1..4 {
        let mut disk = server.disk("vda")?;
        ensure!(disk.config().capacity == 2049);
        let last = Request::Read {
            sector: 2048,
            len: 512,
        };
        let read = disk.execute(0, last, PATIENCE)?;
        ensure!(read.is_ok());
        ensure!(read.data == vec![round - 1; 512], "round {round}");
        let data = vec![round; 512];
        let write = Request::Write {
            sector: 2048,
            data: &data,
        };
        ensure!(disk.execute(0, write, PATIENCE)?.is_ok());
        ensure!(std::fs::metadata(&path)?.len() == MIB + 512);
        drop(disk);
        server.daemon.kill()?;
        server.start_again()?;
    }
    server.finish()
}
