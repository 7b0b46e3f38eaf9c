//! What entries of tables cannot say.

use super::geometry::{Geometry, HostOffset};

/// What cannot be in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Bits that must be 0.
    #[error("the reserved bits {0:#x} are set")]
    Reserved(u64),
    /// An offset that is not that of a cluster.
    #[error("offset {0} is not that of a cluster")]
    Unaligned(HostOffset),
    /// The zero flag in version 2, or in an extended entry.
    #[error("the zero flag is set, which this image cannot have")]
    ZeroFlag,
    /// A compressed cluster in an image with an external data file.
    #[error("a compressed cluster in an image with an external data file")]
    CompressedExternal,
    /// A compressed cluster that is marked as one that may be written where it is.
    #[error("a compressed cluster has the flag of one that may be written in place")]
    CompressedCopied,
    /// The subcluster bitmap of a compressed cluster.
    #[error("a compressed cluster has the subcluster bitmap {0:#x}")]
    CompressedBitmap(u64),
    /// Subclusters that are both allocated and zero.
    #[error("the subclusters {0:#x} are allocated and zero at once")]
    AllocatedAndZero(u32),
    /// Subclusters are allocated, and there is no cluster.
    #[error("the subclusters {0:#x} are allocated, and there is no cluster")]
    NoCluster(u32),
    /// In an image with an external data file a cluster is where the guest has it.
    #[error("offset {0} is not the one of the guest, as an external data file wants it")]
    NotInPlace(HostOffset),
    /// The flag of a cluster that may be written in place, and no cluster.
    #[error("there is no cluster, but the flag of one that may be written in place")]
    CopiedNothing,
}

/// The offset of an entry, or 0: whatever table it is of, what is `reserved` must be 0, and clusters begin
/// only where they do.
pub(super) const fn cluster_at(
    offset: HostOffset,
    reserved: u64,
    geometry: &Geometry,
) -> Result<HostOffset, EntryError> {
    if reserved != 0 {
        return Err(EntryError::Reserved(reserved));
    }
    match geometry.is_cluster_start(offset) {
        true => Ok(offset),
        false => Err(EntryError::Unaligned(offset)),
    }
}
