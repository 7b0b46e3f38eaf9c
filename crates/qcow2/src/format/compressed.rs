//! Compressed clusters: where their data is.

use super::entry_error::EntryError;
use super::geometry::{Geometry, HOST_OFFSET_END, HostOffset, SECTOR};

/// Where the data of a compressed cluster is. It begins at any byte, and ends with a sector of 512 bytes, in
/// which other compressed data may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedCluster {
    /// The first byte.
    pub offset: HostOffset,
    /// Bytes up to the end of the last sector; what is beyond the compressed data is anything. At most two
    /// clusters.
    pub bytes: u64,
}

/// The width of the offset in a descriptor.
const fn offset_bits(geometry: &Geometry) -> u32 {
    62 - (geometry.cluster_bits() - 8)
}

impl CompressedCluster {
    /// Of the low 62 bits of an L2 entry.
    ///
    /// # Errors
    /// An offset that does not fit into 56 bits.
    pub fn decode(descriptor: u64, geometry: &Geometry) -> Result<Self, EntryError> {
        let width = offset_bits(geometry);
        let offset = descriptor & ((1 << width) - 1);
        if offset >= HOST_OFFSET_END {
            return Err(EntryError::Reserved(offset & !(HOST_OFFSET_END - 1)));
        }
        let more = descriptor >> width & ((1 << (62 - width)) - 1);
        Ok(Self {
            offset: HostOffset(offset),
            bytes: (more + 1) * SECTOR - offset % SECTOR,
        })
    }

    /// The low 62 bits of an L2 entry; none if the offset or the length has no room there.
    pub fn encode(&self, geometry: &Geometry) -> Option<u64> {
        let width = offset_bits(geometry);
        let (offset, end) = (self.offset.0, self.offset.0.checked_add(self.bytes)?);
        if self.bytes == 0 || offset >> width != 0 || offset >= HOST_OFFSET_END {
            return None;
        }
        let more = (end - 1) / SECTOR - offset / SECTOR;
        (more >> (62 - width) == 0).then_some(more << width | offset)
    }

    /// The byte behind the last one.
    pub const fn end(&self) -> u64 {
        // Below 2^56 + 2^22.
        self.offset.0 + self.bytes
    }
}
