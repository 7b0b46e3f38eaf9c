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
//!   device has grown meanwhile. Of two answers around an attempt that differ, the smaller one counts.
//!
//! Linux tells nobody that a size has changed: a device that comes back and goes again between two
//! answers has the same size in both.
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
    /// Bytes when it was asked.
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

/// Why an attempt has found no storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Nobody knows: it is to be tried again.
    Again,
    /// What was there is not there any more.
    Gone,
    /// There is no space.
    Space,
}

/// What one operation knows of the size.
#[derive(Debug, Default)]
pub struct Attempts {
    /// Before the last attempt.
    known: Option<Asked>,
    again: u32,
}

impl Attempts {
    /// The last attempt has found no storage at byte `at`, and this is the size after it. It is tried
    /// again if it lies inside the device now, and may have found another size.
    pub fn failed(&mut self, asked: Asked, at: u64) -> Missing {
        let before = self.known.replace(asked);
        let other = before.is_none_or(|before| before.size != asked.size);
        if at < asked.size && other && self.again < AGAIN_MAX {
            self.again += 1;
            Missing::Again
        } else if asked.has_shrunk() || before.is_some_and(Asked::has_shrunk) {
            Missing::Gone
        } else {
            Missing::Space
        }
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
        let at = 12 * MIB;
        let after = |sizes: &[u64]| {
            let mut attempts = Attempts::default();
            let sizes = sizes.iter();
            let failed = sizes.map(|&now| attempts.failed(asked(&size, now * MIB), at));
            failed.collect::<Vec<_>>()
        };
        const AGAIN: Missing = Missing::Again;
        assert_eq!(after(&[0]), [Missing::Gone]);
        assert_eq!(after(&[12]), [Missing::Gone], "it ends there");
        assert_eq!(after(&[16, 16]), [AGAIN, Missing::Space], "a thin pool");
        assert_eq!(after(&[16, 8]), [AGAIN, Missing::Gone]);
        assert_eq!(after(&[13, 16, 16]), [AGAIN, AGAIN, Missing::Space]);
        assert_eq!(after(&[16, 17, 17]), [AGAIN, AGAIN, Missing::Space]);

        let mut attempts = Attempts::default();
        let sizes = (0..100).map(|n| asked(&size, (16 + n % 2) * MIB));
        let failed = sizes.map(|asked| attempts.failed(asked, at));
        let mut last = failed.skip_while(|&missing| missing == AGAIN);
        assert_eq!(
            last.next(),
            Some(Missing::Gone),
            "one of the two was smaller"
        );
        assert_eq!(attempts.again, AGAIN_MAX, "bounded");
    }
}
