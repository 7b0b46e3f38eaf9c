//! The daemon of this package, with a disk that can run full.

#![allow(dead_code, unused_imports, reason = "each test target uses a part")]

use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use testkit::Daemon;
use testkit::daemon::Builder;

pub use testkit::place::{DISK_BYTES, LIMIT_BYTES, PATIENCE, Place, eventually, stderr, stdout};

pub fn standfastd() -> Builder {
    Daemon::builder(env!("CARGO_BIN_EXE_standfastd")).timeout(PATIENCE)
}

/// Runs the daemon where it is bound to end by itself. One that serves instead is killed, and the test fails.
pub fn refused(args: &[&str]) -> Output {
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_standfastd"));
    let streams = daemon.args(args).stdin(Stdio::null());
    let streams = streams.stdout(Stdio::piped()).stderr(Stdio::piped());
    let daemon = streams.spawn().unwrap();
    let pid = Pid::from_child(&daemon);
    let (told, ended) = mpsc::channel();
    let waits = thread::spawn(move || told.send(daemon.wait_with_output()));
    let output = ended.recv_timeout(PATIENCE);
    if output.is_err() {
        kill_process(pid, Signal::KILL).unwrap();
        let _ = waits.join();
    }
    assert!(output.is_ok(), "it does not end: {args:?}");
    output.unwrap().unwrap()
}
