//! How a driver waits before it begins: what waits inside a driver is *parked*, not in flight.
//!
//! A throttle waits for its budget, a network driver for its server. Nobody may have to wait for that: no
//! drain, no stop of a ring, no removal. So a driver says where it does so ([`until`]), and as long as it
//! does the request counts as parked. When the request may not start any more (something is frozen, its
//! queue is stopped, its memory changes), its future is dropped there, and the request is submitted anew
//! when it may: whatever the driver had taken for it (a place in a line, a part of a budget) must go back by
//! drop.
//!
//! **Only before anything is in flight.** A future that is dropped half-way has executed a request in part.
//! One whose wait was once anything else (an operation, a lock) is not taken back any more, so that much is
//! seen to here. The driver sees to the rest:
//!
//! * one that does several operations of its own for one request wraps all but the first in [`never()`]:
//!   storage that answers at once is not seen to have been waited for;
//! * one that has several under way at once wraps each of them;
//! * one that stops waiting (a limit has passed) drops what it waited for before it does anything else;
//! * a wait for something that a parked request may have (a lock that is kept while it waits) is an [`until`]
//!   too.
//!
//! A filter that passes on its child's future, or awaits it, has nothing to do; one that has taken something
//! for the request may ask whether it waits below ([`poll()`]) and give it back meanwhile (`quota`).

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::ptr;
use std::task::{Context, Poll, Waker};

thread_local! {
    /// A request is being taken back.
    static TAKEN_BACK: Cell<bool> = const { Cell::new(false) };
    /// Whose last poll ended in an [`Until`]: the data of its waker. Only to be compared.
    static WAITS: Cell<*const ()> = const { Cell::new(ptr::null()) };
}

/// Waits for `future` on behalf of a request of which nothing is in flight: see the [module](self).
pub fn until<F: Future>(future: F) -> Until<F> {
    Until {
        future,
        marked: Mark(ptr::null()),
    }
}

/// As `future`; but what waits in it is in flight, because something has been done for the request, or is
/// being done beside. A drain waits for it.
pub async fn never<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() && is_waiting(cx.waker()) {
            WAITS.set(ptr::null());
        }
        polled
    })
    .await
}

/// Calls `drop`, which drops the future of a request that is parked.
pub fn take_back(drop: impl FnOnce()) {
    /// Also where that panics.
    struct Restore(bool);

    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = TAKEN_BACK.try_with(|taken_back| taken_back.set(self.0));
        }
    }

    let _restored = Restore(TAKEN_BACK.replace(true));
    drop();
}

/// Whether the future that is being dropped is taken back where it was parked: nothing was done for it, so
/// a driver above that has taken something for it (a part of a quota) gives it back as a whole.
pub fn is_taken_back() -> bool {
    TAKEN_BACK.try_with(Cell::get).unwrap_or(false)
}

/// Polls what a request of a driver above has become below, and says whether it is parked there.
pub fn poll<F: Future>(future: Pin<&mut F>, cx: &mut Context<'_>) -> (Poll<F::Output>, bool) {
    // What has been polled before by the same task says nothing of this.
    WAITS.set(ptr::null());
    let polled = future.poll(cx);
    let is_parked = polled.is_pending() && is_waiting(cx.waker());
    (polled, is_parked)
}

/// Whether the future that was just polled with `waker`, and is pending, waits in an [`until`].
#[inline]
pub(crate) fn is_waiting(waker: &Waker) -> bool {
    WAITS.get() == waker.data()
}

/// [`until`]
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Until<F> {
    future: F,
    marked: Mark,
}

/// What was written into `WAITS`, until it is not true any more.
#[derive(Debug)]
struct Mark(*const ());

impl Mark {
    fn set(&mut self, waker: &Waker) {
        self.0 = waker.data();
        WAITS.set(self.0);
    }

    fn clear(&mut self) {
        let mark = std::mem::replace(&mut self.0, ptr::null());
        // The thread may end.
        let _ = WAITS.try_with(|waits| {
            if waits.get() == mark {
                waits.set(ptr::null());
            }
        });
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.clear();
    }
}

impl<F: Future> Future for Until<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: `future` is pinned whenever `self` is: it is never moved out, and `Mark`, which has the
        // only `Drop` here, knows nothing of it.
        let (future, marked) = unsafe {
            let this = self.get_unchecked_mut();
            (Pin::new_unchecked(&mut this.future), &mut this.marked)
        };
        let polled = future.poll(cx);
        match polled {
            Poll::Pending => marked.set(cx.waker()),
            Poll::Ready(_) => marked.clear(),
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::future::{pending, poll_fn};
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::Wake;

    struct Nobody(#[expect(dead_code, reason = "so that each has an address")] u8);

    impl Wake for Nobody {
        fn wake(self: Arc<Self>) {}
    }

    fn waker() -> Waker {
        Waker::from(Arc::new(Nobody(0)))
    }

    fn waits<F: Future>(future: Pin<&mut F>, waker: &Waker) -> bool {
        let polled = future.poll(&mut Context::from_waker(waker));
        polled.is_pending() && is_waiting(waker)
    }

    async fn turn() {
        let mut before = true;
        poll_fn(|_| match std::mem::take(&mut before) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        })
        .await;
    }

    #[test]
    fn it_waits_only_while_it_does() {
        let (own, other) = (waker(), waker());
        let mut future = pin!(async {
            turn().await;
            until(turn()).await;
            turn().await;
            never(until(turn())).await;
            until(turn()).await;
        });
        let seen: Vec<_> = (0..5).map(|_| waits(future.as_mut(), &own)).collect();
        assert_eq!(seen, [false, true, false, false, true]);
        assert!(!is_waiting(&other), "that is another request");
    }

    #[test]
    fn who_polls_hears_of_its_own_alone() {
        let own = waker();
        let mut cx = Context::from_waker(&own);
        let mut parked = pin!(until(pending::<()>()));
        let mut begun = pin!(pending::<()>());
        assert!(poll(parked.as_mut(), &mut cx).1);
        assert!(!poll(begun.as_mut(), &mut cx).1, "the same task");
        assert!(poll(parked.as_mut(), &mut cx).1);
        assert_eq!(
            poll(pin!(until(std::future::ready(7))), &mut cx),
            (Poll::Ready(7), false)
        );
    }

    #[test]
    fn what_was_given_up_is_forgotten() {
        let own = waker();
        let mut future = pin!(async {
            // A limit: the wait is dropped when it has passed.
            let mut wait = Box::pin(until(pending::<()>()));
            let mut turns = 0;
            poll_fn(|cx| {
                turns += 1;
                let polled = wait.as_mut().poll(cx);
                if turns == 2 { Poll::Ready(()) } else { polled }
            })
            .await;
            drop(wait);
            pending::<()>().await;
        });
        assert!(waits(future.as_mut(), &own));
        assert!(!waits(future.as_mut(), &own));
        // A request that was dropped as it waited leaves nothing to the next one of its worker.
        let mut parked = Box::pin(until(pending::<()>()));
        assert!(waits(parked.as_mut(), &own));
        drop(parked);
        assert!(!waits(pin!(pending::<()>()), &own));
    }

    #[test]
    fn each_request_is_told_apart() {
        let (one, two) = (waker(), waker());
        let mut first = pin!(until(turn()));
        let mut second = pin!(until(pending::<()>()));
        assert!(waits(first.as_mut(), &one));
        assert!(waits(second.as_mut(), &two));
        // The first one ends: the second one still waits, and so it is seen when it is asked again.
        assert!(!waits(first.as_mut(), &one));
        assert!(waits(second.as_mut(), &two));
        assert!(!waits(pin!(pending::<()>()), &one));
    }
}
