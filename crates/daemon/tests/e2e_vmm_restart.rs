//! Daemon, VM or VMM end while the VM is paused by its link.

mod harness;

use std::time::Duration;

use anyhow::{Result, ensure};
use block::{RunState, VmPause};
use harness::vmm::{FullDisk, LINK, Resumer, qemu_state};
use harness::{PATIENCE, Setup, eventually};
use serde_json::{Value, json};
use testkit::guest::{BOOT, DirectWriters, promptly};
use testkit::soak;
use testkit::wait_until;

fn writers(seed: u32, writers: u64) -> DirectWriters {
    DirectWriters {
        seed,
        writers,
        pages: 4,
    }
}

/// A restarted daemon finds the VM that its predecessor has paused, and `cont` resumes it.
#[test]
fn a_daemon_is_killed_while_the_vm_is_paused() -> Result<()> {
    let setup = Setup::new()?.link();
    let (monitor, state) = (setup.link_socket(), setup.path("state"));
    std::fs::create_dir(&state)?;
    let setup = setup.option("--state-dir", state.display());
    let mut disk = FullDisk::new(setup, &monitor)?;
    for round in 0..soak(2, 10) {
        let writers = writers(u32::try_from(round)?, 1 + 9 * round);
        disk.take_space()?;
        let writing = disk.write(&writers)?;
        let held = disk.wait_paused_by_error()?;
        // A thread writes it, in its own time; what it has not written the next daemon does not know.
        eventually("the pause is saved", || {
            let saved = disk.server.saved().ok().flatten();
            Ok(saved.is_some_and(|saved| {
                saved.run_state == RunState::IoError && saved.vm_pause == VmPause::Link
            }))
        })?;
        disk.server.daemon.kill()?;
        ensure!(qemu_state(&mut disk.guest)? == "paused");
        disk.server.start_again()?;
        ensure!(disk.server.run_state()? == "io-error");
        disk.server.wait_link(
            &json!({ "state": "connected", "vm": "paused", "paused-by": "link", "pending": null }),
        )?;
        ensure!(disk.server.io_status("vda")? == "nospace");
        if round % 2 == 1 {
            // Too early: it is held again, and the VM paused again.
            disk.server.qmp.execute("cont", Value::Null)?;
            disk.server.qmp.wait_event("RESUME", PATIENCE)?;
            // QEMU 10 hands back what is held although the VM is paused: it may fail again before
            // the link has come to resume the VM.
            disk.server.qmp.wait_event("BLOCK_IO_ERROR", PATIENCE)?;
            disk.server.qmp.wait_event("STOP", PATIENCE)?;
            // A resume may still be under way: it has come to rest when nothing changes any more.
            let mut quiet = 0;
            wait_until("the VM is paused again", PATIENCE, || {
                let link = disk.server.x_vmm()?;
                let paused = link["vm"] == "paused" && link["pending"].is_null();
                let paused = paused && qemu_state(&mut disk.guest)? == "paused";
                quiet = if paused { quiet + 1 } else { 0 };
                Ok(quiet == 50)
            })?;
            disk.guest.qmp().take_events(Duration::ZERO)?;
        }
        ensure!(!writing.has_ended() && qemu_state(&mut disk.guest)? == "paused");
        disk.add_space()?;
        let resumer = [Resumer::Daemon, Resumer::Qemu][usize::try_from(round / 2 % 2)?];
        if resumer == Resumer::Qemu {
            // QEMU itself does not wait for its disk.
            disk.server.wait_clients()?;
            std::thread::sleep(Duration::from_millis(300));
        }
        disk.cont_by(resumer)?;
        disk.check(&writing, &writers)?;
        println!("round {round}: {held} held, cont by {resumer:?}");
    }
    disk.finish()
}

/// What is held is dropped when the reset of the device is seen: when the VM runs again.
#[test]
fn the_vm_is_reset_by_its_link() -> Result<()> {
    let setup = Setup::new()?.link();
    let monitor = setup.link_socket();
    let mut disk = FullDisk::new(setup, &monitor)?;
    let _writing = disk.write(&writers(1, 8))?;
    disk.wait_paused_by_error()?;
    let held = disk.server.held("vda")?.len();
    promptly(&mut disk.server.qmp, "system_reset")?;
    disk.guest.qmp().wait_event("RESET", PATIENCE)?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(disk.server.held("vda")?.len() == held);
    ensure!(disk.server.run_state()? == "io-error");
    // There is still no space: what was held must not be tried.
    disk.cont_by(Resumer::Daemon)?;
    disk.guest.wait_boot(BOOT)?;
    ensure!(disk.server.held("vda")?.is_empty() && disk.server.run_state()? == "running");
    disk.server.wait_link_running()?;

    disk.add_space()?;
    let after = writers(2, 4);
    let writing = disk.write(&after)?;
    disk.check(&writing, &after)?;
    disk.finish()
}

/// The daemon and its monitor go on, and the next VM has a link again.
#[test]
fn the_vmm_is_killed_while_much_is_held() -> Result<()> {
    let setup = Setup::new()?.link();
    let monitor = setup.link_socket();
    let mut disk = FullDisk::new(setup, &monitor)?;
    let _writing = disk.write(&writers(1, 16))?;
    disk.wait_paused_by_error()?;
    disk.guest.qemu().kill()?;
    disk.server.wait_link(&json!({ "state": "down" }))?;
    let error = disk.server.x_vmm()?["error"].clone();
    ensure!(
        error.as_str().is_some_and(|error| error.contains("QEMU")),
        "{error}"
    );
    for command in ["query-block", "x-query-held", "stop", "cont"] {
        promptly(&mut disk.server.qmp, command)?;
    }
    let reset = disk.server.qmp.execute("system_reset", Value::Null);
    println!("x-vmm: {error}; system_reset: {:?}", reset.as_ref().err());
    ensure!(reset.is_err_and(|error| error.command().is_some()));

    disk.boot_again(&monitor)?;
    disk.server.wait_link_running()?;
    ensure!(disk.server.run_state()? == "running" && disk.server.held("vda")?.is_empty());
    // Links go and come at run time, too.
    disk.server
        .qmp
        .execute("object-del", json!({ "id": LINK }))?;
    ensure!(disk.server.x_vmm()?.is_null());
    let link = json!({ "qom-type": "vmm-qemu", "id": LINK, "path": monitor });
    disk.server.qmp.execute("object-add", link)?;
    disk.server.wait_link_running()?;
    let after = writers(2, 4);
    let writing = disk.write(&after)?;
    disk.wait_paused_by_error()?;
    let refused = disk.server.qmp.execute("object-del", json!({ "id": LINK }));
    ensure!(refused.is_err_and(|error| error.to_string().contains("is in use")));
    disk.add_space()?;
    disk.cont_by(Resumer::Qemu)?;
    disk.check(&writing, &after)?;
    disk.finish()
}
