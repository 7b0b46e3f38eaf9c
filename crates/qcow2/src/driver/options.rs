//! What the driver is opened with, and how much it may remember.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use block::{Node, NodeInfo};

use super::named::{BackingName, DataName};
use super::overlap::OverlapCheck;
use crate::format::{Geometry, Header};

/// Most bytes of L2 tables that are remembered unless somebody says otherwise, as QEMU has it.
const L2_CACHE_MAX: u64 = 32 << 20;
/// What is read of an L2 table at a time, unless somebody says otherwise. A table is as long as a cluster, and a random
/// read needs one entry.
const L2_SLICE: u64 = 4096;
/// The least part of a table.
const L2_SLICE_MIN: u64 = 512;

/// Most clusters of refcounts that are remembered.
const REFCOUNT_CLUSTERS_MAX: u64 = i32::MAX as u64;
/// After which time what nobody has looked for is forgotten unless somebody says otherwise, as QEMU has it on Linux.
const CACHE_CLEAN_INTERVAL: Duration = Duration::from_secs(600);

/// Options of [`super::Qcow2`]; [`Self::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct Qcow2Options {
    /// Name of the node, for messages.
    pub node_name: Arc<str>,
    /// The node with the image.
    pub file: Arc<Node>,
    /// What shows where the image has nothing.
    pub backing: Backing,
    /// What the header has said of it, if it is what that names: another one must not stand there when the node comes
    /// into use.
    pub named_backing: Option<BackingName>,
    /// The external data file, of an image that has one: there the guest's data are, and in `file` the tables alone.
    pub data_file: Option<Arc<Node>>,
    /// What the header has said of it, if it is what that names.
    pub named_data: Option<DataName>,
    /// How much it may remember.
    pub caches: CacheSizes,
    /// What nobody has looked for in so long a time is forgotten; zero: never.
    pub cache_clean_interval: Duration,
    /// Whether refcounts may be written late. None: as the image says.
    pub lazy_refcounts: Option<bool>,
    /// What the guest discards is discarded (`discard=unmap` of the node); if not, it is ignored.
    pub discard: bool,
    /// What becomes of clusters of the file that become free.
    pub discards: Discards,
    /// What is discarded or zeroed keeps its cluster, with a zero flag.
    pub discard_no_unref: bool,
    /// Which metadata writes to the file are compared with.
    pub overlap: OverlapCheck,
    /// A directory that outlives the process: there is recorded what has been acknowledged and is not flushed, so that it is not lost
    /// if the process is killed. In use by one process at a time. None: that is lost.
    pub redo_dir: Option<Arc<Path>>,
    /// It may be read-only although it was not to be.
    pub auto_read_only: bool,
    /// How the node is opened, as far as that is not the child's concern.
    pub info: NodeInfo,
}

impl Qcow2Options {
    /// The node `node_name` with the image in `file`, and the defaults of all else.
    pub fn new(node_name: impl Into<Arc<str>>, file: Arc<Node>) -> Self {
        Self {
            node_name: node_name.into(),
            file,
            backing: Backing::Unsaid,
            named_backing: None,
            data_file: None,
            named_data: None,
            caches: CacheSizes::default(),
            cache_clean_interval: CACHE_CLEAN_INTERVAL,
            lazy_refcounts: None,
            discard: false,
            discards: Discards::default(),
            discard_no_unref: false,
            overlap: OverlapCheck::default(),
            redo_dir: None,
            auto_read_only: false,
            info: NodeInfo::default(),
        }
    }

    /// What an image must be for them.
    pub(super) const fn needs(&self) -> Needs {
        Needs {
            lazy_refcounts: matches!(self.lazy_refcounts, Some(true)),
            discard_no_unref: self.discard_no_unref,
        }
    }
}

/// What is behind an image: what it has nothing of reads as that.
#[derive(Clone, Debug, Default)]
pub enum Backing {
    /// Nobody has said. An image whose header names a backing file is refused then: it would not be the disk that it is.
    #[default]
    Unsaid,
    /// Nothing, whatever the header says: zeroes.
    None,
    /// This node, whatever the header says, and zeroes behind its end. It is not written.
    Node(Arc<Node>),
}

/// Of what becomes free in the image, what is discarded in the file, too. QEMU's names: `pass-discard-...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discards {
    /// What the guest has discarded. By default as the node is opened (`discard=unmap`).
    pub request: bool,
    /// What a snapshot leaves.
    pub snapshot: bool,
    /// All else: what has been copied elsewhere, old tables.
    pub other: bool,
}

impl Default for Discards {
    fn default() -> Self {
        Self {
            request: false,
            snapshot: true,
            other: false,
        }
    }
}

/// Options that only version 3 of the format can keep.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    lazy_refcounts: bool,
    discard_no_unref: bool,
}

impl Needs {
    /// # Errors
    /// In QEMU's words: the image is too old for what is asked for.
    pub(super) fn check(self, header: &Header) -> Result<(), &'static str> {
        let old = header.version < 3;
        if old && self.lazy_refcounts {
            return Err(
                "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level",
            );
        }
        if old && self.discard_no_unref {
            return Err("discard-no-unref is only supported since qcow2 version 3");
        }
        Ok(())
    }
}

/// Sizes in bytes as they were asked for (QEMU's `cache-size` and the others).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheSizes {
    /// For L2 tables and refcounts together.
    pub all: Option<u64>,
    /// For L2 tables.
    pub l2: Option<u64>,
    /// For refcounts.
    pub refcounts: Option<u64>,
    /// What is read of an L2 table at a time.
    pub l2_entry: Option<u64>,
}

/// How much of the L2 tables is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct L2CacheSize {
    /// How many bytes are read at a time, a power of two.
    pub slice: usize,
    /// How many such slices there are, at least one.
    pub slices: usize,
}

/// Most bytes of refcount blocks that are remembered unless somebody says otherwise, if four blocks are not more: as QEMU has it.
const REFCOUNT_CACHE: u64 = 256 << 10;

impl CacheSizes {
    /// How many refcount blocks are remembered.
    pub(super) fn refcount_blocks(&self, geometry: &Geometry) -> usize {
        let rest = || Some(self.all?.saturating_sub(self.l2?));
        let bytes = self.refcounts.or_else(rest).unwrap_or(REFCOUNT_CACHE);
        usize::try_from(bytes / geometry.cluster_size())
            .unwrap_or(usize::MAX)
            .max(4)
    }

    /// What they mean for an image, in which a disk of `length` bytes is.
    ///
    /// # Errors
    /// Sizes that do not go together.
    pub(super) fn resolve(&self, geometry: &Geometry, length: u64) -> Result<L2CacheSize, String> {
        let cluster = geometry.cluster_size();
        let slice = self.l2_entry.unwrap_or_else(|| L2_SLICE.min(cluster));
        if !slice.is_power_of_two() || slice < L2_SLICE_MIN || slice > cluster {
            return Err(format!(
                "L2 cache entry size must be a power of two between {L2_SLICE_MIN} and the cluster size ({cluster})"
            ));
        }
        let refcounts = self.refcounts.unwrap_or(0);
        let l2 = match (self.all, self.l2) {
            (Some(_), Some(_)) if self.refcounts.is_some() => {
                return Err(
                    "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time"
                        .to_owned(),
                );
            }
            (Some(all), Some(l2)) if l2 > all => {
                return Err("l2-cache-size may not exceed cache-size".to_owned());
            }
            (Some(all), None) if refcounts > all => {
                return Err("refcount-cache-size may not exceed cache-size".to_owned());
            }
            (_, Some(l2)) => l2,
            (Some(all), None) => all - refcounts,
            (None, None) => L2_CACHE_MAX,
        };
        if refcounts / cluster > REFCOUNT_CLUSTERS_MAX {
            return Err("Refcount cache size too big".to_owned());
        }
        // All tables of the disk, and no more than that.
        let entry = geometry.l2_entry_bytes() as u64;
        let tables = length.div_ceil(cluster).saturating_mul(entry);
        let bytes = l2.min(tables.next_multiple_of(slice));
        let number = |bytes: u64| usize::try_from(bytes).map_err(|_| "L2 cache size too big");
        Ok(L2CacheSize {
            slice: number(slice)?,
            slices: number(bytes / slice)?.max(1),
        })
    }
}
