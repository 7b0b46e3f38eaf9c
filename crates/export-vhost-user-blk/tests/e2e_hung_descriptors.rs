//! Descriptors of a file system that does not answer. Needs root and FUSE.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod common;

use common::*;
use frontend::FrontendError;
use frontend::protocol::{STATUS_OK, message};
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Instant;
use testkit::{FuseFile, FuseOp};

/// Lets everybody go who waits for the file system, before anything else is dropped: a process with a
/// thread that waits cannot even be killed.
struct GoesOn<'a>(&'a FuseFile);

impl Drop for GoesOn<'_> {
    fn drop(&mut self) {
        self.0.hang(FuseOp::GetAttr, false);
        self.0.hang(FuseOp::Flush, false);
    }
}

/// To look at such a file and to close it both wait for its file system: the client's thread hung with
/// it, and with that thread the end of the export and of the daemon.
#[test]
fn a_file_of_a_file_system_that_hangs() {
    let fuse = FuseFile::new(4096).unwrap();
    let file = File::open(fuse.path()).unwrap();
    fuse.hang(FuseOp::GetAttr, true);
    fuse.hang(FuseOp::Flush, true);
    let daemon = Daemon::new();
    let _goes_on = GoesOn(&fuse);
    let begun = Instant::now();
    for code in [
        message::SET_VRING_KICK,
        message::SET_VRING_CALL,
        message::SET_VRING_ERR,
        message::SET_BACKEND_REQ_FD,
        // It comes with no descriptor at all.
        message::SET_OWNER,
    ] {
        let mut disk = daemon.connect();
        let payload: &[u8] = match code {
            message::SET_OWNER | message::SET_BACKEND_REQ_FD => &[],
            _ => &[0; 8],
        };
        let refused = disk.connection_mut().set(code, payload, &[file.as_fd()]);
        assert!(
            matches!(refused, Err(FrontendError::Refused { .. })),
            "{refused:?}"
        );
        drop(disk);
        assert_eq!(write(&mut daemon.connect(), 0, 1, 512), STATUS_OK);
    }
    daemon.close();
    assert!(begun.elapsed() < SECONDS, "something has waited");
}
