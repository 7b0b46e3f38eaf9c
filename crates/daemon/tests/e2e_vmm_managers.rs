//! Who else steers the VM: an administrator, an eager manager, and nobody while the link is down.

mod harness;

use std::os::unix::fs::symlink;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::footprint::Footprint;
use harness::vmm::{FullDisk, Resumer, qemu_state};
use harness::{PATIENCE, Setup};
use serde_json::{Value, json};
use testkit::guest::{DirectWriters, GUEST_PATIENCE, promptly};
use testkit::soak;
use testkit::wait_until;

/// What the allocator may keep of its own accord, in KiB.
const GROWTH_KIB_MAX: u64 = 1024;

#[test]
fn a_manager_says_cont_all_the_time() -> Result<()> {
    let setup = Setup::new()?.link();
    let monitor = setup.link_socket();
    let mut disk = FullDisk::new(setup, &monitor)?;
    let writers = DirectWriters {
        seed: 1,
        writers: 24,
        pages: 4,
    };
    let writing = disk.write(&writers)?;
    disk.wait_paused_by_error()?;
    let time = Duration::from_secs(soak(4, 120));
    let (mut conts, mut stops, mut before) = (0, 1, None);
    let begin = Instant::now();
    while begin.elapsed() < time {
        promptly(&mut disk.server.qmp, "cont")?;
        conts += 1;
        let events = disk.server.qmp.take_events(Duration::from_millis(100))?;
        stops += events.iter().filter(|event| event.name == "STOP").count();
        if before.is_none() && begin.elapsed() > time / 2 {
            before = Some(Footprint::of(disk.server.daemon.pid())?);
        }
    }
    // It comes to rest: what is held fails again, and daemon and VM agree.
    wait_until("daemon and VM are at rest", PATIENCE, || {
        let rest = json!({ "vm": "paused", "paused-by": "link" });
        disk.server.wait_link(&rest)?;
        Ok(disk.server.run_state()? == "io-error" && qemu_state(&mut disk.guest)? == "paused")
    })?;
    ensure!(!writing.has_ended() && !disk.server.held("vda")?.is_empty());
    let before = before.context("measured half way")?;
    let after = Footprint::of(disk.server.daemon.pid())?;
    let pauses = disk.guest.qmp().take_events(Duration::ZERO)?;
    let pauses = pauses.iter().filter(|event| event.name == "STOP").count();
    println!("{conts} times cont, {stops} STOP, {pauses} of QEMU, {before:?}, {after:?}");
    ensure!(stops > conts / 2 && pauses > 1, "cont did nothing");
    ensure!(
        after.descriptors <= before.descriptors,
        "{before:?}, {after:?}"
    );
    ensure!(
        after.resident_kib <= before.resident_kib + GROWTH_KIB_MAX,
        "{before:?}, {after:?}"
    );
    disk.add_space()?;
    disk.server.qmp.take_events(Duration::ZERO)?;
    disk.cont_by(Resumer::Daemon)?;
    disk.check(&writing, &writers)?;
    disk.finish()
}

#[test]
fn an_administrators_pause_is_respected_and_a_link_may_come_late() -> Result<()> {
    let setup = Setup::new()?.link();
    let (link, monitor) = (setup.link_socket(), setup.path("qemu.sock"));
    let mut disk = FullDisk::new(setup, &monitor)?;
    let writers = DirectWriters {
        seed: 2,
        writers: 4,
        pages: 4,
    };
    // Nobody is at the link's socket: what fails is held, and the VM runs.
    let writing = disk.write(&writers)?;
    disk.server
        .qmp
        .wait_event("BLOCK_IO_ERROR", GUEST_PATIENCE)?;
    disk.server.qmp.wait_event("STOP", PATIENCE)?;
    disk.server
        .wait_link(&json!({ "state": "down", "pending": "pause", "paused-by": "nobody" }))?;
    let error = disk.server.x_vmm()?["error"].clone();
    let expected = format!("'{}'", link.display());
    ensure!(
        error
            .as_str()
            .is_some_and(|error| error.contains(&expected)),
        "{error}"
    );
    promptly(&mut disk.server.qmp, "query-block")?;
    ensure!(!disk.server.held("vda")?.is_empty());
    disk.guest.run_ok("true", GUEST_PATIENCE)?;
    ensure!(qemu_state(&mut disk.guest)? == "running" && !writing.has_ended());

    // An administrator pauses it before the link can.
    disk.guest.qmp().execute("stop", Value::Null)?;
    symlink(&monitor, &link)?;
    let respected = json!({ "state": "connected", "vm": "paused", "pending": null,
        "paused-by": "other", "error": null });
    disk.server.wait_link(&respected)?;
    let found = disk.server.qmp.wait_event("X_VMM_LINK", PATIENCE)?;
    ensure!(found.data["id"] == "vm0", "{found:?}");

    // cont is for the storage only.
    disk.add_space()?;
    disk.server.qmp.execute("cont", Value::Null)?;
    disk.server.qmp.wait_event("RESUME", PATIENCE)?;
    ensure!(disk.server.run_state()? == "running");
    sleep(Duration::from_millis(500));
    disk.server.wait_link(&respected)?;
    ensure!(qemu_state(&mut disk.guest)? == "paused");
    // Unless it says otherwise.
    let force = json!({ "x-force": true });
    disk.server.qmp.execute("cont", force.clone())?;
    disk.server.wait_link_running()?;
    ensure!(qemu_state(&mut disk.guest)? == "running");
    disk.check(&writing, &writers)?;

    // The same with nothing wrong: paused by somebody else is no error, and not for us to end.
    disk.guest.qmp().execute("stop", Value::Null)?;
    disk.server.wait_link(&respected)?;
    ensure!(disk.server.run_state()? == "running");
    // Our stop finds it paused, so that our cont does not resume it.
    promptly(&mut disk.server.qmp, "stop")?;
    promptly(&mut disk.server.qmp, "cont")?;
    sleep(Duration::from_millis(500));
    disk.server.wait_link(&respected)?;
    ensure!(qemu_state(&mut disk.guest)? == "paused");
    disk.guest.qmp().execute("cont", Value::Null)?;
    disk.server.wait_link_running()?;

    // stop and cont here drive the VM.
    promptly(&mut disk.server.qmp, "stop")?;
    disk.server
        .wait_link(&json!({ "vm": "paused", "paused-by": "link", "pending": null }))?;
    ensure!(qemu_state(&mut disk.guest)? == "paused");
    promptly(&mut disk.server.qmp, "cont")?;
    disk.server.wait_link_running()?;
    ensure!(qemu_state(&mut disk.guest)? == "running");
    disk.finish()
}
