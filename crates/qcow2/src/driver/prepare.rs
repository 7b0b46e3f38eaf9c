//! What the header has to say before anything else is written.

use block::range_lock::Mode;
use block::{BlockError, Result};

use super::base::Base;
use super::state::State;
use super::switch;
use crate::format::Header;

/// Whether the header says already what it has to say of an image that is written.
pub fn is_prepared(header: &Header) -> bool {
    header.features.unknown_autoclear() == 0 && !header.features.is_dirty()
}

/// Sees to it before the first write: autoclear bits that nobody here knows are cleared, durably.
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
    let sector = writer.tables().sector.clone();
    let mut features = sector.features();
    features.autoclear &= crate::format::features::AUTOCLEAR_KNOWN;
    switch::switch(base, state, sector.with_features(&features), Vec::new).await?;
    writer.set_prepared(true);
    Ok(())
}
