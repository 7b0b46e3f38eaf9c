//! What the bytes of a node are, range by range: QEMU's block status.

use std::ops::Range;
use std::sync::Arc;

/// Most extents in one answer: asking is bounded, however many pieces an image is in.
pub const EXTENTS_MAX: usize = 1024;

/// What a run of bytes of a node is.
///
/// | `data` | `zero` | |
/// |---|---|---|
/// | yes | no | has to be read |
/// | no | yes | reads as zeroes, and occupies no space as far as is known: a hole |
/// | yes | yes | reads as zeroes, and occupies space |
/// | no | no | occupies no space, and what it reads as is not known here: of a format, what is behind it says |
///
/// `data` may be said of what reads as zeroes; `zero` is never said of anything else. It is as old as the
/// answer: whoever writes meanwhile makes it untrue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length, never 0.
    pub bytes: u64,
    /// It occupies space on the storage.
    pub data: bool,
    /// It reads as zeroes.
    pub zero: bool,
    /// What it reads as is decided by this node, and not by one behind it (QEMU's ALLOCATED). A filter
    /// says what its child says. Whether it occupies space on the storage is another question.
    pub allocated: bool,
    /// Where it is stored as it is read: neither compressed nor encrypted.
    pub stored: Stored,
}

impl Extent {
    /// Bytes that have to be read.
    pub const fn data(bytes: u64, stored: Stored) -> Self {
        Self {
            bytes,
            data: true,
            zero: false,
            allocated: true,
            stored,
        }
    }

    /// Bytes that read as zeroes and occupy no space.
    pub const fn hole(bytes: u64, stored: Stored) -> Self {
        Self {
            bytes,
            data: false,
            zero: true,
            allocated: true,
            stored,
        }
    }
}

/// Where the first bytes of a range come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// What they read as is decided by this node ([`Extent::allocated`]), or there is nothing behind it.
    pub own: bool,
    /// How many are alike, at least one.
    pub bytes: u64,
}

/// Where an extent is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Nowhere, or not as it is read.
    Nowhere,
    /// In the node that was asked, from this offset on. Only drivers say so: [`crate::Node::block_status`]
    /// puts the name.
    Here(u64),
    /// In a node, from an offset on.
    In {
        /// Its name.
        node: Arc<str>,
        /// In bytes.
        offset: u64,
    },
}

/// The answer of a driver about `range`, which is not empty: no longer than that, and `name` wherever it
/// says "here". False if it says nothing at all, with which nobody could go on.
pub(super) fn complete(extents: &mut Vec<Extent>, name: &Arc<str>, range: &Range<u64>) -> bool {
    let mut left = range.end - range.start;
    extents.retain_mut(|extent| {
        extent.bytes = extent.bytes.min(left);
        left -= extent.bytes;
        if let Stored::Here(offset) = extent.stored {
            extent.stored = Stored::In {
                node: Arc::clone(name),
                offset,
            };
        }
        extent.bytes > 0
    });
    !extents.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_named_and_no_longer_than_the_question() {
        let name: Arc<str> = "node0".into();
        let named = |offset| Stored::In {
            node: Arc::clone(&name),
            offset,
        };
        let mut extents = vec![
            Extent::data(10, Stored::Here(100)),
            Extent::hole(0, Stored::Nowhere),
            Extent::hole(30, Stored::Nowhere),
            Extent::data(10, Stored::Here(140)),
        ];
        assert!(complete(&mut extents, &name, &(100..120)));
        assert_eq!(
            extents,
            [
                Extent::data(10, named(100)),
                Extent::hole(10, Stored::Nowhere)
            ]
        );
        let mut nothing = vec![Extent::hole(0, Stored::Nowhere)];
        assert!(!complete(&mut nothing, &name, &(0..1)));
    }
}
