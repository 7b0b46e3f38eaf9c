//! Adaptive polling: who is polled, and for how long.
//!
//! Waking a thread costs more than most requests take: on a virtual machine an idle CPU has to be
//! left and entered again, 20 to 35 us for each of the two. So the thread polls before it blocks,
//! for as long as it would have had to last time, and leaves it for a while when that does not pay.

use std::{cell::Cell, time::Duration};

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

/// What a wait takes beyond the time of its event, in ns: the thread has to be woken.
const WAKE_NS: u64 = 65_536;
/// The shortest window, in ns.
const FIRST_WINDOW_NS: u64 = 4000;
/// Whole windows in vain after which polling rests.
const PATIENCE: u32 = 4;
/// Waits without polling at the first rest; each further one is twice as long.
const REST: u32 = 16;
/// How often the rest doubles.
const REST_DOUBLINGS: u32 = 6;
/// How much longer than for requests the thread polls for the end of I/O that it has begun.
pub(crate) const IO_FACTOR: u64 = 4;
/// Operations in flight up to which polling may pay: with more of them it is the rate that counts,
/// and there is something to do soon anyway.
pub(crate) const IO_POLLED_MAX: usize = 2;

/// How long to poll for one kind of event.
#[derive(Debug, Default)]
pub(crate) struct Window {
    ns: Cell<u64>,
    /// Whole windows in vain, one after the other.
    failures: Cell<u32>,
    /// Waits still to go without polling.
    rest: Cell<u32>,
    /// Rests since polling last paid.
    rests: Cell<u32>,
}

impl Window {
    /// How long to poll before this wait blocks, in ns.
    pub(crate) fn next(&self, max_ns: u64) -> u64 {
        match self.rest.get() {
            0 => self.ns.get().min(max_ns),
            rest => {
                self.rest.set(rest - 1);
                0
            }
        }
    }

    /// Polling has found something.
    pub(crate) fn caught(&self) {
        self.failures.set(0);
        self.rests.set(0);
    }

    /// A wait has blocked, after it had polled for `polled_ns`, and took `waited` in all.
    pub(crate) fn missed(&self, polled_ns: u64, waited: Duration, params: PollParams) {
        let waited_ns = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        let window = self.ns.get();
        if waited_ns > params.max_ns.saturating_add(WAKE_NS) {
            let shrunk = window.checked_div(u64::from(params.shrink)).unwrap_or(0);
            self.ns.set(shrunk.min(params.max_ns));
            return;
        }
        let factor = if params.grow == 0 { 2 } else { params.grow };
        let grown = window.saturating_mul(u64::from(factor));
        let wanted = waited_ns.max(grown).max(FIRST_WINDOW_NS);
        self.ns.set(wanted.min(params.max_ns));
        if polled_ns >= params.max_ns && polled_ns > 0 {
            self.in_vain();
        }
    }

    /// A window in vain.
    pub(crate) fn in_vain(&self) {
        self.failures.set(self.failures.get() + 1);
        if self.failures.get() >= PATIENCE {
            let rests = self.rests.get();
            self.rest.set(REST << rests.min(REST_DOUBLINGS));
            self.rests.set(rests.saturating_add(1));
            // Once is enough to see whether it pays again.
            self.failures.set(PATIENCE - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QEMU: PollParams = PollParams {
        max_ns: 32768,
        grow: 0,
        shrink: 0,
    };

    fn window(ns: u64) -> Window {
        let window = Window::default();
        window.ns.set(ns);
        window
    }

    /// The window after one of `before` was not enough.
    fn missed(before: u64, waited_ns: u64, params: PollParams) -> u64 {
        let window = window(before);
        window.missed(before, Duration::from_nanos(waited_ns), params);
        window.next(params.max_ns)
    }

    #[test]
    fn as_long_as_the_last_wait_or_longer() {
        assert_eq!(missed(0, 20_000, QEMU), 20_000);
        assert_eq!(missed(0, 100, QEMU), FIRST_WINDOW_NS);
        assert_eq!(missed(16_000, 17_000, QEMU), 32_000);
        let by_three = PollParams { grow: 3, ..QEMU };
        assert_eq!(missed(4000, 4000, by_three), 12_000);
        assert_eq!(
            missed(0, 32_768 + WAKE_NS, QEMU),
            32_768,
            "a wake-up is no event"
        );
    }

    #[test]
    fn shrinks_after_a_long_wait() {
        assert_eq!(missed(16_000, 1_000_000, QEMU), 0);
        let by_four = PollParams { shrink: 4, ..QEMU };
        assert_eq!(missed(16_000, 1_000_000, by_four), 4000);
    }

    #[test]
    fn never_exceeds_a_lowered_maximum() {
        let off = PollParams { max_ns: 0, ..QEMU };
        assert_eq!(missed(16_000, 10, off), 0);
        assert_eq!(missed(0, 0, off), 0);
        assert_eq!(window(16_000).next(5000), 5000);
    }

    #[test]
    fn what_workers_end_is_no_reason_to_poll() {
        let window = window(QEMU.max_ns);
        for _ in 0..PATIENCE {
            assert_eq!(window.next(QEMU.max_ns), QEMU.max_ns);
            window.in_vain();
        }
        assert_eq!(window.next(QEMU.max_ns), 0);
    }

    #[test]
    fn rests_when_it_does_not_pay_and_looks_again_now_and_then() {
        let window = Window::default();
        let mut polled = Vec::new();
        for wait in 0..100_000 {
            let ns = window.next(QEMU.max_ns);
            if ns > 0 {
                polled.push(wait);
            }
            window.missed(ns, Duration::from_micros(60), QEMU);
        }
        assert!(polled.len() < 150, "{polled:?}");
        assert!(
            polled.last().is_some_and(|&last| last > 98_000),
            "{polled:?}"
        );
        window.caught();
        while window.next(QEMU.max_ns) == 0 {}
        for _ in 0..3 {
            assert_eq!(window.next(QEMU.max_ns), QEMU.max_ns);
            window.caught();
        }
    }
}
