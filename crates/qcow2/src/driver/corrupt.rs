//! An image that cannot be right is not written any more: waiting mends nothing.

use block::range_lock::Mode;
use block::{BlockError, CorruptionReport, Result};

use super::base::Base;
use super::overlap::Metadata;
use super::state::State;
use super::switch;
use crate::format::features;

/// The image is corrupt beyond doubt: nothing more is written to it but the bit that says so.
#[cold]
pub async fn fatal(base: &Base, state: &State, cluster: u64, what: &str) -> BlockError {
    let offset = cluster.saturating_mul(state.rules.geometry.cluster_size());
    if state.writer.set_broken() {
        base.corruption.report(CorruptionReport {
            msg: what.to_owned(),
            offset: (cluster > 0).then_some(offset),
            bytes: (cluster > 0).then(|| state.rules.geometry.cluster_size()),
            fatal: true,
        });
        if let Err(error) = mark(base, state).await {
            tracing::error!(
                "node '{}': the image could not be marked as corrupt: {error}",
                base.name
            );
        }
    }
    base.broken(offset, what)
}

/// A write is about to meet a table.
#[cold]
pub async fn overlaps(base: &Base, state: &State, cluster: u64, kind: Metadata) -> BlockError {
    let what = format!(
        "Preventing invalid write on metadata (overlaps with {})",
        kind.title()
    );
    fatal(base, state, cluster, &what).await
}

async fn mark(base: &Base, state: &State) -> Result<()> {
    if state.header.version < 3 {
        return Ok(());
    }
    let writer = &*state.writer;
    let _turn = writer.rounds.lock(0..1, Mode::Exclusive).await;
    // If it cannot be settled, what is written now settles it.
    let _settled = switch::settle(base, state, writer.accepted()).await;
    let sector = writer.tables().sector.clone();
    let mut features = sector.features();
    features.incompatible |= features::CORRUPT;
    switch::switch(base, state, sector.with_features(&features), Vec::new).await
}
