//! L2 tables that have come, until they are known to be durable: empty, or the copy of one that others have, too. What is
//! changed in them is in memory.

use std::sync::atomic::Ordering;

use block::{Io, Result};

use super::base::Base;
use super::state::State;
use super::tables::NewTable;
use crate::format::{GuestOffset, HostOffset};

/// One that is about to be written at `at`, or has been by a former daemon: the copy of `former`, or empty.
pub fn new(base: &Base, at: HostOffset, former: Option<HostOffset>) -> NewTable {
    NewTable {
        at,
        former,
        failed: base.failed_flushes.load(Ordering::SeqCst),
    }
}

/// Writes it.
///
/// # Errors
/// The storage's; that the image ends before what is to be copied does.
pub async fn put(new: &NewTable, base: &Base, state: &State) -> Result<()> {
    let geometry = &state.rules.geometry;
    let size = geometry.cluster_size();
    let Some(former) = new.former else {
        let zeroes = Io::write_zeroes(new.at.0, size, false);
        return base.file.submit(zeroes).await;
    };
    if !state.reaches(base, former.0.saturating_add(size)) {
        let what = format!("L2 table at {former}: the file ends before the table does");
        return Err(base.corrupt(GuestOffset(0), 0, what).beyond_repair());
    }
    let mut copy = base.read(former, geometry.cluster_bytes()).await?;
    base.file.submit(Io::write(new.at.0, copy.lend())).await
}

/// Writes it again if a flush has failed since: once somebody accepts the loss, which is of the guest's data, flushes succeed
/// again, and what was in this place before would be taken for entries.
///
/// # Errors
/// As [`put`].
pub async fn put_again(new: &mut NewTable, base: &Base, state: &State) -> Result<()> {
    let failed = base.failed_flushes.load(Ordering::SeqCst);
    if new.failed != failed {
        put(new, base, state).await?;
        new.failed = failed;
    }
    Ok(())
}
