//! A monitor on standard input and output.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use common::{PATIENCE, Place, eventually};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::Value;
use testkit::Qmp;

/// Whoever started the daemon does not read its answers and events any more: that is its own affair.
#[test]
fn a_stdout_that_nobody_reads_stops_nobody() {
    let place = Place::new();
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
    while rustix::io::write(&writer, &[b'.'; 4096]).is_ok() {}
    fcntl_setfl(&writer, fcntl_getfl(&writer).unwrap() - OFlags::NONBLOCK).unwrap();
    let chardev = format!("socket,id=c,path={},server=on,wait=off", place.name("q"));
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_standfastd"))
        .args(["--chardev", "stdio,id=s", "--monitor", "s"])
        .args(["--chardev", &chardev, "--monitor", "c"])
        .stdin(Stdio::piped())
        .stdout(writer)
        .spawn()
        .unwrap();
    let mut stdin = daemon.stdin.take().unwrap();
    stdin
        .write_all(b"{\"execute\": \"qmp_capabilities\"}\n")
        .unwrap();
    eventually("the monitor's socket", || {
        UnixStream::connect(place.file("q")).is_ok()
    });
    let mut qmp = Qmp::connect(place.file("q")).unwrap();
    for _ in 0..200 {
        qmp.execute("stop", Value::Null).unwrap();
        qmp.execute("cont", Value::Null).unwrap();
    }
    qmp.execute("quit", Value::Null).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = daemon.try_wait().unwrap() {
            break status;
        }
        if std::time::Instant::now() > deadline {
            daemon.kill().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert_eq!(status.code(), Some(0));
    drop((reader, stdin));
}
