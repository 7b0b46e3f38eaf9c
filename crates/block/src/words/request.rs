//! Requests: the operation, the range, and the view of the client's buffers that a driver sees.

use std::fmt;

use crate::words::error_policy::Direction;

/// What a request does. Names follow virtio-blk (virtio 1.2, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Reads `bytes` at `offset` into the buffers.
    Read,
    /// Writes the buffers to `offset`.
    Write,
    /// Makes every completed write durable.
    Flush,
    /// Tells the storage that the range is no longer needed.
    Discard,
    /// Makes the range read as zeroes; with `unmap` the space may be given back.
    WriteZeroes {
        /// Whether deallocating the range is allowed.
        unmap: bool,
    },
}

impl Operation {
    /// The policy that judges a failure: reads go by `rerror`, everything else by `werror`.
    pub const fn direction(self) -> Direction {
        match self {
            Self::Read => Direction::Read,
            Self::Write | Self::Flush | Self::Discard | Self::WriteZeroes { .. } => {
                Direction::Write
            }
        }
    }

    /// Whether the operation changes the range it names.
    pub const fn modifies(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::WriteZeroes { .. })
    }

    /// The name that events and tables show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes { .. } => "write-zeroes",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a request came from, in the client's own terms: for vhost-user-blk the queue and the
/// head index of its descriptor chain. Unique among the unfinished requests of one generation of
/// one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    /// Queue index.
    pub queue: u16,
    /// Identifier within the queue.
    pub head: u16,
}

/// A request as it is remembered while it waits: parsed and validated once, no host pointers.
///
/// The client cannot change type or range afterwards, and the memory table may change meanwhile:
/// the buffers are translated again at each submission ([`crate::Client::map`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where the request came from.
    pub tag: Tag,
    /// What it does.
    pub op: Operation,
    /// First byte; 0 for a flush.
    pub offset: u64,
    /// Length in bytes; 0 for a flush.
    pub bytes: u64,
}

impl Request {
    /// The first byte after the range. Saturates, so that a hostile range cannot wrap around.
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes)
    }

    /// Whether both ranges share a byte.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.bytes > 0 && other.bytes > 0 && self.offset < other.end() && other.offset < self.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(offset: u64, bytes: u64) -> Request {
        Request {
            tag: Tag { queue: 0, head: 0 },
            op: Operation::Write,
            offset,
            bytes,
        }
    }

    #[test]
    fn overlap_table() {
        for (a, b, expected) in [
            ((0, 10), (10, 10), false),
            ((0, 10), (9, 1), true),
            ((5, 1), (0, 100), true),
            ((0, 0), (0, 10), false),
            ((u64::MAX - 1, 100), (u64::MAX - 1, 1), true),
        ] {
            let (a, b) = (request(a.0, a.1), request(b.0, b.1));
            assert_eq!(a.overlaps(&b), expected, "{a:?} {b:?}");
            assert_eq!(b.overlaps(&a), expected, "{b:?} {a:?}");
        }
    }
}
