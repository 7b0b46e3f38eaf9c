//! Switching the header: one write of one sector, which is on disk or is not.

use std::sync::atomic::Ordering;

use block::Result;

use super::base::Base;
use super::refcounts::Piece;
use super::rewrite::rewrite;
use super::sector::Sector;
use super::state::State;
use super::tables::Freed;
use super::writer::{put, sync};
use crate::format::HostOffset;

/// What whoever has the turn does first. A header whose write has failed may be on disk nevertheless: writes the one of before again. Tables
/// of others may be nowhere but in memory ([`rewrite`]): they are durable after the next flush that succeeds.
///
/// # Errors
/// The storage's.
pub async fn settle(base: &Base, state: &State, accepted: u32) -> Result<()> {
    let writer = &state.writer;
    if base.failed_flushes.load(Ordering::SeqCst) > 0 && writer.is_inherited() {
        rewrite(base, state).await?;
    }
    let sector = {
        let tables = writer.tables();
        if tables.unsettled.is_none() {
            return Ok(());
        }
        tables.sector.clone()
    };
    put_sector(base, sector.bytes()).await?;
    sync(base, writer, accepted).await?;
    let mut tables = writer.change();
    if let Some(freed) = tables.unsettled.take() {
        tables.unlinked.extend(freed);
    }
    Ok(())
}

/// Makes `sector` the beginning of the file, durably. Whoever calls it has the turn.
///
/// # Errors
/// The storage's. What is on disk is not known then: the former one is written again before anything else, and what
/// `doubtful` says is freed.
pub async fn switch(
    base: &Base,
    state: &State,
    sector: Sector,
    doubtful: impl FnOnce() -> Vec<Freed>,
) -> Result<()> {
    let writer = &*state.writer;
    // Until it is known: dropped here, it is not.
    writer.change().unsettled.get_or_insert_default();
    let switched = async {
        put_sector(base, sector.bytes()).await?;
        sync(base, writer, writer.accepted()).await
    };
    let switched = switched.await;
    let mut tables = writer.change();
    match switched {
        Ok(()) => {
            tables.sector = sector;
            if let Some(freed) = tables.unsettled.take() {
                tables.unlinked.extend(freed);
            }
        }
        Err(_) => tables.unsettled.get_or_insert_default().extend(doubtful()),
    }
    switched
}

/// Writes the first sector of the file.
///
/// # Errors
/// The storage's.
async fn put_sector(base: &Base, bytes: &[u8]) -> Result<()> {
    let piece = Piece {
        offset: HostOffset(0),
        bytes: bytes.to_vec(),
    };
    put(base, &piece).await
}
