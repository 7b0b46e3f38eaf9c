//! What images of a format say of themselves. Plain data, for queries.

/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatInfo {
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// It was not closed in order.
    pub dirty: bool,
    /// The backing file that the image names, whatever is used as such.
    pub backing_name: Option<String>,
    /// The format that the image says it has.
    pub backing_format: Option<String>,
    /// It is encrypted.
    pub encrypted: bool,
    /// What is remembered of the tables that say where data is.
    pub l2_cache: CacheUse,
    /// What is remembered of the counts of what is in use.
    pub refcount_cache: CacheUse,
    /// What only this format has: the only one there is.
    pub qcow2: Qcow2Info,
}

/// How much a cache has of what it may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUse {
    /// Bytes that it has room for.
    pub size: u64,
    /// Bytes that it has.
    pub used: u64,
    /// How often something was not there, and had to be read.
    pub misses: u64,
}

/// What only qcow2 has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Info {
    /// The version, as QEMU calls it: `0.10` or `1.1`.
    pub compat: &'static str,
    /// Refcounts may be written late. None, as the following: not in this version.
    pub lazy_refcounts: Option<bool>,
    /// It is marked as corrupt.
    pub corrupt: Option<bool>,
    /// It has subclusters.
    pub extended_l2: Option<bool>,
    /// The width of a refcount.
    pub refcount_bits: u32,
    /// How compressed clusters are compressed: `zlib`, `zstd`.
    pub compression_type: &'static str,
    /// The external data file that the image names, whatever is used as such.
    pub data_file: Option<String>,
    /// That one is an image of its own. None: there is no such file.
    pub data_file_raw: Option<bool>,
    /// Its internal snapshots.
    pub snapshots: Vec<Qcow2Snapshot>,
    /// Its persistent bitmaps.
    pub bitmaps: Vec<Qcow2Bitmap>,
}

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Snapshot {
    /// Its number, mostly.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// Bytes of VM state.
    pub vm_state_size: u64,
    /// When it was taken, in seconds since 1970.
    pub date_sec: u32,
    /// And nanoseconds.
    pub date_nsec: u32,
    /// How long the VM had run by then, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// The instruction count.
    pub icount: Option<u64>,
}

/// A persistent bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Bitmap {
    /// What it is called.
    pub name: String,
    /// Bytes that one bit stands for.
    pub granularity: u64,
    /// It was not saved in order.
    pub in_use: bool,
    /// It has to follow all writes.
    pub auto: bool,
}
