//! The write cache that a client believes in, over restarts of the daemon: what is recorded in the
//! state file, and what reaches the block device below.

mod harness;

use anyhow::{Context, Result, ensure};
use block::WriteCache;
use frontend::{Disk, FrontendError, Options, Request};
use harness::{PATIENCE, Server, eventually, server_on_device};
use serde_json::json;
use testkit::{Daemon, LoopDevice};

const WRITES: u64 = 8;

/// A disk on a loop device, which counts its flushes.
struct Rig {
    server: Server,
    device: LoopDevice,
}

impl Rig {
    fn new(with_state: bool) -> Result<Self> {
        let (server, device) = server_on_device(with_state, json!({}))?;
        Ok(Self { server, device })
    }

    /// Whether writes reach the device's medium before they complete.
    fn is_durable(&self, disk: &mut Disk) -> Result<bool> {
        let before = self.device.flushes()?;
        for sector in 0..WRITES {
            let data = [7; 4096];
            let request = Request::Write {
                sector: 8 * sector,
                data: &data,
            };
            ensure!(disk.execute(0, request, PATIENCE)?.is_ok());
        }
        match self.device.flushes()? - before {
            0 => Ok(false),
            WRITES.. => Ok(true),
            some => anyhow::bail!("{some} flushes for {WRITES} writes"),
        }
    }

    fn saved(&self) -> Result<WriteCache> {
        let state = self.server.saved()?.context("it was written")?;
        Ok(state.backends[0].write_cache)
    }

    fn wait_saved(&self, expected: WriteCache) -> Result<()> {
        let what = format!("{expected:?} is saved");
        eventually(&what, || {
            // The first one may not have been begun, or not be whole.
            let state = self.server.saved().ok().flatten();
            let backend = state.as_ref().and_then(|state| state.backends.first());
            Ok(backend.is_some_and(|backend| backend.write_cache == expected))
        })
    }

    /// The daemon is killed and another one started; the client comes back as QEMU does.
    fn restart(&mut self, disk: Disk) -> Result<Disk> {
        let state = disk.disconnect();
        self.server.daemon.kill()?;
        self.server.start_again()?;
        self.server.reconnect("vda", state)
    }
}

/// A client that reads the configuration space once.
fn qemu(inflight: bool) -> Options {
    Options {
        inflight,
        config_again: false,
        ..Options::default()
    }
}

/// After a restart the option counted again: a guest without cache had no durable write, and sent no
/// flush.
#[test]
fn a_restart_keeps_it() -> Result<()> {
    for (with_state, with_region) in [(true, true), (true, false), (false, true)] {
        let what = || format!("state {with_state}, region {with_region}");
        let mut rig = Rig::new(with_state)?;
        let mut disk = rig.server.disk_with("vda", qemu(with_region))?;
        ensure!(!rig.is_durable(&mut disk)?, "{}", what());
        for on in [true, false, true, false] {
            disk.set_write_cache(on)?;
            if with_state {
                // Recorded when the guest hears of it, and not some time later.
                ensure!(rig.saved()? == WriteCache::of(on), "{}", what());
            }
            ensure!(rig.is_durable(&mut disk)? != on, "{on}, {}", what());
            for _ in 0..2 {
                disk = rig.restart(disk)?;
                ensure!(rig.is_durable(&mut disk)? != on, "{on}, {}", what());
            }
            disk.reset()?;
            ensure!(rig.is_durable(&mut disk)? != on, "{on}, {}", what());
            let config = disk.refresh_config()?;
            ensure!(config.wce == u8::from(on), "{config:?}, {}", what());
        }
        drop(disk);
        rig.server.finish()?;
    }
    Ok(())
}

/// Neither a state nor a region: what the client believes is anybody's guess.
#[test]
fn if_nobody_remembers_every_write_is_durable() -> Result<()> {
    let mut rig = Rig::new(false)?;
    let mut disk = rig.server.disk_with("vda", qemu(false))?;
    ensure!(!rig.is_durable(&mut disk)?);
    disk = rig.restart(disk)?;
    ensure!(rig.is_durable(&mut disk)?);
    disk.reset()?;
    ensure!(rig.is_durable(&mut disk)?);
    let warnings = |daemon: &Daemon| daemon.stderr().matches("nobody remembers").count();
    rig.server
        .daemon
        .wait_for_stderr("nobody remembers", PATIENCE)?;
    ensure!(warnings(&rig.server.daemon) == 1, "said once");
    // A VM that is started anew is told what it may believe.
    drop(disk);
    let mut disk = rig.server.disk_with("vda", qemu(false))?;
    ensure!(disk.config().wce == 1 && !rig.is_durable(&mut disk)?);
    ensure!(warnings(&rig.server.daemon) == 1, "said once");
    drop(disk);
    rig.server.finish()
}

/// The state file says that the guest has a cache, and cannot be made to say anything else. A guest
/// that gives its cache up would rely on what the next daemon does not know: it is told that it keeps
/// it. Whatever it believes, its writes are durable.
#[test]
fn a_record_that_cannot_be_made() -> Result<()> {
    for with_region in [false, true] {
        let rig = Rig::new(true)?;
        let mut disk = rig.server.disk_with("vda", qemu(with_region))?;
        ensure!(!rig.is_durable(&mut disk)?);
        rig.wait_saved(WriteCache::WriteBack)?;
        limit_files(&rig.server.daemon, 0)?;
        let set = disk.set_write_cache(false);
        match (with_region, set) {
            // The region goes with the client: the next daemon gets that.
            (true, Ok(())) => {}
            (false, Err(FrontendError::Refused { code: 1, .. })) => {}
            (_, other) => anyhow::bail!("region {with_region}: {other:?}"),
        }
        ensure!(rig.is_durable(&mut disk)?);
        ensure!(rig.saved()? == WriteCache::WriteBack);
        limit_files(&rig.server.daemon, u64::MAX)?;
        if with_region {
            // It is tried again, although nothing changes any more.
            rig.wait_saved(WriteCache::WriteThrough)?;
        } else {
            disk.set_write_cache(false)?;
            ensure!(rig.saved()? == WriteCache::WriteThrough);
        }
        ensure!(rig.is_durable(&mut disk)?);
        drop(disk);
        rig.server.finish()?;
    }
    Ok(())
}

/// From now on the daemon cannot write to files beyond this many bytes; devices are none.
fn limit_files(daemon: &Daemon, bytes: u64) -> Result<()> {
    let pid = daemon.pid().to_string();
    let limit = match bytes {
        u64::MAX => "unlimited".to_owned(),
        bytes => bytes.to_string(),
    };
    let mut prlimit = std::process::Command::new("prlimit");
    let status = prlimit
        .args(["--pid", &pid, &format!("--fsize={limit}:unlimited")])
        .status()
        .context("prlimit")?;
    ensure!(status.success(), "prlimit: {status}");
    Ok(())
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
