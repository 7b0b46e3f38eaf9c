//! The view of a request that a driver gets.

use std::ops::Range;

use crate::driver::buffers::Buffers;
use crate::words::request::Operation;

/// One submission of a request to a node.
///
/// Its buffers stay mapped until the future that [`crate::Node::submit`] returns has ended, or has
/// been dropped ([`Buffers`]). The client may take the memory itself away at any time: a driver that
/// meets EFAULT there returns it, and the request ends as the client's own fault
/// ([`crate::Client::has_lost`]).
///
/// What a driver sends to its child is made by [`Io::read`], [`Io::write`] and the others, and says on
/// [whose behalf](Io::on_behalf_of) it is done; a part of a request is a [slice](Io::slice).
#[derive(Clone, Copy, Debug)]
pub struct Io<'a> {
    /// What to do.
    pub op: Operation,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// The memory of a read or write, `bytes` long; empty for flush, discard and write-zeroes.
    pub buffers: Buffers<'a>,
    /// Whether the write must be durable when it completes (force unit access).
    pub fua: bool,
    /// Losses of the node up to this number are void for whoever sends this ([`crate::Loss`]).
    pub losses_accepted: u32,
}

impl<'a> Io<'a> {
    /// Reads at `offset` into `buffers`.
    pub fn read(offset: u64, buffers: Buffers<'a>) -> Self {
        Self::moving(Operation::Read, offset, buffers)
    }

    /// Writes `buffers` at `offset`.
    pub fn write(offset: u64, buffers: Buffers<'a>) -> Self {
        Self::moving(Operation::Write, offset, buffers)
    }

    /// Makes durable what has been written.
    pub fn flush() -> Self {
        Self::still(Operation::Flush, 0, 0)
    }

    /// Says that `bytes` at `offset` are not needed any more.
    pub fn discard(offset: u64, bytes: u64) -> Self {
        Self::still(Operation::Discard, offset, bytes)
    }

    /// Makes `bytes` at `offset` read as zeroes; with `unmap` their space may be given back.
    pub fn write_zeroes(offset: u64, bytes: u64, unmap: bool) -> Self {
        Self::still(Operation::WriteZeroes { unmap }, offset, bytes)
    }

    /// The same, done because of `parent`: for whoever has sent that, and durable when it has to be.
    pub fn on_behalf_of(self, parent: &Io<'_>) -> Self {
        Self {
            fua: parent.fua && self.op.modifies(),
            losses_accepted: parent.losses_accepted,
            ..self
        }
    }

    /// A part of the request; `range` counts from its first byte. What lies beyond its end is left out
    /// (and noticed in a debug build).
    pub fn slice(&self, range: Range<u64>) -> Self {
        debug_assert!(
            range.start <= range.end && range.end <= self.bytes,
            "{range:?} of {} bytes",
            self.bytes
        );
        let end = range.end.min(self.bytes);
        let start = range.start.min(end);
        let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        Self {
            offset: self.offset + start,
            bytes: end - start,
            buffers: match self.buffers.is_empty() {
                true => Buffers::EMPTY,
                false => self.buffers.slice(index(start)..index(end)),
            },
            ..*self
        }
    }

    fn moving(op: Operation, offset: u64, buffers: Buffers<'a>) -> Self {
        Self {
            buffers,
            ..Self::still(op, offset, buffers.len() as u64)
        }
    }

    fn still(op: Operation, offset: u64, bytes: u64) -> Self {
        Self {
            op,
            offset,
            bytes,
            buffers: Buffers::EMPTY,
            fua: false,
            losses_accepted: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::buffers::Joined;

    #[test]
    fn a_part_has_its_part_of_range_and_memory() {
        let mut memory = [1, 2, 3, 4, 5];
        let mut joined = Joined::new();
        joined.push_own(&mut memory);
        let parent = Io {
            fua: true,
            losses_accepted: 7,
            ..Io::write(1000, joined.buffers())
        };
        let part = parent.slice(1..4);
        assert_eq!(
            (part.op, part.offset, part.bytes),
            (Operation::Write, 1001, 3)
        );
        assert_eq!((part.fua, part.losses_accepted), (true, 7));
        let mut copy = [0; 3];
        assert_eq!(part.buffers.copy_to(&mut copy), 3);
        assert_eq!(copy, [2, 3, 4]);
        let rest = Io::discard(4096, 8192).slice(4096..8192);
        assert_eq!(
            (rest.op, rest.offset, rest.bytes),
            (Operation::Discard, 8192, 4096)
        );
        assert!(rest.buffers.is_empty());
    }

    #[test]
    fn a_child_of_a_durable_write_is_durable_if_it_writes() {
        let parent = Io {
            fua: true,
            losses_accepted: 3,
            ..Io::write(0, Buffers::EMPTY)
        };
        for (child, fua) in [
            (Io::read(0, Buffers::EMPTY), false),
            (Io::write(0, Buffers::EMPTY), true),
            (Io::write_zeroes(0, 512, true), true),
            (Io::flush(), false),
        ] {
            assert_eq!(
                (child.fua, child.losses_accepted),
                (false, 0),
                "nobody has sent it"
            );
            let child = child.on_behalf_of(&parent);
            assert_eq!((child.fua, child.losses_accepted), (fua, 3), "{}", child.op);
        }
    }
}
