//! A slot for the waker of one consumer, which any thread may wake.

use std::task::Waker;

use crate::sync::{AtomicUsize, Ordering, UnsafeCell, spin_loop};

/// Nobody touches the slot.
const IDLE: usize = 0;
/// The consumer writes the slot.
const REGISTERING: usize = 1;
/// A producer empties the slot, or, together with `REGISTERING`, asks the consumer to do it.
const WAKING: usize = 2;

pub(crate) struct AtomicWaker {
    state: AtomicUsize,
    slot: UnsafeCell<Option<Waker>>,
}

// SAFETY: `slot` is accessed only by whoever moved `state` away from IDLE, one thread at a time.
unsafe impl Send for AtomicWaker {}
// SAFETY: as above.
unsafe impl Sync for AtomicWaker {}

impl AtomicWaker {
    pub(crate) fn new() -> AtomicWaker {
        AtomicWaker {
            state: AtomicUsize::new(IDLE),
            slot: UnsafeCell::new(None),
        }
    }

    /// Stores `waker`. Called by one consumer, never concurrently with itself.
    ///
    /// The consumer must look at its queue again afterwards: a `wake` that came before this call is
    /// over and woke nobody, but what was published before it is visible from here on.
    pub(crate) fn register(&self, waker: &Waker) {
        if self
            .state
            .compare_exchange(IDLE, REGISTERING, Ordering::Acquire, Ordering::Acquire)
            .is_err()
        {
            // A producer is emptying the slot this very moment: what it published is visible now,
            // but the caller cannot be stored, so it has to come back.
            spin_loop();
            waker.wake_by_ref();
            return;
        }
        let old = self.slot.with_mut(|slot| {
            // SAFETY: REGISTERING gives this thread the slot.
            let slot = unsafe { &mut *slot };
            match slot {
                Some(stored) if stored.will_wake(waker) => None,
                _ => slot.replace(waker.clone()),
            }
        });
        if self
            .state
            .compare_exchange(REGISTERING, IDLE, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            // A producer came meanwhile and left the wake to us.
            let stored = self.take();
            self.state.swap(IDLE, Ordering::AcqRel);
            if let Some(stored) = stored {
                stored.wake();
            }
        }
        drop(old);
    }

    /// Wakes and forgets the stored waker, if any. What the caller published before is visible to
    /// the woken consumer.
    pub(crate) fn wake(&self) {
        if self.state.fetch_or(WAKING, Ordering::AcqRel) == IDLE {
            let stored = self.take();
            self.state.fetch_and(!WAKING, Ordering::Release);
            if let Some(stored) = stored {
                stored.wake();
            }
        }
    }

    /// Empties the slot. The caller moved `state` away from IDLE and has not put it back.
    fn take(&self) -> Option<Waker> {
        self.slot.with_mut(|slot| {
            // SAFETY: see above; the slot is this thread's.
            unsafe { (*slot).take() }
        })
    }
}
