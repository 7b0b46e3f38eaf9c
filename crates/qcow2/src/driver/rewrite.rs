//! What others have written, and nobody knows to be durable, is written again, as it can be read.
//!
//! When a flush fails, the system may forget that there is something to write: all of it can be read, and the next flush succeeds, but
//! on disk is only what has been written again. What this daemon has written it writes again, as its tables are as dirty as before. But a former one,
//! killed, may have left tables that were not durable yet, or whose flush had failed already (its redo log says so): they look
//! like all others, and what counts them would be linked.

use block::{Io, Result};

use super::base::Base;
use super::state::State;
use crate::format::HostOffset;

/// Writes header and tables again. Whoever calls it has the turn of the rounds: nobody else writes them. The guest's data are not
/// among it: that a flush has failed its client is told, by this daemon or the next.
///
/// # Errors
/// The storage's.
pub async fn rewrite(base: &Base, state: &State) -> Result<()> {
    let geometry = &state.rules.geometry;
    let mut clusters = state.writer.tables().written_metadata();
    clusters.sort_unstable();
    let length = base.file.length();
    for cluster in clusters {
        let Some(HostOffset(start)) = geometry.start_of(cluster) else {
            continue;
        };
        // What lies behind the end is in no file, and zeroes.
        let there = length.saturating_sub(start).min(geometry.cluster_size());
        let Some(bytes) = usize::try_from(there).ok().filter(|bytes| *bytes > 0) else {
            continue;
        };
        let mut same = base.read(HostOffset(start), bytes).await?;
        base.file.submit(Io::write(start, same.lend())).await?;
    }
    Ok(())
}
