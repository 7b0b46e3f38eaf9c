//! L2 tables that have come, until they are known to be durable: empty, or the copy of one that others have, too. What is
//! changed in them is in memory.

use std::sync::atomic::Ordering;

use block::{Io, Result};

use super::base::Base;
use super::state::State;
use crate::format::{GuestOffset, HostOffset};

/// A table that was written as it came.
#[derive(Clone, Copy, Debug)]
pub struct NewTable {
    /// Where it is.
    pub at: HostOffset,
    /// What it is the copy of: nothing is written there as long as this exists. None: it came empty.
    pub former: Option<HostOffset>,
    /// How many flushes had failed before it was written.
    failed: u32,
}

impl NewTable {
    /// One that is about to be written, or has been by a former daemon.
    pub fn new(base: &Base, at: HostOffset, former: Option<HostOffset>) -> Self {
        Self {
            at,
            former,
            failed: base.failed_flushes.load(Ordering::SeqCst),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// The storage's; that the image ends before what is to be copied does.
    pub async fn put(&self, base: &Base, state: &State) -> Result<()> {
        let geometry = &state.rules.geometry;
        let size = geometry.cluster_size();
        let Some(former) = self.former else {
            let zeroes = Io::write_zeroes(self.at.0, size, false);
            return base.file.submit(zeroes).await;
        };
        if !state.reaches(base, former.0.saturating_add(size)) {
            let what = format!("L2 table at {former}: the file ends before the table does");
            return Err(base.corrupt(GuestOffset(0), 0, what).beyond_repair());
        }
        let mut copy = base.read(former, geometry.cluster_bytes()).await?;
        base.file.submit(Io::write(self.at.0, copy.lend())).await
    }

    /// Writes it again if a flush has failed since: once somebody accepts the loss, which is of the guest's data, flushes succeed
    /// again, and what was in this place before would be taken for entries.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn put_again(&mut self, base: &Base, state: &State) -> Result<()> {
        let failed = base.failed_flushes.load(Ordering::SeqCst);
        if self.failed != failed {
            self.put(base, state).await?;
            self.failed = failed;
        }
        Ok(())
    }
}
