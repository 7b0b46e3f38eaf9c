//! Write-zeroes and discard.
//!
//! Storage that cannot make zeroes, or cannot discard, is no failure: zeroes are written, and a discard
//! is advice. Only what the storage tried and failed to do goes to policy ([`cannot`]).

use std::ops::Range;
use std::sync::atomic::Ordering;

use block::driver::owned::PIECE_MAX;
use block::range_lock::{Entered, Mode};
use block::{BlockError, Joined, OwnedBuffer, Result};
use iothread::ops;

use super::driver::FileDriver;
use super::probe::Kind;
use super::retry::Retry;
use super::transfer::index;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// Bytes of zeroes that are written over and over where the storage cannot make them itself.
const ZEROES: usize = 64 << 10;

/// Whether fallocate(2), or the discard of a block device, means by this errno that it cannot do
/// this, or not here. Some file systems (GPFS, some FUSE and network file systems) say EINVAL, EPERM
/// or ENODEV for that, and a block device that somebody else has claimed says EBUSY. For a block
/// device ENODEV means that it is offline.
///
/// EINVAL is also what a block device says to a range beyond its end. Zeroes that are written instead
/// meet the end, too.
fn cannot(kind: Kind, errno: i32) -> bool {
    never(errno)
        || matches!(errno, libc::EINVAL | libc::EBUSY | libc::EPERM)
        || (errno == libc::ENODEV && kind != Kind::Block)
}

/// Of these, whether it will say so to every request: it is not asked again.
fn never(errno: i32) -> bool {
    matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY)
}

/// The part of a range that consists of whole units of `align` bytes (a power of two).
fn inner(range: &Range<u64>, align: u32) -> Range<u64> {
    let align = u64::from(align);
    let start = range.start.next_multiple_of(align);
    let end = range.end & !(align - 1);
    start..end.max(start)
}

impl FileDriver {
    /// Makes the range read as zeroes.
    pub(super) async fn write_zeroes(&self, offset: u64, bytes: u64, unmap: bool) -> Result<()> {
        let range = offset..offset + bytes;
        let body = inner(&range, self.zero_align);
        if body.is_empty() {
            self.write_zero_bytes(range).await?;
        } else {
            self.write_zero_bytes(range.start..body.start).await?;
            self.zero_body(&body, unmap).await?;
            self.write_zero_bytes(body.end..range.end).await?;
        }
        Ok(())
    }

    async fn zero_body(&self, body: &Range<u64>, unmap: bool) -> Result<()> {
        // A block device must not leave out what lies beyond its end.
        let zero = match self.kind {
            Kind::Block => libc::FALLOC_FL_ZERO_RANGE,
            _ => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        };
        for (mode, possible, wanted) in [
            (PUNCH, &self.deallocation.punch, unmap),
            (zero, &self.deallocation.zero_range, true),
        ] {
            if !wanted || !possible.load(Ordering::Relaxed) {
                continue;
            }
            match self.fallocate(mode, body).await {
                Err(error) if cannot(self.kind, error.errno()) => {
                    if never(error.errno()) {
                        possible.store(false, Ordering::Relaxed);
                    }
                }
                Ok(()) if mode == PUNCH && !self.reaches(body) => {}
                result => return result,
            }
        }
        self.write_zero_bytes(body.clone()).await
    }

    /// Whether all of a range lies on the storage. A hole is punched as far as a block device
    /// reaches, and that is called a success.
    fn reaches(&self, range: &Range<u64>) -> bool {
        self.kind != Kind::Block || range.end <= self.device_size.ask(self.fd()).size
    }

    async fn write_zero_bytes(&self, range: Range<u64>) -> Result<()> {
        let bytes = index(range.end - range.start);
        let mut zeroes = OwnedBuffer::zeroed(bytes.min(ZEROES))?;
        let zeroes = zeroes.lend();
        let mut repeated = Joined::new();
        while repeated.buffers().len() < bytes.min(PIECE_MAX) {
            repeated.push(zeroes);
        }
        let repeated = repeated.buffers();
        let mut at = range.start;
        while at < range.end {
            let piece = repeated.slice(0..repeated.len().min(index(range.end - at)));
            self.write(&piece, at, 0).await?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Gives the space of the range back, if that is wanted and possible; otherwise nothing happens.
    pub(super) async fn discard(&self, offset: u64, bytes: u64) -> Result<()> {
        let body = inner(&(offset..offset + bytes), self.discard_align);
        if body.is_empty() {
            return Ok(());
        }
        let result = match &self.deallocation.device {
            None => self.fallocate(PUNCH, &body).await,
            Some(device) => {
                let _entered = self.enter_shared(&body).await;
                device.discard(body.clone()).await.map_err(BlockError::from)
            }
        };
        self.deallocation
            .count(body.end - body.start, result.is_ok());
        match result {
            Err(error) if cannot(self.kind, error.errno()) && self.reaches(&body) => {
                if never(error.errno()) {
                    self.deallocation.discard.store(false, Ordering::Relaxed);
                }
                Ok(())
            }
            result => result,
        }
    }

    async fn enter_shared(&self, range: &Range<u64>) -> Entered<'_> {
        let blocks = self.blocks(range.start, range.end - range.start);
        self.serialiser.enter(blocks, Mode::Shared).await
    }

    pub(super) async fn fallocate(&self, mode: i32, range: &Range<u64>) -> Result<()> {
        let _entered = self.enter_shared(range).await;
        let mut retry = Retry::new();
        loop {
            let bytes = range.end - range.start;
            let fallocate = ops::fallocate(self.fd(), mode, range.start, bytes);
            match fallocate.on(&self.lane).await {
                Ok(_) => return Ok(()),
                Err(error) if retry.again(&error).await => {}
                Err(error) => return Err(BlockError::from(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only what Linux and file systems say where they cannot is no failure.
    #[test]
    fn cannot_is_not_failed() {
        let said = |kind| (1..4096).filter(move |&errno| cannot(kind, errno));
        let everywhere = [
            libc::EPERM,
            libc::EBUSY,
            libc::EINVAL,
            libc::ENOTTY,
            libc::ENOSYS,
            libc::EOPNOTSUPP,
        ];
        assert!(said(Kind::Block).eq(everywhere));
        let mut of_files = everywhere.to_vec();
        of_files.push(libc::ENODEV);
        of_files.sort_unstable();
        assert!(said(Kind::Regular).eq(of_files));
        assert!((1..4096).all(|errno| !never(errno) || cannot(Kind::Block, errno)));
    }

    #[test]
    fn inner_is_whole_units_or_nothing() {
        for (range, align, expected) in [
            (0..4096, 512, 0..4096),
            (1..4096, 512, 512..4096),
            (1..4095, 512, 512..3584),
            (513..1023, 512, 1024..1024),
            (7..9, 1, 7..9),
            (100..100, 4096, 4096..4096),
        ] {
            assert_eq!(inner(&range, align), expected, "{range:?} {align}");
        }
    }
}
