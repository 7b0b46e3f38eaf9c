//! What we add to an inflight region behind the parts of its queues. The client keeps the region as
//! large as it was made and hands all of it back, so this survives with the marks: a restart of the
//! daemon without any state, too.
//!
//! It is the last [`BYTES`] of the region, little-endian:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | `STNDFINF` |
//! | 8 | 2 | version, 1 |
//! | 10 | 2 | number of queues that the region has parts for |
//! | 12 | 2 | descriptors that each part has room for |
//! | 14 | 1 | what the class of the device notes there; 0 if it has noted nothing |
//!
//! The client's own word on the two numbers is not enough: QEMU hands back what it has asked for, and
//! not what it was given. The rest is zero. All of it is read once, when the region is handed in:
//! whatever it contains later is nobody's business but the next daemon's.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use crate::shared::Area;

/// Its size in bytes.
pub(crate) const BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"STNDFINF";
const VERSION: u16 = 1;
/// Places of 16 bits.
const VERSION_PLACE: usize = 4;
const QUEUES: usize = 5;
const QUEUE_SIZE: usize = 6;
/// Place of 8 bits.
const NOTE: usize = 14;

/// Which parts a region has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Number of queues.
    pub queues: u16,
    /// Descriptors of the largest queue that a part has room for.
    pub queue_size: u16,
}

/// The trailer is one of another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("inflight region: its trailer has version {version}, this daemon knows another one")]
pub(crate) struct UnknownVersion {
    version: u16,
}

/// The bytes of a fresh trailer.
pub(crate) fn fresh(layout: Layout, note: u8) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    for (place, value) in [
        (VERSION_PLACE, VERSION),
        (QUEUES, layout.queues),
        (QUEUE_SIZE, layout.queue_size),
    ] {
        bytes[2 * place..2 * place + 2].copy_from_slice(&value.to_le_bytes());
    }
    bytes[NOTE] = note;
    bytes
}

/// What the trailer in `area` says; none if it is none: the region was made by an older daemon.
///
/// # Errors
/// [`UnknownVersion`].
pub(crate) fn read(area: &Area) -> Result<Option<(Layout, u8)>, UnknownVersion> {
    let magic = area.cells::<AtomicU64>(0, 1)[0].load(Ordering::Acquire);
    if u64::from_le(magic) != u64::from_le_bytes(MAGIC) {
        return Ok(None);
    }
    let numbers = area.cells::<AtomicU16>(0, BYTES / 2);
    let number = |place: usize| u16::from_le(numbers[place].load(Ordering::Acquire));
    let version = number(VERSION_PLACE);
    if version != VERSION {
        return Err(UnknownVersion { version });
    }
    let layout = Layout {
        queues: number(QUEUES),
        queue_size: number(QUEUE_SIZE),
    };
    let note = area.cells::<AtomicU8>(NOTE, 1)[0].load(Ordering::Acquire);
    Ok(Some((layout, note)))
}

/// Records it for whoever reads the trailer next. Ours to write only, so nothing else is touched.
pub(crate) fn set_note(area: &Area, note: u8) {
    let byte = &area.cells::<AtomicU8>(NOTE, 1)[0];
    byte.store(note, Ordering::Release);
}
