//! What an operation asks of the kernel, whoever makes the call: the ring or a worker.

use std::os::fd::RawFd;

/// A system call to be made. It names memory and a descriptor that whoever has made the operation vouches
/// for until that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    /// `pread(2)`.
    Read {
        fd: RawFd,
        base: *mut u8,
        len: u32,
        offset: u64,
    },
    /// `pwritev2(2)` of one buffer.
    Write {
        fd: RawFd,
        base: *const u8,
        len: u32,
        offset: u64,
        rw_flags: i32,
    },
    /// `preadv(2)`.
    Readv {
        fd: RawFd,
        iov: *const libc::iovec,
        count: u32,
        offset: u64,
    },
    /// `pwritev2(2)`.
    Writev {
        fd: RawFd,
        iov: *const libc::iovec,
        count: u32,
        offset: u64,
        rw_flags: i32,
    },
    /// `fsync(2)`, or `fdatasync(2)`.
    Fsync { fd: RawFd, datasync: bool },
    /// `fallocate(2)`.
    Fallocate {
        fd: RawFd,
        mode: i32,
        offset: u64,
        len: u64,
    },
    /// `poll(2)` of one descriptor: never a worker's.
    Poll { fd: RawFd, events: u32 },
}

/// `poll(2)` events as rings and epoll want them.
pub(crate) fn poll_bits(events: libc::c_short) -> u32 {
    u32::from(events.cast_unsigned())
}
