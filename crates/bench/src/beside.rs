//! A disk that shares its iothread with a file that hangs.

use anyhow::{Context, Result, ensure};
use frontend::{Disk, Options, Request};
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::{FuseFile, FuseOp};

use crate::latency::{Latency, latency};
use crate::load::{Load, Loaded, Pattern};
use crate::server::{Server, Setup};

/// The latency of a disk that has its iothread for itself.
pub const ALONE: &str = "read of a disk, alone on its iothread";
/// The same beside a disk that does not answer.
pub const BESIDE_WHAT_HANGS: &str = "read of a disk, 64 requests of another hang on its iothread";

const BYTES: usize = 4 << 20;
const HUNG: u64 = 64;
const PATIENCE: Duration = Duration::from_secs(20);
/// What a round of the other latencies is worth here.
const ROUND: Duration = Duration::from_millis(10);

/// Reads of a file on tmpfs, first alone, then while all requests of a file on FUSE with O_DIRECT hang: a
/// kernel waits for such a file inside the submission. None: only root can mount storage that hangs.
///
/// # Errors
/// If the daemon does not do as it should.
pub fn measure(standfastd: &Path, cpu: usize, rounds: u32) -> Result<Vec<Latency>> {
    if !rustix::process::geteuid().is_root() {
        println!("  left out, as only root can mount storage that hangs: {BESIDE_WHAT_HANGS}");
        return Ok(Vec::new());
    }
    let dir = tempfile::tempdir_in("/dev/shm").context("a directory on tmpfs")?;
    let image = dir.path().join("image");
    std::fs::write(&image, vec![0x5a; BYTES])?;
    let other = dir.path().join("other.sock");
    let fuse = FuseFile::new(BYTES)?;
    let mut setup = Setup::new(
        Server::Standfast,
        format!("driver=file,node-name=disk,filename={}", image.display()),
    );
    let slow = format!(
        "driver=file,node-name=slow,filename={},cache.direct=on",
        fuse.path().display()
    );
    let export = format!(
        "type=vhost-user-blk,id=other,node-name=slow,writable=on,num-queues=1,iothread=both,\
         addr.type=unix,addr.path={}",
        other.display()
    );
    let more = [
        ["--object", "iothread,id=both"],
        ["--blockdev", &slow],
        ["--export", &export],
    ];
    setup.more = more.concat().into_iter().map(str::to_owned).collect();
    setup.export = ",iothread=both".to_owned();
    setup.cpu = Some(cpu);
    let running = setup.start(standfastd)?;

    let load = Load {
        pattern: Pattern {
            read: true,
            random: true,
            bytes: 4096,
        },
        depth: 1,
        queues: 1,
        poll: true,
        indirect: true,
    };
    let mut disk = Loaded::connect(&running.socket(), load)?;
    let mut reads = |name| {
        let outcome = disk.run(ROUND * 10, ROUND * rounds, None)?;
        ensure!(outcome.errors == 0, "{} reads failed", outcome.errors);
        Ok(latency(name, &outcome.latencies))
    };
    let alone = reads(ALONE)?;

    let hung = Hung(&fuse);
    fuse.hang(FuseOp::Read, true);
    let mut slow = Disk::connect(&other, Options::default())?;
    for sector in 0..HUNG {
        slow.submit(0, Request::Read { sector, len: 512 })?;
    }
    slow.kick(0)?;
    let deadline = Instant::now() + PATIENCE;
    while fuse.count(FuseOp::Read) == 0 {
        ensure!(Instant::now() < deadline, "no read has reached the file");
        std::thread::sleep(Duration::from_millis(1));
    }
    let beside = reads(BESIDE_WHAT_HANGS)?;
    ensure!(
        slow.outstanding(0) == usize::try_from(HUNG)?,
        "it has answered"
    );
    drop(hung);
    drop((disk, slow));
    running.finish()?;
    Ok(vec![alone, beside])
}

/// What hangs goes on, however this ends: a process that waits for FUSE cannot die.
struct Hung<'a>(&'a FuseFile);

impl Drop for Hung<'_> {
    fn drop(&mut self) {
        self.0.hang(FuseOp::Read, false);
    }
}
