//! What an image is, as `qemu-img info` tells it.

use std::io;

use crate::format::{
    BitmapEntry, BitmapsExtension, CompressionType, CryptMethod, SnapshotEntry, extension, snapshot,
};
use crate::image::Image;
use crate::storage::read_table;

/// Why it cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    /// The storage fails.
    #[error("{0}")]
    Storage(#[from] io::Error),
    /// The snapshot table is broken.
    #[error("Could not read snapshots: entry {0} does not fit into its table or the file")]
    Snapshots(u32),
    /// The bitmap directory is broken.
    #[error("Could not read bitmaps: entry {0} of the directory is none")]
    Bitmaps(usize),
}

/// What an image is.
#[derive(Clone, Debug)]
pub struct Info {
    /// The length of the disk in bytes.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// 2 or 3.
    pub version: u32,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
    /// Refcounts are written late.
    pub lazy_refcounts: bool,
    /// The width of a refcount.
    pub refcount_bits: u32,
    /// It was not closed in order.
    pub dirty: bool,
    /// It is known to be corrupt.
    pub corrupt: bool,
    /// There are subclusters.
    pub extended_l2: bool,
    /// How it is encrypted.
    pub crypt_method: CryptMethod,
    /// The backing file's name.
    pub backing_name: Option<String>,
    /// The backing file's format.
    pub backing_format: Option<String>,
    /// The name of the external data file, if it has one.
    pub data_file: Option<String>,
    /// Whether that is raw; none: there is no such file.
    pub data_file_raw: Option<bool>,
    /// The internal snapshots.
    pub snapshots: Vec<SnapshotEntry>,
    /// The bitmaps, if they are consistent.
    pub bitmaps: Vec<BitmapEntry>,
}

/// Looks at an image.
///
/// # Errors
/// If the storage fails, or the table of snapshots or bitmaps is broken.
pub fn info(image: &Image<'_>) -> Result<Info, InfoError> {
    let header = &image.header;
    let features = &header.features;
    let external = features.has_external_data();
    Ok(Info {
        size: header.size,
        cluster_size: header.geometry.cluster_size(),
        version: header.version,
        compression: header
            .compression_type()
            .unwrap_or(CompressionType::Deflate),
        lazy_refcounts: features.has_lazy_refcounts(),
        refcount_bits: header.geometry.refcount_bits(),
        dirty: features.is_dirty(),
        corrupt: features.is_corrupt(),
        extended_l2: features.has_extended_l2(),
        crypt_method: header.crypt_method,
        backing_name: image.backing_name(),
        backing_format: image.backing_format(),
        data_file: image.text(extension::DATA_FILE).filter(|_| external),
        data_file_raw: external.then(|| features.is_raw_external()),
        snapshots: snapshots(image)?,
        bitmaps: bitmaps(image)?,
    })
}

fn snapshots(image: &Image<'_>) -> Result<Vec<SnapshotEntry>, InfoError> {
    let table = image.header.snapshots_offset.0;
    let mut all = Vec::new();
    let mut at = table;
    for number in 0..image.header.snapshots {
        let fixed = read_table(image.storage, at, snapshot::ENTRY_BYTES)?;
        let length = SnapshotEntry::length(&fixed).unwrap_or(0);
        let end = at.saturating_add(length);
        // What pads the last one may be missing.
        if end - table > snapshot::TABLE_BYTES_MAX || end > image.length.saturating_add(7) {
            return Err(InfoError::Snapshots(number));
        }
        let content = read_table(image.storage, at, usize::try_from(length).unwrap_or(0))?;
        let parsed = SnapshotEntry::parse(&content);
        let (entry, _) = parsed.map_err(|_| InfoError::Snapshots(number))?;
        all.push(entry);
        at = end;
    }
    Ok(all)
}

fn bitmaps(image: &Image<'_>) -> Result<Vec<BitmapEntry>, InfoError> {
    let extension = image.header.extension(extension::BITMAPS);
    let extension = extension.and_then(|data| BitmapsExtension::parse(data).ok());
    let Some(bitmaps) = extension.filter(|_| image.header.features.has_bitmaps()) else {
        return Ok(Vec::new());
    };
    let end = bitmaps
        .directory_offset
        .0
        .saturating_add(bitmaps.directory_size);
    if end > image.storage.length()? {
        return Err(InfoError::Bitmaps(0));
    }
    let bytes = usize::try_from(bitmaps.directory_size).unwrap_or(0);
    let directory = read_table(image.storage, bitmaps.directory_offset.0, bytes)?;
    let mut rest = directory.as_slice();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let parsed = BitmapEntry::parse(rest);
        let (entry, used) = parsed.map_err(|_| InfoError::Bitmaps(all.len()))?;
        all.push(entry);
        rest = rest.get(used..).unwrap_or_default();
    }
    Ok(all)
}
