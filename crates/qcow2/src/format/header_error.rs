//! Why something is no header.

use super::geometry::{
    CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, CLUSTER_BITS_MIN_EXTENDED, HostOffset, REFCOUNT_ORDER_MAX,
};

/// Least length of the header of version 3 in bytes.
pub const LENGTH_V3: usize = 104;

/// Why something is no header, or none that may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The magic number is another one.
    #[error("Image is not in qcow2 format")]
    NotQcow2,
    /// There are fewer bytes than a header has.
    #[error("the image ends inside its header: it has been cut off, or was never finished")]
    Short,
    /// A version that there is not.
    #[error("Unsupported qcow2 version {0}")]
    Version(u32),
    /// Clusters that are too small or too large.
    #[error(
        "cluster_bits {0}: clusters are 2^{CLUSTER_BITS_MIN} to 2^{CLUSTER_BITS_MAX} bytes long"
    )]
    ClusterBits(u32),
    /// Clusters too small for extended L2 entries.
    #[error(
        "cluster_bits {0} with extended L2 entries, which need 2^{CLUSTER_BITS_MIN_EXTENDED} bytes at least"
    )]
    ClusterBitsExtended(u32),
    /// Refcounts of more than 64 bits.
    #[error("refcount_order {0}: refcounts have 2^{REFCOUNT_ORDER_MAX} bits at most")]
    RefcountOrder(u32),
    /// A header length that no header has.
    #[error(
        "header_length {0}: it is a multiple of 8, {LENGTH_V3} at least, and inside the first cluster"
    )]
    Length(u32),
    /// A way of encryption that there is not.
    #[error("crypt_method {0} is not known")]
    CryptMethod(u32),
    /// A way of compression that there is not.
    #[error("compression_type {0} is not known")]
    CompressionType(u8),
    /// The compression type, and its feature bit.
    #[error(
        "compression_type {value} and incompatible feature bit 3 {bit}, of which one contradicts the other",
        bit = if *.bit { "set" } else { "not set" }
    )]
    CompressionBit {
        /// The field.
        value: u8,
        /// Whether the bit is set.
        bit: bool,
    },
    /// An extension that does not end.
    #[error("header extension {kind:#010x} reaches beyond the header's cluster")]
    ExtensionTooLong {
        /// Its type.
        kind: u32,
    },
    /// An extension that is there twice.
    #[error("header extension {kind:#010x} is there more than once")]
    ExtensionTwice {
        /// Its type.
        kind: u32,
    },
    /// The name of the backing file is too long, or does not lie in the first cluster.
    #[error("the name of the backing file, {bytes} bytes at {offset}, is not in the first cluster")]
    BackingName {
        /// Where.
        offset: HostOffset,
        /// How long.
        bytes: u32,
    },
    /// A table that begins between two clusters.
    #[error("{table} at {offset}: that is not the beginning of a cluster")]
    Unaligned {
        /// Which table.
        table: &'static str,
        /// Where.
        offset: HostOffset,
    },
    /// A table that nobody would make so long.
    #[error("{table} of {bytes} bytes: more than {max}")]
    TooLong {
        /// Which table.
        table: &'static str,
        /// How long it says it is.
        bytes: u64,
        /// How long it may be.
        max: u64,
    },
    /// A table that would lie in the header, or end beyond the range of numbers.
    #[error("{table} at {offset}, {bytes} bytes: it cannot be there")]
    Misplaced {
        /// Which table.
        table: &'static str,
        /// Where.
        offset: HostOffset,
        /// How long it says it is.
        bytes: u64,
    },
    /// An L1 table that is too short for the disk.
    #[error("an L1 table of {entries} entries for a disk of {size} bytes, which needs {needed}")]
    L1Short {
        /// How many it has.
        entries: u32,
        /// How many it needs.
        needed: u64,
        /// The length of the disk.
        size: u64,
    },
    /// A disk that ends beyond the range of numbers.
    #[error("a disk of {0} bytes")]
    Size(u64),
    /// Two things that exclude each other.
    #[error("{one} together with {other}")]
    Contradiction {
        /// The one.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// An extension or a field that has to be there, or has to have another content.
    #[error("{0}")]
    Missing(&'static str),
}
