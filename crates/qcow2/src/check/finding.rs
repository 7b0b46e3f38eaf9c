//! What a check finds, and where.

use std::fmt;

use super::usage::Use;
use crate::format::EntryError;
use crate::format::HostOffset;
use crate::format::bitmap::BitmapError;

/// What a finding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Data is wrong, or a write may make it so.
    Corruption,
    /// Space is lost, and nothing else.
    Leak,
    /// Something could not be looked at.
    Error,
}

/// A part of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The header's cluster.
    Header,
    /// The L1 table of the disk.
    L1,
    /// The L1 table of the snapshot of this number, from 0 on.
    SnapshotL1(u32),
    /// An L2 table.
    L2,
    /// The refcount table.
    Refcounts,
    /// The refcount block of this number.
    RefcountBlock(u64),
    /// The snapshot table.
    Snapshots,
    /// The bitmap directory.
    BitmapDirectory,
    /// The table of the bitmap of this number, from 0 on.
    Bitmap(u32),
    /// The encryption header.
    Encryption,
    /// Clusters, whoever uses them.
    Clusters,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// An entry that cannot be.
    #[error("{0}")]
    Entry(EntryError),
    /// What is pointed to is not in the file.
    #[error("points to {bytes} bytes at {host}, beyond the end of the file at {length:#x}")]
    BeyondEnd {
        /// Where.
        host: HostOffset,
        /// How long it is.
        bytes: u64,
        /// How long the file is.
        length: u64,
    },
    /// A cluster is used for two things.
    #[error("the cluster at {host} is {this}, and {other}", this = this.name(), other = other.name())]
    Overlap {
        /// The cluster.
        host: HostOffset,
        /// What it is here.
        this: Use,
        /// What it was before.
        other: Use,
    },
    /// The refcount is too low: the cluster would be given to somebody else.
    #[error("cluster {cluster} has refcount {stored}, and {counted} references")]
    RefcountLow {
        /// Its number.
        cluster: u64,
        /// What is stored.
        stored: u64,
        /// What was counted.
        counted: u64,
    },
    /// The refcount is too high: the cluster is never free again.
    #[error("cluster {cluster} is leaked: refcount {stored}, {counted} references")]
    Leaked {
        /// Its number.
        cluster: u64,
        /// What is stored.
        stored: u64,
        /// What was counted.
        counted: u64,
    },
    /// The flag of what may be written in place, and the refcount.
    #[error(
        "the flag \"copied\" is {flag}, and the refcount of the cluster at {host} is {one}",
        flag = if *.copied { "set" } else { "not set" }, one = if *.copied { "not 1" } else { "1" }
    )]
    Copied {
        /// What is pointed to.
        host: HostOffset,
        /// Whether the flag is set.
        copied: bool,
    },
    /// In an image with an external data file a cluster is where the guest has it.
    #[error("points to {host}, which is not the guest's offset {guest:#x}")]
    NotInPlace {
        /// Where it is.
        host: HostOffset,
        /// Where it has to be.
        guest: u64,
    },
    /// A table that begins between two clusters.
    #[error("begins at {0}, which is not the beginning of a cluster")]
    Unaligned(HostOffset),
    /// A table that is longer than anybody makes it.
    #[error("{entries} entries: more than {max}")]
    TooLong {
        /// How many it says it has.
        entries: u64,
        /// How many it may have.
        max: u64,
    },
    /// The table of a bitmap has another length than the disk wants.
    #[error("{entries} entries, but the disk's length wants {wanted}")]
    BitmapLength {
        /// How many it has.
        entries: u64,
        /// How many it has to have.
        wanted: u64,
    },
    /// An entry of the bitmap directory that cannot be.
    #[error("{0}")]
    Bitmap(BitmapError),
    /// Something of variable length.
    #[error("{0}")]
    Rule(&'static str),
    /// The storage fails.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// There is not enough memory to count.
    #[error(
        "counting takes more than {0} bytes of memory: allow more, or the image is not what it seems"
    )]
    Memory(u64),
}

/// Something that a check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it means.
    pub severity: Severity,
    /// In which table.
    pub table: Table,
    /// Which entry of it; none: all of it.
    pub index: Option<u64>,
    /// Where the entry, or else the table, is in the file.
    pub offset: HostOffset,
    /// What is wrong with it.
    pub problem: Problem,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.severity {
            Severity::Corruption => write!(f, "ERROR ")?,
            Severity::Leak => write!(f, "Leak ")?,
            Severity::Error => write!(f, "Cannot check ")?,
        }
        match self.table {
            Table::Header => write!(f, "header")?,
            Table::L1 => write!(f, "L1 table")?,
            Table::SnapshotL1(number) => write!(f, "L1 table of snapshot {number}")?,
            Table::L2 => write!(f, "L2 table")?,
            Table::Refcounts => write!(f, "refcount table")?,
            Table::RefcountBlock(number) => write!(f, "refcount block {number}")?,
            Table::Snapshots => write!(f, "snapshot table")?,
            Table::BitmapDirectory => write!(f, "bitmap directory")?,
            Table::Bitmap(number) => write!(f, "table of bitmap {number}")?,
            Table::Encryption => write!(f, "encryption header")?,
            Table::Clusters => write!(f, "clusters")?,
        }
        if let Some(index) = self.index {
            write!(f, ", entry {index}")?;
        }
        write!(f, " at {}: {}", self.offset, self.problem)
    }
}
