//! The tag in the header: it comes before the first record, and goes when none is needed.

use block::Result;
use block::range_lock::Mode;

use super::record::{Change, Which};
use super::recorder::{Lack, Redo, tag_of, with_tag};
use crate::driver::base::Base;
use crate::driver::rounds;
use crate::driver::state::State;
use crate::driver::switch;
use crate::driver::tables::Tables;
use crate::format::L2Entry;

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
