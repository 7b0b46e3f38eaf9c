//! The primitives of the lock-free parts, from `std` or, under `cfg(loom)`, from the model checker.

#[cfg(loom)]
pub(crate) use loom::{
    cell::UnsafeCell,
    future::AtomicWaker,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicPtr, AtomicUsize},
    },
};

#[cfg(not(loom))]
pub(crate) use atomic_waker::AtomicWaker;

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicPtr, AtomicUsize},
};

pub(crate) use std::sync::atomic::Ordering;

/// Stores the waker of the one consumer, which looks at its queue again afterwards.
pub(crate) fn register(slot: &AtomicWaker, waker: &std::task::Waker) {
    #[cfg(loom)]
    slot.register_by_ref(waker);
    #[cfg(not(loom))]
    slot.register(waker);
}

/// `std`'s cell with the closure interface of loom's, which tracks who accesses it when.
#[cfg(not(loom))]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> UnsafeCell<T> {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    /// Exclusive access; that it is exclusive is the caller's claim when it dereferences.
    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}
