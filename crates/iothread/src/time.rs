//! The clock and the timers of an iothread.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use crate::context;

/// Deadlines that do not fit the clock are put this far into the future.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The time, read once per round: cheap, and late by at most the length of a round.
///
/// # Panics
///
/// Outside an iothread.
#[must_use]
pub fn now() -> Instant {
    context::with(|cx| cx.now())
}

/// The time, read now; [`now`] yields it too for the rest of the round.
///
/// # Panics
///
/// Outside an iothread.
pub fn refresh() -> Instant {
    context::with(|cx| {
        cx.now.set(None);
        cx.now()
    })
}

/// Waits at least for `duration` from now (by a fresh look at the clock).
///
/// # Panics
///
/// When polled outside an iothread.
pub fn sleep(duration: Duration) -> Sleep {
    let now = Instant::now();
    sleep_until(now.checked_add(duration).unwrap_or_else(|| now + FAR))
}

/// Waits until `deadline`. Timers with the same deadline fire in the order they were first polled.
///
/// # Panics
///
/// When polled outside an iothread.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep {
        deadline,
        key: None,
        local: PhantomData,
    }
}

/// The future of [`sleep`] and [`sleep_until`]; dropping it cancels the timer.
#[must_use = "futures do nothing unless polled"]
pub struct Sleep {
    deadline: Instant,
    key: Option<usize>,
    /// The timer belongs to this thread.
    local: PhantomData<*const ()>,
}

impl Sleep {
    /// When it fires.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        context::with(|thread| {
            let Some(key) = self.key else {
                if self.deadline <= Instant::now() {
                    return Poll::Ready(());
                }
                let key = thread
                    .timers
                    .borrow_mut()
                    .insert(self.deadline, cx.waker().clone());
                self.key = Some(key);
                return Poll::Pending;
            };
            let (fired, old) = thread.timers.borrow_mut().poll(key, cx.waker());
            drop(old);
            if !fired {
                return Poll::Pending;
            }
            thread.timers.borrow_mut().remove(key);
            self.key = None;
            // Polled again after it was ready: ready again, because the deadline has passed.
            Poll::Ready(())
        })
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            // Without a context the thread is ending and its timers are gone.
            let waker = context::try_with(|cx| cx.timers.borrow_mut().remove(key));
            drop(waker);
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
