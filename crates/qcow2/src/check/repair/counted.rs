//! What a repair goes by: what was counted, what is wanted, and why it was given up.

use std::io;

use crate::check::report::{Limits, Report};
use crate::check::usage::Usage;
use crate::check::walk::{Block, Walk};
use crate::format::refcount;
use crate::format::{Geometry, Header};
use crate::image::{Image, OpenError};
use crate::storage::WriteAt;

/// What is to be mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fix {
    /// Leaked clusters.
    Leaks,
    /// All that can be.
    All,
}

/// Why it was given up. What was done until then has done no harm.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The storage fails.
    #[error("cannot repair: {0}")]
    Storage(#[from] io::Error),
    /// A cluster has more references than its refcount can say.
    #[error(
        "cluster {cluster} has {counted} references, and refcounts have {bits} bits: convert the image"
    )]
    Width {
        /// The cluster.
        cluster: u64,
        /// Its references.
        counted: u64,
        /// The width of refcounts.
        bits: u32,
    },
    /// New refcounts would lie where something else is said to be.
    #[error(
        "refcounts have to be made anew, behind the end of the file, but other entries point there: copy the \
         image with qemu-img convert"
    )]
    NoPlace,
    /// There is no place where new refcounts could be.
    #[error("the refcount table would be too long: convert the image, with larger clusters")]
    Table,
}

/// What a check has counted, without the storage.
pub struct Counted {
    pub header: Header,
    /// Clusters of the file.
    pub clusters: u64,
    pub usage: Usage,
    pub l1: Vec<u64>,
    /// L2 tables of the disk.
    pub l2_tables: Vec<u64>,
    pub blocks: Vec<Block>,
    pub blocks_broken: bool,
    /// Something that is not there is said to be beyond the end of the file.
    pub beyond: bool,
    /// The cluster behind the last one that is used.
    pub used_end: u64,
    pub hidden: bool,
}

/// Checks an image, and keeps what was counted.
///
/// # Errors
/// If it cannot be opened.
pub fn count(storage: &dyn WriteAt, limits: &Limits) -> Result<(Report, Counted), RepairError> {
    let image = Image::open(storage)?;
    let Walk {
        usage,
        report,
        l2_tables,
        l1,
        blocks,
        blocks_broken,
        beyond,
        used_end,
        ..
    } = Walk::whole(&image, limits);
    let geometry = image.header.geometry;
    let clusters = geometry.clusters_for(image.length);
    let active = l2_tables.iter().filter(|(offset, leads)| {
        let end = geometry.clusters_for(offset.saturating_add(geometry.cluster_size()));
        leads.active > 0 && end <= clusters
    });
    let counted = Counted {
        clusters,
        usage,
        l1,
        l2_tables: active.map(|(offset, _)| *offset).collect(),
        blocks,
        blocks_broken,
        beyond,
        used_end,
        hidden: report.hidden,
        header: image.header,
    };
    Ok((report, counted))
}

impl Counted {
    pub const fn geometry(&self) -> Geometry {
        self.header.geometry
    }

    /// Whether there are refcounts that cannot be set where they are.
    pub fn needs_rebuild(&self) -> bool {
        let bits = self.geometry().refcount_block_bits();
        let has_block = |cluster: u64| {
            let index = cluster >> bits;
            let found = self
                .blocks
                .binary_search_by_key(&index, |block| block.index);
            found.is_ok()
        };
        self.blocks_broken
            || !self
                .usage
                .referenced()
                .all(|(cluster, _)| has_block(cluster))
    }
}

/// Sets a refcount of a block.
///
/// # Errors
/// If the width does not do.
pub fn put(
    block: &mut [u8],
    index: usize,
    counted: u64,
    cluster: u64,
    geometry: &Geometry,
) -> Result<(), RepairError> {
    match refcount::set(block, index, geometry.refcount_order(), counted) {
        true => Ok(()),
        false => Err(RepairError::Width {
            cluster,
            counted,
            bits: geometry.refcount_bits(),
        }),
    }
}
