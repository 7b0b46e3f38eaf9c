//! Reads and writes that reach the end of an image ([`super::tail`]), and writes of any kind.

use std::os::fd::BorrowedFd;

use block::range_lock::Mode;
use block::{Buffers, OwnedBuffer, Result};

use super::driver::FileDriver;
use super::retry::Retry;
use super::transfer::{Transfer, index};
use crate::leaf;

impl FileDriver {
    /// Writes whatever there is, at whatever offset.
    pub(super) async fn write(
        &self,
        buffers: &Buffers<'_>,
        offset: u64,
        rw_flags: i32,
    ) -> Result<()> {
        if self.tail.is_reached(offset + buffers.len() as u64) {
            return Box::pin(self.write_to_tail(buffers, offset, rw_flags)).await;
        }
        self.write_blocks(buffers, offset, rw_flags).await
    }

    /// Reads what is there, and zeroes behind it.
    pub(super) async fn read_to_tail(&self, buffers: &Buffers<'_>, offset: u64) -> Result<()> {
        let bytes = buffers.len() as u64;
        let there = self.tail.end().saturating_sub(offset).min(bytes);
        if there > 0 && self.fits(buffers, offset, bytes) {
            self.read(buffers, offset, index(there)).await?;
        } else if there > 0 {
            self.read_bounced(buffers, offset, there).await?;
        }
        buffers.after(index(there)).fill_zero();
        Ok(())
    }

    /// Writes, and no further than the request reaches.
    async fn write_to_tail(&self, buffers: &Buffers<'_>, offset: u64, rw_flags: i32) -> Result<()> {
        // A write beyond the end may have to read the last block and to write it back.
        let _apart = self.growth.lock(0..1, Mode::Shared).await;
        let (end, length) = (offset + buffers.len() as u64, self.length_now());
        let blocks_end = self.tail.blocks_end(length);
        match self.fd.second() {
            Some(buffered) if end > blocks_end => {
                let from = offset.max(blocks_end);
                let (body, last) = buffers.split_at(index(from - offset));
                if !body.is_empty() {
                    self.write_blocks(&body, offset, rw_flags).await?;
                }
                let mut own = OwnedBuffer::new(last.len())?;
                last.copy_to(&mut own);
                self.write_last(buffered, own.lend(), from).await?;
            }
            _ => self.write_blocks(buffers, offset, rw_flags).await?,
        }
        self.tail.written(end, &self.length);
        Ok(())
    }

    /// Writes a part of the last block through the page cache.
    async fn write_last(&self, fd: BorrowedFd<'_>, from: Buffers<'_>, offset: u64) -> Result<()> {
        let mut retry = Retry::new();
        let mut done = 0;
        while done < from.len() {
            let at = offset + done as u64;
            let write = leaf::write_at(fd, from.after(done), at, libc::RWF_DSYNC);
            match write.on(&self.lane).await {
                Ok(0) => return Err(self.stuck(Transfer::Write(0), at)),
                Ok(bytes) => done += bytes as usize,
                Err(error) if retry.again(&error).await => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
