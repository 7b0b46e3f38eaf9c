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
//! | 16 | 2 | how many bytes directly before the trailer are for a label; 0 in a region of an older daemon |
//!
//! A label is two bytes with its length, and as many bytes of the class's. It is written over with length 0 in
//! between, so that whoever reads it finds all of one or none.
//!
//! The client's own word on the two numbers is not enough: QEMU hands back what it has asked for, and
//! not what it was given. The rest is zero. All of it is read once, when the region is handed in:
//! whatever it contains later is nobody's business but the next daemon's.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use crate::shared::{Area, Cells};

/// Its size in bytes.
pub(crate) const BYTES: usize = 64;

/// Longest label, in bytes.
pub(crate) const LABEL_BYTES_MAX: usize = 1022;

/// Room for a label before a fresh trailer, in bytes.
pub(crate) const LABEL_BYTES: usize = LABEL_BYTES_MAX + 2;
const LABEL_ROOM_BYTES: u16 = 1024;
const _: () = assert!(LABEL_ROOM_BYTES as usize == LABEL_BYTES);

const MAGIC: [u8; 8] = *b"STNDFINF";
const VERSION: u16 = 1;
/// Places of 16 bits.
const VERSION_PLACE: usize = 4;
const QUEUES: usize = 5;
const QUEUE_SIZE: usize = 6;
const LABEL_ROOM: usize = 8;
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
        (LABEL_ROOM, LABEL_ROOM_BYTES),
    ] {
        bytes[2 * place..2 * place + 2].copy_from_slice(&value.to_le_bytes());
    }
    bytes[NOTE] = note;
    bytes
}

/// The bytes of a fresh label.
pub(crate) fn fresh_label(label: &[u8]) -> Vec<u8> {
    let label = if label.len() > LABEL_BYTES_MAX {
        &[]
    } else {
        label
    };
    let length = u16::try_from(label.len()).unwrap_or(0);
    [&length.to_le_bytes()[..], label].concat()
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

/// How many bytes before the trailer in `area` are for a label.
pub(crate) fn label_room(area: &Area) -> usize {
    let room = &area.cells::<AtomicU16>(0, BYTES / 2)[LABEL_ROOM];
    usize::from(u16::from_le(room.load(Ordering::Acquire)))
}

/// A place for a label.
#[derive(Debug)]
pub(crate) struct Label(Area, usize);

impl Label {
    /// `area` has so many bytes, of which two are for the length.
    pub(crate) fn new(area: Area, bytes: usize) -> Option<Self> {
        let is_one = bytes > 2 && area.is_aligned(align_of::<AtomicU16>());
        is_one.then_some(Self(area, bytes))
    }

    fn length(&self) -> Cells<AtomicU16> {
        self.0.cells::<AtomicU16>(0, 1)
    }

    fn text(&self, bytes: usize) -> Cells<AtomicU8> {
        self.0.cells::<AtomicU8>(2, bytes)
    }

    /// What it says; none if nothing does.
    pub(crate) fn read(&self) -> Option<Vec<u8>> {
        let length = u16::from_le(self.length()[0].load(Ordering::Acquire));
        let bytes = usize::from(length);
        if bytes == 0 || bytes > self.1 - 2 {
            return None;
        }
        let text = self.text(bytes);
        Some(
            text.iter()
                .map(|byte| byte.load(Ordering::Relaxed))
                .collect(),
        )
    }

    /// Says something else; nothing, if there is no room for it.
    pub(crate) fn write(&self, label: &[u8]) {
        let length = &self.length()[0];
        length.store(0, Ordering::SeqCst);
        if label.len() > self.1 - 2 {
            return;
        }
        for (to, from) in self.text(label.len()).iter().zip(label) {
            to.store(*from, Ordering::SeqCst);
        }
        let bytes = u16::try_from(label.len()).unwrap_or(0);
        length.store(bytes.to_le(), Ordering::SeqCst);
    }
}
