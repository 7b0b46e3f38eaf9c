//! Faults that a driver injects when it is told to: the rules, which are those of QEMU's `blkdebug`, and
//! the plan that takes them.

use std::fmt;

use crate::words::request::Operation;

/// The unit of [`InjectError::sector`] in bytes.
pub const SECTOR_SIZE: u64 = 512;

/// What activates rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FaultEvent {
    /// The rule is added.
    #[default]
    None,
    /// A read.
    ReadAio,
    /// A write.
    WriteAio,
    /// A flush.
    FlushToDisk,
    /// A write of zeroes.
    PwritevZero,
}

impl FaultEvent {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::None,
        Self::ReadAio,
        Self::WriteAio,
        Self::FlushToDisk,
        Self::PwritevZero,
    ];

    /// The event that an operation is.
    pub const fn of(op: Operation) -> Option<Self> {
        match op {
            Operation::Read => Some(Self::ReadAio),
            Operation::Write => Some(Self::WriteAio),
            Operation::Flush => Some(Self::FlushToDisk),
            Operation::WriteZeroes { .. } => Some(Self::PwritevZero),
            Operation::Discard => None,
        }
    }

    /// QEMU's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ReadAio => "read_aio",
            Self::WriteAio => "write_aio",
            Self::FlushToDisk => "flush_to_disk",
            Self::PwritevZero => "pwritev_zero",
        }
    }

    /// The event of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name() == name)
    }
}

/// A kind of operation that a rule can be restricted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoType {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Writes of zeroes.
    WriteZeroes,
    /// Discards.
    Discard,
    /// Flushes.
    Flush,
}

impl IoType {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Read,
        Self::Write,
        Self::WriteZeroes,
        Self::Discard,
        Self::Flush,
    ];

    /// The kind of an operation.
    pub const fn of(op: Operation) -> Self {
        match op {
            Operation::Read => Self::Read,
            Operation::Write => Self::Write,
            Operation::WriteZeroes { .. } => Self::WriteZeroes,
            Operation::Discard => Self::Discard,
            Operation::Flush => Self::Flush,
        }
    }

    /// QEMU's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write-zeroes",
            Self::Discard => "discard",
            Self::Flush => "flush",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A rule that makes operations fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InjectError {
    /// What activates the rule.
    pub event: FaultEvent,
    /// The operations it is restricted to; none: all.
    pub iotype: Option<IoType>,
    /// The (positive) errno. 0: the operation passes, and later rules are not looked at.
    pub errno: i32,
    /// The sector (of [`SECTOR_SIZE`] bytes) that the range has to contain; none: any range, and
    /// operations without one.
    pub sector: Option<u64>,
    /// Ends with its first hit.
    pub once: bool,
    /// Fails before the submission returns, instead of in a later turn of the iothread.
    pub immediately: bool,
    /// The state in which the event activates the rule; 0: any.
    pub state: u32,
    /// Hits only each n-th operation that it fits; 0 and 1: each.
    pub every_nth: u64,
    /// Ends after that many hits.
    pub limit: Option<u64>,
}

impl Default for InjectError {
    fn default() -> Self {
        Self {
            event: FaultEvent::None,
            iotype: None,
            errno: libc::EIO,
            sector: None,
            once: false,
            immediately: false,
            state: 0,
            every_nth: 1,
            limit: None,
        }
    }
}

/// A rule that changes the plan's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetState {
    /// When.
    pub event: FaultEvent,
    /// In which state; 0: any.
    pub state: u32,
    /// The state that follows.
    pub new_state: u32,
}

/// Identifies a rule within its plan; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FaultId(pub u64);

/// An inject-error rule and what became of it so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultStatus {
    /// Its identifier.
    pub id: FaultId,
    /// The rule.
    pub rule: InjectError,
    /// Whether it is active.
    pub active: bool,
    /// Operations that failed by it.
    pub hits: u64,
}

/// The plan of a driver that injects faults: which operations fail, when, and with which errno.
pub trait FaultPlan: Send + Sync + fmt::Debug {
    /// Adds a rule.
    fn add(&self, rule: InjectError) -> FaultId;

    /// Removes a rule; false if there is none of this id (any more).
    fn clear(&self, id: FaultId) -> bool;

    /// Removes all rules and goes back to the initial state.
    fn clear_all(&self);

    /// The inject-error rules that have not ended, in the order in which they were added.
    fn status(&self) -> Vec<FaultStatus>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for event in FaultEvent::ALL {
            assert_eq!(FaultEvent::from_name(event.name()), Some(event));
        }
        for kind in IoType::ALL {
            assert_eq!(IoType::from_name(kind.name()), Some(kind));
        }
        assert_eq!(FaultEvent::from_name("l1_update"), None);
        assert_eq!(IoType::from_name("block-status"), None);
    }
}
