//! The daemon of this package, with a disk that can run full.

#![allow(dead_code, unused_imports, reason = "each test target uses a part")]

use std::process::{Command, Output};

use testkit::Daemon;
use testkit::daemon::Builder;

pub use testkit::place::{DISK_BYTES, LIMIT_BYTES, PATIENCE, Place, eventually, stderr, stdout};

pub fn standfastd() -> Builder {
    Daemon::builder(env!("CARGO_BIN_EXE_standfastd")).timeout(PATIENCE)
}

/// Runs the daemon where it is bound to end by itself.
pub fn refused(args: &[&str]) -> Output {
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_standfastd"));
    daemon.args(args).output().unwrap()
}
