//! Flushes, and the latch that a failed one leaves behind.
//!
//! When fdatasync(2) on a buffered file fails, Linux marks the pages that it could not write as
//! clean and tells one caller, once. A second fdatasync would succeed and be a lie. So the failure
//! is latched: each later flush fails with the same errno without asking the kernel, until somebody
//! who knows says that the loss is accepted. For the same reason flushes of a buffered file go one
//! at a time: of two that run at once only one would hear of the failure.
//!
//! The same is lost, and nobody is told, if a block device has shrunk meanwhile ([`DeviceSize::lost`]).
//! It is so for everybody who uses the node, until his client has reset its device: what was lost is
//! void for that one then, and its flushes are executed again (`block::driver::loss`).
//!
//! With O_DIRECT there are no such pages, and a failed flush may be tried again.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use block::range_lock::{Mode, RangeLock};
use block::{BlockError, Loss, Result};
use iothread::ops;

use super::device_size::DeviceSize;
use super::retry::Retry;

fn pack(loss: Loss) -> u64 {
    u64::from(loss.number) << 32 | u64::from(loss.errno.cast_unsigned())
}

fn unpack(packed: u64) -> Option<Loss> {
    let [number @ .., _, _, _, _] = packed.to_be_bytes();
    let [_, _, _, _, errno @ ..] = packed.to_be_bytes();
    (packed != 0).then(|| Loss {
        number: u32::from_be_bytes(number),
        errno: i32::from_be_bytes(errno),
    })
}

/// The flushes of one node.
#[derive(Debug, Default)]
pub struct Flusher {
    /// The failed flush: number, then errno, 32 bits each; 0: none.
    latched: AtomicU64,
    /// One fdatasync at a time.
    gate: RangeLock,
    /// Number of fdatasyncs that have begun.
    begun: AtomicU64,
    /// Number of the last one that succeeded.
    succeeded: AtomicU64,
}

impl Flusher {
    /// The latched failure.
    pub fn latched(&self) -> Option<Loss> {
        unpack(self.latched.load(Ordering::SeqCst))
    }

    /// Latches a failure.
    pub fn latch(&self, loss: Loss) {
        self.latched.store(pack(loss), Ordering::SeqCst);
    }

    /// Forgets the latched failure unless its number is greater than `upto`; false if there was
    /// none.
    pub fn clear(&self, upto: u32) -> bool {
        let forget = |packed| {
            let loss = unpack(packed)?;
            (!loss.counts_for(upto)).then_some(0)
        };
        (self.latched)
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, forget)
            .is_ok()
    }

    /// Whether nothing is lost that counts for one who has accepted losses up to `accepted`.
    fn check(&self, accepted: u32) -> Result<()> {
        match self.latched().filter(|loss| loss.counts_for(accepted)) {
            None => Ok(()),
            Some(Loss { errno, .. }) => Err(BlockError::new(
                errno,
                format!(
                    "{} (an earlier flush failed, and the page cache has dropped what it could \
                     not write)",
                    block::Cause::of_errno(errno).reason()
                ),
            )),
        }
    }

    /// Makes all writes that have completed durable, through the page cache. `accepted`: as in
    /// [`block::Io::losses_accepted`].
    #[expect(clippy::manual_async_fn, reason = "that keeps its arguments twice")]
    pub fn flush_buffered<'a>(
        &'a self,
        fd: BorrowedFd<'a>,
        lane: &'a ops::Lane,
        device: &'a DeviceSize,
        accepted: u32,
    ) -> impl Future<Output = Result<()>> + 'a {
        async move {
            let begun_before = self.begun.load(Ordering::SeqCst);
            self.check(accepted)?;
            let _turn = self.gate.lock(0..1, Mode::Exclusive).await;
            self.check(accepted)?;
            if self.succeeded.load(Ordering::SeqCst) > begun_before {
                // While this one waited, an fdatasync began after it had come and has succeeded.
                return Ok(());
            }
            let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            let end = device.flush_begins();
            let mut retry = Retry::new();
            loop {
                let Err(error) = ops::fsync(fd, true).on(lane).await else {
                    if let Some(size) = device.lost(fd, end) {
                        self.latch(Loss::new(libc::EIO));
                        return Err(dropped(size, end));
                    }
                    self.succeeded.store(number, Ordering::SeqCst);
                    return Ok(());
                };
                // ENOMEM may be the storage's answer as well as the ring's: latch rather than lie.
                if error.raw_os_error() != Some(libc::ENOMEM) && retry.again(&error).await {
                    continue;
                }
                let error = BlockError::from(error);
                self.latch(Loss::new(error.errno()));
                return Err(error);
            }
        }
    }

    /// Asks a file system that never waits. A failure is latched if `latch`. `accepted`: as in
    /// [`block::Io::losses_accepted`].
    pub fn flush_at_once(&self, fd: BorrowedFd<'_>, latch: bool, accepted: u32) -> Result<()> {
        self.check(accepted)?;
        rustix::fs::fdatasync(fd).map_err(|errno| {
            let error = BlockError::from(std::io::Error::from(errno));
            if latch {
                self.latch(Loss::new(error.errno()));
            }
            error
        })
    }

    /// Makes all writes that have completed durable, now, on this thread, which waits for other flushes. A
    /// failure is latched, however they were written: nobody will try again.
    pub fn flush_last(&self, fd: BorrowedFd<'_>, device: &DeviceSize) -> Result<()> {
        // Whoever has asked may have given up, and others flush again: one of the two would hear of a failure.
        let _turn = pollster::block_on(self.gate.lock(0..1, Mode::Exclusive));
        self.check(0)?;
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let end = device.flush_begins();
        self.flush_at_once(fd, true, 0)?;
        if let Some(size) = device.lost(fd, end) {
            self.latch(Loss::new(libc::EIO));
            return Err(dropped(size, end));
        }
        self.succeeded.store(number, Ordering::SeqCst);
        Ok(())
    }

    /// Makes all writes that have completed durable; they went past the page cache. A failure is not latched,
    /// but a former opening of the image may have left one. `accepted`: as in
    /// [`block::Io::losses_accepted`].
    #[expect(clippy::manual_async_fn, reason = "as above")]
    pub fn flush_direct<'a>(
        &'a self,
        fd: BorrowedFd<'a>,
        lane: &'a ops::Lane,
        accepted: u32,
    ) -> impl Future<Output = Result<()>> + 'a {
        async move {
            self.check(accepted)?;
            let mut retry = Retry::new();
            loop {
                match ops::fsync(fd, true).on(lane).await {
                    Ok(_) => return Ok(()),
                    Err(error) if retry.again(&error).await => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

#[cold]
fn dropped(size: u64, end: u64) -> BlockError {
    BlockError::new(
        libc::EIO,
        format!(
            "the device has shrunk to {size} bytes, and the page cache has dropped what was to be \
             written beyond that, up to byte {end}"
        ),
    )
}
