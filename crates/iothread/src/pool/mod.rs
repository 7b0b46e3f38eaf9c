//! The operations of an iothread that workers make.
//!
//! A worker is in one system call at a time, which nobody can take it out of: an operation that is given up
//! is taken out of its line at once, but waited for if a worker has it, as it would be in a ring, whose
//! storage does not know how to cancel either.

mod crew;
mod job;
mod lines;

use std::{
    cell::{Cell, RefCell},
    io,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use slab::Slab;

pub(crate) use self::crew::Size;
use self::{crew::Crew, job::Job};
use crate::{
    call::Call,
    lane::{Lane, NO_LANE},
    shared::Shared,
};

/// The iothread's side of its workers. There are none before the first operation, unless asked for, and at
/// least one from then on.
pub(crate) struct Pool {
    crew: Arc<Crew>,
    /// What operations hold the keys of.
    jobs: RefCell<Slab<Arc<Job>>>,
    /// How many there are.
    waiting: Cell<usize>,
    used: Cell<bool>,
}

impl Pool {
    pub(crate) fn new(size: Size, shared: Arc<Shared>) -> Pool {
        Pool {
            crew: Crew::new(size, shared),
            jobs: RefCell::default(),
            waiting: Cell::new(0),
            used: Cell::new(false),
        }
    }

    /// Starts the workers that stay.
    fn start(&self) {
        if !self.used.replace(true) {
            self.crew.start_min();
        }
    }

    /// Changes how many workers there may be.
    pub(crate) fn resize(&self, size: Size) {
        self.crew.resize(size, self.used.get());
    }

    /// Starts the workers that stay, of which there is at least one, and fails if there is none.
    pub(crate) fn start_now(&self) -> io::Result<()> {
        self.crew.start_first()?;
        self.start();
        Ok(())
    }

    /// Sees to it, as a task of the iothread's, which can `sleep`, that workers which could not be started
    /// are tried again.
    pub(crate) fn mind<S: Future<Output = ()>>(
        &self,
        sleep: fn(Duration) -> S,
    ) -> impl Future<Output = ()> + use<S> {
        Arc::clone(&self.crew).mind(sleep)
    }

    /// Has a worker make a call on behalf of `waker`.
    ///
    /// # Safety
    ///
    /// What `call` names stays valid until [`Pool::poll`] or [`Pool::cancel`] has returned its result.
    pub(crate) unsafe fn submit(&self, call: Call, lane: Option<&Lane>, waker: &Waker) -> usize {
        self.start();
        let id = lane.map_or(NO_LANE, Lane::id);
        // SAFETY: passed on to the caller.
        let job = Arc::new(unsafe { Job::new(call, id, waker) });
        let share = lane.map(Lane::share).unwrap_or_default();
        let key = self.jobs.borrow_mut().insert(Arc::clone(&job));
        self.waiting.set(self.waiting.get() + 1);
        self.crew.push(&job, share);
        key
    }

    /// Number of operations that somebody waits for.
    #[inline]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// The result of an operation, if it has one; else `cx` is woken when it has.
    pub(crate) fn poll(&self, key: usize, cx: &Context<'_>) -> Poll<i32> {
        // No borrow while a waker is exchanged.
        let job = Arc::clone(&self.jobs.borrow()[key]);
        let result = job.poll(cx);
        if result.is_ready() {
            drop(self.remove(key));
        }
        result
    }

    /// Ends an operation: when this returns nobody touches its memory.
    pub(crate) fn cancel(&self, key: usize) {
        let job = self.remove(key);
        self.crew.cancel(&job);
    }

    fn remove(&self, key: usize) -> Arc<Job> {
        self.waiting.set(self.waiting.get() - 1);
        self.jobs.borrow_mut().remove(key)
    }

    /// Ends all operations that no worker has; does not wait.
    pub(crate) fn cancel_waiting(&self) {
        self.crew.cancel_waiting();
    }

    /// Waits until nothing is in flight and no worker is left.
    pub(crate) fn close(&self) {
        self.crew.close();
    }
}
