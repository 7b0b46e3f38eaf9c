//! How an image is divided: clusters, tables, subclusters. Offsets of the guest and of the file are types of
//! their own, so that they are not mixed.

use std::fmt;

/// Smallest `cluster_bits`: clusters of 512 bytes.
pub const CLUSTER_BITS_MIN: u32 = 9;
/// Greatest `cluster_bits` that anybody makes or opens: clusters of 2 MiB.
pub const CLUSTER_BITS_MAX: u32 = 21;
/// Smallest `cluster_bits` of an image with extended L2 entries: clusters of 16 KiB.
pub const CLUSTER_BITS_MIN_EXTENDED: u32 = 14;
/// Greatest `refcount_order`: refcounts of 64 bits.
pub const REFCOUNT_ORDER_MAX: u32 = 6;
/// The `refcount_order` of version 2: 16 bits.
pub const REFCOUNT_ORDER_V2: u32 = 4;
/// Offsets of what L1 and L2 entries point to lie below this.
pub const HOST_OFFSET_END: u64 = 1 << 56;
/// What compressed data is counted in, in bytes.
pub const SECTOR: u64 = 512;
/// Subclusters of a cluster with an extended entry.
pub const SUBCLUSTERS: u32 = 32;

/// A byte of the virtual disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestOffset(pub u64);

/// A byte of the image file (or of the external data file, where the entry is of such an image).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostOffset(pub u64);

/// The number of a cluster of the image file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostCluster(pub u64);

impl fmt::Display for GuestOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for HostOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for HostCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster {}", self.0)
    }
}

/// Where a guest offset is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index into the L1 table. It may be too great for any table.
    pub l1: u64,
    /// Index into the L2 table.
    pub l2: usize,
    /// Byte inside the cluster.
    pub within: u64,
}

/// How an image is divided. Made of numbers that were checked: shifts by them are sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    cluster_bits: u32,
    refcount_order: u32,
    extended_l2: bool,
}

impl Geometry {
    /// None if the numbers are not those of an image ([`CLUSTER_BITS_MIN`] and the others).
    pub const fn new(cluster_bits: u32, refcount_order: u32, extended_l2: bool) -> Option<Self> {
        let smallest = match extended_l2 {
            true => CLUSTER_BITS_MIN_EXTENDED,
            false => CLUSTER_BITS_MIN,
        };
        if cluster_bits < smallest
            || cluster_bits > CLUSTER_BITS_MAX
            || refcount_order > REFCOUNT_ORDER_MAX
        {
            return None;
        }
        Some(Self {
            cluster_bits,
            refcount_order,
            extended_l2,
        })
    }

    /// The size of a cluster as a power of two.
    pub const fn cluster_bits(&self) -> u32 {
        self.cluster_bits
    }

    /// Bytes of a cluster.
    pub const fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The same, for memory.
    pub const fn cluster_bytes(&self) -> usize {
        1 << self.cluster_bits
    }

    /// Whether L2 entries are extended.
    pub const fn extended_l2(&self) -> bool {
        self.extended_l2
    }

    /// Bytes of an L2 entry.
    pub const fn l2_entry_bytes(&self) -> usize {
        match self.extended_l2 {
            true => 16,
            false => 8,
        }
    }

    /// The number of L2 entries in a table, as a power of two.
    pub const fn l2_bits(&self) -> u32 {
        match self.extended_l2 {
            true => self.cluster_bits - 4,
            false => self.cluster_bits - 3,
        }
    }

    /// L2 entries in a table.
    pub const fn l2_entries(&self) -> usize {
        1 << self.l2_bits()
    }

    /// Guest bytes that one L2 table maps.
    pub const fn l2_coverage(&self) -> u64 {
        1 << (self.cluster_bits + self.l2_bits())
    }

    /// Subclusters of a cluster: 1 without extended entries.
    pub const fn subclusters(&self) -> u32 {
        match self.extended_l2 {
            true => SUBCLUSTERS,
            false => 1,
        }
    }

    /// Bytes of a subcluster.
    pub const fn subcluster_size(&self) -> u64 {
        self.cluster_size() / self.subclusters() as u64
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub const fn l1_entries_for(&self, size: u64) -> u64 {
        size.div_ceil(self.l2_coverage())
    }

    /// Where the entry of a guest offset is.
    pub fn place(&self, offset: GuestOffset) -> Place {
        let cluster = offset.0 >> self.cluster_bits;
        let l2 = cluster & (self.l2_entries() as u64 - 1);
        Place {
            l1: cluster >> self.l2_bits(),
            // At most 2^18.
            l2: usize::try_from(l2).unwrap_or(0),
            within: offset.0 & (self.cluster_size() - 1),
        }
    }

    /// The first guest byte that an entry maps; none if it is beyond the range of numbers.
    pub fn guest_offset(&self, l1: u64, l2: usize) -> Option<GuestOffset> {
        let table = l1.checked_mul(self.l2_coverage())?;
        let within = (l2 as u64).checked_mul(self.cluster_size())?;
        table.checked_add(within).map(GuestOffset)
    }

    /// Whether an offset of the file is that of a cluster.
    pub const fn is_cluster_start(&self, offset: HostOffset) -> bool {
        offset.0 & (self.cluster_size() - 1) == 0
    }

    /// The cluster that a byte of the file lies in.
    pub const fn cluster_of(&self, offset: HostOffset) -> HostCluster {
        HostCluster(offset.0 >> self.cluster_bits)
    }

    /// Where a cluster begins; none if that is beyond the range of numbers.
    pub fn start_of(&self, cluster: HostCluster) -> Option<HostOffset> {
        let offset = cluster.0.checked_mul(self.cluster_size())?;
        Some(HostOffset(offset))
    }

    /// Clusters that `bytes` take.
    pub const fn clusters_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }

    /// The width of a refcount as a power of two, in bits.
    pub const fn refcount_order(&self) -> u32 {
        self.refcount_order
    }

    /// The width of a refcount in bits.
    pub const fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }

    /// The greatest refcount that can be stored.
    pub const fn refcount_max(&self) -> u64 {
        u64::MAX >> (64 - self.refcount_bits())
    }

    /// Refcounts in a block, as a power of two.
    pub const fn refcount_block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.refcount_order
    }

    /// Refcounts in a block.
    pub const fn refcounts_per_block(&self) -> usize {
        1 << self.refcount_block_bits()
    }

    /// Where the refcount of a cluster is: the index into the refcount table, and the one into the block.
    pub fn refcount_place(&self, cluster: HostCluster) -> (u64, usize) {
        let within = cluster.0 & (self.refcounts_per_block() as u64 - 1);
        // At most 2^24.
        let within = usize::try_from(within).unwrap_or(0);
        (cluster.0 >> self.refcount_block_bits(), within)
    }

    /// Refcount table entries that a file of `clusters` needs.
    pub const fn refcount_blocks_for(&self, clusters: u64) -> u64 {
        clusters.div_ceil(self.refcounts_per_block() as u64)
    }
}
