//! The table of internal snapshots.

use super::bytes;
use super::geometry::HostOffset;

/// Bytes of an entry without what follows it.
pub const ENTRY_BYTES: usize = 40;
/// Most snapshots of an image that are looked at, as QEMU has it.
pub const SNAPSHOTS_MAX: u32 = 65536;
/// Longest table in bytes that is looked at, as QEMU has it.
pub const TABLE_BYTES_MAX: u64 = 1024 * SNAPSHOTS_MAX as u64;
/// Bytes of extra data that version 3 must have.
pub const EXTRA_BYTES_V3: usize = 16;

/// A snapshot, as the table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// Where its L1 table begins.
    pub l1_offset: HostOffset,
    /// How many entries its L1 table has.
    pub l1_entries: u32,
    /// Its number, mostly.
    pub id: Vec<u8>,
    /// What it is called.
    pub name: Vec<u8>,
    /// When it was taken, in seconds since 1970.
    pub date_sec: u32,
    /// And nanoseconds.
    pub date_nsec: u32,
    /// How long the VM had run by then, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Bytes of VM state, in the old field of 32 bits.
    pub vm_state_size_32: u32,
    /// Further fields, as far as there are any.
    pub extra: Vec<u8>,
}

/// The bytes end before the entry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes end before the snapshot's entry does")]
pub struct Short;

impl SnapshotEntry {
    /// How many bytes the entry takes whose first [`ENTRY_BYTES`] these are, padded; none if there are fewer.
    pub fn length(fixed: &[u8]) -> Option<u64> {
        let (id, name) = (bytes::be16(fixed, 12)?, bytes::be16(fixed, 14)?);
        let extra = bytes::be32(fixed, 36)?;
        let all = ENTRY_BYTES as u64 + u64::from(extra) + u64::from(id) + u64::from(name);
        Some(all.next_multiple_of(8))
    }

    /// Of the bytes of the table from here on; and how many of them it takes, padded. The padding of the last one may
    /// be left out.
    ///
    /// # Errors
    /// There are not enough bytes.
    pub fn parse(table: &[u8]) -> Result<(Self, usize), Short> {
        let used = Self::length(table).ok_or(Short)?;
        let used = usize::try_from(used).map_err(|_| Short)?;
        let parts = || {
            let id_bytes = usize::from(bytes::be16(table, 12)?);
            let name_bytes = usize::from(bytes::be16(table, 14)?);
            let extra_bytes = usize::try_from(bytes::be32(table, 36)?).ok()?;
            let behind = table.get(ENTRY_BYTES..)?;
            let (extra, behind) = behind.split_at_checked(extra_bytes)?;
            let (id, behind) = behind.split_at_checked(id_bytes)?;
            let name = behind.get(..name_bytes)?;
            Some(Self {
                l1_offset: HostOffset(bytes::be64(table, 0)?),
                l1_entries: bytes::be32(table, 8)?,
                id: id.to_vec(),
                name: name.to_vec(),
                date_sec: bytes::be32(table, 16)?,
                date_nsec: bytes::be32(table, 20)?,
                vm_clock_nsec: bytes::be64(table, 24)?,
                vm_state_size_32: bytes::be32(table, 32)?,
                extra: extra.to_vec(),
            })
        };
        Ok((parts().ok_or(Short)?, used))
    }

    /// The bytes of the entry, padded.
    pub fn encode(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let short = |part: &Vec<u8>| u16::try_from(part.len()).unwrap_or(u16::MAX);
        all.extend(self.l1_offset.0.to_be_bytes());
        all.extend(self.l1_entries.to_be_bytes());
        all.extend(short(&self.id).to_be_bytes());
        all.extend(short(&self.name).to_be_bytes());
        all.extend(self.date_sec.to_be_bytes());
        all.extend(self.date_nsec.to_be_bytes());
        all.extend(self.vm_clock_nsec.to_be_bytes());
        all.extend(self.vm_state_size_32.to_be_bytes());
        let extra = u32::try_from(self.extra.len()).unwrap_or(u32::MAX);
        all.extend(extra.to_be_bytes());
        all.extend(&self.extra);
        all.extend(&self.id);
        all.extend(&self.name);
        all.resize(bytes::padded(all.len()), 0);
        all
    }

    /// Bytes of VM state.
    pub fn vm_state_size(&self) -> u64 {
        bytes::be64(&self.extra, 0).unwrap_or_else(|| u64::from(self.vm_state_size_32))
    }

    /// How long the disk was; none if the entry does not say.
    pub fn disk_size(&self) -> Option<u64> {
        bytes::be64(&self.extra, 8)
    }

    /// The instruction count; none if the entry does not say.
    pub fn icount(&self) -> Option<u64> {
        bytes::be64(&self.extra, 16).filter(|count| *count != u64::MAX)
    }
}
