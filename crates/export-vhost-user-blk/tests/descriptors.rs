//! No descriptor that a client sends is leaked, however it ends. The only test of its program:
//! it counts what the process has open.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod common;

use common::*;
use frontend::Connection;
use frontend::protocol::{STATUS_OK, message};
use std::os::fd::AsFd;

fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Clients that come and go at any point of a conversation, with descriptors in all of them.
#[test]
fn reconnect_storm() {
    let daemon = Daemon::new();
    assert_eq!(write(&mut daemon.connect(), 0, 1, 512), STATUS_OK);
    daemon.wait_disconnected();
    let file = tempfile::tempfile().unwrap();
    let before = open();
    for round in 0..300_u32 {
        let Ok(mut client) = Connection::connect(&daemon.socket, SECONDS) else {
            continue;
        };
        let fds = vec![file.as_fd(); usize::try_from(round % 9).unwrap()];
        let code = round % 48;
        let payload = vec![0; usize::try_from(round % 5 * 8).unwrap()];
        // The other side may have ended already.
        let _ = client.send(message::SET_VRING_CALL, 0, &[0; 8], &[file.as_fd()]);
        if fds.len() <= 8 {
            let _ = client.send(code, 0, &payload, &fds);
        }
        let _ = client.send_bytes("half a message", &[code.to_ne_bytes()[0]], &[file.as_fd()]);
        if round % 50 == 0 {
            drop(client);
            let mut disk = daemon.connect();
            assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
            expect_clean(&disk);
        }
    }
    daemon.wait_disconnected();
    wait_until("all descriptors closed", || open() <= before);
    daemon.close();
}
