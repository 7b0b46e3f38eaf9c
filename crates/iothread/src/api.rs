//! What a task asks of the iothread it runs on.

use std::{fmt, rc::Rc};

use crate::{context, deferred::Deferred, poll::Poller};

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

/// Adds a poller to this iothread until the guard is dropped.
///
/// # Panics
///
/// Outside an iothread.
#[must_use = "dropping the guard removes the poller"]
pub fn add_poller(poller: Rc<dyn Poller>) -> PollerGuard {
    context::with(|cx| {
        if cx.notify_suppressed.get() {
            poller.disable_notify();
        }
        cx.pollers.borrow_mut().push(Some(poller.clone()));
    });
    PollerGuard { poller }
}

/// Removes the poller when dropped. The poller's notifications are left as they are.
pub struct PollerGuard {
    poller: Rc<dyn Poller>,
}

impl Drop for PollerGuard {
    fn drop(&mut self) {
        let removed = context::try_with(|cx| {
            // The place stays until the next round, because the pollers may be being walked through.
            cx.pollers_removed.set(true);
            let mut pollers = cx.pollers.borrow_mut();
            let mut places = pollers.iter_mut();
            places
                .find(|place| place.as_ref().is_some_and(|p| Rc::ptr_eq(p, &self.poller)))
                .and_then(Option::take)
        });
        drop(removed);
    }
}

impl fmt::Debug for PollerGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollerGuard").finish_non_exhaustive()
    }
}
