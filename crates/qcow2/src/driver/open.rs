//! Opening: the header, what is refused and what helps, the L1 table, snapshots and bitmaps.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use block::{BlockError, Result};
use drivers::OpenError;

use super::base::Base;
use super::bitmaps::{self, Bitmaps};
use super::cache::L2Cache;
use super::cleaning;
use super::data_file;
use super::overlap::Metadata;
use super::prepare;
use super::refcounts::Refcounts;
use super::sector::Sector;
use super::snapshots::{self, Snapshots};
use super::state::State;
use super::tables::Tables;
use super::writer::Writer;
use crate::format::l1::{ENTRY_BYTES, L1Entry};
use crate::format::l2::EntryRules;
use crate::format::{CryptMethod, Header, HostOffset, features};

/// Bytes that are read before anything is known: the usual cluster.
const FIRST: u64 = 65536;
/// How much of a table is read at a time.
const PIECE: usize = 1 << 20;
/// What lengths of disks are multiples of, in bytes.
const SECTOR: u64 = 512;

type Opened<T> = std::result::Result<T, OpenError>;

/// Reads the header of the image in `base.file`, of one that can be opened.
///
/// # Errors
/// See [`super::Qcow2::open`].
pub async fn header(base: &Base) -> Opened<Header> {
    let (header, _) = read_header(base, base.file.length()).await?;
    header.compression_type().map_err(invalid)?;
    refuse(base, &header)?;
    Ok(header)
}

/// Reads what has to be known of the image in `base.file`.
///
/// # Errors
/// See [`super::Qcow2::open`].
pub async fn load(base: &Base) -> Opened<State> {
    let file_length = base.file.length();
    let (header, sector) = read_header(base, file_length).await?;
    let compression = header.compression_type().map_err(invalid)?;
    refuse(base, &header)?;
    data_file::check(base, &header)?;
    base.needs.check(&header).map_err(invalid)?;
    if !base.info.read_only {
        refuse_writing(&header)?;
    }
    let geometry = header.geometry;
    let length = header.size / SECTOR * SECTOR;
    let caches = base.caches.resolve(&geometry, length).map_err(invalid)?;
    let l1 = read_l1(base, &header, file_length).await?;
    let snapshots = read_snapshots(base, &header, file_length).await?;
    let bitmaps = read_bitmaps(base, &header, file_length).await?;
    let refcounts = read_refcounts(base, &header, file_length).await?;
    let mut tables = Tables::new(refcounts, sector, base.overlap);
    if !base.info.read_only {
        let mut others = snapshots.clusters(&header, file_length).map_err(corrupt)?;
        others.extend(bitmaps.clusters(&geometry, file_length).map_err(corrupt)?);
        let entries = l1.iter().map(|entry| L1Entry(*entry));
        let l2 = entries.filter(|entry| entry.0 != 0).map(L1Entry::offset);
        let inactive = match base.overlap.has(Metadata::InactiveL2) {
            true => snapshots.l2_tables(base).await.map_err(|error| {
                OpenError::new(
                    error.errno(),
                    format!("Could not read L1 tables of snapshots: {error}"),
                )
            })?,
            false => Vec::new(),
        };
        tables
            .learn_metadata(&header, l2, others, inactive)
            .map_err(corrupt)?;
    }
    let cache = Arc::new(L2Cache::new(caches));
    cleaning::watch(&cache, base.clean_interval);
    let l1: Arc<[AtomicU64]> = l1.into_iter().map(AtomicU64::new).collect();
    tables.set_l1(header.l1_offset, Arc::clone(&l1));
    let writer = Writer::new(
        tables,
        prepare::is_prepared(&header, &bitmaps) && !base.corruption.is_fatal(),
    );
    let known_length = Arc::new(AtomicU64::new(file_length));
    Ok(State {
        rules: EntryRules {
            geometry,
            version: header.version,
            external_data: header.features.has_external_data(),
        },
        compression,
        length,
        l1,
        cache,
        writer: Arc::new(writer),
        snapshots: Arc::new(snapshots),
        bitmaps: Arc::new(bitmaps),
        image: base.file.node().image(),
        raw_data: header.features.is_raw_external(),
        data_length: match header.features.has_external_data() {
            true => Arc::new(AtomicU64::new(u64::MAX)),
            false => Arc::clone(&known_length),
        },
        file_length: known_length,
        header,
    })
}

fn invalid(error: impl ToString) -> OpenError {
    OpenError::new(libc::EINVAL, error.to_string())
}

fn corrupt(what: String) -> OpenError {
    let text = format!(
        "The image is corrupt, and cannot be opened read/write: {what} (qemu-img check shows more)"
    );
    OpenError::new(libc::EACCES, text)
}

fn unreadable(table: &str, error: &BlockError) -> OpenError {
    OpenError::new(error.errno(), format!("Could not read {table}: {error}"))
}

async fn read_header(base: &Base, file_length: u64) -> Opened<(Header, Sector)> {
    let read = async |wanted: u64| {
        let bytes = wanted.min(file_length);
        // At most 2 MiB.
        let bytes = usize::try_from(bytes).unwrap_or(0);
        let read = base.read(HostOffset(0), bytes).await;
        read.map_err(|error| unreadable("qcow2 header", &error))
    };
    let mut start = read(FIRST).await?;
    let cluster = Header::first_cluster(&start).map_err(invalid)? as u64;
    if cluster > FIRST {
        start = read(cluster).await?;
    }
    let header = Header::parse(&start).map_err(invalid)?;
    header.check().map_err(invalid)?;
    Ok((header, Sector::of(&start)))
}

/// What must not be written, and what helps.
///
/// # Errors
/// EACCES.
pub fn refuse_writing(header: &Header) -> Opened<()> {
    if header.features.is_corrupt() {
        let text = "qcow2: Image is corrupt; cannot be opened read/write";
        let hint =
            "qemu-img check -r all repairs what can be; with read-only=on it can be read as it is";
        return Err(OpenError::new(libc::EACCES, text).hint(hint));
    }
    Ok(())
}

/// What cannot be done, by name, and how the image becomes one that can be opened.
fn refuse(base: &Base, header: &Header) -> Opened<()> {
    let refused = |text: String| Err(OpenError::new(libc::ENOTSUP, text));
    let unknown = header.features.unknown_incompatible();
    if unknown != 0 {
        let names: Vec<String> = features::bits(unknown)
            .map(|bit| match header.feature_name(bit) {
                Some(name) => name,
                None => format!("unknown incompatible feature bit {bit}"),
            })
            .collect();
        return refused(format!(
            "Unsupported qcow2 feature(s): {} (a newer program has made the image: convert it there, with qemu-img convert)",
            names.join(", ")
        ));
    }
    let method = match header.crypt_method {
        CryptMethod::None => None,
        CryptMethod::Aes => Some("AES"),
        CryptMethod::Luks => Some("LUKS"),
    };
    if let Some(method) = method {
        return refused(format!(
            "The image is encrypted ({method}), which is not supported: decrypt it with qemu-img convert"
        ));
    }
    let backing = header.backing_name.as_ref();
    if let Some(name) = backing.filter(|_| base.backing_unsaid) {
        return refused(format!(
            "The image has a backing file ('{}'): say which node that is with 'backing'",
            String::from_utf8_lossy(name)
        ));
    }
    Ok(())
}

/// Reads `bytes` at `offset` of the file, all of which has to be there.
async fn read_table(base: &Base, at: HostOffset, bytes: u64, file_length: u64) -> Result<Vec<u8>> {
    let inside =
        at.0.checked_add(bytes)
            .is_some_and(|end| end <= file_length);
    let length = usize::try_from(bytes).ok().filter(|_| inside);
    let Some(length) = length else {
        let text = format!("it ends beyond the end of the file ({file_length:#x})");
        return Err(BlockError::new(libc::EIO, text).at(&base.name, at.0, bytes));
    };
    let mut all = Vec::with_capacity(length);
    while all.len() < length {
        let piece = PIECE.min(length - all.len());
        let from = HostOffset(at.0 + all.len() as u64);
        all.extend_from_slice(&base.read(from, piece).await?);
    }
    Ok(all)
}

async fn read_l1(base: &Base, header: &Header, file_length: u64) -> Opened<Vec<u64>> {
    // The header has been checked: 32 MiB at most.
    let bytes = u64::from(header.l1_entries) * ENTRY_BYTES as u64;
    let table = read_table(base, header.l1_offset, bytes, file_length).await;
    let table = table.map_err(|error| unreadable("L1 table", &error))?;
    let entries = table.as_chunks::<ENTRY_BYTES>().0.iter();
    Ok(entries.map(|entry| u64::from_be_bytes(*entry)).collect())
}

/// The refcounts, of an image that is to be written.
async fn read_refcounts(base: &Base, header: &Header, file_length: u64) -> Opened<Refcounts> {
    let geometry = header.geometry;
    let at = header.refcount_table_offset;
    // The header has been checked: 8 MiB at most.
    let bytes = u64::from(header.refcount_table_clusters) * geometry.cluster_size();
    let table = match base.info.read_only {
        true => Vec::new(),
        false => {
            let table = read_table(base, at, bytes, file_length).await;
            table.map_err(|error| unreadable("refcount table", &error))?
        }
    };
    let blocks = base.caches.refcount_blocks(&geometry);
    let mut refcounts = Refcounts::new(geometry, at, &table, blocks);
    if base.file.limits().grows_zeroed {
        refcounts.set_untouched(geometry.clusters_for(file_length));
    }
    Ok(refcounts)
}

/// They are nothing to whoever reads the disk.
async fn read_snapshots(base: &Base, header: &Header, file_length: u64) -> Opened<Snapshots> {
    match snapshots::read(base, header, file_length).await {
        Ok(snapshots) => Ok(snapshots),
        Err(error) if base.info.read_only => {
            tracing::warn!(
                "node '{}': its snapshots cannot be read: {error}",
                base.name
            );
            Ok(Snapshots::default())
        }
        Err(error) => {
            let text = format!(
                "Could not read snapshots: {error}: set read-only=on, or put the disk into an image without them with \
                 qemu-img convert"
            );
            Err(OpenError::new(error.errno(), text))
        }
    }
}

/// The same of bitmaps; but whoever writes has to say that they do not follow.
async fn read_bitmaps(base: &Base, header: &Header, file_length: u64) -> Opened<Bitmaps> {
    let read = async {
        let Some(extension) = bitmaps::extension(header)? else {
            return Ok(Bitmaps::default());
        };
        // The header has been checked: the directory has a bounded length.
        let (at, bytes) = (extension.directory_offset, extension.directory_size);
        let directory = read_table(base, at, bytes, file_length).await;
        let directory = directory.map_err(|error| error.to_string())?;
        Bitmaps::parse(&extension, &directory)
    };
    match read.await {
        Ok(bitmaps) => Ok(bitmaps),
        Err::<_, String>(error) if base.info.read_only => {
            tracing::warn!("node '{}': its bitmaps cannot be read: {error}", base.name);
            Ok(Bitmaps::default())
        }
        Err(error) => {
            let text = format!(
                "Could not read bitmaps, which would have to be marked before the image is written: {error}: set \
                 read-only=on, or put the disk into an image without them with qemu-img convert"
            );
            Err(OpenError::new(libc::EINVAL, text))
        }
    }
}

/// What whoever opens the image is told.
pub fn warn(base: &Base, state: &State) {
    let bitmaps = state.bitmaps.becoming_inconsistent();
    if !base.info.read_only && !bitmaps.is_empty() {
        tracing::warn!(
            "node '{}': the first write makes bitmaps of the image inconsistent, which nothing follows here: {}: \
             incremental backups begin anew",
            base.name,
            bitmaps.join(", ")
        );
    }
}
