//! Memory that comes and goes under rings and requests, region by region.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod common;

use block::RunState;
use common::*;
use frontend::protocol::{STATUS_IOERR, STATUS_OK, message, protocol_feature};
use frontend::{Disk, FrontendError, RawChain, RawDescriptor, Request, Token};
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

const ENOSPC: i32 = 28;

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

/// Where the parts of a request are.
#[derive(Clone, Copy)]
struct Layout {
    header: u64,
    data: u64,
    status: u64,
    /// Of an indirect table, if there is to be one.
    table: Option<u64>,
}

impl Layout {
    /// All but the data in the disk's own memory.
    fn new(disk: &mut Disk, data: u64) -> Self {
        let header = disk.memory_mut().allocate(64).unwrap().address();
        Self {
            header,
            data,
            status: header + 32,
            table: None,
        }
    }

    /// Of a transfer of 4 KiB at the beginning of the disk.
    fn descriptors(self, reads: bool) -> Vec<RawDescriptor> {
        let descriptor = |address, len, flags, next| RawDescriptor {
            address,
            len,
            flags,
            next,
        };
        vec![
            descriptor(self.header, 16, 1, 1),
            descriptor(self.data, 4096, if reads { 3 } else { 1 }, 2),
            descriptor(self.status, 1, 2, 0),
        ]
    }

    /// Makes it available; header and table have been written.
    fn post(self, disk: &mut Disk, reads: bool) -> Token {
        let mut descriptors = self.descriptors(reads);
        if let Some(address) = self.table {
            descriptors = vec![RawDescriptor {
                address,
                len: 48,
                flags: 4,
                next: 0,
            }];
        }
        let own = disk.memory().write(self.status, &[0xee]).is_ok();
        let chain = RawChain {
            descriptors,
            status: own.then_some(self.status),
        };
        let token = disk.submit(0, Request::Raw(&chain)).unwrap();
        disk.kick(0).unwrap();
        token
    }

    fn table_bytes(self, reads: bool) -> Vec<u8> {
        let bytes = |descriptor: RawDescriptor| {
            let mut bytes = descriptor.address.to_le_bytes().to_vec();
            bytes.extend(descriptor.len.to_le_bytes());
            bytes.extend(descriptor.flags.to_le_bytes());
            bytes.extend(descriptor.next.to_le_bytes());
            bytes
        };
        self.descriptors(reads)
            .into_iter()
            .flat_map(bytes)
            .collect()
    }
}

fn header_bytes(reads: bool) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0] = u8::from(!reads);
    bytes
}

/// Writes the 4 KiB at a guest address to the beginning of the disk.
fn post_from(disk: &mut Disk, address: u64) -> Token {
    let layout = Layout::new(disk, address);
    disk.memory()
        .write(layout.header, &header_bytes(false))
        .unwrap();
    layout.post(disk, false)
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

/// The client has taken away what its own request needs, and does not bring it back: that is the
/// request's end, and only that.
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

/// QEMU removes all regions that have changed before it adds the new ones. A ring that was stopped
/// for the first removal was forgotten at the second: nobody started it again, and its queue hung.
#[test]
fn two_regions_are_removed_before_they_come_back() {
    for (first, second) in [(0, 1), (1, 0)] {
        let daemon = with_slots();
        let mut disk = connect_slots(&daemon, 2);
        assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
        let regions = [Slot::of(&disk, first), Slot::of(&disk, second)];
        for (region, _) in &regions {
            disk.connection_mut()
                .set(message::REM_MEM_REG, region, &[])
                .unwrap();
        }
        for (region, fd) in &regions {
            disk.connection_mut()
                .set(message::ADD_MEM_REG, region, &[fd.as_fd()])
                .unwrap();
        }
        assert_eq!(write(&mut disk, 0, 2, 512), STATUS_OK);
        expect_clean(&disk);
    }
}

/// A region is moved or resized by removing and adding it, and the guest goes on meanwhile. Whatever
/// of its request is in that region was missed: an error for the guest, or a broken queue.
#[test]
fn what_is_in_a_region_that_is_moved_waits() {
    for part in ["data", "header", "status", "table"] {
        let daemon = with_slots();
        let mut disk = connect_slots(&daemon, 2);
        let slot = Slot::new(SLOT, 1 << 16);
        slot.file.write_at(&[7; 4096], 8192).unwrap();
        slot.add(&mut disk).unwrap();
        let mut layout = Layout::new(&mut disk, SLOT + 8192);
        match part {
            "header" => layout.header = SLOT,
            "status" => layout.status = SLOT + 32,
            "table" => layout.table = Some(SLOT + 64),
            _ => {}
        }
        slot.file.write_at(&layout.table_bytes(false), 64).unwrap();
        slot.file.write_at(&header_bytes(false), 0).unwrap();
        slot.file.write_at(&[0xee], 32).unwrap();
        // Not all of these are in its own memory.
        let _ = disk.memory().write(layout.header, &header_bytes(false));
        slot.remove(&mut disk).unwrap();
        let token = layout.post(&mut disk, false);
        let behind = post(&mut disk, 64, 5);
        expect_nothing(&mut disk);
        assert_eq!(daemon.faults.writes.load(Ordering::SeqCst), 0, "{part}");
        slot.add(&mut disk).unwrap();
        expect(&mut disk, &[token, behind]);
        assert_eq!(on_disk(&daemon), 7, "{part}");
        let mut status = [0xee];
        slot.file.read_at(&mut status, 32).unwrap();
        assert_eq!(status[0] == 0, part == "status", "{part}");
        assert_eq!(daemon.export.trouble(), None);
        assert_eq!(daemon.export.backend().stats().wr.invalid, 0);
        expect_clean(&disk);
    }
}

/// What is released while its memory is away is neither lost nor counted as held any longer.
#[test]
fn a_held_request_is_released_while_its_memory_is_moved() {
    let daemon = with_slots();
    let mut disk = connect_slots(&daemon, 2);
    let slot = Slot::new(SLOT, 1 << 16);
    slot.file.write_at(&[7; 4096], 8192).unwrap();
    slot.add(&mut disk).unwrap();
    daemon.fail_writes(ENOSPC);
    let token = post_from(&mut disk, SLOT + 8192);
    daemon.wait_held(1);
    slot.remove(&mut disk).unwrap();
    daemon.fail_writes(0);
    daemon.cont();
    expect_nothing(&mut disk);
    assert_eq!(daemon.run_state(), RunState::Running);
    slot.add(&mut disk).unwrap();
    assert_eq!(status(&mut disk, token), STATUS_OK);
    daemon.wait_held(0);
    assert_eq!(on_disk(&daemon), 7);
    expect_clean(&disk);
}

/// The request is done, and nobody can be told before the memory is back.
#[test]
fn a_status_byte_in_a_region_that_is_moved() {
    let daemon = with_slots();
    let mut disk = connect_slots(&daemon, 2);
    let slot = Slot::new(SLOT, 1 << 16);
    slot.file.write_at(&[0xee], 32).unwrap();
    slot.add(&mut disk).unwrap();
    let data = disk.memory_mut().allocate(4096).unwrap().address();
    let mut layout = Layout::new(&mut disk, data);
    layout.status = SLOT + 32;
    let header = header_bytes(false);
    disk.memory().write(layout.header, &header).unwrap();
    daemon.stall(true);
    let token = layout.post(&mut disk, false);
    wait_until("the write", || {
        daemon.faults.writes.load(Ordering::SeqCst) == 1
    });
    slot.remove(&mut disk).unwrap();
    daemon.stall(false);
    expect_nothing(&mut disk);
    slot.add(&mut disk).unwrap();
    expect(&mut disk, &[token]);
    let mut status = [0xee];
    slot.file.read_at(&mut status, 32).unwrap();
    assert_eq!(status, [0]);
    assert_eq!(daemon.export.trouble(), None);
    expect_clean(&disk);
}

/// Nothing that a guest has must lie inside one region of its memory, except its rings.
#[test]
fn whatever_crosses_from_one_region_into_the_next() {
    let at = |offset: u64| SLOT + 0x1_0000 - offset;
    for part in ["data", "header", "table", "descriptor"] {
        for reads in [false, true] {
            let daemon = with_slots();
            let mut disk = connect_slots(&daemon, 1);
            let slots = [
                Slot::new(SLOT, 0x1_0000),
                Slot::new(SLOT + 0x1_0000, 0x1_0000),
            ];
            let put = |address: u64, bytes: &[u8]| {
                for (address, &byte) in (address..).zip(bytes) {
                    let slot = &slots[usize::from(address >= SLOT + 0x1_0000)];
                    slot.file.write_at(&[byte], address - slot.address).unwrap();
                }
            };
            for slot in &slots {
                slot.add(&mut disk).unwrap();
            }
            let mut layout = Layout {
                header: at(0x8000),
                data: at(0x4000),
                status: at(0x7000),
                table: None,
            };
            match part {
                "data" => layout.data = at(1000),
                "header" => layout.header = at(7),
                "table" => layout.table = Some(at(16)),
                _ => layout.table = Some(at(20)),
            }
            put(layout.header, &header_bytes(reads));
            if let Some(table) = layout.table {
                put(table, &layout.table_bytes(reads));
            }
            let data: Vec<u8> = (0..4096_u32).map(|n| n.to_le_bytes()[0] ^ 0x5a).collect();
            if reads {
                daemon.faults.data.lock().unwrap()[..4096].copy_from_slice(&data);
            } else {
                put(layout.data, &data);
            }
            let token = layout.post(&mut disk, reads);
            expect(&mut disk, &[token]);
            let mut found = daemon.faults.data.lock().unwrap()[..4096].to_vec();
            if reads {
                for (address, byte) in (layout.data..).zip(&mut found) {
                    let slot = &slots[usize::from(address >= SLOT + 0x1_0000)];
                    let place = std::slice::from_mut(byte);
                    slot.file
                        .read_exact_at(place, address - slot.address)
                        .unwrap();
                }
            }
            assert_eq!(found, data, "{part}, reads: {reads}");
            assert_eq!(daemon.export.trouble(), None);
            expect_clean(&disk);
        }
    }
}
