//! Hooks that run once at the end of a round.

use std::rc::Rc;

use crate::context;

/// Something to do once per batch instead of once per request: publish the used index, signal the
/// guest.
pub trait Deferred {
    /// Runs at the end of the round, before new operations are handed to the kernel.
    fn run(&self);
}

/// Queues `hook` for the end of this round. A hook that is queued twice runs twice, so its owner
/// keeps a flag. A hook queued by a hook runs at the end of the next round, which comes before the
/// thread blocks.
///
/// # Panics
///
/// Outside an iothread.
pub fn defer(hook: Rc<dyn Deferred>) {
    context::with(|cx| cx.deferred.borrow_mut().push(hook));
}
