//! The account that all iothreads share, and who wants to know what comes of it.

use std::ops::Range;
use std::sync::Arc;

use block::{BlockError, Io, Result, WriteThreshold};
use parking_lot::{Mutex, MutexGuard};

use super::account::{Account, Ticket};

/// See the [module](self).
#[derive(Debug)]
pub struct Books {
    /// Name of the node, for messages.
    pub node_name: Arc<str>,
    /// What somebody wants to be told of once that much is allocated.
    pub threshold: WriteThreshold,
    account: Mutex<Account>,
}

impl Books {
    /// Of this node, which has allocated that.
    pub fn new(node_name: Arc<str>, account: Account) -> Self {
        Self {
            node_name,
            threshold: WriteThreshold::default(),
            account: Mutex::new(account),
        }
    }

    /// The account, locked: keep it shortly.
    pub fn account(&self) -> MutexGuard<'_, Account> {
        // It is consistent wherever a change might stop.
        self.account.lock()
    }

    /// A write of `io`, of these granules, begins.
    ///
    /// # Errors
    /// ENOSPC: there is no place.
    pub fn begin_write(&self, io: &Io<'_>, range: Range<u64>) -> Result<Ticket> {
        let mut account = self.account();
        let begun = account.begin_write(range);
        let wanted = account.allocated()
            + begun
                .as_ref()
                .map_or_else(|no_space| no_space.needed, |_| 0);
        drop(account);
        self.threshold.reached(wanted);
        begun.map_err(|no_space| {
            BlockError::new(libc::ENOSPC, no_space)
                .doing(io.op.name())
                .at(&self.node_name, io.offset, io.bytes)
        })
    }
}
