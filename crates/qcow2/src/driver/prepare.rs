//! What the header, and the directory of bitmaps, have to say before anything else is written.

use block::range_lock::Mode;
use block::{BlockError, Result};

use super::base::Base;
use super::bitmaps::Bitmaps;
use super::state::State;
use super::switch;
use crate::format::Header;
use crate::format::features::AUTOCLEAR_KNOWN;

/// Whether they say already what they have to say of an image that is written.
pub fn is_prepared(header: &Header, bitmaps: &Bitmaps) -> bool {
    header.features.unknown_autoclear() == 0 && !header.features.is_dirty() && bitmaps.is_marked()
}

/// Sees to it before the first write: autoclear bits that nobody here knows are cleared, and bitmaps that do not follow what is
/// written are marked, durably.
///
/// # Errors
/// The storage's. An image that turned out to be corrupt is not written any more.
pub async fn prepare(base: &Base, state: &State) -> Result<()> {
    let writer = &*state.writer;
    if writer.is_prepared() {
        return Ok(());
    }
    let _turn = writer.rounds.lock(0..1, Mode::Exclusive).await;
    if writer.is_broken() || base.corruption.is_fatal() {
        return Err(base.broken(0, "the log says what was found"));
    }
    if writer.is_prepared() {
        return Ok(());
    }
    if state.header.features.is_dirty() {
        let text = "the image was not closed cleanly, and has not been repaired";
        return Err(BlockError::new(libc::EIO, text)
            .at(&base.name, 0, 0)
            .beyond_repair());
    }
    switch::settle(base, state, writer.accepted()).await?;
    let (sector, kept) = {
        let tables = writer.tables();
        (
            tables.sector.clone(),
            AUTOCLEAR_KNOWN | tables.redo.autoclear(),
        )
    };
    let mut features = sector.features();
    if features.autoclear & !kept != 0 {
        features.autoclear &= kept;
        switch::switch(base, state, sector.with_features(&features), Vec::new).await?;
    }
    if !state.bitmaps.is_marked() {
        state.bitmaps.mark(base, writer, writer.accepted()).await?;
    }
    writer.set_prepared(true);
    Ok(())
}
