//! Adaptive polling: who is polled, and for how long.

use std::{fmt, rc::Rc, time::Duration};

use crate::context;

/// A source of work that can be asked instead of waiting for its notification: a virtqueue.
///
/// The thread calls `enable_notify` on every poller before *each* block, so a queue may go on with
/// its notifications off; and it calls `poll` at least once a round while they are off.
pub trait Poller {
    /// Looks for work; true if there was some (and somebody has been woken to do it, or it is
    /// done).
    fn poll(&self) -> bool;

    /// The thread polls from now on: notifications are a waste.
    fn disable_notify(&self);

    /// The thread is about to block: from here on work must notify. True if there is work already;
    /// then the thread does not block, and calls `poll` at once. May be called when notifications
    /// are on already.
    fn enable_notify(&self) -> bool;
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

/// QEMU's parameters of adaptive polling, with QEMU's meaning of 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollParams {
    /// The longest time to poll before blocking, in ns; 0: never poll.
    pub max_ns: u64,
    /// Factor by which the window grows; 0: 2.
    pub grow: u32,
    /// Divisor by which the window shrinks; 0: down to nothing.
    pub shrink: u32,
}

/// The first window after none, in ns.
const FIRST_WINDOW_NS: u64 = 4000;

/// The window for the next wait, after one that blocked and took `waited` in all (polling included).
///
/// If polling as long as allowed would have caught the event, poll longer next time; if not, it was
/// wasted time, so poll less.
pub(crate) fn next_window_ns(window_ns: u64, waited: Duration, params: PollParams) -> u64 {
    let waited_ns = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
    let next = if waited_ns <= window_ns {
        window_ns
    } else if waited_ns > params.max_ns {
        window_ns.checked_div(u64::from(params.shrink)).unwrap_or(0)
    } else if window_ns == 0 {
        FIRST_WINDOW_NS
    } else {
        let factor = if params.grow == 0 { 2 } else { params.grow };
        window_ns.saturating_mul(u64::from(factor))
    };
    next.min(params.max_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QEMU: PollParams = PollParams {
        max_ns: 32768,
        grow: 0,
        shrink: 0,
    };

    fn next(window_ns: u64, waited_ns: u64, params: PollParams) -> u64 {
        next_window_ns(window_ns, Duration::from_nanos(waited_ns), params)
    }

    #[test]
    fn grows_while_events_come_within_the_maximum() {
        assert_eq!(next(0, 20_000, QEMU), 4000);
        assert_eq!(next(4000, 20_000, QEMU), 8000);
        assert_eq!(next(16_000, 20_000, QEMU), 32_000);
        assert_eq!(next(32_000, 32_500, QEMU), 32_768);
        let by_three = PollParams { grow: 3, ..QEMU };
        assert_eq!(next(4000, 20_000, by_three), 12_000);
    }

    #[test]
    fn stays_while_the_window_is_long_enough() {
        assert_eq!(next(16_000, 15_000, QEMU), 16_000);
    }

    #[test]
    fn shrinks_after_a_long_wait() {
        assert_eq!(next(16_000, 1_000_000, QEMU), 0);
        let by_four = PollParams { shrink: 4, ..QEMU };
        assert_eq!(next(16_000, 1_000_000, by_four), 4000);
    }

    #[test]
    fn never_exceeds_a_lowered_maximum() {
        let off = PollParams { max_ns: 0, ..QEMU };
        assert_eq!(next(16_000, 10, off), 0);
        assert_eq!(next(0, 0, off), 0);
        let lower = PollParams {
            max_ns: 5000,
            ..QEMU
        };
        assert_eq!(next(4000, 4500, lower), 5000);
    }
}
