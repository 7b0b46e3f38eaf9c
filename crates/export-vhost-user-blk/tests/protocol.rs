//! What the protocol has beside rings: a configuration that changes, memory that comes and goes,
//! messages that are not offered.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod common;

use common::*;
use frontend::protocol::{FLAG_NEED_REPLY, STATUS_IOERR, STATUS_OK, message, protocol_feature};
use frontend::{Connection, Disk, FrontendError, RawChain, RawDescriptor, Request, Token};
use rustix::fs::MemfdFlags;
use standfast_export_vhost_user_blk::Options;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
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

fn with_slots() -> Daemon {
    Daemon::with(Options {
        configure_mem_slots: true,
        ..writable()
    })
}

/// A client that tells each of its regions once.
fn connect_slots(daemon: &Daemon, memory_regions: u16) -> Disk {
    let disk = daemon.connect_with(frontend::Options {
        memory_regions,
        mem_slots: true,
        ..frontend::Options::default()
    });
    let slots = protocol_feature::CONFIGURE_MEM_SLOTS;
    assert_eq!(disk.protocol_features() & slots, slots);
    disk
}

/// Guest memory of a test's own, added and removed by hand.
struct Slot {
    file: File,
    address: u64,
    bytes: u64,
}

impl Slot {
    fn new(address: u64, bytes: u64) -> Self {
        let file = rustix::fs::memfd_create("slot", MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(bytes).unwrap();
        Self {
            file,
            address,
            bytes,
        }
    }

    /// The region that a disk has mapped as its number `index`.
    fn of(disk: &Disk, index: usize) -> (Vec<u8>, std::os::fd::OwnedFd) {
        let region = &disk.memory().regions()[index];
        let user = region.mapping().address();
        let payload = payload(region.guest_address(), region.len(), user);
        (payload, region.mapping().fd().try_clone_to_owned().unwrap())
    }

    fn payload(&self) -> Vec<u8> {
        payload(self.address, self.bytes, self.address)
    }

    fn add(&self, disk: &mut Disk) -> Result<(), FrontendError> {
        let fds = [self.file.as_fd()];
        disk.connection_mut()
            .set(message::ADD_MEM_REG, &self.payload(), &fds)
    }

    fn remove(&self, disk: &mut Disk) -> Result<(), FrontendError> {
        disk.connection_mut()
            .set(message::REM_MEM_REG, &self.payload(), &[])
    }
}

fn payload(address: u64, bytes: u64, user: u64) -> Vec<u8> {
    [0, address, bytes, user, 0].map(u64::to_ne_bytes).concat()
}

const SLOT: u64 = 0x40_0000_0000;

/// Writes the 4 KiB at a guest address to the beginning of the disk.
fn post_from(disk: &mut Disk, address: u64) -> Token {
    let block = disk.memory_mut().allocate(64).unwrap();
    let (header, status) = (block.address(), block.address() + 32);
    disk.memory().write(header, &[0; 16]).unwrap();
    disk.memory().write(header, &1_u32.to_le_bytes()).unwrap();
    let descriptor = |address, len, flags, next| RawDescriptor {
        address,
        len,
        flags,
        next,
    };
    let chain = RawChain {
        descriptors: vec![
            descriptor(header, 16, 1, 1),
            descriptor(address, 4096, 1, 2),
            descriptor(status, 1, 2, 0),
        ],
        status: Some(status),
    };
    let token = disk.submit(0, Request::Raw(&chain)).unwrap();
    disk.kick(0).unwrap();
    token
}

fn status(disk: &mut Disk, token: Token) -> u8 {
    let completion = disk.wait(0, SECONDS).unwrap().expect("a completion");
    assert_eq!(completion.token, token);
    completion.status
}

fn on_disk(daemon: &Daemon) -> u8 {
    daemon.faults.data.lock().unwrap()[4095]
}

/// Two writes fail, and both are held: the first to fail freezes the queue, so they must have been
/// taken before that.
fn hold_two<R>(daemon: &Daemon, post: impl FnOnce() -> R) -> R {
    let writes = || daemon.faults.writes.load(Ordering::SeqCst);
    let before = writes();
    daemon.stall(true);
    let posted = post();
    wait_until("two writes", || writes() == before + 2);
    daemon.fail_writes(ENOSPC);
    daemon.stall(false);
    daemon.wait_held(2);
    posted
}

#[test]
fn memory_comes_and_goes_while_requests_are_held() {
    let daemon = with_slots();
    let mut disk = connect_slots(&daemon, 2);
    let slot = Slot::new(SLOT, 1 << 20);
    slot.file.write_at(&[7; 4096], 8192).unwrap();
    slot.add(&mut disk).unwrap();
    daemon.fail_writes(ENOSPC);
    let token = post_from(&mut disk, SLOT + 8192);
    daemon.wait_held(1);
    let other = Slot::new(2 * SLOT, 4096);
    other.add(&mut disk).unwrap();
    other.remove(&mut disk).unwrap();
    // Removed and added again, with other contents: what counts is what is there at the retry.
    slot.remove(&mut disk).unwrap();
    let moved = Slot::new(SLOT, 1 << 20);
    moved.file.write_at(&[9; 4096], 8192).unwrap();
    moved.add(&mut disk).unwrap();
    daemon.fail_writes(0);
    daemon.cont();
    assert_eq!(status(&mut disk, token), STATUS_OK);
    assert_eq!(on_disk(&daemon), 9);
    expect_clean(&disk);
}

/// The client has taken away what its own request needs: that is the request's end, and only that.
#[test]
fn memory_that_a_held_request_needs_is_removed() {
    let daemon = with_slots();
    let mut disk = connect_slots(&daemon, 2);
    let slot = Slot::new(SLOT, 1 << 20);
    slot.add(&mut disk).unwrap();
    let (lost, kept) = hold_two(&daemon, || {
        (post_from(&mut disk, SLOT), post(&mut disk, 64, 5))
    });
    slot.remove(&mut disk).unwrap();
    daemon.fail_writes(0);
    daemon.cont();
    let mut statuses = [(lost, STATUS_IOERR), (kept, STATUS_OK)].to_vec();
    while !statuses.is_empty() {
        let completion = disk.wait(0, SECONDS).unwrap().expect("a completion");
        let at = statuses
            .iter()
            .position(|(token, _)| *token == completion.token);
        assert_eq!(statuses.remove(at.unwrap()).1, completion.status);
    }
    assert_eq!(daemon.export.trouble(), None);
    assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
}

/// What has been submitted keeps its memory, whatever the table says.
#[test]
fn memory_that_a_request_in_flight_uses_is_removed() {
    let daemon = with_slots();
    let mut disk = connect_slots(&daemon, 2);
    let slot = Slot::new(SLOT, 1 << 20);
    slot.file.write_at(&[3; 4096], 0).unwrap();
    slot.add(&mut disk).unwrap();
    daemon.stall(true);
    let token = post_from(&mut disk, SLOT);
    wait_until("the write", || {
        daemon.faults.writes.load(Ordering::SeqCst) == 1
    });
    slot.remove(&mut disk).unwrap();
    drop(slot);
    daemon.stall(false);
    assert_eq!(status(&mut disk, token), STATUS_OK);
    assert_eq!(on_disk(&daemon), 3);
}

/// QEMU resizes a region by two messages: its ring is in no memory between them.
#[test]
fn the_memory_of_a_ring_is_replaced_while_requests_are_held() {
    for inflight in [true, false] {
        let daemon = Daemon::new();
        let mut disk = daemon.connect_with(frontend::Options {
            inflight,
            memory_regions: 1,
            ..frontend::Options::default()
        });
        assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
        let held = hold_two(&daemon, || [post(&mut disk, 8, 2), post(&mut disk, 16, 3)]);
        let (region, fd) = Slot::of(&disk, 0);
        disk.connection_mut()
            .set(message::REM_MEM_REG, &region, &[])
            .unwrap();
        // Nobody looks at the ring now.
        let later = post(&mut disk, 24, 4);
        expect_nothing(&mut disk);
        daemon.fail_writes(0);
        disk.connection_mut()
            .set(message::ADD_MEM_REG, &region, &[fd.as_fd()])
            .unwrap();
        daemon.cont();
        expect(&mut disk, &[held[0], held[1], later]);
        assert_eq!(daemon.export.trouble(), None);
        assert_eq!(write(&mut disk, 0, 6, 512), STATUS_OK);
        expect_clean(&disk);
    }
}

/// A client that stops its rings, or leaves, while their memory is gone.
#[test]
fn rings_without_memory_can_be_stopped() {
    let daemon = with_slots();
    let mut disk = connect_slots(&daemon, 1);
    assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
    daemon.fail_writes(ENOSPC);
    let held = post(&mut disk, 8, 2);
    daemon.wait_held(1);
    let (region, fd) = Slot::of(&disk, 0);
    disk.connection_mut()
        .set(message::REM_MEM_REG, &region, &[])
        .unwrap();
    assert_eq!(disk.stop().unwrap(), [2]);
    daemon.fail_writes(0);
    daemon.cont();
    disk.connection_mut()
        .set(message::ADD_MEM_REG, &region, &[fd.as_fd()])
        .unwrap();
    disk.start().unwrap();
    expect(&mut disk, &[held]);
    disk.connection_mut()
        .set(message::REM_MEM_REG, &region, &[])
        .unwrap();
    let state = disk.disconnect();
    daemon.wait_disconnected();
    let mut disk = Disk::reconnect(state, &daemon.socket).unwrap();
    assert_eq!(write(&mut disk, 0, 6, 512), STATUS_OK);
    expect_clean(&disk);
}

/// What QEMU does after the daemon was replaced while the VM was stopped: it starts the rings and
/// takes for granted that their memory is known.
#[test]
fn rings_in_memory_that_nobody_has_told() {
    for remove in [0, 1] {
        let daemon = with_slots();
        let mut disk = connect_slots(&daemon, 2);
        disk.stop().unwrap();
        let (region, _fd) = Slot::of(&disk, remove);
        disk.connection_mut()
            .set(message::REM_MEM_REG, &region, &[])
            .unwrap();
        let started = disk.start();
        let in_use = remove == 0;
        assert_eq!(
            matches!(started, Err(FrontendError::Refused { .. })),
            in_use,
            "{started:?}"
        );
        if in_use {
            wait_until("the end", || daemon.export.trouble().is_some());
            let trouble = daemon.export.trouble().unwrap();
            assert!(trouble.contains("is not in the memory table; if the daemon was replaced"));
            assert!(trouble.ends_with("start it again, with configure-mem-slots=off"));
        }
        drop(disk);
        let mut disk = connect_slots(&daemon, 2);
        assert_eq!(write(&mut disk, 0, 6, 512), STATUS_OK);
    }
}

#[test]
fn slots_end_at_the_number_that_was_told() {
    let daemon = with_slots();
    let mut disk = connect_slots(&daemon, 2);
    let slot = |index: u64| Slot::new(SLOT + (index << 20), 4096);
    let slots: Vec<_> = (2..509).map(slot).collect();
    for slot in &slots {
        slot.add(&mut disk).unwrap();
    }
    assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
    for slot in &slots[..100] {
        slot.remove(&mut disk).unwrap();
        slot.add(&mut disk).unwrap();
    }
    let refused = slot(509).add(&mut disk);
    assert!(
        matches!(refused, Err(FrontendError::Refused { .. })),
        "{refused:?}"
    );
    wait_until("the end", || daemon.export.trouble().is_some());
    let trouble = daemon.export.trouble().unwrap();
    assert!(trouble.contains("509 memory regions"), "{trouble}");
}

#[test]
fn regions_that_cannot_be_added_or_removed() {
    let cases: [(u32, Slot, &str); 3] = [
        (message::ADD_MEM_REG, Slot::new(0x10_0000, 4096), "overlap"),
        (
            message::ADD_MEM_REG,
            Slot::new(u64::MAX - 10, 4096),
            "wraps around",
        ),
        (message::REM_MEM_REG, Slot::new(SLOT, 4096), "there is none"),
    ];
    for (code, slot, expected) in cases {
        let daemon = Daemon::new();
        let mut disk = daemon.connect();
        let refused = match code {
            message::ADD_MEM_REG => slot.add(&mut disk),
            _ => slot.remove(&mut disk),
        };
        assert!(
            matches!(refused, Err(FrontendError::Refused { .. })),
            "{refused:?}"
        );
        wait_until(expected, || {
            let trouble = daemon.export.trouble();
            trouble.is_some_and(|trouble| trouble.contains(expected))
        });
        drop(disk);
        assert_eq!(write(&mut daemon.connect(), 0, 1, 512), STATUS_OK);
    }
}

/// A client with half a message in one export; others are served, and so is the iothread.
#[test]
fn half_a_message_stops_no_other_export() {
    let daemon = Daemon::new();
    let (second, socket) = daemon.add_export("disk1");
    let mut rude = Vec::new();
    for bytes in [&[1, 0, 0][..], &[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1]] {
        let client = UnixStream::connect(&daemon.socket).unwrap();
        std::io::Write::write_all(&mut &client, bytes).unwrap();
        rude.push(client);
    }
    let mut disk = Disk::connect(&socket, frontend::Options::default()).unwrap();
    assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
    expect_clean(&disk);
    drop(disk);
    block::block_on(second.close());
    drop(rude);
    assert_eq!(write(&mut daemon.connect(), 0, 1, 512), STATUS_OK);
}
