//! Entries of L2 tables: standard ones, and extended ones with subclusters.

use super::bytes;
use super::compressed::CompressedCluster;
use super::entry_error::EntryError;
use super::geometry::{Geometry, HostOffset, SUBCLUSTERS};
use super::l1::{COPIED, OFFSET_MASK};

/// The cluster is compressed.
pub const COMPRESSED: u64 = 1 << 62;
/// Of a standard entry: the cluster reads as zeroes.
pub const ZERO: u64 = 1;
const RESERVED: u64 = !(OFFSET_MASK | COPIED | COMPRESSED | ZERO);
const DESCRIPTOR: u64 = COMPRESSED - 1;

/// An L2 entry, as it is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2Entry {
    /// The first (or only) 64 bits.
    pub descriptor: u64,
    /// The subcluster bitmap of an extended entry; 0 in a standard one.
    pub bitmap: u64,
}

/// What an L2 entry says of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// What is behind the image shows: without a backing file zeroes.
    Unallocated,
    /// Reads as zeroes.
    Zero {
        /// A cluster that is kept for it; what is in there is not to be read.
        preallocated: Option<HostOffset>,
        /// That cluster may be written in place.
        copied: bool,
    },
    /// Is stored as it is.
    Data {
        /// Where.
        host: HostOffset,
        /// It may be written in place.
        copied: bool,
    },
    /// Is stored compressed.
    Compressed(CompressedCluster),
    /// Each subcluster is something on its own. Only of extended entries, for which it takes the place of all of the above
    /// but compressed ones.
    Subclusters {
        /// The cluster in which allocated ones are.
        host: Option<HostOffset>,
        /// It may be written in place.
        copied: bool,
        /// One bit for each that is stored.
        allocated: u32,
        /// One bit for each that reads as zeroes.
        zero: u32,
    },
}

/// What one subcluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubclusterKind {
    /// What is behind the image shows.
    Unallocated,
    /// Reads as zeroes.
    Zero,
    /// Is stored.
    Data,
}

/// What an entry may say depends on these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRules {
    /// How the image is divided.
    pub geometry: Geometry,
    /// Version 2 has no zero flag.
    pub version: u32,
    /// Guest clusters are in another file, at the guest's offsets.
    pub external_data: bool,
}

impl L2Entry {
    /// Entry `index` of the bytes of a table; none beyond its end.
    pub fn read(table: &[u8], index: usize, geometry: &Geometry) -> Option<Self> {
        let at = index.checked_mul(geometry.l2_entry_bytes())?;
        let bitmap = match geometry.extended_l2() {
            true => bytes::be64(table, at.checked_add(8)?)?,
            false => 0,
        };
        Some(Self {
            descriptor: bytes::be64(table, at)?,
            bitmap,
        })
    }

    /// Puts it at `index` of the bytes of a table; false if that is beyond its end.
    pub fn write(&self, table: &mut [u8], index: usize, geometry: &Geometry) -> bool {
        let Some(at) = index.checked_mul(geometry.l2_entry_bytes()) else {
            return false;
        };
        let bitmap = match geometry.extended_l2() {
            true => bytes::put(table, at.saturating_add(8), self.bitmap.to_be_bytes()),
            false => true,
        };
        bitmap && bytes::put(table, at, self.descriptor.to_be_bytes())
    }

    /// What it says.
    ///
    /// # Errors
    /// What cannot be in an entry. A rule about the *guest's* offset, which only images with an external data
    /// file have, is not looked at ([`EntryError::NotInPlace`] is the caller's to say).
    pub fn decode(&self, rules: &EntryRules) -> Result<Cluster, EntryError> {
        let geometry = &rules.geometry;
        let copied = self.descriptor & COPIED != 0;
        if self.descriptor & COMPRESSED != 0 {
            if rules.external_data {
                return Err(EntryError::CompressedExternal);
            }
            if copied {
                return Err(EntryError::CompressedCopied);
            }
            if self.bitmap != 0 {
                return Err(EntryError::CompressedBitmap(self.bitmap));
            }
            let data = CompressedCluster::decode(self.descriptor & DESCRIPTOR, geometry)?;
            return Ok(Cluster::Compressed(data));
        }
        if self.descriptor & RESERVED != 0 {
            return Err(EntryError::Reserved(self.descriptor & RESERVED));
        }
        let zero = self.descriptor & ZERO != 0;
        if zero && (rules.version < 3 || geometry.extended_l2()) {
            return Err(EntryError::ZeroFlag);
        }
        let offset = HostOffset(self.descriptor & OFFSET_MASK);
        if !geometry.is_cluster_start(offset) {
            return Err(EntryError::Unaligned(offset));
        }
        // Offset 0 is a place in an external data file alone, and there the flag tells it from none.
        let host = match offset.0 != 0 || (rules.external_data && copied) {
            true => Some(offset),
            false => None,
        };
        if copied && host.is_none() {
            return Err(EntryError::CopiedNothing);
        }
        if geometry.extended_l2() {
            let (allocated, zero) = halves(self.bitmap);
            if allocated & zero != 0 {
                return Err(EntryError::AllocatedAndZero(allocated & zero));
            }
            if allocated != 0 && host.is_none() {
                return Err(EntryError::NoCluster(allocated));
            }
            return Ok(Cluster::Subclusters {
                host,
                copied,
                allocated,
                zero,
            });
        }
        Ok(match (zero, host) {
            (true, preallocated) => Cluster::Zero {
                preallocated,
                copied,
            },
            (false, Some(host)) => Cluster::Data { host, copied },
            (false, None) => Cluster::Unallocated,
        })
    }

    /// The entry that says this; none if there is none such with this geometry (a compressed cluster that has no
    /// room in a descriptor, subclusters in a standard entry and the other way round, an offset that does not fit).
    pub fn encode(cluster: &Cluster, geometry: &Geometry) -> Option<Self> {
        let flags = |copied: bool| if copied { COPIED } else { 0 };
        let place = |host: HostOffset| {
            let fits = geometry.is_cluster_start(host) && host.0 & !OFFSET_MASK == 0;
            fits.then_some(host.0)
        };
        let standard = !geometry.extended_l2();
        let plain = |descriptor| {
            Some(Self {
                descriptor,
                bitmap: 0,
            })
        };
        match *cluster {
            Cluster::Unallocated if standard => plain(0),
            Cluster::Zero {
                preallocated,
                copied,
            } if standard => {
                let host = place(preallocated.unwrap_or_default())?;
                plain(host | ZERO | flags(copied))
            }
            Cluster::Data { host, copied } if standard => plain(place(host)? | flags(copied)),
            Cluster::Compressed(data) => plain(data.encode(geometry)? | COMPRESSED),
            Cluster::Subclusters {
                host,
                copied,
                allocated,
                zero,
            } if !standard => Some(Self {
                descriptor: place(host.unwrap_or_default())? | flags(copied),
                bitmap: u64::from(zero) << SUBCLUSTERS | u64::from(allocated),
            }),
            _ => None,
        }
    }

    /// The offset of a cluster that is not compressed, as it is, without any check.
    pub const fn offset(&self) -> HostOffset {
        HostOffset(self.descriptor & OFFSET_MASK)
    }

    /// Whether its cluster is compressed.
    pub const fn is_compressed(&self) -> bool {
        self.descriptor & COMPRESSED != 0
    }

    /// Whether it has the flag of a cluster that may be written in place.
    pub const fn is_copied(&self) -> bool {
        self.descriptor & COPIED != 0
    }
}

/// The halves of a subcluster bitmap: what is allocated, and what reads as zeroes.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the halves are what is wanted"
)]
const fn halves(bitmap: u64) -> (u32, u32) {
    (bitmap as u32, (bitmap >> SUBCLUSTERS) as u32)
}

/// What subcluster `index` is, by the two bitmaps.
pub const fn subcluster(allocated: u32, zero: u32, index: u32) -> SubclusterKind {
    let bit = 1 << (index % SUBCLUSTERS);
    if zero & bit != 0 {
        SubclusterKind::Zero
    } else if allocated & bit != 0 {
        SubclusterKind::Data
    } else {
        SubclusterKind::Unallocated
    }
}

/// How many subclusters from `index` on are the same: 1 at least.
pub const fn subclusters_alike(allocated: u32, zero: u32, index: u32) -> u32 {
    let index = index % SUBCLUSTERS;
    let run = min(run(allocated, index), run(zero, index));
    min(run, SUBCLUSTERS - index)
}

const fn run(field: u32, from: u32) -> u32 {
    let rest = field >> from;
    match rest & 1 {
        0 => rest.trailing_zeros(),
        _ => rest.trailing_ones(),
    }
}

const fn min(one: u32, other: u32) -> u32 {
    if one < other { one } else { other }
}
