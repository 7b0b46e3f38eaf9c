//! Refcounts: entries of the refcount table, and the numbers in a refcount block.

use super::bytes;
use super::entry_error::{EntryError, cluster_at};
use super::geometry::{Geometry, HOST_OFFSET_END, HostOffset};

/// Bits 9 to 63 of an entry: an offset.
pub const OFFSET_MASK: u64 = !0x1ff;

/// Bytes of an entry of the refcount table.
pub const ENTRY_BYTES: usize = 8;
/// Longest refcount table in bytes that is opened: 8 MiB, as QEMU has it.
pub const TABLE_BYTES_MAX: u64 = 8 << 20;

/// Longest file in bytes all clusters of which can be counted and pointed to.
pub const fn bytes_max(geometry: &Geometry) -> u64 {
    let blocks = TABLE_BYTES_MAX / ENTRY_BYTES as u64;
    let each = (geometry.refcounts_per_block() as u64).saturating_mul(geometry.cluster_size());
    let all = blocks.saturating_mul(each);
    if all < HOST_OFFSET_END {
        all
    } else {
        HOST_OFFSET_END
    }
}

/// An entry of the refcount table, as it is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefcountTableEntry(pub u64);

impl RefcountTableEntry {
    /// One that points to a block.
    pub const fn new(block: HostOffset) -> Self {
        Self(block.0 & OFFSET_MASK)
    }

    /// Where the block is; none: all its refcounts are 0.
    ///
    /// # Errors
    /// Reserved bits, and an offset that is not that of a cluster.
    pub fn block(self, geometry: &Geometry) -> Result<Option<HostOffset>, EntryError> {
        let offset = cluster_at(self.offset(), self.reserved(), geometry)?;
        Ok((offset.0 != 0).then_some(offset))
    }

    /// The offset as it is, without any check.
    pub const fn offset(self) -> HostOffset {
        HostOffset(self.0 & OFFSET_MASK)
    }

    /// Bits that must be 0 and are not.
    pub const fn reserved(self) -> u64 {
        self.0 & !OFFSET_MASK
    }
}

/// The refcount at `index` of the bytes of a block; none beyond its end. `order` is at most 6.
pub fn get(block: &[u8], index: usize, order: u32) -> Option<u64> {
    match order {
        0..3 => {
            let (at, shift, mask) = inside_a_byte(index, order);
            block.get(at).map(|byte| u64::from(byte >> shift & mask))
        }
        3 => block.get(index).copied().map(u64::from),
        4 => bytes::be16(block, index.checked_mul(2)?).map(u64::from),
        5 => bytes::be32(block, index.checked_mul(4)?).map(u64::from),
        _ => bytes::be64(block, index.checked_mul(8)?),
    }
}

/// Puts a refcount at `index` of the bytes of a block. False, and nothing is changed, beyond its end and if
/// the number does not fit.
pub fn set(block: &mut [u8], index: usize, order: u32, refcount: u64) -> bool {
    match order {
        0..3 => {
            let (at, shift, mask) = inside_a_byte(index, order);
            let (Ok(value), Some(byte)) = (u8::try_from(refcount), block.get_mut(at)) else {
                return false;
            };
            if value > mask {
                return false;
            }
            *byte = *byte & !(mask << shift) | value << shift;
            true
        }
        3 => whole(block, index, u8::try_from(refcount).map(u8::to_be_bytes)),
        4 => whole(block, index, u16::try_from(refcount).map(u16::to_be_bytes)),
        5 => whole(block, index, u32::try_from(refcount).map(u32::to_be_bytes)),
        _ => bytes::put(block, index.saturating_mul(8), refcount.to_be_bytes()),
    }
}

fn whole<const N: usize, E>(block: &mut [u8], index: usize, value: Result<[u8; N], E>) -> bool {
    value.is_ok_and(|value| bytes::put(block, index.saturating_mul(N), value))
}

/// Which byte, how far from its least significant bit, and what a refcount covers there.
const fn inside_a_byte(index: usize, order: u32) -> (usize, usize, u8) {
    let in_a_byte = 8 >> order;
    let shift = (index % in_a_byte) << order;
    let mask = 0xff >> (8 - (1 << order));
    (index / in_a_byte, shift, mask)
}
