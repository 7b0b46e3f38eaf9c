//! The header of an image.
//!
//! Reading it has two steps, because a tool may look at what a daemon must not use: [`Header::parse`] takes
//! whatever can be understood, and [`Header::check`] says which of the specification's rules it breaks.

use super::bytes;
use super::extension::{self, Extension};
use super::features::{self, Features};
use super::geometry::{
    CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, Geometry, HostOffset, REFCOUNT_ORDER_MAX, REFCOUNT_ORDER_V2,
};
use super::header_error::{HeaderError, LENGTH_V3};
use super::{bitmap, l1, refcount, snapshot};

/// The first four bytes of each image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Length of the header of version 2 in bytes.
pub const LENGTH_V2: usize = 72;
/// Longest name of a backing file in bytes.
pub const BACKING_NAME_MAX: u32 = 1023;

/// How the image's data is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CryptMethod {
    /// Not at all.
    None,
    /// AES in CBC mode, the old way.
    Aes,
    /// LUKS.
    Luks,
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionType {
    /// Deflate, without a header of zlib's (QEMU's word is `zlib`).
    Deflate,
    /// zstd.
    Zstd,
}

impl CompressionType {
    /// QEMU's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deflate => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// A header, and what follows it in the first cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// How the image is divided.
    pub geometry: Geometry,
    /// The length of the disk in bytes.
    pub size: u64,
    /// How it is encrypted.
    pub crypt_method: CryptMethod,
    /// Entries of the active L1 table.
    pub l1_entries: u32,
    /// Where that begins.
    pub l1_offset: HostOffset,
    /// Where the refcount table begins.
    pub refcount_table_offset: HostOffset,
    /// How many clusters that has.
    pub refcount_table_clusters: u32,
    /// How many internal snapshots there are.
    pub snapshots: u32,
    /// Where their table begins.
    pub snapshots_offset: HostOffset,
    /// Where the name of the backing file is; 0: there is none.
    pub backing_offset: HostOffset,
    /// The name of the backing file.
    pub backing_name: Option<Vec<u8>>,
    /// Feature bits.
    pub features: Features,
    /// What the header has behind its first 104 bytes, kept as it is.
    pub additional: Vec<u8>,
    /// The extensions, in their order.
    pub extensions: Vec<Extension>,
}

impl Header {
    /// How many bytes [`Self::parse`] wants to have from the beginning of the file: the first cluster. Asks for 24 bytes.
    ///
    /// # Errors
    /// It is no qcow2 image, or has clusters that it cannot have.
    pub fn first_cluster(start: &[u8]) -> Result<usize, HeaderError> {
        if start.get(..4) != Some(&MAGIC) {
            return Err(HeaderError::NotQcow2);
        }
        match field32(start, 4)? {
            2 | 3 => {}
            version => return Err(HeaderError::Version(version)),
        }
        let bits = field32(start, 20)?;
        match bits {
            CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX => Ok(1 << bits),
            _ => Err(HeaderError::ClusterBits(bits)),
        }
    }

    /// Of the first cluster of the file, or as much of it as there is.
    ///
    /// # Errors
    /// What makes the rest meaningless.
    pub fn parse(cluster: &[u8]) -> Result<Self, HeaderError> {
        let cluster_bytes = Self::first_cluster(cluster)?;
        let cluster = cluster.get(..cluster_bytes).unwrap_or(cluster);
        let version = field32(cluster, 4)?;
        let (features, refcount_order, length) = match version {
            2 => (Features::default(), REFCOUNT_ORDER_V2, LENGTH_V2),
            _ => {
                let features = Features {
                    incompatible: field64(cluster, 72)?,
                    compatible: field64(cluster, 80)?,
                    autoclear: field64(cluster, 88)?,
                };
                let length = field32(cluster, 100)?;
                let fits = usize::try_from(length).ok().filter(|length| {
                    (LENGTH_V3..=cluster_bytes).contains(length) && length % 8 == 0
                });
                let length = fits.ok_or(HeaderError::Length(length))?;
                (features, field32(cluster, 96)?, length)
            }
        };
        if refcount_order > REFCOUNT_ORDER_MAX {
            return Err(HeaderError::RefcountOrder(refcount_order));
        }
        let bits = field32(cluster, 20)?;
        let geometry = Geometry::new(bits, refcount_order, features.has_extended_l2())
            .ok_or(HeaderError::ClusterBitsExtended(bits))?;
        let additional = match version {
            2 => Vec::new(),
            _ => cluster
                .get(LENGTH_V3..length)
                .ok_or(HeaderError::Short)?
                .to_vec(),
        };
        let backing_offset = HostOffset(field64(cluster, 8)?);
        let backing_name = backing_name(cluster, backing_offset, field32(cluster, 16)?)?;
        let area_end = match usize::try_from(backing_offset.0) {
            Ok(at) if at > length && backing_name.is_some() => at,
            _ => cluster.len(),
        };
        let area = cluster.get(length..area_end).ok_or(HeaderError::Short)?;
        Ok(Self {
            version,
            geometry,
            size: field64(cluster, 24)?,
            crypt_method: match field32(cluster, 32)? {
                0 => CryptMethod::None,
                1 => CryptMethod::Aes,
                2 => CryptMethod::Luks,
                other => return Err(HeaderError::CryptMethod(other)),
            },
            l1_entries: field32(cluster, 36)?,
            l1_offset: HostOffset(field64(cluster, 40)?),
            refcount_table_offset: HostOffset(field64(cluster, 48)?),
            refcount_table_clusters: field32(cluster, 56)?,
            snapshots: field32(cluster, 60)?,
            snapshots_offset: HostOffset(field64(cluster, 64)?),
            backing_offset,
            backing_name,
            features,
            additional,
            extensions: extension::parse(area)?,
        })
    }

    /// The bytes of the header with all that follows it, to be written at the beginning of the file; none if they
    /// do not fit into the first cluster. The name of the backing file follows the extensions.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut all = vec![0; LENGTH_V2];
        let length = match self.version {
            2 => LENGTH_V2,
            _ => LENGTH_V3.checked_add(self.additional.len())?,
        };
        let behind = extension::encode(&self.extensions);
        let name = self.backing_name.as_deref().unwrap_or_default();
        let name_at = match self.backing_name {
            Some(_) => length.checked_add(behind.len())? as u64,
            None => 0,
        };
        let crypt: u32 = match self.crypt_method {
            CryptMethod::None => 0,
            CryptMethod::Aes => 1,
            CryptMethod::Luks => 2,
        };
        let cluster_bits = self.geometry.cluster_bits();
        let whole = bytes::put(&mut all, 0, MAGIC)
            && bytes::put(&mut all, 4, self.version.to_be_bytes())
            && bytes::put(&mut all, 8, name_at.to_be_bytes())
            && bytes::put(&mut all, 16, u32::try_from(name.len()).ok()?.to_be_bytes())
            && bytes::put(&mut all, 20, cluster_bits.to_be_bytes())
            && bytes::put(&mut all, 24, self.size.to_be_bytes())
            && bytes::put(&mut all, 32, crypt.to_be_bytes())
            && bytes::put(&mut all, 36, self.l1_entries.to_be_bytes())
            && bytes::put(&mut all, 40, self.l1_offset.0.to_be_bytes())
            && bytes::put(&mut all, 48, self.refcount_table_offset.0.to_be_bytes())
            && bytes::put(&mut all, 56, self.refcount_table_clusters.to_be_bytes())
            && bytes::put(&mut all, 60, self.snapshots.to_be_bytes())
            && bytes::put(&mut all, 64, self.snapshots_offset.0.to_be_bytes());
        if self.version > 2 {
            all.extend(self.features.incompatible.to_be_bytes());
            all.extend(self.features.compatible.to_be_bytes());
            all.extend(self.features.autoclear.to_be_bytes());
            all.extend(self.geometry.refcount_order().to_be_bytes());
            all.extend(u32::try_from(length).ok()?.to_be_bytes());
            all.extend(&self.additional);
        }
        all.extend(behind);
        all.extend(name);
        (whole && all.len() <= self.geometry.cluster_bytes()).then_some(all)
    }

    /// Whether it keeps the rules of the specification, and the bounds that everybody keeps. What it points to is
    /// not looked at.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), HeaderError> {
        if i64::try_from(self.size).is_err() {
            return Err(HeaderError::Size(self.size));
        }
        self.compression_type()?;
        self.check_extensions()?;
        self.check_combinations()?;
        let l1_bytes = u64::from(self.l1_entries) * l1::ENTRY_BYTES as u64;
        let table = self.geometry.cluster_size() * u64::from(self.refcount_table_clusters);
        self.check_table(
            "the L1 table",
            self.l1_offset,
            l1_bytes,
            l1::TABLE_BYTES_MAX,
        )?;
        let (offset, max) = (self.refcount_table_offset, refcount::TABLE_BYTES_MAX);
        self.check_table("the refcount table", offset, table, max)?;
        if table == 0 {
            let text = "the image has no refcount table";
            return Err(HeaderError::Missing(text));
        }
        let snapshots = u64::from(self.snapshots) * snapshot::ENTRY_BYTES as u64;
        let max = u64::from(snapshot::SNAPSHOTS_MAX) * snapshot::ENTRY_BYTES as u64;
        self.check_table("the snapshot table", self.snapshots_offset, snapshots, max)?;
        let needed = self.geometry.l1_entries_for(self.size);
        if u64::from(self.l1_entries) < needed {
            return Err(HeaderError::L1Short {
                entries: self.l1_entries,
                needed,
                size: self.size,
            });
        }
        Ok(())
    }

    fn check_table(
        &self,
        table: &'static str,
        offset: HostOffset,
        bytes: u64,
        max: u64,
    ) -> Result<(), HeaderError> {
        if bytes > max {
            return Err(HeaderError::TooLong { table, bytes, max });
        }
        if bytes == 0 {
            return Ok(());
        }
        if !self.geometry.is_cluster_start(offset) {
            return Err(HeaderError::Unaligned { table, offset });
        }
        let end = offset.0.checked_add(bytes);
        let inside = end.is_some_and(|end| i64::try_from(end).is_ok());
        if offset.0 == 0 || !inside {
            return Err(HeaderError::Misplaced {
                table,
                offset,
                bytes,
            });
        }
        Ok(())
    }

    fn check_extensions(&self) -> Result<(), HeaderError> {
        for (number, one) in self.extensions.iter().enumerate() {
            let before = self.extensions.get(..number).unwrap_or_default();
            let known = matches!(
                one.kind,
                extension::BACKING_FORMAT
                    | extension::FEATURE_NAMES
                    | extension::BITMAPS
                    | extension::ENCRYPTION
                    | extension::DATA_FILE
            );
            if known && before.iter().any(|other| other.kind == one.kind) {
                return Err(HeaderError::ExtensionTwice { kind: one.kind });
            }
        }
        Ok(())
    }

    fn check_combinations(&self) -> Result<(), HeaderError> {
        let contradiction = |one, other| Err(HeaderError::Contradiction { one, other });
        let external = self.features.has_external_data();
        if self.features.is_raw_external() && !external {
            let other = "no external data file (incompatible feature bit 2)";
            return contradiction("a raw external data file (autoclear feature bit 1)", other);
        }
        if self.features.is_raw_external() && self.backing_name.is_some() {
            return contradiction("a raw external data file", "a backing file");
        }
        if external && self.snapshots > 0 {
            return contradiction("an external data file", "internal snapshots");
        }
        let luks = self.crypt_method == CryptMethod::Luks;
        match (luks, self.extension(extension::ENCRYPTION)) {
            (true, None) => {
                let text =
                    "LUKS encryption without the header extension that says where its header is";
                return Err(HeaderError::Missing(text));
            }
            (false, Some(_)) => {
                return contradiction("an encryption header", "no LUKS encryption");
            }
            _ => {}
        }
        if self.features.has_bitmaps() {
            let Some(data) = self.extension(extension::BITMAPS) else {
                let text = "autoclear feature bit 0 without the bitmaps extension";
                return Err(HeaderError::Missing(text));
            };
            let bitmaps = bitmap::BitmapsExtension::parse(data)
                .map_err(|_| HeaderError::Missing("a bitmaps extension that is not one"))?;
            if bitmaps.bitmaps == 0 {
                return Err(HeaderError::Missing("a bitmaps extension with no bitmap"));
            }
            let (offset, bytes) = (bitmaps.directory_offset, bitmaps.directory_size);
            let max = bitmap::DIRECTORY_BYTES_MAX;
            self.check_table("the bitmap directory", offset, bytes, max)?;
        }
        Ok(())
    }

    /// How compressed clusters are compressed.
    ///
    /// # Errors
    /// A type that is not known, and one that contradicts the feature bit.
    pub fn compression_type(&self) -> Result<CompressionType, HeaderError> {
        let value = self.additional.first().copied().unwrap_or(0);
        let bit = self.features.incompatible & features::COMPRESSION_TYPE != 0;
        match (value, bit) {
            (0, false) => Ok(CompressionType::Deflate),
            (1, true) => Ok(CompressionType::Zstd),
            (0 | 1, _) => Err(HeaderError::CompressionBit { value, bit }),
            (other, _) => Err(HeaderError::CompressionType(other)),
        }
    }

    /// The content of the first extension of this type.
    pub fn extension(&self, kind: u32) -> Option<&[u8]> {
        let mut all = self.extensions.iter();
        let found = all.find(|one| one.kind == kind);
        found.map(|one| one.data.as_slice())
    }

    /// What the image itself, or else the specification, calls an incompatible feature bit.
    pub fn feature_name(&self, bit: u32) -> Option<String> {
        let table = self.extension(extension::FEATURE_NAMES);
        let mut names = extension::feature_names(table.unwrap_or_default()).into_iter();
        let named = names.find(|one| one.field == 0 && u32::from(one.bit) == bit);
        named.map(|one| one.name)
    }

    /// Length of the header in bytes, without extensions.
    pub fn length(&self) -> usize {
        match self.version {
            2 => LENGTH_V2,
            _ => LENGTH_V3 + self.additional.len(),
        }
    }
}

fn backing_name(
    cluster: &[u8],
    offset: HostOffset,
    length: u32,
) -> Result<Option<Vec<u8>>, HeaderError> {
    if offset.0 == 0 {
        return Ok(None);
    }
    let wrong = || HeaderError::BackingName {
        offset,
        bytes: length,
    };
    if length > BACKING_NAME_MAX {
        return Err(wrong());
    }
    let start = usize::try_from(offset.0).map_err(|_| wrong())?;
    let end = start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
    let name = cluster.get(start..end).ok_or_else(wrong)?;
    Ok(Some(name.to_vec()))
}

fn field32(cluster: &[u8], at: usize) -> Result<u32, HeaderError> {
    bytes::be32(cluster, at).ok_or(HeaderError::Short)
}

fn field64(cluster: &[u8], at: usize) -> Result<u64, HeaderError> {
    bytes::be64(cluster, at).ok_or(HeaderError::Short)
}
