//! How large a block device is, and has been: what tells want of space from a device that is not
//! there any more.
//!
//! To Linux a write at or beyond the end of a block device is ENOSPC, and a device that is gone ends
//! at 0. So whoever hears ENOSPC asks for the size ([`DeviceSize::asked`]):
//!
//! * Smaller than it has been: what was written to is gone ([`ErrorKind::BackingGone`]).
//! * Not smaller, and the write was at or beyond the end: no space left. A volume that is to be
//!   extended.
//! * The write was inside: no space left either (a thin pool), if the device was as large when it was
//!   tried. Nobody knows that of the first attempt, so it is tried again, which is right as well if the
//!   device has grown meanwhile.
//!
//! The page cache drops without a word what it was to write beyond the end of a device that has shrunk,
//! and fdatasync(2) calls that a success. So what was written through the page cache is compared with
//! the size at each flush ([`DeviceSize::lost`]).
//!
//! [`ErrorKind::BackingGone`]: block::ErrorKind::BackingGone

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::probe;

/// Attempts of one operation that follow a change of the size.
const AGAIN_MAX: u32 = 4;

/// The largest size that has been seen of one block device, since somebody took over its real one.
#[derive(Debug)]
pub struct DeviceSize {
    largest: AtomicU64,
    /// Whether it is written through a page cache that is flushed.
    cached: bool,
    /// How far writes have reached that no flush has begun after.
    written: AtomicU64,
}

impl DeviceSize {
    /// The device has `size` bytes. `cached`: it is written through a page cache that is flushed.
    pub fn new(size: u64, cached: bool) -> Self {
        Self {
            largest: AtomicU64::new(size),
            cached,
            written: AtomicU64::new(0),
        }
    }

    /// Somebody has made up his mind: the device has `size` bytes, and that is right.
    pub fn taken(&self, size: u64) {
        self.largest.store(size, Ordering::Release);
        self.written.fetch_min(size, Ordering::AcqRel);
    }

    /// A write that ends at `end` has succeeded.
    pub fn wrote(&self, end: u64) {
        // A plain load first: most writes change nothing.
        if self.cached && end > self.written.load(Ordering::Acquire) {
            self.written.fetch_max(end, Ordering::AcqRel);
        }
    }

    /// A flush begins: how far what it is to make durable reaches.
    pub fn flush_begins(&self) -> u64 {
        if self.cached {
            self.written.swap(0, Ordering::AcqRel)
        } else {
            0
        }
    }

    /// A flush of what reaches to `end` has succeeded, the kernel says. The size of the device, if it
    /// ends before.
    pub fn lost(&self, fd: BorrowedFd<'_>, end: u64) -> Option<u64> {
        (end > 0)
            .then(|| self.ask(fd).size)
            .filter(|&size| size < end)
    }

    /// Asks. At once: the kernel looks at a number. A device that does not answer has no bytes.
    pub fn ask(&self, fd: BorrowedFd<'_>) -> Asked {
        self.asked(&probe::device_size(fd))
    }

    fn asked(&self, answer: &io::Result<u64>) -> Asked {
        let size = *answer.as_ref().unwrap_or(&0);
        let largest = self.largest.fetch_max(size, Ordering::AcqRel).max(size);
        Asked { size, largest }
    }
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Bytes now.
    pub size: u64,
    largest: u64,
}

impl Asked {
    /// Whether it was larger, or there is none any more.
    pub fn has_shrunk(self) -> bool {
        self.size < self.largest
    }

    /// Whether a part of `range` was there and is not any more.
    pub fn is_gone(self, range: &Range<u64>) -> bool {
        self.has_shrunk() && (self.size == 0 || range.end > self.size)
    }
}

/// What one operation knows of the size.
#[derive(Debug, Default)]
pub struct Again {
    known: Option<u64>,
    times: u32,
}

impl Again {
    /// Whether an operation that found no storage at byte `at` is to be tried again: it lies inside
    /// the device now, and the last attempt may have found another size.
    pub fn is_due(&mut self, asked: Asked, at: u64) -> bool {
        let other = self.known.replace(asked.size) != Some(asked.size);
        let due = at < asked.size && other && self.times < AGAIN_MAX;
        self.times += u32::from(due);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn asked(size: &DeviceSize, now: u64) -> Asked {
        size.asked(&Ok(now))
    }

    /// A device that had shrunk, or was gone, was reported as full, and a manager extended a healthy
    /// volume for ever.
    #[test]
    fn smaller_than_it_was_is_shrunk_until_that_is_taken() {
        let size = DeviceSize::new(16 * MIB, false);
        assert!(!asked(&size, 16 * MIB).has_shrunk());
        for now in [0, 1, 16 * MIB - 1] {
            assert!(asked(&size, now).has_shrunk(), "{now}");
        }
        assert!(!asked(&size, 32 * MIB).has_shrunk(), "it has grown");
        assert!(asked(&size, 16 * MIB).has_shrunk(), "it was seen larger");
        size.taken(8 * MIB);
        assert!(!asked(&size, 8 * MIB).has_shrunk());
        assert!(asked(&size, 0).has_shrunk());
        size.taken(0);
        assert!(!asked(&size, 0).has_shrunk(), "even nothing can be taken");
        let none = Err(io::Error::from_raw_os_error(libc::ENODEV));
        assert!(DeviceSize::new(1, false).asked(&none).has_shrunk());
    }

    #[test]
    fn what_is_gone_lies_beyond_the_end_of_what_is_left() {
        let size = DeviceSize::new(16 * MIB, false);
        let half = asked(&size, 8 * MIB);
        assert!(half.is_gone(&(8 * MIB - 512..8 * MIB + 512)));
        assert!(!half.is_gone(&(0..8 * MIB)));
        assert!(asked(&size, 0).is_gone(&(0..0)), "a flush");
        let whole = asked(&size, 16 * MIB);
        assert!(!whole.is_gone(&(16 * MIB..17 * MIB)), "never there");
    }

    #[test]
    fn tried_again_inside_as_long_as_the_size_is_another() {
        let size = DeviceSize::new(16 * MIB, false);
        let mut again = Again::default();
        let at = 12 * MIB;
        assert!(!again.is_due(asked(&size, 0), at));
        assert!(!again.is_due(asked(&size, at), at), "it ends there");
        assert!(again.is_due(asked(&size, 16 * MIB), at), "it has grown");
        assert!(!again.is_due(asked(&size, 16 * MIB), at), "a thin pool");

        let mut again = Again::default();
        let due = (0..100).filter(|n| again.is_due(asked(&size, (16 + n % 2) * MIB), at));
        assert_eq!(due.count(), AGAIN_MAX as usize, "bounded");
    }
}
