//! A monitor on standard input and output.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::io::{BufRead, BufReader, Write};
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

/// The line that names a terminal came between a client on standard output and its greeting, and clients that
/// read JSON there gave up. QEMU's stays in a buffer until the end.
#[test]
fn the_name_of_a_terminal_is_no_part_of_the_conversation() {
    let run = |args: &[&str]| {
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_standfastd"))
            .args(args)
            .args(["--chardev", "pty,id=p"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = daemon.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        line
    };
    let greeting = run(&["--chardev", "stdio,id=s", "--monitor", "s"]);
    let greeting: Value = serde_json::from_str(&greeting).unwrap();
    assert!(greeting["QMP"].is_object(), "{greeting}");
    let line = run(&[]);
    assert!(
        line.starts_with("char device redirected to /dev/pts/") && line.ends_with(" (label p)\n"),
        "{line}"
    );
}
