//! A disk that is longer than there is space for, under a load that runs into the end of that again and again.

use anyhow::{Result, ensure};
use serde_json::Value;
use testkit::{Driver, Event, Mix, Workload};

use super::{MIB, PATIENCE, Server};

/// The length of the disk in bytes: more than there is space for.
pub const DISK_BYTES: u64 = 24 * MIB;
/// What the load uses of it, in blocks of 4096 bytes: all.
const BLOCKS: usize = 6144;

/// Writes of all kinds that allocate, some that need none, and flushes: of data, and of metadata alone.
pub fn load(seed: u64, requests: u64) -> Driver {
    Driver::new(Workload {
        seed,
        requests,
        blocks: BLOCKS,
        blocks_max: 16,
        mix: Mix {
            read: 15,
            write: 70,
            write_zeroes: 5,
            discard: 3,
            flush: 7,
        },
        timeout: PATIENCE,
        ..Workload::default()
    })
}

/// The load on the export `vda`, which has two queues. `look`: at what is told the first time; `extend` gives some more space, as often
/// as it is asked: how often that was. In the end the client finds all that it has written, and the daemon has ended.
pub fn hold_extend_continue(
    mut server: Server,
    seed: u64,
    look: impl FnOnce(&mut Server, &Event) -> Result<()>,
    mut extend: impl FnMut(u32) -> Result<()>,
) -> Result<Driver> {
    let queues = frontend::Options {
        queues: 2,
        ..Default::default()
    };
    let mut disk = server.disk_with("vda", queues)?;
    let mut driver = load(seed, 2500);
    let mut holds = 0;
    let event = server.run_until_held(&mut driver, &mut disk, "vda")?;
    ensure!(server.io_status("vda")? == "nospace", "{event:?}");
    ensure!(!server.held("vda")?.is_empty());
    look(&mut server, &event)?;
    server.run_to_end(&mut driver, &mut disk, |server| {
        if server.io_status("vda")? != "ok" {
            holds += 1;
            extend(holds)?;
            server.qmp.execute("cont", Value::Null)?;
        }
        Ok(())
    })?;
    ensure!(holds > 1, "{holds}");
    ensure!(server.held("vda")?.is_empty());
    let stats = server.stats("vda")?;
    ensure!(stats["failed_wr_operations"] == 0, "{stats}");
    driver.read_back(&mut disk)?;
    drop(disk);
    server.finish()?;
    println!("{holds} times held, {:?}", driver.checker_mut().summary());
    Ok(driver)
}
