//! The future of one operation on a node, stored inline; and the one of the control plane, boxed.
//!
//! A driver is used through `dyn Driver`, and a boxed future would cost an allocation per request
//! and node. The crates that store futures inline ask for `Send` futures, which those of an
//! iothread are not, so this is our own: a fixed space, and a box only for what does not fit.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::marker::{PhantomData, PhantomPinned};
use std::mem::{MaybeUninit, align_of, size_of};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use smallvec::SmallVec;

use crate::words::error::Result;

/// Bytes that a driver's future may have without being boxed.
pub const INLINE_BYTES: usize = 256;

/// How many owners a future keeps without an allocation: one for each node of a chain of filters.
const KEPT_INLINE: usize = 3;

type Storage = MaybeUninit<[u128; INLINE_BYTES / size_of::<u128>()]>;

// SAFETY of both: to be called with the storage that `IoFuture::inline` has filled, for the type that
// the function was made for; the second one once, as the last.
type PollFn = unsafe fn(*mut (), &mut Context<'_>) -> Poll<Result<()>>;
type DropFn = unsafe fn(*mut ());

/// A future of the control plane, which may be awaited on any thread.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What [`crate::Driver::submit`] returns: a future of `Result<()>` that lives as long as the
/// driver and the buffers it borrows.
pub struct IoFuture<'a> {
    work: Work,
    _borrows: PhantomData<dyn Future<Output = Result<()>> + 'a>,
}

#[expect(
    clippy::large_enum_variant,
    reason = "a box would be an allocation per request"
)]
enum Work {
    /// Done before anybody asked; none once it has been handed out.
    Ready(Option<Result<()>>),
    Stored(Stored),
}

/// A future of a type that is forgotten.
struct Stored {
    storage: Storage,
    poll: PollFn,
    drop: DropFn,
    /// What the future may borrow from: fields are dropped after the `Drop` of the whole, and that drops
    /// the future.
    kept: SmallVec<[Arc<dyn Any + Send + Sync>; KEPT_INLINE]>,
    /// Here, and so in all around it: the future may borrow from itself, and a `&mut` to what is
    /// `Unpin` says that nobody else has a reference into it. For the same reason nobody makes a
    /// `&mut` to the storage.
    _pinned: PhantomPinned,
}

impl<'a> IoFuture<'a> {
    /// Stores `future` inline if it fits into [`INLINE_BYTES`], else in a box.
    pub fn new<F: Future<Output = Result<()>> + 'a>(future: F) -> Self {
        if size_of::<F>() <= size_of::<Storage>() && align_of::<F>() <= align_of::<Storage>() {
            Self::inline(future)
        } else {
            Self::inline(Box::pin(future))
        }
    }

    /// A result that is known at once: see [`Self::take_ready`].
    pub const fn ready(result: Result<()>) -> Self {
        Self::of(Work::Ready(Some(result)))
    }

    /// The result, if the driver knew it at once: such a request needs no task and no waker, and
    /// its future has ended. None: it has to be polled.
    pub const fn take_ready(&mut self) -> Option<Result<()>> {
        match &mut self.work {
            Work::Ready(result) => result.take(),
            Work::Stored(_) => None,
        }
    }

    /// Keeps `owner` until the future has been dropped. What has its result already needs nobody.
    ///
    /// By reference: a future is some hundred bytes, and a move is a copy.
    pub fn keep(&mut self, owner: Arc<dyn Any + Send + Sync>) {
        if let Work::Stored(stored) = &mut self.work {
            stored.kept.push(owner);
        }
    }

    /// Whether the result is known already ([`Self::take_ready`]).
    pub const fn is_ready(&self) -> bool {
        matches!(self.work, Work::Ready(_))
    }

    const fn of(work: Work) -> Self {
        Self {
            work,
            _borrows: PhantomData,
        }
    }

    fn inline<F: Future<Output = Result<()>> + 'a>(future: F) -> Self {
        // SAFETY: see `PollFn`.
        unsafe fn poll<F: Future<Output = Result<()>>>(
            storage: *mut (),
            cx: &mut Context<'_>,
        ) -> Poll<Result<()>> {
            // SAFETY: `storage` holds an `F` (see `inline`), and it is pinned, because the
            // `IoFuture` around it is: it is `!Unpin`, and poll takes it pinned.
            let future = unsafe { Pin::new_unchecked(&mut *storage.cast::<F>()) };
            future.poll(cx)
        }
        // SAFETY: see `DropFn`.
        unsafe fn drop<F>(storage: *mut ()) {
            // SAFETY: `storage` holds an `F`, which nobody uses after this.
            unsafe { storage.cast::<F>().drop_in_place() }
        }
        const {
            assert!(size_of::<Pin<Box<u8>>>() <= INLINE_BYTES);
        }
        let mut storage = Storage::uninit();
        // SAFETY: `new` has checked size and alignment; a pinned box fits by the assertion above.
        unsafe { storage.as_mut_ptr().cast::<F>().write(future) };
        Self::of(Work::Stored(Stored {
            storage,
            poll: poll::<F>,
            drop: drop::<F>,
            kept: SmallVec::new(),
            _pinned: PhantomPinned,
        }))
    }
}

impl Future for IoFuture<'_> {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: a stored future is not moved out of `self`; `poll` treats the storage as pinned.
        match unsafe { &mut self.get_unchecked_mut().work } {
            Work::Ready(result) => Poll::Ready(result.take().expect("polled after it was ready")),
            // SAFETY: the storage was filled by `inline` with the type that `poll` was made for.
            Work::Stored(stored) => unsafe { (stored.poll)((&raw mut stored.storage).cast(), cx) },
        }
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        // SAFETY: the storage holds the value that `drop` was made for, and this runs once.
        unsafe { (self.drop)((&raw mut self.storage).cast()) }
    }
}

impl fmt::Debug for IoFuture<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;
    use std::task::Waker;

    fn run(future: IoFuture<'_>) -> Result<()> {
        let mut future = std::pin::pin!(future);
        loop {
            let mut cx = Context::from_waker(Waker::noop());
            if let Poll::Ready(result) = future.as_mut().poll(&mut cx) {
                return result;
            }
        }
    }

    async fn yield_once() {
        let mut yielded = false;
        std::future::poll_fn(|_| {
            if std::mem::replace(&mut yielded, true) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    #[test]
    fn a_result_known_at_once_needs_no_poll() {
        let failed = || IoFuture::ready(Err(crate::BlockError::from_errno(libc::EIO)));
        assert!(failed().take_ready().is_some_and(|result| result.is_err()));
        assert!(run(failed()).is_err());
        let mut stored = IoFuture::new(yield_then_ok());
        assert!(stored.take_ready().is_none(), "it has to be polled");
        assert!(run(stored).is_ok());
    }

    async fn yield_then_ok() -> Result<()> {
        yield_once().await;
        Ok(())
    }

    #[test]
    fn owners_are_dropped_after_what_borrows_from_them() {
        #[derive(Debug, Default)]
        struct Owner(std::sync::atomic::AtomicBool);
        struct Borrows<'a>(&'a Owner);
        impl Drop for Borrows<'_> {
            fn drop(&mut self) {
                self.0.0.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        }
        for owners in 0..=2 * KEPT_INLINE {
            for polled in [false, true] {
                let kept: Vec<_> = (0..owners).map(|_| Arc::new(Owner::default())).collect();
                let seen = Arc::new(Owner::default());
                let borrowing = Borrows(&seen);
                let mut future = IoFuture::new(async move {
                    let _borrowing = borrowing;
                    yield_once().await;
                    Ok(())
                });
                for owner in &kept {
                    future.keep(Arc::<Owner>::clone(owner));
                }
                let counts = || kept.iter().map(Arc::strong_count).collect::<Vec<_>>();
                assert_eq!(counts(), vec![2; owners]);
                match polled {
                    true => assert!(run(future).is_ok()),
                    false => drop(future),
                }
                assert!(seen.0.load(std::sync::atomic::Ordering::Relaxed));
                assert_eq!(counts(), vec![1; owners]);
            }
        }
        let owner = Arc::new(7);
        let mut ready = IoFuture::ready(Ok(()));
        ready.keep(Arc::<i32>::clone(&owner));
        assert_eq!(Arc::strong_count(&owner), 1, "it needs nobody");
        assert!(run(ready).is_ok());
    }

    #[test]
    fn small_and_large_futures_run_and_drop_what_they_hold() {
        let held = Rc::new(7u8);
        for large in [false, true] {
            let guard = Rc::clone(&held);
            let future = if large {
                let ballast = [1u8; 2 * INLINE_BYTES];
                IoFuture::new(async move {
                    yield_once().await;
                    assert_eq!(ballast.iter().map(|&b| usize::from(b)).sum::<usize>(), 512);
                    drop(guard);
                    Ok(())
                })
            } else {
                IoFuture::new(async move {
                    yield_once().await;
                    drop(guard);
                    Ok(())
                })
            };
            assert!(run(future).is_ok());
            assert_eq!(Rc::strong_count(&held), 1);
        }
        let guard = Rc::clone(&held);
        drop(IoFuture::new(async move {
            yield_once().await;
            drop(guard);
            Ok(())
        }));
        assert_eq!(
            Rc::strong_count(&held),
            1,
            "a future that never ran drops what it holds"
        );
    }
}
