//! A daemon in a container whose clients are outside of it.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use common::{PATIENCE, Place};
use frontend::{Disk, FrontendError, Options};
use testkit::Daemon;

/// The kernel says 0 of a peer outside of our PID namespace. That was read into a type that cannot
/// be 0, and whatever came of it was told as the client's process.
#[test]
fn clients_outside_are_nobody_we_could_name() {
    let place = Place::new();
    let socket = place.name("disk.sock");
    let export = format!("vhost-user-blk,id=disk,node-name=n,addr.type=unix,addr.path={socket}");
    let daemon = Daemon::builder("unshare")
        .args(["--pid", "--fork", "--kill-child", "--"])
        .arg(env!("CARGO_BIN_EXE_standfastd"))
        .args(["--blockdev", "null-co,node-name=n,size=1048576"])
        .args(["--export", &export])
        .socket(&socket)
        .start()
        .unwrap();
    let _first = Disk::connect(&socket, Options::default()).unwrap();
    let second = Disk::connect(&socket, Options::default());
    assert!(
        matches!(second, Err(FrontendError::Closed { .. })),
        "{second:?}"
    );
    let refused = "a process has connected and was refused: a process is the client";
    daemon.wait_for_stderr(refused, PATIENCE).unwrap();
}
