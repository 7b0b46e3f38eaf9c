//! Persistent bitmaps: the extension, the directory, and the entries of their tables. Their content is nobody's here.

use super::bytes;
use super::entry_error::{EntryError, cluster_at};
use super::geometry::{Geometry, HostOffset};
use super::l1::OFFSET_MASK;

/// Bytes of the extension.
pub const EXTENSION_BYTES: usize = 24;
/// Most bitmaps of an image that are looked at, as QEMU has it.
pub const BITMAPS_MAX: u32 = 65535;
/// Bytes of a directory entry without what follows it.
pub const ENTRY_BYTES: usize = 24;
/// Longest name of a bitmap in bytes, as QEMU has it.
pub const NAME_MAX: u16 = 1023;
/// Longest directory in bytes that is looked at, as QEMU has it.
pub const DIRECTORY_BYTES_MAX: u64 = BITMAPS_MAX as u64 * (ENTRY_BYTES as u64 + 1024);

/// Flag: it was not saved in order.
pub const IN_USE: u32 = 1 << 0;
/// Flag: it has to follow all writes.
pub const AUTO: u32 = 1 << 1;
/// Flag: it may be used whatever the extra data says.
pub const EXTRA_DATA_COMPATIBLE: u32 = 1 << 2;
/// The only type there is: a dirty tracking bitmap.
pub const TYPE_DIRTY: u8 = 1;

/// Why there is no bitmap to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitmapError {
    /// There are not enough bytes.
    #[error("the bytes end before the entry does")]
    Short,
    /// It has no name, or one that is too long.
    #[error("a name of {0} bytes")]
    Name(u16),
    /// Reserved flags.
    #[error("the reserved flags {0:#x} are set")]
    Flags(u32),
    /// A type that there is not.
    #[error("type {0} is not known")]
    Type(u8),
    /// A granularity that does not exist.
    #[error("a granularity of 2^{0} bytes")]
    Granularity(u8),
    /// The reserved field of the extension.
    #[error("the reserved field is {0:#x}")]
    Reserved(u32),
}

/// The bitmaps extension of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// How many there are.
    pub bitmaps: u32,
    /// Bytes of the directory.
    pub directory_size: u64,
    /// Where the directory begins.
    pub directory_offset: HostOffset,
}

impl BitmapsExtension {
    /// Of the content of the header extension.
    ///
    /// # Errors
    /// It has another length, or something is in the reserved field.
    pub fn parse(data: &[u8]) -> Result<Self, BitmapError> {
        let fields = || {
            Some((
                bytes::be32(data, 0)?,
                bytes::be32(data, 4)?,
                bytes::be64(data, 8)?,
                bytes::be64(data, 16)?,
            ))
        };
        let exact = (data.len() == EXTENSION_BYTES).then(fields).flatten();
        match exact.ok_or(BitmapError::Short)? {
            (bitmaps, 0, directory_size, offset) => Ok(Self {
                bitmaps,
                directory_size,
                directory_offset: HostOffset(offset),
            }),
            (_, reserved, ..) => Err(BitmapError::Reserved(reserved)),
        }
    }

    /// The content of the header extension.
    pub fn encode(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(EXTENSION_BYTES);
        data.extend(self.bitmaps.to_be_bytes());
        data.extend(0u32.to_be_bytes());
        data.extend(self.directory_size.to_be_bytes());
        data.extend(self.directory_offset.0.to_be_bytes());
        data
    }
}

/// An entry of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapEntry {
    /// Where its table begins.
    pub table_offset: HostOffset,
    /// How many entries its table has.
    pub table_entries: u32,
    /// [`IN_USE`], [`AUTO`], [`EXTRA_DATA_COMPATIBLE`].
    pub flags: u32,
    /// [`TYPE_DIRTY`].
    pub kind: u8,
    /// Bytes of the disk that one bit stands for, as a power of two.
    pub granularity_bits: u8,
    /// What it is called.
    pub name: Vec<u8>,
    /// What nobody knows, kept.
    pub extra: Vec<u8>,
}

impl BitmapEntry {
    /// Of the bytes of the directory from here on; and how many of them it takes.
    ///
    /// # Errors
    /// What no entry can be.
    pub fn parse(directory: &[u8]) -> Result<(Self, usize), BitmapError> {
        let fixed = || {
            Some((
                bytes::be64(directory, 0)?,
                bytes::be32(directory, 8)?,
                bytes::be32(directory, 12)?,
                bytes::array::<2>(directory, 16)?,
                bytes::be16(directory, 18)?,
                bytes::be32(directory, 20)?,
            ))
        };
        let (table, table_entries, flags, [kind, granularity_bits], name_bytes, extra_bytes) =
            fixed().ok_or(BitmapError::Short)?;
        if name_bytes == 0 || name_bytes > NAME_MAX {
            return Err(BitmapError::Name(name_bytes));
        }
        let unknown = flags & !(IN_USE | AUTO | EXTRA_DATA_COMPATIBLE);
        if unknown != 0 {
            return Err(BitmapError::Flags(unknown));
        }
        if kind != TYPE_DIRTY {
            return Err(BitmapError::Type(kind));
        }
        if granularity_bits > 63 {
            return Err(BitmapError::Granularity(granularity_bits));
        }
        let extra_bytes = usize::try_from(extra_bytes).map_err(|_| BitmapError::Short)?;
        let name_at = ENTRY_BYTES.saturating_add(extra_bytes);
        let end = name_at.saturating_add(usize::from(name_bytes));
        let used = bytes::padded(end);
        let parts = (
            directory.get(ENTRY_BYTES..name_at),
            directory.get(name_at..end),
        );
        let (Some(extra), Some(name)) = parts else {
            return Err(BitmapError::Short);
        };
        if directory.len() < used {
            return Err(BitmapError::Short);
        }
        let entry = Self {
            table_offset: HostOffset(table),
            table_entries,
            flags,
            kind,
            granularity_bits,
            name: name.to_vec(),
            extra: extra.to_vec(),
        };
        Ok((entry, used))
    }

    /// The bytes of the entry, padded.
    pub fn encode(&self) -> Vec<u8> {
        let mut all = Vec::new();
        all.extend(self.table_offset.0.to_be_bytes());
        all.extend(self.table_entries.to_be_bytes());
        all.extend(self.flags.to_be_bytes());
        all.extend([self.kind, self.granularity_bits]);
        let name = u16::try_from(self.name.len()).unwrap_or(u16::MAX);
        all.extend(name.to_be_bytes());
        let extra = u32::try_from(self.extra.len()).unwrap_or(u32::MAX);
        all.extend(extra.to_be_bytes());
        all.extend(&self.extra);
        all.extend(&self.name);
        all.resize(bytes::padded(all.len()), 0);
        all
    }

    /// How many bytes of bits a disk of `size` bytes has by its granularity.
    pub fn bytes_for(&self, size: u64) -> u64 {
        let granularity = 1u64 << (self.granularity_bits % 64);
        size.div_ceil(granularity).div_ceil(8)
    }
}

/// An entry of a bitmap's table, as it is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BitmapTableEntry(pub u64);

/// What an entry of a bitmap's table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapCluster {
    /// All bits are 0.
    Zeroes,
    /// All bits are 1.
    Ones,
    /// They are stored here.
    Stored(HostOffset),
}

impl BitmapTableEntry {
    /// What it says.
    ///
    /// # Errors
    /// Reserved bits, and an offset that is not that of a cluster.
    pub fn decode(self, geometry: &Geometry) -> Result<BitmapCluster, EntryError> {
        let offset = HostOffset(self.0 & OFFSET_MASK);
        let ones = self.0 & 1 != 0;
        let allowed = OFFSET_MASK | u64::from(offset.0 == 0);
        cluster_at(offset, self.0 & !allowed, geometry)?;
        Ok(match (offset.0, ones) {
            (0, false) => BitmapCluster::Zeroes,
            (0, true) => BitmapCluster::Ones,
            _ => BitmapCluster::Stored(offset),
        })
    }
}
