//! The redo log: what has been changed of the tables, and acknowledged, and is not on disk yet, outlives the daemon.
//!
//! A first write is acknowledged when its data are written; that its cluster is there is known in memory until the next round. A daemon
//! that is killed takes that along, and a guest that lives on is not told. So each change of an entry is recorded first, in a file
//! that is memory ([`log`]), and the next daemon makes it again ([`replay`]) before it serves anything.
//!
//! * A record is written under the lock under which its entry is changed, so they have one order.
//! * A round makes void what was recorded before it began.
//! * An image says in its header whose log counts: the upper half of the autoclear bits is the *tag* of the log. Whoever
//!   writes the image and does not know them clears them, by the specification: then it is void.
//! * The tag is there before the first record, and goes, when all is on disk and nothing is under way.

mod attach;
mod log;
mod record;
mod replay;
mod ring;

use block::Result;
use block::range_lock::Mode;

use super::base::Base;
use super::rounds;
use super::sector::Sector;
use super::state::State;
use super::switch;
use super::tables::Tables;
use crate::format::L2Entry;
use crate::format::features::{AUTOCLEAR_KNOWN, Features};

pub use self::attach::{attach, detach};
pub use self::log::Log;
pub use self::record::{Change, Record, Which};
pub use self::ring::SLOTS as RECORDS_MAX;
pub use self::ring::{Head, Ring};

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

    const fn log(&self) -> Option<&Log> {
        match self {
            Self::Off => None,
            Self::Closed(log) | Self::Replaying(log) | Self::Open(log) => Some(log),
        }
    }

    fn into_log(self) -> Option<Box<Log>> {
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

fn with_tag(sector: Sector, tag: u32) -> Sector {
    let mut features = sector.features();
    features.autoclear = features.autoclear & AUTOCLEAR_KNOWN | bits(tag);
    sector.with_features(&features)
}

/// Whether the header has the tag of the log.
pub fn is_tagged(tables: &Tables) -> bool {
    let log = tables.redo.log();
    log.is_some_and(|log| tag_of(&tables.sector.features()) == log.tag())
}

/// The changes of entries from `before` to `after`, both parts of a table from entry `first` of it on.
pub fn changes(
    (before, after): (&[u8], &[u8]),
    first: u64,
    state: &State,
) -> impl Iterator<Item = Change> {
    /// What is compared at a time.
    const PIECE: usize = 512;
    let geometry = state.rules.geometry;
    let per_piece = PIECE / geometry.l2_entry_bytes();
    let pieces = before.chunks(PIECE).zip(after.chunks(PIECE)).enumerate();
    let other = pieces.filter(|(_, (before, after))| before != after);
    other.flat_map(move |(number, (before, after))| {
        (0..per_piece).filter_map(move |index| {
            let before = L2Entry::read(before, index, &geometry)?;
            let after = L2Entry::read(after, index, &geometry)?;
            (before != after).then_some(Change {
                which: Which::L2,
                at: first + (number * per_piece + index) as u64,
                before,
                after,
            })
        })
    })
}

/// Sees to what is lacking.
///
/// # Errors
/// The storage's.
pub async fn supply(base: &Base, state: &State, lack: Lack) -> Result<()> {
    match lack {
        Lack::Tag => open(base, state).await,
        Lack::Room => rounds::make_room(base, state).await,
    }
}

/// Puts the tag into the header, durably: from then on changes are recorded.
async fn open(base: &Base, state: &State) -> Result<()> {
    let writer = &*state.writer;
    let _turn = writer.rounds.lock(0..1, Mode::Exclusive).await;
    switch::settle(base, state, writer.accepted()).await?;
    let tagged = {
        let tables = writer.tables();
        let Redo::Closed(log) = &tables.redo else {
            return Ok(());
        };
        let tagged = with_tag(tables.sector.clone(), log.tag());
        (tagged != tables.sector).then_some(tagged)
    };
    if let Some(tagged) = tagged {
        switch::switch(base, state, tagged, Vec::new).await?;
    }
    let mut tables = writer.tables();
    tables.redo = match std::mem::take(&mut tables.redo) {
        Redo::Closed(log) => Redo::Open(log),
        other => other,
    };
    Ok(())
}

/// Takes the tag out of the header, if all is on disk: the header is what it was. To be called where nothing is under way; what
/// begins meanwhile puts it there again.
///
/// # Errors
/// The storage's.
pub async fn close(base: &Base, state: &State) -> Result<()> {
    let writer = &*state.writer;
    if !is_tagged(&writer.tables()) {
        return Ok(());
    }
    let _turn = writer.rounds.lock(0..1, Mode::Exclusive).await;
    let untagged = {
        let mut tables = writer.tables();
        if !is_tagged(&tables) || !tables.is_clean() {
            return Ok(());
        }
        tables.redo = match std::mem::take(&mut tables.redo) {
            Redo::Open(log) => Redo::Closed(log),
            other => other,
        };
        with_tag(tables.sector.clone(), 0)
    };
    switch::switch(base, state, untagged, Vec::new).await?;
    writer.look(&writer.tables());
    Ok(())
}
