//! A filter that checksums what passes. A write is read once from the guest's memory; a read is
//! verified before the guest sees it.
//!
//! Its blocks fit those of no storage, so all that it sends down begins and ends somewhere.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

use block::range_lock::{Mode, RangeLock};
use block::{BlockError, Child, Driver, Io, IoFuture, NodeInfo, Operation, OwnedBuffer, Result};

/// Bytes that have a sum of their own.
pub const BLOCK: u64 = 1000;

#[derive(Debug)]
pub struct Checksum {
    pub file: Child,
    pub sums: Vec<AtomicU32>,
    pub turns: RangeLock,
    /// The mistake that this must not make: sends what the guest has by now.
    pub reads_twice: bool,
}

impl Checksum {
    fn verify(&self, start: u64, bytes: &[u8]) -> Result<()> {
        for (block, at) in bytes.chunks(index(BLOCK)).zip(start / BLOCK..) {
            if crc32c::crc32c(block) != self.sums[index(at)].load(Ordering::Relaxed) {
                return Err(BlockError::new(libc::EIO, format!("block {at} has rotted")));
            }
        }
        Ok(())
    }

    async fn transfer(&self, io: Io<'_>, mode: Mode) -> Result<()> {
        let start = io.offset / BLOCK * BLOCK;
        let end = (io.offset + io.bytes)
            .next_multiple_of(BLOCK)
            .min(self.length());
        let _turn = self.turns.lock(start..end, mode).await;
        let mut own = OwnedBuffer::new(index(end - start))?;
        let child = Io::read(start, own.lend()).on_behalf_of(&io);
        self.file.submit(child).await?;
        self.verify(start, &own)?;
        let inside = index(io.offset - start)..index(io.offset + io.bytes - start);
        if io.op == Operation::Read {
            io.buffers.copy_from(&own[inside]);
            return Ok(());
        }
        io.buffers.copy_to(&mut own[inside.clone()]);
        for (block, at) in own.chunks(index(BLOCK)).zip(start / BLOCK..) {
            self.sums[index(at)].store(crc32c::crc32c(block), Ordering::Relaxed);
        }
        let own = own.lend();
        let sent = match self.reads_twice {
            true => Io::write(io.offset, io.buffers),
            false => Io::write(start, own),
        };
        self.file.submit(sent.on_behalf_of(&io)).await
    }
}

pub fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("this is for 64-bit machines")
}

impl Driver for Checksum {
    fn name(&self) -> &'static str {
        "checksum"
    }

    fn info(&self) -> NodeInfo {
        self.file.info()
    }

    fn length(&self) -> u64 {
        self.file.length()
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        match io.op {
            Operation::Read => IoFuture::new(self.transfer(io, Mode::Shared)),
            Operation::Write => IoFuture::new(self.transfer(io, Mode::Exclusive)),
            Operation::Flush => self.file.submit(io),
            _ => IoFuture::ready(Err(BlockError::from_errno(libc::ENOTSUP))),
        }
    }

    fn children(&self) -> Vec<&Child> {
        vec![&self.file]
    }
}
