//! Entries of L1 tables.

use super::entry_error::{EntryError, cluster_at};
use super::geometry::{Geometry, HostOffset};

/// Bits 9 to 55 of an entry: an offset.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// What is pointed to has refcount 1: it may be written where it is.
pub const COPIED: u64 = 1 << 63;
const RESERVED: u64 = !(OFFSET_MASK | COPIED);

/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 8;
/// Longest L1 table in bytes that is opened: 32 MiB, as QEMU has it.
pub const TABLE_BYTES_MAX: u64 = 32 << 20;

/// An entry, as it is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// One that points to an L2 table.
    pub const fn new(table: HostOffset, copied: bool) -> Self {
        let flag = if copied { COPIED } else { 0 };
        Self(table.0 & OFFSET_MASK | flag)
    }

    /// Where the L2 table is; none: there is none.
    ///
    /// # Errors
    /// Reserved bits, and an offset that is not that of a cluster.
    pub fn table(self, geometry: &Geometry) -> Result<Option<HostOffset>, EntryError> {
        let offset = cluster_at(self.offset(), self.reserved(), geometry)?;
        Ok((offset.0 != 0).then_some(offset))
    }

    /// The table, if there is one and nothing is to be said against the entry, in one look: as [`Self::table`] has it.
    #[inline]
    pub const fn plain(self, geometry: &Geometry) -> Option<HostOffset> {
        let table = self.0 & !COPIED;
        let offset = OFFSET_MASK & !(geometry.cluster_size() - 1);
        if table & !offset != 0 || table == 0 {
            return None;
        }
        Some(HostOffset(table))
    }

    /// The offset as it is, without any check.
    pub const fn offset(self) -> HostOffset {
        HostOffset(self.0 & OFFSET_MASK)
    }

    /// Whether the table may be written where it is.
    pub const fn is_copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// Bits that must be 0 and are not.
    pub const fn reserved(self) -> u64 {
        self.0 & RESERVED
    }
}
