//! The geometry of a block device: what requests it likes best. Advice for guests, so what cannot be
//! found out is left out.

#![expect(unsafe_code, reason = "system calls that have no safe wrapper")]

use std::os::fd::{AsRawFd, BorrowedFd};

use super::probe::{Stat, power_of_two_in, queue_file};

const BLKIOMIN: libc::Ioctl = 0x1278;
const BLKIOOPT: libc::Ioctl = 0x1279;
const BLKALIGNOFF: libc::Ioctl = 0x127a;
const BLKPBSZGET: libc::Ioctl = 0x127b;

/// Larger units are taken for nonsense, as by QEMU.
const BLOCK_BYTES_MAX: u32 = 2 << 20;

/// In bytes; 0 where nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Geometry {
    /// What the device writes without reading first; a power of two.
    pub physical_block: u32,
    /// The smallest request that it likes.
    pub minimum_io: u32,
    /// The size of request that it likes best.
    pub optimal_io: u32,
    /// Where the first physical block begins.
    pub alignment_offset: u32,
    /// What is given back as a whole; a power of two.
    pub discard: u32,
}

/// Asks a block device.
pub fn of_device(fd: BorrowedFd<'_>, stat: &Stat) -> Geometry {
    let ask = |request| {
        let mut value: libc::c_int = 0;
        // SAFETY: each of these stores one int.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) };
        // A partition whose offset is hopeless says -1.
        u32::try_from(value).ok().filter(|_| result != -1)
    };
    let discard = queue_file(stat, "discard_granularity");
    let discard = discard.and_then(|text| text.trim().parse::<u64>().ok());
    Geometry {
        physical_block: ask(BLKPBSZGET)
            .filter(|bytes| bytes.is_power_of_two() && *bytes <= BLOCK_BYTES_MAX)
            .unwrap_or(0),
        minimum_io: ask(BLKIOMIN).unwrap_or(0),
        optimal_io: ask(BLKIOOPT).unwrap_or(0),
        alignment_offset: ask(BLKALIGNOFF).unwrap_or(0),
        discard: power_of_two_in(discard.unwrap_or(0)),
    }
}
