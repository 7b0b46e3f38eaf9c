//! What the bytes of a qcow2 image mean: numbers in, types out, and back.
//!
//! Everything an image says is foreign: nothing here trusts a length before it was checked, nothing
//! panics, and nothing allocates more than the bytes that it was given. What a value must not be is a
//! typed error that names it; whether an image may be *used* is said by whoever uses it.
//!
//! The specification is QEMU's `docs/interop/qcow2`. All numbers are big-endian.

pub mod bitmap;
pub(crate) mod bytes;
pub mod compressed;
mod entry_error;
pub mod extension;
pub mod features;
pub mod geometry;
pub mod header;
mod header_error;
pub mod l1;
pub mod l2;
pub mod refcount;
pub mod snapshot;

pub use bitmap::{BitmapEntry, BitmapTableEntry, BitmapsExtension};
pub use compressed::CompressedCluster;
pub use entry_error::EntryError;
pub use extension::{Extension, FeatureName};
pub use features::Features;
pub use geometry::{Geometry, GuestOffset, HostCluster, HostOffset};
pub use header::{CompressionType, CryptMethod, Header};
pub use header_error::{HeaderError, LENGTH_V3};
pub use l1::L1Entry;
pub use l2::{Cluster, L2Entry, SubclusterKind};
pub use refcount::RefcountTableEntry;
pub use snapshot::SnapshotEntry;

#[cfg(test)]
mod tests;
