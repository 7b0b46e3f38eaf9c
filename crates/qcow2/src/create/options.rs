//! What an image is to be like, and what cannot be.

use drivers::file::Preallocation;

use super::error::CreateError;
use crate::format::geometry::{
    CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, CLUSTER_BITS_MIN_EXTENDED, REFCOUNT_ORDER_V2,
};
use crate::format::header::BACKING_NAME_MAX;
use crate::format::l1;
use crate::format::{CompressionType, Geometry};

/// What lengths of disks are multiples of, in bytes.
pub const SECTOR: u64 = 512;
/// The cluster of an image that asks for no other one, in bytes.
pub const CLUSTER_BYTES: u64 = 64 << 10;

/// The version of the format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// That of old programs (`compat=0.10`).
    V2,
    /// With feature bits (`compat=1.1`).
    #[default]
    V3,
}

/// What an image is to be like. The defaults are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Length of the disk in bytes.
    pub size: u64,
    /// Version of the format.
    pub version: Version,
    /// Bytes of a cluster: a power of two, 512 to 2 MiB.
    pub cluster_bytes: u64,
    /// Name of the backing file, as it is written into the header.
    pub backing_file: Option<Vec<u8>>,
    /// Its format.
    pub backing_format: Option<String>,
    /// Name of the external data file, as it is written into the header.
    pub data_file: Option<Vec<u8>>,
    /// That file is a raw image of its own at any time.
    pub data_file_raw: bool,
    /// L2 entries with subclusters.
    pub extended_l2: bool,
    /// How the room of the disk is made.
    pub preallocation: Preallocation,
    /// Refcounts may be written late.
    pub lazy_refcounts: bool,
    /// Bits of a refcount: a power of two, 64 at most.
    pub refcount_bits: u64,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
}

impl CreateOptions {
    /// A disk of `size` bytes.
    pub const fn new(size: u64) -> Self {
        Self {
            size,
            version: Version::V3,
            cluster_bytes: CLUSTER_BYTES,
            backing_file: None,
            backing_format: None,
            data_file: None,
            data_file_raw: false,
            extended_l2: false,
            preallocation: Preallocation::Off,
            lazy_refcounts: false,
            refcount_bits: 16,
            compression: CompressionType::Deflate,
        }
    }

    /// A disk of `size` bytes that shows what is in another image until something is written.
    pub fn overlay(size: u64, backing_file: &[u8], backing_format: &str) -> Self {
        Self {
            backing_file: Some(backing_file.to_vec()),
            backing_format: Some(backing_format.to_owned()),
            ..Self::new(size)
        }
    }

    /// What is preallocated: the tables of an image whose data file is to be right without them are complete.
    pub fn preallocation(&self) -> Preallocation {
        match self.preallocation {
            Preallocation::Off if self.data_file_raw => Preallocation::Metadata,
            mode => mode,
        }
    }

    /// The name of the backing file; an empty one is none.
    pub(super) fn backing_name(&self) -> Option<&[u8]> {
        let name = self.backing_file.as_deref();
        name.filter(|name| !name.is_empty())
    }

    /// Whether there can be such an image; how it is divided then.
    ///
    /// # Errors
    /// Options that contradict each other or the format.
    pub fn check(&self) -> Result<Geometry, CreateError> {
        let old = self.version == Version::V2;
        if !self.size.is_multiple_of(SECTOR) {
            return Err(CreateError::Size);
        }
        if self.extended_l2 && old {
            return Err(CreateError::ExtendedL2Version);
        }
        let cluster_bits = self.cluster_bits()?;
        if self.extended_l2 && cluster_bits < CLUSTER_BITS_MIN_EXTENDED {
            return Err(CreateError::ExtendedL2Cluster);
        }
        if self.backing_file.is_some()
            && self.preallocation != Preallocation::Off
            && !self.extended_l2
        {
            return Err(CreateError::BackingPreallocated);
        }
        if self.backing_format.is_some() && self.backing_file.is_none() {
            return Err(CreateError::FormatWithoutBacking);
        }
        if self.lazy_refcounts && old {
            return Err(CreateError::LazyRefcountsVersion);
        }
        let order = self.refcount_order()?;
        if old && order != REFCOUNT_ORDER_V2 {
            return Err(CreateError::RefcountBitsVersion);
        }
        if self.data_file_raw && self.data_file.is_none() {
            return Err(CreateError::RawWithoutDataFile);
        }
        if self.data_file_raw && self.backing_file.is_some() {
            return Err(CreateError::RawWithBacking);
        }
        if self.data_file.is_some() && old {
            return Err(CreateError::DataFileVersion);
        }
        if self.compression != CompressionType::Deflate && old {
            return Err(CreateError::CompressionVersion);
        }
        let geometry = Geometry::new(cluster_bits, order, self.extended_l2);
        let geometry = geometry.ok_or(CreateError::ClusterSize)?;
        self.check_size(&geometry)?;
        if self.backing_name().map_or(0, <[u8]>::len) > bounded(BACKING_NAME_MAX) {
            return Err(CreateError::BackingNameLong);
        }
        Ok(geometry)
    }

    fn cluster_bits(&self) -> Result<u32, CreateError> {
        let bits = self.cluster_bytes.trailing_zeros();
        let is_one = self.cluster_bytes.is_power_of_two()
            && (CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(&bits);
        is_one.then_some(bits).ok_or(CreateError::ClusterSize)
    }

    fn refcount_order(&self) -> Result<u32, CreateError> {
        let is_one = self.refcount_bits.is_power_of_two() && self.refcount_bits <= 64;
        let order = self.refcount_bits.trailing_zeros();
        is_one.then_some(order).ok_or(CreateError::RefcountBits)
    }

    fn check_size(&self, geometry: &Geometry) -> Result<(), CreateError> {
        if i64::try_from(self.size).is_err() {
            return Err(CreateError::Negative);
        }
        let most = l1::TABLE_BYTES_MAX / l1::ENTRY_BYTES as u64;
        if geometry.l1_entries_for(self.size) > most {
            return Err(CreateError::TooLarge {
                cluster_bytes: self.cluster_bytes,
                most: most.saturating_mul(geometry.l2_coverage()),
            });
        }
        Ok(())
    }
}

fn bounded(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
