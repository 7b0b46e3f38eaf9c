//! An export on a socket that the daemon is started with.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is one")]

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use frontend::{Disk, Options, Request};
use testkit::Daemon;

/// The only test of its program: children of others would inherit the socket as well.
#[test]
fn clients_outlive_daemons_on_a_socket_of_somebody_else() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("disk.sock");
    let listener = UnixListener::bind(&path)?;
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty())?;
    let export = |id: &str| {
        let fd = listener.as_raw_fd();
        format!("vhost-user-blk,id={id},node-name=n,writable=on,addr.type=fd,addr.str={fd}")
    };
    let start = |exports: &[&str]| {
        let mut builder = Daemon::builder(env!("CARGO_BIN_EXE_standfastd"))
            .args(["--blockdev", "null-co,node-name=n,size=1048576"]);
        for id in exports {
            builder = builder.args(["--export", &export(id)]);
        }
        builder.start()
    };
    let mut state = None;
    for _ in 0..2 {
        // A client that comes too early waits in the socket.
        let mut daemon = start(&["e"])?;
        let mut disk = match state.take() {
            None => Disk::connect(&path, Options::default()).with_context(|| daemon.stderr())?,
            Some(state) => Disk::reconnect(state, &path).map_err(|(error, _)| error)?,
        };
        let flush = disk.execute(0, Request::Flush, Duration::from_secs(20))?;
        ensure!(flush.is_ok());
        daemon.kill()?;
        ensure!(path.exists() && std::fs::read_dir(dir.path())?.count() == 1);
        state = Some(disk.disconnect());
    }
    // Two exports would take each other's clients.
    let mut daemon = start(&["e", "f"])?;
    ensure!(!daemon.wait(Duration::from_secs(20))?.success());
    let stderr = daemon.stderr();
    ensure!(
        stderr.contains("the socket is in use by another export"),
        "{stderr}"
    );
    Ok(())
}
