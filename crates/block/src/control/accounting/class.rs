//! What requests are counted as.

use crate::words::request::Operation;

/// The accounting class of an operation, as QEMU has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Reads.
    Rd,
    /// Writes and write-zeroes.
    Wr,
    /// Flushes.
    Flush,
    /// Discards.
    Unmap,
}

impl Class {
    /// All of them, in their order.
    pub const ALL: [Self; 4] = [Self::Rd, Self::Wr, Self::Flush, Self::Unmap];

    /// The class of an operation.
    pub const fn of(op: Operation) -> Self {
        match op {
            Operation::Read => Self::Rd,
            Operation::Write | Operation::WriteZeroes { .. } => Self::Wr,
            Operation::Flush => Self::Flush,
            Operation::Discard => Self::Unmap,
        }
    }
}
