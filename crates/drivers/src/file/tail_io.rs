//! Reads and writes that reach the end of an image ([`super::tail`]), and writes of any kind.

use std::os::fd::BorrowedFd;

use block::Result;
use iothread::ring;
use libc::iovec;

use super::driver::FileDriver;
use super::retry::Retry;
use super::transfer::{self, Transfer, index};
use crate::iov;

impl FileDriver {
    /// Writes whatever there is, at whatever offset.
    pub(super) async fn write(
        &self,
        iov: &[iovec],
        offset: u64,
        bytes: u64,
        rw_flags: i32,
    ) -> Result<()> {
        if self.tail.is_reached(offset + bytes) {
            return Box::pin(self.write_to_tail(iov, offset, bytes, rw_flags)).await;
        }
        self.write_blocks(iov, offset, bytes, rw_flags).await
    }

    /// Reads what is there, and zeroes behind it.
    pub(super) async fn read_to_tail(&self, iov: &[iovec], offset: u64, bytes: u64) -> Result<()> {
        let there = self.tail.end().saturating_sub(offset).min(bytes);
        if there > 0 && self.fits(iov, offset, bytes) {
            self.read(iov, offset, index(there)).await?;
        } else if there > 0 {
            self.read_bounced(iov, offset, there).await?;
        }
        let behind = iov::advanced(iov, index(there));
        iov::fill_zero(&behind);
        Ok(())
    }

    /// Writes, and no further than the request reaches.
    async fn write_to_tail(
        &self,
        iov: &[iovec],
        offset: u64,
        bytes: u64,
        rw_flags: i32,
    ) -> Result<()> {
        let (end, length) = (offset + bytes, self.length_now());
        let blocks_end = self.tail.blocks_end(length);
        match self.tail.buffered() {
            Some(buffered) if end > blocks_end => {
                let from = offset.max(blocks_end);
                if offset < from {
                    let body = iov::first(iov, index(from - offset));
                    self.write_blocks(&body, offset, from - offset, rw_flags)
                        .await?;
                }
                let mut last = transfer::take(index(end - from))?;
                iov::gather(iov, index(from - offset), &mut last);
                self.write_last(buffered, last.iovec(), from).await?;
            }
            _ => self.write_blocks(iov, offset, bytes, rw_flags).await?,
        }
        self.tail.written(end, length);
        Ok(())
    }

    /// Writes a part of the last block through the page cache.
    async fn write_last(&self, fd: BorrowedFd<'_>, from: iovec, offset: u64) -> Result<()> {
        let mut retry = Retry::new();
        let mut done = 0;
        while done < from.iov_len {
            let at = offset + done as u64;
            let rest = [iovec {
                iov_base: from.iov_base.wrapping_byte_add(done),
                iov_len: from.iov_len - done,
            }];
            // SAFETY: the caller keeps the buffer as long as this future; `rest` lies inside and
            // outlives the operation.
            match unsafe { ring::writev(fd, &rest, at, libc::RWF_DSYNC) }.await {
                Ok(0) => return Err(self.stuck(Transfer::Write(0), at)),
                Ok(bytes) => done += bytes as usize,
                Err(error) if retry.again(&error).await => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
