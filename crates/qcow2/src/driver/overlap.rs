//! Which metadata a write is compared with before it reaches the file (`overlap-check`).

use std::fmt;

/// A kind of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metadata {
    /// The header.
    MainHeader,
    /// The active L1 table.
    ActiveL1,
    /// Active L2 tables.
    ActiveL2,
    /// Refcount blocks.
    RefcountBlock,
    /// The refcount table.
    RefcountTable,
    /// The snapshot table.
    SnapshotTable,
    /// L1 tables of snapshots.
    InactiveL1,
    /// L2 tables of snapshots.
    InactiveL2,
    /// The bitmap directory.
    BitmapDirectory,
}

impl Metadata {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::MainHeader,
        Self::ActiveL1,
        Self::ActiveL2,
        Self::RefcountBlock,
        Self::RefcountTable,
        Self::SnapshotTable,
        Self::InactiveL1,
        Self::InactiveL2,
        Self::BitmapDirectory,
    ];

    /// QEMU's name of the option (`overlap-check.NAME`).
    pub const fn name(self) -> &'static str {
        match self {
            Self::MainHeader => "main-header",
            Self::ActiveL1 => "active-l1",
            Self::ActiveL2 => "active-l2",
            Self::RefcountBlock => "refcount-block",
            Self::RefcountTable => "refcount-table",
            Self::SnapshotTable => "snapshot-table",
            Self::InactiveL1 => "inactive-l1",
            Self::InactiveL2 => "inactive-l2",
            Self::BitmapDirectory => "bitmap-directory",
        }
    }

    /// What people call it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::MainHeader => "qcow2_header",
            Self::ActiveL1 => "active L1 table",
            Self::ActiveL2 => "active L2 table",
            Self::RefcountBlock => "refcount block",
            Self::RefcountTable => "refcount table",
            Self::SnapshotTable => "snapshot table",
            Self::InactiveL1 => "inactive L1 table",
            Self::InactiveL2 => "inactive L2 table",
            Self::BitmapDirectory => "bitmap directory",
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// A set of kinds of metadata. Default: [`Self::CACHED`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OverlapCheck(u16);

impl OverlapCheck {
    /// Nothing is compared.
    pub const NONE: Self = Self(0);
    /// What is known without looking at anything.
    pub const CONSTANT: Self = Self::NONE
        .with(Metadata::MainHeader, true)
        .with(Metadata::ActiveL1, true)
        .with(Metadata::RefcountTable, true)
        .with(Metadata::SnapshotTable, true)
        .with(Metadata::BitmapDirectory, true);
    /// What is known without reading anything.
    pub const CACHED: Self = Self::CONSTANT
        .with(Metadata::ActiveL2, true)
        .with(Metadata::RefcountBlock, true)
        .with(Metadata::InactiveL1, true);
    /// All.
    pub const ALL: Self = Self::CACHED.with(Metadata::InactiveL2, true);

    /// The set with `kind`, or without it.
    #[must_use]
    pub const fn with(self, kind: Metadata, compared: bool) -> Self {
        match compared {
            true => Self(self.0 | kind.bit()),
            false => Self(self.0 & !kind.bit()),
        }
    }

    /// Whether writes are compared with `kind`.
    #[inline]
    pub const fn has(self, kind: Metadata) -> bool {
        self.0 & kind.bit() != 0
    }

    /// Whether they are compared with nothing.
    #[inline]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl Default for OverlapCheck {
    fn default() -> Self {
        Self::CACHED
    }
}

impl fmt::Debug for OverlapCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = Metadata::ALL.into_iter().filter(|kind| self.has(*kind));
        f.debug_set().entries(kinds.map(Metadata::name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_in_or_out_by_itself() {
        for kind in Metadata::ALL {
            let alone = OverlapCheck::NONE.with(kind, true);
            let all_but = OverlapCheck::ALL.with(kind, false);
            for other in Metadata::ALL {
                assert_eq!(alone.has(other), other == kind);
                assert_eq!(all_but.has(other), other != kind);
            }
            assert_eq!(alone.with(kind, false), OverlapCheck::NONE);
        }
        assert!(OverlapCheck::NONE.is_none() && !OverlapCheck::CONSTANT.is_none());
        let shown = format!("{:?}", OverlapCheck::NONE.with(Metadata::ActiveL2, true));
        assert_eq!(shown, "{\"active-l2\"}");
    }
}
