//! EFAULT: the client's own fault if its buffers are not there, the storage's if they are.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as tests do")]

mod common;

use block::{ErrorKind, OnError, Policy, RunState};
use common::*;
use frontend::protocol::{STATUS_IOERR, STATUS_OK, message};
use frontend::{Disk, RawChain, RawDescriptor, Request};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

fn stopping() -> Daemon {
    let daemon = Daemon::new();
    let id = daemon.export.backend().id();
    let policy = Policy::new(OnError::Stop, OnError::Stop);
    let set = (daemon.control).call(move |state, wiring| state.set_policy(id, policy, wiring));
    pollster::block_on(set).unwrap();
    daemon
}

/// What storage said was the guest's fault: it got an error, under `werror=stop`, and nobody was told.
#[test]
fn of_storage_it_is_held() {
    let daemon = stopping();
    let mut disk = daemon.connect();
    for read in [false, true] {
        let faults = &daemon.faults;
        let errno = if read { &faults.read } else { &faults.write };
        errno.store(libc::EFAULT, Ordering::SeqCst);
        let token = if read {
            let request = Request::Read {
                sector: 0,
                len: 4096,
            };
            let token = disk.submit(0, request).unwrap();
            disk.kick(0).unwrap();
            token
        } else {
            post(&mut disk, 0, 7)
        };
        daemon.wait_held(1);
        assert_eq!(daemon.run_state(), RunState::IoError);
        expect_nothing(&mut disk);
        let cause = daemon.backend(|backend| backend.first_error().unwrap().cause);
        assert_eq!((cause.kind, cause.errno), (ErrorKind::Failed, libc::EFAULT));
        errno.store(0, Ordering::SeqCst);
        daemon.cont();
        let completion = disk.wait(0, SECONDS).unwrap().expect("it goes on");
        assert!(completion.token == token && completion.is_ok());
    }
    assert_eq!(read(&mut disk, 0, 4096), vec![7; 4096]);
    daemon.wait_held(0);
    expect_clean(&disk);
    drop(disk);
    daemon.close();
}

const LOST: u64 = 0x40_0000_0000;

/// A region beside the others, of one page.
fn add_region(disk: &mut Disk) -> OwnedFd {
    let file = rustix::fs::memfd_create("lost", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 4096).unwrap();
    let region = [0, LOST, 4096, LOST, 0].map(u64::to_ne_bytes).concat();
    let connection = disk.connection_mut();
    let added = connection.set(message::ADD_MEM_REG, &region, &[file.as_fd()]);
    added.unwrap();
    file
}

/// A read (0) or write (1) of 4096 bytes at byte 0, with its buffer in that region.
fn execute(disk: &mut Disk, kind: u32) -> u8 {
    let block = disk.memory_mut().allocate(64).unwrap();
    let (header, status) = (block.address(), block.address() + 32);
    disk.memory().write(header, &[0; 16]).unwrap();
    disk.memory().write(header, &kind.to_le_bytes()).unwrap();
    let descriptor = |address, len, flags, next| RawDescriptor {
        address,
        len,
        flags,
        next,
    };
    let writable = if kind == 0 { 2 } else { 0 };
    let chain = RawChain {
        descriptors: vec![
            descriptor(header, 16, 1, 1),
            descriptor(LOST, 4096, 1 | writable, 2),
            descriptor(status, 1, 2, 0),
        ],
        status: Some(status),
    };
    disk.execute(0, Request::Raw(&chain), SECONDS)
        .unwrap()
        .status
}

#[test]
fn of_a_client_without_memory_it_is_not_held() {
    for kind in [0, 1] {
        let daemon = stopping();
        let mut disk = daemon.connect_with(frontend::Options {
            memory_regions: 1,
            ..frontend::Options::default()
        });
        let file = add_region(&mut disk);
        assert_eq!(execute(&mut disk, kind), STATUS_OK);
        rustix::fs::ftruncate(&file, 0).unwrap();
        // As the kernel would say it, without having touched the memory.
        daemon.faults.read.store(libc::EFAULT, Ordering::SeqCst);
        daemon.faults.write.store(libc::EFAULT, Ordering::SeqCst);
        assert_eq!(execute(&mut disk, kind), STATUS_IOERR);
        assert_eq!((daemon.held(), daemon.run_state()), (0, RunState::Running));
        assert_eq!(
            daemon.backend(|backend| backend.last_error().cloned()),
            None
        );
        let stats = daemon.export.backend().stats();
        assert_eq!(stats.rd.invalid + stats.wr.invalid, 1);
        drop(disk);
        daemon.close();
    }
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
