//! Requests whose tickets were dropped: their clients would wait for ever, and so would whoever waits
//! until nothing is in flight. That is a mistake in the daemon, which is found by tests; in
//! production the request is found again here, and whoever drives the gate lets it fail.

use std::cell::RefCell;
use std::collections::HashMap;
use std::task::{Context, Poll, Waker};

use super::ticket::{Started, Ticket};

#[derive(Debug, Default)]
struct Watch {
    lost: Vec<Started>,
    waker: Option<Waker>,
}

thread_local! {
    /// A gate and its tickets stay on one thread. By the number of the gate.
    static WATCHES: RefCell<HashMap<u32, Watch>> = RefCell::default();
}

/// The lost requests of one gate, which go to whoever has this.
#[derive(Debug)]
pub struct Lost {
    gate: u32,
}

impl Lost {
    /// From now on what is lost of the gate with the number that is returned too comes here.
    pub(super) fn watch() -> (Self, u32) {
        WATCHES.with_borrow_mut(|watches| {
            let mut gate = 1;
            while watches.contains_key(&gate) {
                gate += 1;
            }
            watches.insert(gate, Watch::default());
            (Self { gate }, gate)
        })
    }

    /// The next one. None: nobody watches any more ([`super::Gate::end_watch`]).
    pub fn poll_next(&self, cx: &Context<'_>) -> Poll<Option<Ticket>> {
        WATCHES.with_borrow_mut(|watches| {
            let Some(watch) = watches.get_mut(&self.gate) else {
                return Poll::Ready(None);
            };
            if let Some(started) = watch.lost.pop() {
                return Poll::Ready(Some(Ticket::new(started)));
            }
            watch.waker = Some(cx.waker().clone());
            Poll::Pending
        })
    }
}

/// Nobody watches any more.
pub(super) fn end_watch(gate: u32) {
    let watch = WATCHES.with_borrow_mut(|watches| watches.remove(&gate));
    if let Some(waker) = watch.and_then(|watch| watch.waker) {
        waker.wake();
    }
}

/// A ticket was dropped. False: nobody watches.
pub(super) fn report(started: Started) -> bool {
    let told = WATCHES.try_with(|watches| {
        let mut watches = watches.try_borrow_mut().ok()?;
        let watch = watches.get_mut(&started.gate)?;
        watch.lost.push(started);
        Some(watch.waker.take())
    });
    match told {
        Ok(Some(waker)) => {
            waker.into_iter().for_each(Waker::wake);
            true
        }
        // The thread ends.
        Ok(None) | Err(_) => false,
    }
}
