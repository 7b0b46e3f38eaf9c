//! Where everything is in a new image. Pure: from the options to the bytes of header and tables.
//!
//! ```text
//! header | refcount table | refcount blocks | L1 table | L2 tables | guest clusters
//! ```
//!
//! The last two are there if it is preallocated; with an external data file guest clusters are there, at the guest's
//! offsets. All is used from the first cluster to the last one, each once. QEMU's order is the same as long as
//! one refcount block counts all of it; what it makes larger later (L2 tables among guest clusters, blocks among
//! those) means the same.

use std::ops::Range;

use drivers::file::Preallocation;

use super::error::CreateError;
use super::options::{CreateOptions, SECTOR, Version};
use crate::format::bytes;
use crate::format::extension::{BACKING_FORMAT, DATA_FILE, Extension, FEATURE_NAMES};
use crate::format::features::{
    COMPRESSION_TYPE, EXTENDED_L2, EXTERNAL_DATA, Features, LAZY_REFCOUNTS, RAW_EXTERNAL,
};
use crate::format::geometry::HOST_OFFSET_END;
use crate::format::{
    Cluster, CompressionType, CryptMethod, Geometry, Header, HostOffset, L1Entry, L2Entry,
    RefcountTableEntry, l1, refcount,
};

/// Bytes that have to be left behind the header for QEMU to put the names of feature bits there.
const ROOM_FOR_NAMES: u64 = 4096;

/// QEMU's names of feature bits: field, bit, name.
const NAMES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];
/// Bytes of one of them.
const NAME_BYTES: usize = 48;

/// A new image. Runs are of clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    geometry: Geometry,
    header: Vec<u8>,
    refcount_table: Range<u64>,
    refcount_blocks: Range<u64>,
    l1: Range<u64>,
    l2: Range<u64>,
    data: Range<u64>,
    external_data: bool,
    /// Guest clusters that entries point to.
    mapped: u64,
    /// Bytes of the L1 table.
    l1_bytes: u64,
}

impl Layout {
    /// What `options` make.
    ///
    /// # Errors
    /// There can be no such image.
    pub fn new(options: &CreateOptions) -> Result<Self, CreateError> {
        let geometry = options.check()?;
        let too_large = CreateError::TooLargeToPreallocate {
            cluster_bytes: geometry.cluster_size(),
        };
        let external_data = options.data_file.is_some();
        let l1_entries = geometry.l1_entries_for(options.size);
        let l1_bytes = l1_entries * l1::ENTRY_BYTES as u64;
        let l1 = geometry.clusters_for(l1_bytes);
        let (l2, mapped) = match options.preallocation() {
            Preallocation::Off => (0, 0),
            _ => (l1_entries, geometry.clusters_for(options.size)),
        };
        let data = if external_data { 0 } else { mapped };
        let counted = 1 + l1 + l2 + data;
        let (table, blocks) = refcounts(&geometry, counted);
        let mut end = 1;
        let mut run = |clusters: u64| {
            let start = end;
            end += clusters;
            start..end
        };
        let mut this = Self {
            geometry,
            header: Vec::new(),
            refcount_table: run(table),
            refcount_blocks: run(blocks),
            l1: run(l1),
            l2: run(l2),
            data: run(data),
            external_data,
            mapped,
            l1_bytes,
        };
        let table_bytes = table * geometry.cluster_size();
        let reach = match external_data && mapped > 0 {
            true => this.end().max(options.size),
            false => this.end(),
        };
        if table_bytes > refcount::TABLE_BYTES_MAX || reach > HOST_OFFSET_END {
            return Err(too_large);
        }
        let header = this.header_of(options, l1_entries);
        this.header = header.encode().ok_or(CreateError::HeaderFull)?;
        Ok(this)
    }

    fn header_of(&self, options: &CreateOptions, l1_entries: u64) -> Header {
        let geometry = self.geometry;
        let is_new = options.version == Version::V3;
        let zstd = options.compression == CompressionType::Zstd;
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        let additional = match is_new {
            true => vec![u8::from(zstd), 0, 0, 0, 0, 0, 0, 0],
            false => Vec::new(),
        };
        let mut header = Header {
            version: if is_new { 3 } else { 2 },
            geometry,
            size: options.size,
            crypt_method: CryptMethod::None,
            // 4 Mi at most.
            l1_entries: u32::try_from(l1_entries).unwrap_or(u32::MAX),
            l1_offset: match l1_entries {
                0 => HostOffset(0),
                _ => self.offset_of(self.l1.start),
            },
            refcount_table_offset: self.offset_of(self.refcount_table.start),
            refcount_table_clusters: u32::try_from(length(&self.refcount_table))
                .unwrap_or(u32::MAX),
            snapshots: 0,
            snapshots_offset: HostOffset(0),
            backing_offset: HostOffset(0),
            backing_name: options.backing_name().map(<[u8]>::to_vec),
            features: Features {
                incompatible: bit(self.external_data, EXTERNAL_DATA)
                    | bit(zstd, COMPRESSION_TYPE)
                    | bit(options.extended_l2, EXTENDED_L2),
                compatible: bit(options.lazy_refcounts, LAZY_REFCOUNTS),
                autoclear: bit(options.data_file_raw, RAW_EXTERNAL),
            },
            additional,
            extensions: Vec::new(),
        };
        let extension = |kind, data: &[u8]| Extension {
            kind,
            data: data.to_vec(),
        };
        let format = options.backing_format.as_deref();
        if let Some(format) = format.filter(|_| header.backing_name.is_some()) {
            let format = extension(BACKING_FORMAT, format.as_bytes());
            header.extensions.push(format);
        }
        if let Some(name) = options.data_file.as_deref() {
            header.extensions.push(extension(DATA_FILE, name));
        }
        let room = geometry.cluster_size() - header.length() as u64;
        if is_new && room >= ROOM_FOR_NAMES {
            header
                .extensions
                .push(extension(FEATURE_NAMES, &feature_names()));
        }
        header
    }

    /// The bytes at the beginning of the file: the header, and zeroes up to the end of its cluster.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Bytes of a cluster.
    pub const fn cluster_bytes(&self) -> usize {
        self.geometry.cluster_bytes()
    }

    /// The clusters with tables.
    pub const fn tables(&self) -> Range<u64> {
        self.refcount_table.start..self.l2.end
    }

    /// The bytes of the file that are the guest's.
    pub const fn data(&self) -> Range<u64> {
        let cluster = self.geometry.cluster_size();
        self.data.start * cluster..self.data.end * cluster
    }

    /// Where the last cluster ends, in bytes.
    pub const fn end(&self) -> u64 {
        self.data.end.saturating_mul(self.geometry.cluster_size())
    }

    /// How long the file is to be at least, in bytes: what is behind the L1 table in its last cluster need not be there,
    /// as in QEMU's images.
    pub const fn length(&self) -> u64 {
        match self.l1.end == self.data.end {
            true => {
                let start = self.l1.start.saturating_mul(self.geometry.cluster_size());
                start + self.l1_bytes.next_multiple_of(SECTOR)
            }
            false => self.end(),
        }
    }

    const fn offset_of(&self, cluster: u64) -> HostOffset {
        // What this is called with lies inside the file, whose length was checked.
        HostOffset(cluster.saturating_mul(self.geometry.cluster_size()))
    }

    /// Fills `into`, which has the length of a cluster, with what is in `cluster`, which is one of
    /// [`Self::tables`].
    pub fn fill(&self, cluster: u64, into: &mut [u8]) {
        into.fill(0);
        let within = |run: &Range<u64>| run.contains(&cluster).then(|| cluster - run.start);
        if let Some(nth) = within(&self.refcount_table) {
            self.point(into, nth, &self.refcount_blocks, |at| {
                RefcountTableEntry::new(at).0
            });
        } else if let Some(nth) = within(&self.refcount_blocks) {
            self.count(into, nth);
        } else if let Some(nth) = within(&self.l1) {
            self.point(into, nth, &self.l2, |at| L1Entry::new(at, true).0);
        } else if let Some(nth) = within(&self.l2) {
            self.map(into, nth);
        }
    }

    /// Entries of the `nth` cluster of a table that points to all clusters of `run`.
    fn point(
        &self,
        into: &mut [u8],
        nth: u64,
        run: &Range<u64>,
        entry: impl Fn(HostOffset) -> u64,
    ) {
        let entries = into.len() / 8;
        let first = nth * entries as u64;
        for (index, to) in (run.start + first.min(length(run))..run.end)
            .take(entries)
            .enumerate()
        {
            bytes::put(into, index * 8, entry(self.offset_of(to)).to_be_bytes());
        }
    }

    /// The `nth` refcount block: all there is is used once.
    fn count(&self, into: &mut [u8], nth: u64) {
        let per_block = self.geometry.refcounts_per_block() as u64;
        let used = self.data.end.saturating_sub(nth * per_block).min(per_block);
        for index in 0..usize::try_from(used).unwrap_or(0) {
            refcount::set(into, index, self.geometry.refcount_order(), 1);
        }
    }

    /// The `nth` L2 table.
    fn map(&self, into: &mut [u8], nth: u64) {
        let geometry = &self.geometry;
        for index in 0..geometry.l2_entries() {
            let guest = nth * geometry.l2_entries() as u64 + index as u64;
            if guest >= self.mapped {
                return;
            }
            let host = match self.external_data {
                true => self.offset_of(guest),
                false => self.offset_of(self.data.start + guest),
            };
            let cluster = match geometry.extended_l2() {
                false => Cluster::Data { host, copied: true },
                // What is behind the image shows until a subcluster is written.
                true => Cluster::Subclusters {
                    host: Some(host),
                    copied: true,
                    allocated: 0,
                    zero: 0,
                },
            };
            if let Some(entry) = L2Entry::encode(&cluster, geometry) {
                entry.write(into, index, geometry);
            }
        }
    }
}

const fn length(run: &Range<u64>) -> u64 {
    run.end - run.start
}

/// Clusters of the refcount table, and refcount blocks, which count `clusters` others and themselves.
fn refcounts(geometry: &Geometry, clusters: u64) -> (u64, u64) {
    let (mut table, mut blocks) = (1, 1);
    loop {
        let all = clusters + table + blocks;
        let needed = geometry.refcount_blocks_for(all);
        let entries = needed.saturating_mul(refcount::ENTRY_BYTES as u64);
        let more = (geometry.clusters_for(entries).max(1), needed.max(1));
        if more == (table, blocks) {
            return more;
        }
        // They count themselves: it only grows, and by less each time.
        (table, blocks) = more;
    }
}

fn feature_names() -> Vec<u8> {
    let mut all = Vec::with_capacity(NAMES.len() * NAME_BYTES);
    for (number, (field, bit, name)) in (1..).zip(NAMES) {
        all.push(field);
        all.push(bit);
        all.extend(name.as_bytes());
        all.resize(number * NAME_BYTES, 0);
    }
    all
}
