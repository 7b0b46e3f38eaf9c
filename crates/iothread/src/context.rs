//! The thread-local side of an iothread.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    ptr,
    rc::Rc,
    sync::Arc,
    task::Waker,
    time::Instant,
};

use slab::Slab;

use crate::{
    deferred::Deferred,
    poll::{Poller, Window},
    pool::Pool,
    reactor::Reactor,
    shared::Shared,
    task::Runnable,
    timers::Timers,
};

/// Everything the tasks of an iothread share. No borrow of a cell is held while foreign code (a
/// future, a waker, a hook, a poller) runs or is dropped.
pub(crate) struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) reactor: Reactor,
    pub(crate) pool: Pool,
    pub(crate) runnable: RefCell<VecDeque<Runnable>>,
    /// All tasks whose future is alive.
    pub(crate) tasks: RefCell<Slab<Waker>>,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) deferred: RefCell<Vec<Rc<dyn Deferred>>>,
    /// The empty vector that `deferred` is swapped with, so that neither is ever reallocated.
    pub(crate) deferred_spare: Cell<Vec<Rc<dyn Deferred>>>,
    pub(crate) pollers: RefCell<Vec<Option<Rc<dyn Poller>>>>,
    /// Whether `pollers` has places to clean up.
    pub(crate) pollers_removed: Cell<bool>,
    /// Whether the pollers have been told that notifications are a waste.
    pub(crate) notify_suppressed: Cell<bool>,
    /// How long to poll for requests.
    pub(crate) idle_window: Window,
    /// How long to poll for the end of I/O.
    pub(crate) io_window: Window,
    /// How long to poll for requests while workers have something to do.
    pub(crate) workers_window: Window,
    /// The time of this round, once somebody asked.
    pub(crate) now: Cell<Option<Instant>>,
}

impl Context {
    pub(crate) fn new(shared: Arc<Shared>, reactor: Reactor, pool: Pool) -> Context {
        Context {
            shared,
            reactor,
            pool,
            runnable: RefCell::new(VecDeque::with_capacity(1024)),
            tasks: RefCell::default(),
            timers: RefCell::default(),
            deferred: RefCell::default(),
            deferred_spare: Cell::default(),
            pollers: RefCell::default(),
            pollers_removed: Cell::new(false),
            notify_suppressed: Cell::new(false),
            idle_window: Window::default(),
            io_window: Window::default(),
            workers_window: Window::default(),
            now: Cell::new(None),
        }
    }

    pub(crate) fn now(&self) -> Instant {
        match self.now.get() {
            Some(now) => now,
            None => {
                let now = Instant::now();
                self.now.set(Some(now));
                now
            }
        }
    }

    /// Makes this the thread's context until the guard is dropped.
    pub(crate) fn enter(&self) -> Entered<'_> {
        CURRENT.set(ptr::from_ref(self));
        Entered { _context: self }
    }
}

/// Borrows the context, so that it outlives its being the thread's.
pub(crate) struct Entered<'a> {
    _context: &'a Context,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        CURRENT.set(ptr::null());
    }
}

thread_local! {
    static CURRENT: Cell<*const Context> = const { Cell::new(ptr::null()) };
}

/// Calls `f` with this thread's context; `None` if it is no iothread, or one at its very end.
pub(crate) fn try_with<R>(f: impl FnOnce(&Context) -> R) -> Option<R> {
    // SAFETY: non-null only while an `Entered` borrows the context, on this very thread.
    let context = unsafe { CURRENT.get().as_ref() };
    context.map(f)
}

/// Calls `f` with this thread's context.
///
/// # Panics
///
/// Outside an iothread.
pub(crate) fn with<R>(f: impl FnOnce(&Context) -> R) -> R {
    try_with(f).expect("this is for tasks of an iothread; use iothread::Handle from other threads")
}
