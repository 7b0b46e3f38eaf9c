//! How a node becomes longer by what is written beyond its end ([`block::Grow`]).
//!
//! A file becomes as long as what was written. With O_DIRECT that is whole blocks, and the node has them
//! all: it is as long as its file, as ever. A block device does not grow by being written to; but it may
//! have been extended, and is asked before there is no space.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use block::driver::owned::PIECE_MAX;
use block::range_lock::Mode;
use block::{BlockError, Buffers, Driver, Grow, Io, IoFuture, Operation, OwnedBuffer, Result};

use super::driver::FileDriver;
use super::probe::Kind;
use super::tail::node_length;
use super::transfer::index;

/// What is reserved behind what is asked for: this part of the length of the file, and in bytes at least and at most. So
/// much longer than what it has it may stay.
const AHEAD_PART: u64 = 16;
const AHEAD_MIN: u64 = 1 << 20;
const AHEAD_MAX: u64 = 8 << 20;

impl Grow for FileDriver {
    fn submit_beyond<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        if self.kind == Kind::Block {
            return match self.take_extension(io.offset + io.bytes) {
                Ok(()) => self.submit(io),
                Err(error) => IoFuture::ready(Err(self.located(&io, error))),
            };
        }
        IoFuture::new(async move {
            let result = self.write_beyond(&io).await;
            result.map_err(|error| self.located(&io, error))
        })
    }

    /// A write that makes a file longer has it for itself until it has ended: so file systems say that it would have to
    /// wait, and so would all others meanwhile, and io_uring leaves each of them to a worker. What was reserved they take
    /// at once.
    fn reserve(&self, end: u64) -> Option<IoFuture<'_>> {
        let is_apart = self.kind != Kind::Regular || self.in_memory || self.has_server;
        // Through the page cache there is no difference.
        if is_apart || !self.cache_direct || !self.reserves.load(Ordering::Relaxed) {
            return None;
        }
        Some(IoFuture::new(async move { self.reserve_to(end).await }))
    }
}

/// Says that the end is not known any more, unless it is taken back: a write that fails or is given up may have moved it.
struct Unsure<'a>(Option<&'a AtomicBool>);

impl Drop for Unsure<'_> {
    fn drop(&mut self) {
        if let Some(unsure) = self.0 {
            unsure.store(true, Ordering::Release);
        }
    }
}

impl FileDriver {
    /// A block device has to reach to `end`: takes over how long it is by now.
    fn take_extension(&self, end: u64) -> Result<()> {
        let size = self.device_size.ask(self.fd()).size;
        let length = node_length(self.kind, size, self.zero_align).unwrap_or(0);
        if length < end {
            // Gone, or without space: `located` says which.
            let text = format!("'{}' ends at byte {length}", self.filename);
            return Err(BlockError::new(libc::ENOSPC, text));
        }
        self.tail.grown(length, length, &self.length);
        Ok(())
    }

    async fn write_beyond(&self, io: &Io<'_>) -> Result<()> {
        let fua = io.fua && !self.cache_no_flush;
        let flags = match fua && self.cache_direct {
            true => libc::RWF_DSYNC,
            false => 0,
        };
        match io.op {
            Operation::WriteZeroes { unmap } => {
                let inside = self.length_now().saturating_sub(io.offset).min(io.bytes);
                if inside > 0 {
                    self.write_zeroes(io.offset, inside, unmap).await?;
                }
                self.zero_beyond(io.offset + inside..io.offset + io.bytes)
                    .await?;
            }
            _ => self.write_grown(&io.buffers, io.offset, flags).await?,
        }
        // As for all writes ([`super::flush`]).
        if fua && flags == 0 || io.fua && io.op != Operation::Write {
            self.flush(io.losses_accepted).await?;
        }
        Ok(())
    }

    async fn reserve_to(&self, end: u64) -> Result<()> {
        let _apart = self.growth.lock(0..1, Mode::Exclusive).await;
        let length = self.length_now();
        let is_known = self.tail.end() == length && !self.is_end_unsure.load(Ordering::Acquire);
        if length >= end || !is_known || self.blocks(length, 0).start != length {
            return Ok(());
        }
        let ahead = (length / AHEAD_PART).clamp(AHEAD_MIN, AHEAD_MAX);
        let end = self.blocks(length, end - length + ahead).end;
        let result = self.fallocate(0, &(length..end)).await;
        match result {
            Ok(()) => self.tail.grown(end, end, &self.length),
            // It is full, or there is a limit: what is written may still have its place.
            Err(error) if matches!(error.errno(), libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => {
                return Err(error);
            }
            Err(error) => {
                self.reserves.store(false, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Zeroes have to be written: what a failed write has left there may be anything.
    async fn zero_beyond(&self, range: Range<u64>) -> Result<()> {
        let piece = (range.end - range.start).min(PIECE_MAX as u64);
        let mut own = OwnedBuffer::new(index(piece))?;
        own.fill(0);
        let mut at = range.start;
        while at < range.end {
            let bytes = piece.min(range.end - at);
            let zeroes = own.lend().slice(0..index(bytes));
            self.write_grown(&zeroes, at, 0).await?;
            at += bytes;
        }
        Ok(())
    }

    /// Writes, and makes node and image as long as that is. What does not fit reads the blocks at the end
    /// of the image first: until it is known how long that is by now, nobody else changes it.
    async fn write_grown(&self, buffers: &Buffers<'_>, offset: u64, flags: i32) -> Result<()> {
        let bytes = buffers.len() as u64;
        let mode = match self.fits(buffers, offset, bytes) {
            true => Mode::Shared,
            false => Mode::Exclusive,
        };
        let _apart = self.growth.lock(0..1, mode).await;
        let mut guard = Unsure(Some(&self.is_end_unsure));
        self.write_blocks(buffers, offset, flags).await?;
        guard.0 = None;
        let end = self.blocks(offset, bytes).end;
        let node = node_length(self.kind, end, self.zero_align).unwrap_or(end);
        self.tail.grown(end, node, &self.length);
        Ok(())
    }
}
