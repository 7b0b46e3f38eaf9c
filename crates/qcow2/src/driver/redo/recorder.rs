//! What is recorded, of the tables in memory. Behind their lock. Pure, but for the file that is memory.

use super::log::Log;
use super::record::{Change, Record};
use crate::driver::sector::Sector;
use crate::format::features::{AUTOCLEAR_KNOWN, Features};

/// What is recorded of an image.
#[derive(Debug, Default)]
pub enum Redo {
    /// Nothing.
    #[default]
    Off,
    /// Nothing now: the image does not have the tag, or need not.
    Closed(Box<Log>),
    /// What is in it is just being made again.
    Replaying(Box<Log>),
    /// Each change: the image has the tag.
    Open(Box<Log>),
}

/// What there is to do before changes can be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The tag.
    Tag,
    /// Room: a round.
    Room,
}

impl Redo {
    /// What has to be done before changes can be made.
    pub fn lack(&self, records: &[Record]) -> Option<Lack> {
        match self {
            Self::Off | Self::Replaying(_) => None,
            Self::Closed(_) => (!records.is_empty()).then_some(Lack::Tag),
            Self::Open(log) => (!log.has_room(records.len())).then_some(Lack::Room),
        }
    }

    /// Whether changes are recorded.
    pub const fn is_wanted(&self) -> bool {
        matches!(self, Self::Closed(_) | Self::Open(_))
    }

    /// The records of changes.
    pub fn records(&self, changes: impl IntoIterator<Item = Change>) -> Vec<Record> {
        match self {
            Self::Off | Self::Replaying(_) => Vec::new(),
            Self::Closed(log) | Self::Open(log) => log.records(changes),
        }
    }

    /// These changes are being made.
    pub fn push(&mut self, records: &[Record]) {
        if let Self::Open(log) = self {
            log.push(records);
        }
    }

    /// The number of the next record, of those that a round covers.
    pub fn next(&self) -> u64 {
        match self {
            Self::Open(log) => log.next(),
            _ => 0,
        }
    }

    /// What came before it is on disk.
    pub fn void_before(&mut self, number: u64) {
        if let Self::Open(log) = self {
            log.void_before(number);
        }
    }

    /// Whether a flush has failed, and nothing has been written again since: the next daemon must not believe what it reads.
    pub fn set_doubtful(&mut self, doubtful: bool) {
        if let Self::Closed(log) | Self::Replaying(log) | Self::Open(log) = self {
            log.set_doubtful(doubtful);
        }
    }

    /// Where it is recorded.
    pub const fn log(&self) -> Option<&Log> {
        match self {
            Self::Off => None,
            Self::Closed(log) | Self::Replaying(log) | Self::Open(log) => Some(log),
        }
    }

    /// The same, if nobody records any more.
    pub fn into_log(self) -> Option<Box<Log>> {
        match self {
            Self::Off => None,
            Self::Closed(log) | Self::Replaying(log) | Self::Open(log) => Some(log),
        }
    }

    /// Autoclear bits that the header keeps.
    pub fn autoclear(&self) -> u64 {
        match self {
            Self::Off | Self::Closed(_) => 0,
            Self::Replaying(log) | Self::Open(log) => bits(log.tag()),
        }
    }
}

/// The tag in a header; 0: none.
pub fn tag_of(features: &Features) -> u32 {
    // 32 bits are left.
    u32::try_from(features.autoclear >> 32).unwrap_or(0)
}

fn bits(tag: u32) -> u64 {
    u64::from(tag) << 32
}

/// With this tag; 0: with none. Bits that nobody knows go.
pub fn with_tag(sector: Sector, tag: u32) -> Sector {
    let mut features = sector.features();
    features.autoclear = features.autoclear & AUTOCLEAR_KNOWN | bits(tag);
    sector.with_features(&features)
}
