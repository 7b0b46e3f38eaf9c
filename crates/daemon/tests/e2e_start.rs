//! How `standfastd` starts: over a state that it cannot use, beside another daemon, under a service
//! manager. Needs root, for tmpfs.

mod harness;

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Result, ensure};
use block::state_file::{self, FILE_NAME};
use block::{RunState, StateFile};
use harness::state::{io_error, plain, save};
use harness::{MIB, PATIENCE, Server, Setup, sparse};
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::Tmpfs;

/// It runs, it serves, and it says on stderr why it knows nothing.
fn starts_afresh(mut server: Server, notice: &str) -> Result<Server> {
    ensure!(server.run_state()? == "running");
    // The log is written by a thread of its own.
    server.daemon.wait_for_stderr(notice, PATIENCE)?;
    let stderr = server.daemon.stderr();
    let said = |line: &str| line.contains("WARN") && line.contains(notice);
    ensure!(stderr.lines().any(said), "no {notice:?} in:\n{stderr}");
    Ok(server)
}

/// Nor is anything wrong that concerns the state.
fn warns_of_nothing(server: &Server) -> Result<()> {
    let stderr = server.daemon.stderr();
    let warns = |line: &str| line.contains("WARN") && !line.contains("io_uring is not available");
    ensure!(!stderr.lines().any(warns), "{stderr}");
    Ok(())
}

#[test]
fn a_state_that_cannot_be_used_is_told_about() -> Result<()> {
    let dir = tempfile::tempdir()?;
    save(dir.path(), "another boot", &io_error())?;
    let mut server = starts_afresh(
        plain(dir.path())?.start()?,
        "before this machine was started",
    )?;
    // What is written from now on counts.
    server.qmp.execute("stop", Value::Null)?;
    ensure!(server.daemon.terminate(PATIENCE)?.success());
    server.start_again()?;
    ensure!(server.run_state()? == "paused");
    warns_of_nothing(&server)?;
    server.end()?;

    std::fs::write(dir.path().join(FILE_NAME), vec![0x5a; 4096])?;
    starts_afresh(plain(dir.path())?.start()?, "begins afresh")?.finish()?;

    // The export that something is known of is gone.
    let mut state = io_error();
    state.run_state = RunState::Running;
    let backend = block::SavedBackend {
        device: "vdz".to_owned(),
        ..block::SavedBackend::default()
    };
    state.backends.push(backend);
    save(dir.path(), &state_file::boot_id()?, &state)?;
    starts_afresh(plain(dir.path())?.start()?, "'vdz'")?.finish()
}

#[test]
fn a_directory_that_cannot_be_written_is_no_obstacle() -> Result<()> {
    let tmpfs = Tmpfs::new(64 << 10)?;
    let full = plain(&tmpfs.path().join("state"))?.start()?;
    starts_afresh(full, "cannot allocate the state file")?.finish()?;

    let tmpfs = Tmpfs::new(MIB)?;
    let dir = tmpfs.path().join("state");
    save(&dir, &state_file::boot_id()?, &io_error())?;
    // The file has its place already, however full the rest is.
    std::fs::write(tmpfs.path().join("ballast"), vec![1; 1 << 20]).unwrap_err();
    let mut server = plain(&dir)?.start()?;
    ensure!(server.run_state()? == "io-error");
    server.qmp.execute("cont", Value::Null)?;
    server.end()?;
    let mut server = plain(&dir)?.start()?;
    ensure!(server.run_state()? == "running");
    warns_of_nothing(&server)?;
    server.end()?;

    let remount = |option| -> Result<()> {
        let mut mount = Command::new("mount");
        let status = mount.args(["-o", option]).arg(tmpfs.path()).status()?;
        ensure!(status.success(), "mount -o {option}: {status}");
        Ok(())
    };
    remount("remount,ro")?;
    let server = starts_afresh(plain(&dir)?.start()?, "Read-only file system")?;
    server.finish()
}

/// Starts a second daemon, which is bound to end by itself. What it waits for is said unasked: once it was told
/// only where somebody wanted to know all, and a start that took 5 seconds seemed to hang.
fn second(arguments: &[&str]) -> Result<Output> {
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_standfastd"));
    daemon.env_remove("STANDFAST_LOG").env_remove("RUST_LOG");
    Ok(daemon.args(arguments).output()?)
}

#[test]
fn a_second_daemon_is_refused() -> Result<()> {
    let place = tempfile::tempdir()?;
    let (dir, image) = (place.path().join("state"), place.path().join("disk1.img"));
    sparse(&image, MIB)?;
    let file = json!({ "driver": "file", "node-name": "disk1", "filename": &image });
    let server = plain(&dir)?.blockdev(&file);
    let server = server.export("vdb", "disk1", json!({})).start()?;
    // Whoever has the image and does not use it is no second one.
    Setup::new()?.blockdev(&file).start()?.finish()?;
    let (dir, image) = (dir.display().to_string(), image.display().to_string());
    let blockdev = format!("driver=file,node-name=n,filename={image}");
    let socket = place.path().join("e.sock");
    let export = format!(
        "vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix,addr.path={}",
        socket.display()
    );
    let (directory, image) = std::thread::scope(|scope| {
        let image = scope.spawn(|| second(&["--blockdev", &blockdev, "--export", &export]));
        (second(&["--state-dir", &dir]), image.join())
    });
    let image = image.map_err(|_| anyhow::anyhow!("panicked"))?;
    let hint = String::from_utf8_lossy(image.as_ref().map_or(&[][..], |out| &out.stderr[..]));
    let hint = hint.lines().last().unwrap_or_default().to_owned();
    ensure!(
        hint.starts_with("Is another process using the image ["),
        "{hint}"
    );
    for (refused, text) in [
        (directory?, "is in use by another daemon"),
        (image?, "Failed to get \"write\" lock"),
    ] {
        let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1), "{}", refused.status);
        let last = stderr.lines().rev().take(2).any(|line| line.contains(text));
        ensure!(last, "no {text:?} at the end of:\n{stderr}");
        let mut waiting = stderr.lines().filter(|line| line.contains("waiting up to"));
        let waits = waiting.next().unwrap_or_default();
        ensure!(
            waits.contains(text) && waits.contains('/'),
            "which one: {stderr}"
        );
        ensure!(waiting.next().is_none(), "{stderr}");
    }
    server.finish()
}

/// The lock of a daemon that is gone but for its last I/O goes away by itself.
#[test]
fn a_lock_that_goes_away_is_waited_for() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let held = StateFile::open(dir.path(), "boot")?;
    let holder = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        drop(held);
    });
    let server = plain(dir.path())?.start()?;
    ensure!(holder.is_finished(), "started in spite of the lock");
    server.finish()
}

#[test]
fn the_service_manager_is_told() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let address = dir.path().join("notify.sock");
    let manager = UnixDatagram::bind(&address)?;
    manager.set_read_timeout(Some(PATIENCE))?;
    let next = || -> Result<String> {
        let mut message = [0; 256];
        let count = manager.recv(&mut message)?;
        Ok(String::from_utf8(message[..count].to_vec())?)
    };
    let mut server = plain(&dir.path().join("state"))?
        .env("NOTIFY_SOCKET", address.display())
        .env("WATCHDOG_USEC", 100_000)
        .start()?;
    ensure!(next()? == "READY=1\n");
    for _ in 0..3 {
        ensure!(next()? == "WATCHDOG=1\n");
    }
    ensure!(server.run_state()? == "running");
    server.daemon.signal(Signal::TERM)?;
    loop {
        match &*next()? {
            "WATCHDOG=1\n" => {}
            "STOPPING=1\n" => break,
            other => anyhow::bail!("{other:?}"),
        }
    }
    ensure!(server.daemon.wait(PATIENCE)?.success());
    // It has lived on a little.
    manager.set_nonblocking(true)?;
    while let Ok(late) = next() {
        ensure!(late == "WATCHDOG=1\n", "{late:?}");
    }
    manager.set_nonblocking(false)?;
    // Without a watchdog nothing is sent between the two.
    let server = plain(&dir.path().join("state"))?
        .env("NOTIFY_SOCKET", address.display())
        .start()?;
    ensure!(next()? == "READY=1\n");
    server.finish()?;
    ensure!(next()? == "STOPPING=1\n");
    Ok(())
}
