//! Why there can be no such image, in QEMU's words where it has some.

use crate::format::geometry::{
    CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, CLUSTER_BITS_MIN_EXTENDED, REFCOUNT_ORDER_MAX,
};
use crate::format::header::BACKING_NAME_MAX;

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// The disk is no whole number of sectors.
    #[error("Image size must be a multiple of {} bytes", super::SECTOR)]
    Size,
    /// The disk ends beyond the range of numbers.
    #[error("Could not resize image: Image size cannot be negative")]
    Negative,
    /// The L1 table would be too long.
    #[error(
        "Could not resize image: The image size is too large: with clusters of {cluster_bytes} bytes it is {most} bytes at most"
    )]
    TooLarge {
        /// Bytes of a cluster.
        cluster_bytes: u64,
        /// How long such a disk can be, in bytes.
        most: u64,
    },
    /// All of the disk, preallocated, takes more refcounts than there can be.
    #[error(
        "The image is too large to be preallocated: with clusters of {cluster_bytes} bytes its refcounts would take too \
         much room (larger clusters take less)"
    )]
    TooLargeToPreallocate {
        /// Bytes of a cluster.
        cluster_bytes: u64,
    },
    /// There are no such clusters.
    #[error(
        "Cluster size must be a power of two between {} and {}k",
        1 << CLUSTER_BITS_MIN,
        1 << (CLUSTER_BITS_MAX - 10)
    )]
    ClusterSize,
    /// Subclusters need larger clusters.
    #[error(
        "Extended L2 entries are only supported with cluster sizes of at least {} bytes",
        1 << CLUSTER_BITS_MIN_EXTENDED
    )]
    ExtendedL2Cluster,
    /// Version 2 has no subclusters.
    #[error(
        "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)"
    )]
    ExtendedL2Version,
    /// What is preallocated hides the backing file.
    #[error(
        "Backing file and preallocation can only be used at the same time if extended_l2 is on"
    )]
    BackingPreallocated,
    /// The format of nothing.
    #[error("Backing format cannot be used without backing file")]
    FormatWithoutBacking,
    /// Version 2 has no dirty bit.
    #[error(
        "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)"
    )]
    LazyRefcountsVersion,
    /// There are no such refcounts.
    #[error(
        "Refcount width must be a power of two and may not exceed {} bits",
        1 << REFCOUNT_ORDER_MAX
    )]
    RefcountBits,
    /// Version 2 has refcounts of 16 bits.
    #[error(
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)"
    )]
    RefcountBitsVersion,
    /// No data file is to be raw.
    #[error("data-file-raw requires data-file")]
    RawWithoutDataFile,
    /// A raw data file has all of the disk.
    #[error("Backing file and data-file-raw cannot be used at the same time")]
    RawWithBacking,
    /// Version 2 has no data file.
    #[error(
        "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)"
    )]
    DataFileVersion,
    /// Version 2 knows deflate alone.
    #[error(
        "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)"
    )]
    CompressionVersion,
    /// The header has a limit for it.
    #[error(
        "The name of the backing file is too long: {BACKING_NAME_MAX} bytes at most (a name relative to the image is shorter)"
    )]
    BackingNameLong,
    /// What is in the header has to have room in one cluster.
    #[error(
        "The names of backing file and data file do not fit into the header, which has one cluster: use larger clusters"
    )]
    HeaderFull,
}

impl CreateError {
    /// The (positive) errno.
    pub const fn errno(self) -> i32 {
        match self {
            Self::TooLarge { .. } | Self::TooLargeToPreallocate { .. } => libc::EFBIG,
            Self::HeaderFull => libc::ENOSPC,
            _ => libc::EINVAL,
        }
    }
}
