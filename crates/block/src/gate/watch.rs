//! The watch for requests whose tickets are dropped, by gate.

use std::cell::RefCell;
use std::collections::HashMap;
use std::task::{Context, Poll, Waker};

use crate::gate::line::SlotId;
use crate::words::request::Request;

/// A request that is in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Started {
    pub(super) request: Request,
    pub(super) order: u64,
    pub(super) generation: u64,
    pub(super) slot: Option<SlotId>,
    /// It is parked in the driver: not in flight.
    pub(super) parked: bool,
    /// Whose: the number of its gate's watch; 0: nobody watches.
    pub(super) gate: u32,
}

#[derive(Debug, Default)]
struct Watch {
    lost: Vec<Started>,
    waker: Option<Waker>,
}

thread_local! {
    /// A gate and its tickets stay on one thread. By the number of the gate.
    static WATCHES: RefCell<HashMap<u32, Watch>> = RefCell::default();
}

/// A watch begins. Returns the number of its gate.
pub(super) fn begin() -> u32 {
    WATCHES.with_borrow_mut(|watches| {
        let mut gate = 1;
        while watches.contains_key(&gate) {
            gate += 1;
        }
        watches.insert(gate, Watch::default());
        gate
    })
}

/// The next one that was lost of a gate. None: nobody watches any more.
pub(super) fn poll_next(gate: u32, cx: &Context<'_>) -> Poll<Option<Started>> {
    WATCHES.with_borrow_mut(|watches| {
        let Some(watch) = watches.get_mut(&gate) else {
            return Poll::Ready(None);
        };
        if let Some(started) = watch.lost.pop() {
            return Poll::Ready(Some(started));
        }
        watch.waker = Some(cx.waker().clone());
        Poll::Pending
    })
}

/// Nobody watches any more.
pub(super) fn end(gate: u32) {
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
