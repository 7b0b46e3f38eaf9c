//! What happens in a run, in its order: the log that is judged afterwards.

use std::ops::Range;
use std::sync::Arc;

use crate::sector::SECTOR;

/// What an operation does to the bytes of the storage.
#[derive(Clone, Debug)]
pub struct Effect {
    /// Its first sector.
    pub first: u64,
    /// How many.
    pub sectors: usize,
    /// What is there afterwards; none: zeroes.
    pub content: Option<Arc<[u8]>>,
}

impl Effect {
    /// What it leaves in the sector at `number` of its own, if that is not zeroes.
    pub fn sector(&self, number: usize) -> Option<&[u8]> {
        let content = self.content.as_deref()?;
        content.get(number * SECTOR..(number + 1) * SECTOR)
    }
}

/// What an operation does to the length of the storage, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// A write that ends there.
    AtLeast(u64),
    /// A truncation, or a growth by hand.
    Exactly(u64),
}

impl Length {
    /// The length after it, if it was `before`.
    pub fn after(self, before: u64) -> u64 {
        match self {
            Self::AtLeast(length) => length.max(before),
            Self::Exactly(length) => length,
        }
    }
}

/// The kind of an operation on the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Write zeroes.
    Zeroes,
    /// Discard.
    Discard,
    /// Change the length.
    Length,
    /// Flush.
    Flush,
}

/// An operation on the storage.
#[derive(Clone, Debug)]
pub struct Operation {
    /// What.
    pub kind: Kind,
    /// First byte.
    pub offset: u64,
    /// Bytes; of a change of length, the length; of a flush, none if it is one of all there is.
    pub bytes: u64,
    /// Whether it is durable by itself when it has ended.
    pub fua: bool,
    /// What it does to the bytes.
    pub effect: Option<Effect>,
    /// What it does to the length.
    pub length: Option<Length>,
}

impl Operation {
    /// The bytes that it makes durable, if it is a flush.
    pub fn flushed(&self) -> Range<u64> {
        match self.bytes {
            0 => 0..u64::MAX,
            bytes => self.offset..self.offset.saturating_add(bytes),
        }
    }
}

/// How an operation on the storage has ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Well.
    Done,
    /// It has failed.
    Failed {
        /// The errno.
        errno: i32,
        /// Which of its sectors have been reached.
        reached: Vec<bool>,
        /// What it did to the length nevertheless.
        length: Option<Length>,
        /// A flush that was not tried, because a former one has failed.
        latched: bool,
    },
}

/// What the guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Read, and compare.
    Read,
    /// Write.
    Write,
    /// Write zeroes.
    Zeroes {
        /// Their space may be given back.
        unmap: bool,
    },
    /// Discard.
    Discard,
    /// Flush.
    Flush,
}

/// A request of the guest. Those that write have stamps of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub ask: Ask,
    /// First sector.
    pub first: u64,
    /// Sectors.
    pub sectors: u64,
    /// Durable when it has ended.
    pub fua: bool,
    /// On which of the two iothreads.
    pub hand: usize,
}

/// What the guest sees, and what is done to it.
#[derive(Clone, Debug)]
pub enum Guest {
    /// A request has been submitted; a retry has a number of its own.
    Began {
        /// Its number.
        id: u32,
        /// Whose stamp it writes: that of its first try.
        stamp: u32,
        /// What.
        request: Request,
    },
    /// It has ended.
    Ended {
        /// Its number.
        id: u32,
        /// The errno, if it has failed.
        failed: Option<i32>,
        /// What a read has found, sector by sector.
        seen: Vec<Result<crate::Value, String>>,
    },
    /// The length is being changed, with nothing else in flight.
    Resizing {
        /// Sectors before.
        from: u64,
        /// Sectors that are asked for.
        to: u64,
    },
    /// It has been changed.
    Resized {
        /// Sectors before.
        from: u64,
        /// Sectors that were asked for.
        to: u64,
        /// Whether that failed.
        failed: bool,
    },
    /// The operator accepts that what was not durable may be lost.
    LossAccepted,
    /// The daemon has been killed.
    Killed,
    /// The next one has found a disk of so many sectors: a change of the length that had failed may be there all the same.
    Found(u64),
    /// All is stopped, and the image copied: it must be complete.
    Stopped {
        /// What a copy has.
        image: Arc<[u8]>,
        /// The image is closed, too.
        closed: bool,
    },
}

/// One event.
#[derive(Clone, Debug)]
pub enum Event {
    /// An operation on the storage was submitted.
    Begun {
        /// Its number, from 0.
        number: u64,
        /// What.
        operation: Operation,
    },
    /// It is visible from now on.
    Applied {
        /// Which.
        number: u64,
    },
    /// It has ended.
    Ended {
        /// Which.
        number: u64,
        /// How.
        outcome: Outcome,
    },
    /// The guest's side.
    Guest(Guest),
}

impl Event {
    /// For people, in one line.
    pub fn line(&self) -> String {
        match self {
            Self::Begun { number, operation } => {
                let Operation {
                    kind,
                    offset,
                    bytes,
                    fua,
                    ..
                } = operation;
                let fua = if *fua { " fua" } else { "" };
                format!("  storage #{number} {kind:?} {offset:#x}+{bytes:#x}{fua}")
            }
            Self::Applied { number } => format!("  storage #{number} is visible"),
            Self::Ended { number, outcome } => match outcome {
                Outcome::Done => format!("  storage #{number} has ended"),
                Outcome::Failed {
                    errno,
                    reached,
                    latched,
                    ..
                } => {
                    let reached: String = reached
                        .iter()
                        .map(|&one| if one { '1' } else { '0' })
                        .collect();
                    let latched = if *latched { " (latched)" } else { "" };
                    format!(
                        "  storage #{number} fails with errno {errno}{latched}, reached: {reached}"
                    )
                }
            },
            Self::Guest(Guest::Began { id, stamp, request }) => {
                let Request {
                    ask,
                    first,
                    sectors,
                    fua,
                    hand,
                } = request;
                let fua = if *fua { " fua" } else { "" };
                format!(
                    "guest {id} (stamp {stamp}, iothread {hand}): {ask:?} sectors {first}+{sectors}{fua}"
                )
            }
            Self::Guest(Guest::Ended { id, failed, .. }) => match failed {
                None => format!("guest {id} has ended"),
                Some(errno) => format!("guest {id} has failed with errno {errno}"),
            },
            Self::Guest(Guest::Resizing { from, to }) => {
                format!("to be resized from {from} to {to} sectors")
            }
            Self::Guest(Guest::Resized { from, to, failed }) => {
                format!("resized from {from} to {to} sectors, failed: {failed}")
            }
            Self::Guest(Guest::LossAccepted) => "the loss is accepted".to_owned(),
            Self::Guest(Guest::Killed) => "the daemon is killed".to_owned(),
            Self::Guest(Guest::Found(sectors)) => format!("the next one finds {sectors} sectors"),
            Self::Guest(Guest::Stopped { closed: false, .. }) => "stopped, and copied".to_owned(),
            Self::Guest(Guest::Stopped { .. }) => "closed".to_owned(),
        }
    }
}
