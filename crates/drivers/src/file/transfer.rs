//! Reads and writes: whole or not at all, as far as the storage lets us.

use std::io;

use block::driver::owned::PIECE_MAX;
use block::range_lock::Mode;
use block::{BlockError, Buffers, ErrorKind, OwnedBuffer, Result};

use super::device_size::{Attempts, Missing};
use super::driver::FileDriver;
use super::probe::Kind;
use super::retry::Retry;
use crate::leaf;

/// A direction, and what goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// To the buffers.
    Read,
    /// With `RWF_*` flags.
    Write(i32),
}

/// A range of a request as an index. Requests have their bytes in memory, so it always fits.
pub fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("this is for 64-bit machines")
}

impl FileDriver {
    /// Whether the storage takes a request as it is.
    pub(super) fn fits(&self, buffers: &Buffers<'_>, offset: u64, bytes: u64) -> bool {
        let alignment = self.alignment;
        alignment.request == 1 && alignment.memory == 1
            || (self.is_block_range(offset, bytes)
                && buffers.is_aligned(alignment.memory, alignment.request))
    }

    fn is_block_range(&self, offset: u64, bytes: u64) -> bool {
        (offset | bytes) & (u64::from(self.alignment.request) - 1) == 0
    }

    /// Reads `wanted` bytes, or more: up to the length of `buffers`, which [fit](Self::fits).
    #[expect(clippy::manual_async_fn, reason = "that keeps its arguments twice")]
    pub(super) fn read<'a>(
        &'a self,
        buffers: &'a Buffers<'_>,
        offset: u64,
        wanted: usize,
    ) -> impl Future<Output = Result<()>> + 'a {
        async move {
            let first = leaf::read_at(self.fd(), *buffers, offset)
                .on(&self.lane)
                .await;
            if matches!(first, Ok(read) if read as usize >= wanted) {
                return Ok(());
            }
            // Boxed, so that the common case stays small enough to be stored inline.
            Box::pin(self.go_on(Transfer::Read, buffers, offset, wanted, first)).await
        }
    }

    /// Writes all of `buffers`, which [fit](Self::fits). The caller has entered the serialiser.
    #[expect(clippy::manual_async_fn, reason = "as above")]
    pub(super) fn write_raw<'a>(
        &'a self,
        buffers: &'a Buffers<'_>,
        offset: u64,
        rw_flags: i32,
    ) -> impl Future<Output = Result<()>> + 'a {
        async move {
            let first = leaf::write_at(self.fd(), *buffers, offset, rw_flags)
                .on(&self.lane)
                .await;
            let wanted = buffers.len();
            if !matches!(first, Ok(written) if written as usize >= wanted) {
                let transfer = Transfer::Write(rw_flags);
                Box::pin(self.go_on(transfer, buffers, offset, wanted, first)).await?;
            }
            self.device_size.wrote(offset + wanted as u64);
            Ok(())
        }
    }

    /// Goes on after a first attempt that was not enough.
    pub(super) async fn go_on(
        &self,
        transfer: Transfer,
        buffers: &Buffers<'_>,
        offset: u64,
        wanted: usize,
        first: io::Result<u32>,
    ) -> Result<()> {
        let mut outcome = Some(first);
        let mut retry = Retry::new();
        let mut attempts = Attempts::default();
        let mut done = 0;
        loop {
            match outcome {
                None => {}
                Some(Err(error)) if retry.again(&error).await => {}
                Some(Err(error)) if error.raw_os_error() != Some(libc::ENOSPC) => {
                    return Err(error.into());
                }
                Some(Err(error)) => match self.missing(&mut attempts, offset + done as u64) {
                    Missing::Again => {}
                    Missing::Gone => return Err(gone(error.into())),
                    Missing::Space => return Err(error.into()),
                },
                Some(Ok(bytes)) => {
                    let reached = done + bytes as usize;
                    if reached >= wanted {
                        return Ok(());
                    }
                    // What O_DIRECT left in the middle of a block is done again.
                    let next = reached & !(self.alignment.request as usize - 1);
                    if next == done {
                        let at = offset + reached as u64;
                        match self.missing(&mut attempts, at) {
                            Missing::Again => {
                                outcome = None;
                                continue;
                            }
                            Missing::Gone => return Err(gone(self.stuck(transfer, at))),
                            Missing::Space => return Err(self.stuck(transfer, at)),
                        }
                    }
                    done = next;
                    retry = Retry::new();
                }
            }
            let rest = buffers.after(done);
            let at = offset + done as u64;
            let result = match transfer {
                Transfer::Read => leaf::read_at(self.fd(), rest, at).on(&self.lane).await,
                Transfer::Write(flags) => {
                    leaf::write_at(self.fd(), rest, at, flags)
                        .on(&self.lane)
                        .await
                }
            };
            outcome = Some(result);
        }
    }

    /// Why there was no storage at byte `at` for a transfer. Only of a block device the errno does not
    /// tell.
    fn missing(&self, attempts: &mut Attempts, at: u64) -> Missing {
        match self.kind {
            Kind::Block => attempts.failed(self.device_size.ask(self.fd()), at),
            _ => Missing::Space,
        }
    }

    /// The storage accepts a transfer and moves nothing.
    pub(super) fn stuck(&self, transfer: Transfer, at: u64) -> BlockError {
        match transfer {
            Transfer::Read => BlockError::new(
                libc::EIO,
                format!(
                    "'{}' ends at byte {at}, inside the node of {} bytes: it has been truncated",
                    self.filename,
                    self.length_now(),
                ),
            )
            .because(ErrorKind::BackingGone),
            Transfer::Write(_) => BlockError::new(
                libc::ENOSPC,
                format!("'{}' takes no more at byte {at}", self.filename),
            ),
        }
    }

    /// Reads what does not fit, through aligned memory.
    pub(super) async fn read_bounced(
        &self,
        buffers: &Buffers<'_>,
        offset: u64,
        bytes: u64,
    ) -> Result<()> {
        for piece in self.pieces(offset, bytes) {
            let mut own = OwnedBuffer::new(piece.bytes())?;
            let wanted = index(piece.to - piece.start);
            self.read(&own.lend(), piece.start, wanted).await?;
            let skip = index(piece.from - piece.start);
            piece.of(buffers, offset).copy_from(&own[skip..wanted]);
        }
        Ok(())
    }

    /// Writes what the storage takes in whole blocks.
    pub(super) async fn write_blocks(
        &self,
        buffers: &Buffers<'_>,
        offset: u64,
        rw_flags: i32,
    ) -> Result<()> {
        let bytes = buffers.len() as u64;
        if self.fits(buffers, offset, bytes) {
            let range = self.blocks(offset, bytes);
            let _entered = self.serialiser.enter(range, Mode::Shared).await;
            return self.write_raw(buffers, offset, rw_flags).await;
        }
        self.write_bounced(buffers, offset, bytes, rw_flags).await
    }

    /// Writes what does not fit: copied, and with the rest of the first and the last block read
    /// first if it does not begin or end with one.
    async fn write_bounced(
        &self,
        buffers: &Buffers<'_>,
        offset: u64,
        bytes: u64,
        rw_flags: i32,
    ) -> Result<()> {
        let mode = if self.is_block_range(offset, bytes) {
            Mode::Shared
        } else {
            Mode::Exclusive
        };
        let _entered = self
            .serialiser
            .enter(self.blocks(offset, bytes), mode)
            .await;
        let block = u64::from(self.alignment.request);
        for piece in self.pieces(offset, bytes) {
            let mut own = OwnedBuffer::new(piece.bytes())?;
            if piece.from > piece.start {
                self.read_block(&mut own, &piece, piece.start).await?;
            }
            let last = piece.end - block;
            if piece.to < piece.end && (last > piece.start || piece.from == piece.start) {
                self.read_block(&mut own, &piece, last).await?;
            }
            let inside = index(piece.from - piece.start)..index(piece.to - piece.start);
            piece.of(buffers, offset).copy_to(&mut own[inside]);
            self.write_raw(&own.lend(), piece.start, rw_flags).await?;
        }
        Ok(())
    }

    /// Reads the block at `at` to its place in the buffer of a piece. What lies beyond the image is
    /// zeroes: it becomes the end of a file that did not end with a block.
    async fn read_block(&self, own: &mut OwnedBuffer, piece: &Piece, at: u64) -> Result<()> {
        let block = u64::from(self.alignment.request);
        let place = index(at - piece.start)..index(at + block - piece.start);
        own[place.clone()].fill(0);
        let inside = self.tail.end().saturating_sub(at).min(block);
        self.read(&own.lend().slice(place), at, index(inside)).await
    }

    /// The blocks that a range touches.
    pub(super) fn blocks(&self, offset: u64, bytes: u64) -> std::ops::Range<u64> {
        let block = u64::from(self.alignment.request);
        offset & !(block - 1)..(offset + bytes).next_multiple_of(block)
    }

    fn pieces(&self, offset: u64, bytes: u64) -> impl Iterator<Item = Piece> + use<> {
        let blocks = self.blocks(offset, bytes);
        let end = offset + bytes;
        blocks.clone().step_by(PIECE_MAX).map(move |start| {
            let piece_end = (start + PIECE_MAX as u64).min(blocks.end);
            Piece {
                start,
                end: piece_end,
                from: start.max(offset),
                to: piece_end.min(end),
            }
        })
    }
}

/// The device was larger.
fn gone(error: BlockError) -> BlockError {
    error.because(ErrorKind::BackingGone)
}

/// A part of a request that is moved at once: whole blocks, and the bytes of the request in them.
#[derive(Debug)]
struct Piece {
    start: u64,
    end: u64,
    from: u64,
    to: u64,
}

impl Piece {
    fn bytes(&self) -> usize {
        index(self.end - self.start)
    }

    /// Its part of the buffers of a request at `offset`.
    fn of<'a>(&self, buffers: &Buffers<'a>, offset: u64) -> Buffers<'a> {
        buffers.slice(index(self.from - offset)..index(self.to - offset))
    }
}
