//! What the protocol has beside rings and memory: a configuration that changes, messages that are not
//! offered.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod common;

use common::*;
use frontend::protocol::{FLAG_NEED_REPLY, STATUS_OK, message, protocol_feature};
use frontend::{Connection, Disk, FrontendError};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

const GET_MAX_MEM_SLOTS: u32 = 36;
const RESET_DEVICE: u32 = 34;

const ENOSPC: i32 = 28;

/// Offset of the configuration's part, its length, flags.
fn config_question(offset: u32, len: u32) -> Vec<u8> {
    [offset, len, 0].map(u32::to_ne_bytes).concat()
}

#[test]
fn what_is_offered() {
    let daemon = Daemon::new();
    let mut client = Connection::connect(&daemon.socket, SECONDS).unwrap();
    let offered = client.get_u64(message::GET_PROTOCOL_FEATURES).unwrap();
    let bits: Vec<_> = (0..64).filter(|bit| offered >> bit & 1 == 1).collect();
    assert_eq!(bits, [0, 3, 5, 9, 12, 16, 20, 23]);
    assert_eq!(client.get_u64(GET_MAX_MEM_SLOTS).unwrap(), 509);
    let slots = with_slots();
    let mut other = Connection::connect(&slots.socket, SECONDS).unwrap();
    let also = other.get_u64(message::GET_PROTOCOL_FEATURES).unwrap();
    assert_eq!(also, offered | protocol_feature::CONFIGURE_MEM_SLOTS);
    let features = client.get_u64(message::GET_FEATURES).unwrap();
    assert_eq!(
        features >> 26 & 1,
        0,
        "a log of what is written is not kept"
    );
}

#[test]
fn a_resize_is_announced() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    assert_ne!(disk.protocol_features() & protocol_feature::BACKEND_REQ, 0);
    assert_eq!(disk.take_config_changes().unwrap(), 0);
    let before = disk.config().capacity;
    daemon.faults.length.store(4 << 20, Ordering::SeqCst);
    daemon.export.resized();
    assert_eq!(disk.take_config_changes().unwrap(), 1);
    assert_eq!(disk.refresh_config().unwrap().capacity, before / 2);
    // Nobody reads any more: nobody waits for that either.
    for _ in 0..100_000 {
        daemon.export.resized();
    }
    assert!(disk.take_config_changes().unwrap() > 0);
    drop(disk);
    daemon.export.resized();
    expect_clean(&daemon.connect());
}

/// The client has read the length, and is not yet able to hear of another.
#[test]
fn a_resize_before_there_is_a_channel() {
    let daemon = Daemon::new();
    for resized in [false, true] {
        let mut client = Connection::connect(&daemon.socket, SECONDS).unwrap();
        let answer = client
            .get(message::GET_CONFIG, &config_question(0, 8))
            .unwrap();
        assert_eq!(answer.payload.len(), 12 + 8);
        if resized {
            daemon.faults.length.store(4 << 20, Ordering::SeqCst);
            daemon.export.resized();
        }
        let (mut channel, theirs) = frontend::connection::BackendChannel::new().unwrap();
        client
            .set(message::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])
            .unwrap();
        client.get_u64(message::GET_FEATURES).unwrap();
        assert_eq!(channel.take_config_changes().unwrap(), u32::from(resized));
    }
}

/// Cloud Hypervisor up to v50 asks at 0x100, with the constant of the crate `vhost`, and hung at an
/// empty answer: each has the offset and the length of its question.
#[test]
fn parts_of_the_configuration_that_do_not_exist() {
    let daemon = Daemon::new();
    let mut client = Connection::connect(&daemon.socket, SECONDS).unwrap();
    let mut ask = |offset, len| {
        let question = config_question(offset, len);
        let answer = client.get(message::GET_CONFIG, &question).unwrap().payload;
        assert_eq!(answer[..12], question);
        answer[12..].to_vec()
    };
    let whole = ask(0, 256);
    assert_ne!(whole[..60], [0; 60]);
    for (offset, len) in [(256, 60), (256, 256), (257, 60), (u32::MAX, 60)] {
        assert_eq!(ask(offset, len), whole[..len as usize]);
    }
    assert_eq!(ask(20, 4), whole[20..24]);
    assert_eq!(ask(32, 256), [&whole[32..], &[0; 32]].concat());
    assert_eq!(ask(255, 2), [0; 2]);
}

#[test]
fn what_is_not_offered_is_refused_to_those_who_ask() {
    let daemon = Daemon::new();
    let mut client = Connection::connect(&daemon.socket, SECONDS).unwrap();
    client.set_reply_ack(true);
    for code in [6, 7, 19, 22, 33, RESET_DEVICE, 35, 44, 46, 99] {
        let refused = client.set(code, &[0; 8], &[]);
        assert!(
            matches!(refused, Err(FrontendError::Refused { code: 1, .. })),
            "{refused:?}"
        );
    }
    client.get_u64(message::GET_FEATURES).unwrap();
    assert_eq!(daemon.export.trouble(), None);
    // Who does not ask would never learn of it.
    client.send(RESET_DEVICE, 0, &[], &[]).unwrap();
    wait_until("the end", || daemon.export.trouble().is_some());
    let trouble = daemon.export.trouble().unwrap();
    assert!(trouble.contains("RESET_DEVICE is not offered"), "{trouble}");
}

/// A message that makes no sense is refused before the connection ends.
#[test]
fn a_refusal_comes_before_the_end() {
    let daemon = Daemon::new();
    let mut client = Connection::connect(&daemon.socket, SECONDS).unwrap();
    client.set_reply_ack(true);
    let refused = client.set(message::SET_OWNER, &[0; 8], &[]);
    assert!(
        matches!(refused, Err(FrontendError::Refused { .. })),
        "{refused:?}"
    );
    // What was promised another answer gets none.
    let mut client = Connection::connect(&daemon.socket, SECONDS).unwrap();
    let flags = FLAG_NEED_REPLY;
    client
        .send(message::GET_FEATURES, flags, &[0; 8], &[])
        .unwrap();
    let answer = client.receive(message::GET_FEATURES);
    assert!(
        matches!(answer, Err(FrontendError::Closed { .. })),
        "{answer:?}"
    );
}

/// QEMU sets status 0 whenever it stops the device: nothing that is held may go by it.
#[test]
fn the_status_is_remembered_and_resets_nothing() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    // What this client sets when it starts its rings.
    assert_eq!(disk.status().unwrap(), 0x0f);
    daemon.fail_writes(ENOSPC);
    let held = post(&mut disk, 0, 1);
    daemon.wait_held(1);
    assert_eq!(disk.stop().unwrap(), [1]);
    assert_eq!((disk.status().unwrap(), daemon.held()), (0, 1));
    disk.start().unwrap();
    assert_eq!((disk.status().unwrap(), daemon.held()), (0x0f, 1));
    daemon.fail_writes(0);
    daemon.cont();
    expect(&mut disk, &[held]);
    assert_eq!(disk.take_config_changes().unwrap(), 0);
    expect_clean(&disk);
    // Another client has a status of its own.
    drop(disk);
    let mut client = Connection::connect(&daemon.socket, SECONDS).unwrap();
    assert_eq!(client.get_u64(message::GET_STATUS).unwrap(), 0);
}

/// A client with half a message in one export; others are served, and so is the iothread.
#[test]
fn half_a_message_stops_no_other_export() {
    let daemon = Daemon::new();
    let (second, socket) = daemon.add_export("disk1");
    for bytes in [&[1, 0, 0][..], &[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1]] {
        let rude = UnixStream::connect(&daemon.socket).unwrap();
        std::io::Write::write_all(&mut &rude, bytes).unwrap();
        let mut disk = Disk::connect(&socket, frontend::Options::default()).unwrap();
        assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
        expect_clean(&disk);
    }
    pollster::block_on(second.close());
    assert_eq!(write(&mut daemon.connect(), 0, 1, 512), STATUS_OK);
}
