//! Tasks: local futures, and how they become runnable.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    ptr,
    sync::{Arc, atomic::AtomicPtr},
    task::{Context, Poll, Waker},
};

use crate::{
    context,
    task::{Runnable, TaskMeta},
};

/// Starts a task on this iothread. It first runs in the next round.
///
/// Allocates; a request path has its worker tasks started beforehand.
///
/// # Panics
///
/// Outside an iothread.
pub fn spawn_local<F>(future: F) -> LocalTask<F::Output>
where
    F: Future + 'static,
{
    spawn_with_waker(future).0
}

/// [`spawn_local`], and what wakes the task: for those who poll on its behalf.
///
/// # Panics
///
/// Outside an iothread.
pub fn spawn_with_waker<F>(future: F) -> (LocalTask<F::Output>, Waker)
where
    F: Future + 'static,
{
    context::with(|cx| {
        let key = cx.tasks.borrow_mut().vacant_key();
        let meta = TaskMeta {
            next: AtomicPtr::new(ptr::null_mut()),
            shared: cx.shared.clone(),
        };
        let tracked = Tracked { future, key };
        let (runnable, task) = async_task::Builder::new()
            .metadata(meta)
            .spawn_local(move |_| tracked, schedule);
        let waker = runnable.waker();
        let inserted = cx.tasks.borrow_mut().insert(waker.clone());
        debug_assert_eq!(inserted, key);
        runnable.schedule();
        let local = PhantomData;
        (LocalTask { task, local }, waker)
    })
}

fn schedule(runnable: Runnable) {
    let shared = Arc::as_ptr(&runnable.metadata().shared);
    let mut runnable = Some(runnable);
    context::try_with(|cx| {
        if ptr::eq(Arc::as_ptr(&cx.shared), shared)
            && let Some(runnable) = runnable.take()
        {
            cx.runnable.borrow_mut().push_back(runnable);
        }
    });
    if let Some(runnable) = runnable {
        // The task, and its reference with it, may be gone as soon as it is in the list.
        let shared = runnable.metadata().shared.clone();
        shared.push_remote(runnable);
    }
}

/// A future that knows its place in the thread's list of tasks, through which shutdown finds it.
struct Tracked<F> {
    future: F,
    key: usize,
}

impl<F: Future> Future for Tracked<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: `future` is pinned whenever `self` is: it is never moved out, and Drop does not
        // touch it.
        unsafe { self.map_unchecked_mut(|this| &mut this.future) }.poll(cx)
    }
}

impl<F> Drop for Tracked<F> {
    fn drop(&mut self) {
        let waker = context::try_with(|cx| cx.tasks.borrow_mut().try_remove(self.key));
        drop(waker);
    }
}

/// A task started with [`spawn_local`]; as a future it yields the task's result.
///
/// Dropping it cancels the task: the task's future does not run again and is dropped by the thread
/// in its next round, not at once. [`LocalTask::detach`] lets it go on instead.
#[must_use = "dropping the handle cancels the task; detach() lets it run"]
pub struct LocalTask<T> {
    task: async_task::Task<T, TaskMeta>,
    local: PhantomData<*const ()>,
}

impl<T> LocalTask<T> {
    /// Lets the task run on its own. Its result is dropped.
    pub fn detach(self) {
        self.task.detach();
    }

    /// Cancels the task and waits until its future has been dropped; the result if it was done
    /// already.
    pub async fn cancel(self) -> Option<T> {
        self.task.cancel().await
    }

    /// Whether the task has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

impl<T> Future for LocalTask<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.task).poll(cx)
    }
}

impl<T> fmt::Debug for LocalTask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalTask")
            .field("finished", &self.task.is_finished())
            .finish()
    }
}

/// Lets everything else that is runnable run first, and the ring and the timers be served.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            Poll::Ready(())
        } else {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}
