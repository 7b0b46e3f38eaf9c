//! Transfers to files that lie in memory (tmpfs, ramfs): done at once, on the thread that asks.
//!
//! Such file systems cannot say that they would have to wait, so io_uring hands each of their
//! transfers to a worker thread, which costs more than the copy. What is not whole after the first
//! attempt goes on through the ring, like everything else.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use block::{Io, IoFuture, Operation, Result};
use libc::iovec;

use super::driver::FileDriver;
use super::transfer::{self, Transfer};
use crate::iov::IOV_MAX;

/// Longest transfer that is done at once, in bytes: others wait meanwhile.
const BYTES_MAX: u64 = 1 << 20;

impl FileDriver {
    /// Whether a read or a write is done at once.
    pub(super) fn is_at_once(&self, io: &Io<'_>) -> bool {
        // Requests that fit no blocks keep others away from them; here every one fits.
        self.in_memory
            && !self.tail.is_reached(io.offset + io.bytes)
            && self.alignment.request == 1
            && self.alignment.memory == 1
            && !io.fua
            && io.bytes <= BYTES_MAX
            && io.iov.len() <= IOV_MAX
    }

    /// Reads or writes.
    pub(super) fn transfer_at_once<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let wanted = transfer::index(io.bytes);
        let (direction, first) = match io.op {
            Operation::Read => {
                let result = read(self.fd(), io.iov, io.offset);
                (Transfer::Read, result)
            }
            _ => {
                let result = write(self.fd(), io.iov, io.offset);
                (Transfer::Write(0), result)
            }
        };
        if matches!(first, Ok(bytes) if bytes as usize >= wanted) {
            return IoFuture::ready(Ok(()));
        }
        IoFuture::new(async move {
            let rest = Box::pin(self.go_on(direction, io.iov, io.offset, wanted, Some(first)));
            rest.await.map_err(|error| self.located(&io, error))
        })
    }

    /// Makes nothing durable, as nothing here ever is, but asks all the same.
    pub(super) fn flush_at_once(&self, losses_accepted: u32) -> Result<()> {
        if self.cache_no_flush {
            return Ok(());
        }
        (self.flusher).flush_at_once(self.fd(), !self.cache_direct, losses_accepted)
    }
}

fn read(fd: BorrowedFd<'_>, iov: &[iovec], offset: u64) -> io::Result<u32> {
    let (fd, at) = (fd.as_raw_fd(), position(offset)?);
    result(match iov {
        // SAFETY: the buffer is mapped and writable (`block::Io`).
        [one] => unsafe { libc::pread(fd, one.iov_base, one.iov_len, at) },
        // SAFETY: as above, for each.
        _ => unsafe { libc::preadv(fd, iov.as_ptr(), count(iov)?, at) },
    })
}

fn write(fd: BorrowedFd<'_>, iov: &[iovec], offset: u64) -> io::Result<u32> {
    let (fd, at) = (fd.as_raw_fd(), position(offset)?);
    result(match iov {
        // SAFETY: the buffer is mapped and readable (`block::Io`).
        [one] => unsafe { libc::pwrite(fd, one.iov_base, one.iov_len, at) },
        // SAFETY: as above, for each.
        _ => unsafe { libc::pwritev(fd, iov.as_ptr(), count(iov)?, at) },
    })
}

fn position(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn count(iov: &[iovec]) -> io::Result<libc::c_int> {
    libc::c_int::try_from(iov.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn result(moved: libc::ssize_t) -> io::Result<u32> {
    if moved < 0 {
        return Err(io::Error::last_os_error());
    }
    // No transfer is longer than `BYTES_MAX`.
    u32::try_from(moved).map_err(|_| io::Error::from_raw_os_error(libc::EIO))
}
