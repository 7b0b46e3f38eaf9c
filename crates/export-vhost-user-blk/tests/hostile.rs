//! Clients and guests that do what they must not. Nobody but themselves may suffer.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod common;

use common::*;
use frontend::protocol::{STATUS_IOERR, STATUS_OK, message};
use frontend::{Connection, Disk, FrontendError, RawChain, RawDescriptor, Request};
use standfast_export_vhost_user_blk::Options;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

/// Device status: what a driver sets in the end, and what the device adds.
const DRIVER_OK: u8 = 0x0f;
const NEEDS_RESET: u8 = 0x40;

fn wait_trouble(daemon: &Daemon, expected: &str) {
    let trouble = || daemon.export.trouble();
    wait_until(expected, || {
        trouble().is_some_and(|text| text.contains(expected))
    });
}

/// The client after a rude one is served.
fn expect_service(daemon: &Daemon) {
    let mut disk = daemon.connect();
    assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
    expect_clean(&disk);
}

#[test]
fn half_a_header_and_gone() {
    let daemon = Daemon::new();
    for bytes in [0, 1, 5, 11, 12, 13, 19] {
        let mut rude = UnixStream::connect(&daemon.socket).unwrap();
        let mut message = [2_u32, 1, 8].map(u32::to_ne_bytes).concat();
        message.resize(20, 0);
        rude.write_all(&message[..bytes]).unwrap();
        drop(rude);
    }
    expect_service(&daemon);
    assert_eq!(daemon.export.trouble(), None);
}

/// It holds the connection, but not the export's end.
#[test]
fn half_a_header_and_silence() {
    let daemon = Daemon::new();
    let mut rude = UnixStream::connect(&daemon.socket).unwrap();
    rude.write_all(&[1, 0, 0, 0, 1]).unwrap();
    std::thread::sleep(A_WHILE);
    daemon.close();
    drop(rude);
}

#[test]
fn messages_that_make_no_sense_end_the_connection() {
    let state = |index: u32, value: u32| [index.to_ne_bytes(), value.to_ne_bytes()].concat();
    let mut address = vec![0; 40];
    address[8] = 1;
    let inflight = |queues: u16, size: u16| {
        let mut payload = vec![0; 24];
        payload[16..18].copy_from_slice(&queues.to_ne_bytes());
        payload[18..20].copy_from_slice(&size.to_ne_bytes());
        payload
    };
    let cases = [
        (
            message::SET_FEATURES,
            u64::MAX.to_ne_bytes().to_vec(),
            "not offered",
        ),
        (
            message::SET_PROTOCOL_FEATURES,
            u64::MAX.to_ne_bytes().to_vec(),
            "not offered",
        ),
        (message::SET_VRING_NUM, state(0, 0), "power of two"),
        (message::SET_VRING_NUM, state(0, 3), "power of two"),
        (
            message::SET_VRING_NUM,
            state(0, 2048),
            "power of two up to 1024",
        ),
        (
            message::SET_VRING_NUM,
            state(1, 128),
            "queue 1 does not exist",
        ),
        (
            message::SET_VRING_NUM,
            state(u32::MAX, 128),
            "does not exist",
        ),
        (message::SET_VRING_BASE, state(0, 65536), "16 bits"),
        (message::GET_VRING_BASE, state(7, 0), "does not exist"),
        (message::SET_VRING_ENABLE, state(7, 1), "does not exist"),
        (
            message::SET_VRING_ENABLE,
            state(0, 2),
            "SET_VRING_ENABLE with state 0x2",
        ),
        (message::SET_VRING_ADDR, address, "descriptor table 0x1"),
        (
            message::SET_VRING_KICK,
            0x100_u64.to_ne_bytes().to_vec(),
            "without a descriptor",
        ),
        (
            message::SET_VRING_KICK,
            0x107_u64.to_ne_bytes().to_vec(),
            "does not exist",
        ),
        (message::GET_INFLIGHT_FD, inflight(2, 128), "at most 1"),
        (message::GET_INFLIGHT_FD, inflight(1, 2048), "of 1024"),
        (
            message::GET_INFLIGHT_FD,
            inflight(0, 0),
            "number or size of queues",
        ),
        (message::SET_MEM_TABLE, vec![0; 8], "number of regions 0x0"),
        (99, vec![], "message 99 is not offered"),
    ];
    let daemon = Daemon::new();
    for (code, payload, expected) in cases {
        let mut rude = Connection::connect(&daemon.socket, SECONDS).unwrap();
        rude.get_u64(message::GET_FEATURES).unwrap();
        let features = (1_u64 << 30).to_ne_bytes();
        rude.set(message::SET_FEATURES, &features, &[]).unwrap();
        let protocol = 0x1209_u64.to_ne_bytes();
        rude.set(message::SET_PROTOCOL_FEATURES, &protocol, &[])
            .unwrap();
        let answer = rude.get(code, &payload);
        assert!(
            matches!(answer, Err(FrontendError::Closed { .. })),
            "{code}: {answer:?}"
        );
        wait_trouble(&daemon, expected);
    }
    expect_service(&daemon);
}

#[test]
fn a_kick_before_anything_else() {
    let daemon = Daemon::new();
    let mut rude = Connection::connect(&daemon.socket, SECONDS).unwrap();
    let flags = rustix::event::EventfdFlags::CLOEXEC;
    let kick = rustix::event::eventfd(0, flags).unwrap();
    rude.set(message::SET_VRING_KICK, &[0; 8], &[kick.as_fd()])
        .unwrap();
    wait_until("the end", || daemon.export.trouble().is_some());
    let trouble = daemon.export.trouble().unwrap();
    assert!(trouble.contains("before SET_MEM_TABLE"), "{trouble}");
    expect_service(&daemon);
}

#[test]
fn memory_shorter_than_its_description() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let mut payload = 1_u64.to_ne_bytes().to_vec();
    for word in [0_u64, 8192, 0, 0] {
        payload.extend(word.to_ne_bytes());
    }
    let refused = disk
        .connection_mut()
        .set(message::SET_MEM_TABLE, &payload, &[file.as_fd()]);
    assert!(
        matches!(refused, Err(FrontendError::Refused { .. })),
        "{refused:?}"
    );
    wait_until("the end", || daemon.export.trouble().is_some());
    assert!(
        daemon
            .export
            .trouble()
            .unwrap()
            .contains("the file has 4096 bytes")
    );
    drop(disk);
    expect_service(&daemon);
}

/// Files are always ready: a queue that waits for one would never do anything else. A pipe that is
/// full kept each call that did not fit into it, for ever; a terminal may stop whoever writes to it.
#[test]
fn descriptors_that_are_no_eventfds() {
    let daemon = Daemon::new();
    let zero = std::fs::File::open("/dev/zero").unwrap();
    let terminal = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/ptmx");
    let (reader, writer) = std::io::pipe().unwrap();
    let (stream, _other) = UnixStream::pair().unwrap();
    let others = [
        OwnedFd::from(tempfile::tempfile().unwrap()),
        zero.into(),
        terminal.unwrap().into(),
        reader.into(),
        writer.into(),
        stream.into(),
        rustix::fs::memfd_create("kick", rustix::fs::MemfdFlags::CLOEXEC).unwrap(),
        rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap(),
    ];
    for (code, name) in [
        (message::SET_VRING_KICK, "SET_VRING_KICK"),
        (message::SET_VRING_CALL, "SET_VRING_CALL"),
        (message::SET_VRING_ERR, "SET_VRING_ERR"),
    ] {
        for other in &others {
            let mut disk = daemon.connect();
            let refused = disk.connection_mut().set(code, &[0; 8], &[other.as_fd()]);
            assert!(
                matches!(refused, Err(FrontendError::Refused { .. })),
                "{refused:?}"
            );
            wait_trouble(
                &daemon,
                &format!("{name} for queue 0 with a descriptor that is no eventfd"),
            );
            drop(disk);
            expect_service(&daemon);
        }
    }
}

/// A counter that is full, of an eventfd that blocks: neither requests nor their end wait for it, nor
/// does whoever replaces it, again and again.
#[test]
fn call_and_error_descriptors_that_block() {
    const FULL: u64 = u64::MAX - 1;
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    let full = || {
        let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, &FULL.to_ne_bytes()).unwrap();
        fd
    };
    for round in 0..50 {
        let (call, error) = (full(), full());
        for (code, fd) in [
            (message::SET_VRING_CALL, &call),
            (message::SET_VRING_ERR, &error),
        ] {
            disk.connection_mut()
                .set(code, &[0; 8], &[fd.as_fd()])
                .unwrap();
        }
        if round % 10 == 0 {
            let token = post(&mut disk, 0, 1);
            wait_until("the completion", || {
                let completion = disk.poll(0);
                completion.is_some_and(|completion| completion.token == token)
            });
            disk.stop().unwrap();
            disk.start().unwrap();
        }
    }
    let error = full();
    disk.connection_mut()
        .set(message::SET_VRING_ERR, &[0; 8], &[error.as_fd()])
        .unwrap();
    disk.ring_mut(0).unwrap().set_avail_index(1000);
    expect_broken(&daemon, &mut disk, "available index");
    drop(disk);
    expect_service(&daemon);
    daemon.close();
}

/// What was published while there was no call descriptor, or another one, is not missed: a new one is
/// signalled once, even when the ring does not run.
#[test]
fn a_new_call_descriptor_is_signalled_once() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    for running in [true, false] {
        if !running {
            disk.stop().unwrap();
        }
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let call = rustix::event::eventfd(0, flags).unwrap();
        disk.connection_mut()
            .set(message::SET_VRING_CALL, &[0; 8], &[call.as_fd()])
            .unwrap();
        let mut counter = [0; 8];
        wait_until("the signal", || {
            rustix::io::read(&call, &mut counter).is_ok()
        });
        assert_eq!(u64::from_ne_bytes(counter), 1);
        std::thread::sleep(A_WHILE);
        assert!(rustix::io::read(&call, &mut counter).is_err());
    }
}

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor {
        address,
        len,
        flags,
        next,
    }
}

/// A queue that was broken by its driver serves nothing any more, says so, and works again after a
/// reset of the device.
fn expect_broken(daemon: &Daemon, disk: &mut Disk, expected: &str) {
    disk.kick_always(0).unwrap();
    wait_trouble(daemon, expected);
    expect_nothing(disk);
    disk.reset().unwrap();
    assert_eq!(write(disk, 0, 1, 512), STATUS_OK);
    assert_eq!(daemon.export.trouble(), None);
}

#[test]
fn chains_without_an_answer_break_their_queue() {
    let cases = [
        (
            "it has a loop",
            vec![descriptor(0, 16, 1, 1), descriptor(0, 16, 1, 0)],
        ),
        ("descriptor index 200", vec![descriptor(0, 16, 1, 200)]),
        ("no writable status", vec![descriptor(0, 16, 0, 0)]),
        (
            "status byte at guest address",
            vec![descriptor(0, 16, 1, 1), descriptor(u64::MAX, 1, 2, 0)],
        ),
        ("indirect table of 15 bytes", vec![descriptor(0, 15, 4, 0)]),
        (
            "behind a writable one",
            vec![descriptor(0, 1, 3, 1), descriptor(0, 16, 0, 0)],
        ),
    ];
    for (expected, descriptors) in cases {
        let daemon = Daemon::new();
        let mut disk = daemon.connect();
        assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
        let chain = RawChain {
            descriptors,
            status: None,
        };
        disk.submit(0, Request::Raw(&chain)).unwrap();
        expect_broken(&daemon, &mut disk, expected);
    }
}

#[test]
fn an_available_index_out_of_range() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    disk.ring_mut(0).unwrap().set_avail_index(1000);
    expect_broken(&daemon, &mut disk, "available index 1000");
}

fn make_available(disk: &mut Disk, head: u16) {
    let ring = disk.ring_mut(0).unwrap();
    let index = ring.avail_index();
    ring.write_avail_entry(index, head);
    ring.set_avail_index(index.wrapping_add(1));
}

#[test]
fn a_head_out_of_range() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    make_available(&mut disk, 128);
    expect_broken(
        &daemon,
        &mut disk,
        "made descriptor 128 available, the queue has 128",
    );
}

/// What was taken before the driver went wrong is completed all the same.
#[test]
fn a_head_that_is_in_flight_already() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    daemon.stall(true);
    let token = post(&mut disk, 0, 7);
    wait_until("the write", || {
        daemon.faults.writes.load(Ordering::SeqCst) == 1
    });
    let head = disk.inflight().unwrap().marked(0)[0].head;
    make_available(&mut disk, head);
    disk.kick_always(0).unwrap();
    wait_trouble(&daemon, "before it was completed");
    daemon.stall(false);
    expect(&mut disk, &[token]);
    expect_broken(&daemon, &mut disk, "before it was completed");
}

/// One queue is broken; the others go on.
#[test]
fn a_broken_queue_breaks_no_other() {
    let options = Options {
        num_queues: 2,
        ..writable()
    };
    let daemon = Daemon::with(options);
    let two = frontend::Options {
        queues: 2,
        ..frontend::Options::default()
    };
    let mut disk = daemon.connect_with(two);
    assert_eq!(disk.status().unwrap(), DRIVER_OK);
    make_available(&mut disk, 999);
    disk.kick_always(0).unwrap();
    wait_trouble(&daemon, "queue 0 is broken");
    wait_until("the change of configuration", || {
        disk.take_config_changes().unwrap() == 1
    });
    assert_eq!(disk.status().unwrap(), DRIVER_OK | NEEDS_RESET);
    // The driver cannot make it so, nor undo it.
    disk.set_status(DRIVER_OK).unwrap();
    assert_eq!(disk.status().unwrap(), DRIVER_OK | NEEDS_RESET);
    let request = Request::Write {
        sector: 0,
        data: &[5; 512],
    };
    assert!(disk.execute(1, request, SECONDS).unwrap().is_ok());
    disk.reset().unwrap();
    disk.set_status(DRIVER_OK | NEEDS_RESET).unwrap();
    assert_eq!(disk.status().unwrap(), DRIVER_OK);
    assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
    expect_clean(&disk);
}

/// Buffers outside guest memory are the guest's own fault: reported, never held.
#[test]
fn data_outside_guest_memory() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    let header = disk.memory_mut().allocate(4096).unwrap();
    let status = header.address() + 16;
    for (kind, flags) in [(0_u32, 3), (1, 1)] {
        disk.memory().write(header.address(), &[0; 16]).unwrap();
        disk.memory()
            .write(header.address(), &kind.to_le_bytes())
            .unwrap();
        let descriptors = vec![
            descriptor(header.address(), 16, 1, 1),
            descriptor(0xdead_0000_0000, 4096, flags, 2),
            descriptor(status, 1, 2, 0),
        ];
        let chain = RawChain {
            descriptors,
            status: Some(status),
        };
        let completion = disk.execute(0, Request::Raw(&chain), SECONDS).unwrap();
        assert_eq!(completion.status, STATUS_IOERR);
    }
    let stats = daemon.export.backend().stats();
    assert_eq!((stats.rd.invalid, stats.wr.invalid, stats.holds), (1, 1, 0));
    assert_eq!(daemon.faults.writes.load(Ordering::SeqCst), 0);
    assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
    expect_clean(&disk);
}

/// What the region says is checked before it is believed.
#[test]
fn a_region_that_was_tampered_with() {
    let cases: [(&str, usize, [u8; 2]); 3] = [
        ("used index", 14, [0x10, 0x27]),
        ("version 7", 8, [7, 0]),
        ("made for 9 descriptors", 10, [9, 0]),
    ];
    for (expected, offset, bytes) in cases {
        let daemon = Daemon::new();
        let mut disk = daemon.connect();
        assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
        disk.stop().unwrap();
        disk.inflight().unwrap().mapping().write(offset, &bytes);
        disk.start().unwrap();
        wait_trouble(&daemon, expected);
        disk.reset().unwrap();
        assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
        assert_eq!(daemon.export.trouble(), None);
    }
}

/// A mark for a head that was never used must not make the device touch anything it should not.
#[test]
fn marks_out_of_nowhere() {
    let daemon = Daemon::new();
    let mut disk = daemon.connect();
    assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
    disk.stop().unwrap();
    // Head 100 has an empty descriptor: no status byte.
    disk.inflight()
        .unwrap()
        .mapping()
        .write(16 + 100 * 16, &[1]);
    disk.start().unwrap();
    wait_trouble(&daemon, "no writable status");
    disk.reset().unwrap();
    assert_eq!(write(&mut disk, 0, 1, 512), STATUS_OK);
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
