//! Transfers to files that lie in memory (tmpfs, ramfs): done at once, on the thread that asks.
//!
//! Such file systems cannot say that they would have to wait, so io_uring hands each of their
//! transfers to a worker thread, which costs more than the copy. What is not whole after the first
//! attempt goes on through the ring, like everything else.

use block::{Io, IoFuture, Operation, Result};

use super::driver::FileDriver;
use super::transfer::{self, Transfer};
use crate::leaf;

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
    }

    /// Reads or writes.
    pub(super) fn transfer_at_once<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let wanted = transfer::index(io.bytes);
        let (direction, first) = match io.op {
            Operation::Read => {
                let result = leaf::read_now(self.fd(), &io.buffers, io.offset);
                (Transfer::Read, result)
            }
            _ => {
                let result = leaf::write_now(self.fd(), &io.buffers, io.offset);
                (Transfer::Write(0), result)
            }
        };
        if matches!(first, Ok(bytes) if bytes as usize >= wanted) {
            return IoFuture::ready(Ok(()));
        }
        IoFuture::new(async move {
            let rest = Box::pin(self.go_on(direction, &io.buffers, io.offset, wanted, first));
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
