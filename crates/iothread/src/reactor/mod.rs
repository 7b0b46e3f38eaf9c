//! What an iothread waits in: one of two engines. The choice is made once, when the thread starts, and costs
//! a branch that is always the same.

mod bell;
mod epoll;
mod uring;

use std::{
    io,
    os::fd::BorrowedFd,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

pub(crate) use self::bell::Bell;
use self::{epoll::Epoll, uring::Uring};
use crate::{
    call::Call,
    engine::{Engine, Unavailable},
    shared::Shared,
    start_error::StartError,
};

/// Waits for descriptors, and with a ring for the ends of operations. The waits for timers and for other
/// threads go by it as well.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one in each iothread, and it stays where it is"
)]
pub(crate) enum Reactor {
    Uring(Uring),
    Epoll(Epoll),
}

/// Calls the same of both.
macro_rules! both {
    ($reactor:expr, $engine:ident => $call:expr) => {
        match $reactor {
            Reactor::Uring($engine) => $call,
            Reactor::Epoll($engine) => $call,
        }
    };
}

impl Reactor {
    /// Makes one for the calling thread, of the `wanted` engine; if it does not matter, io_uring where it is
    /// to be had. With it comes why it was not.
    pub(crate) fn new(
        wanted: Option<Engine>,
        entries: u32,
        shared: Arc<Shared>,
    ) -> Result<(Reactor, Option<Unavailable>), StartError> {
        if wanted == Some(Engine::Threads) {
            return Ok((Self::epoll(shared)?, None));
        }
        let error = match uring::make_ring(entries) {
            Ok(ring) => return Ok((Reactor::Uring(Uring::new(ring, shared)), None)),
            Err(error) => error,
        };
        match Unavailable::of(&error, entries) {
            None => Err(StartError::from_setup(error)),
            Some(why) if wanted.is_some() => Err(why.into()),
            Some(why) => Ok((Self::epoll(shared)?, Some(why))),
        }
    }

    fn epoll(shared: Arc<Shared>) -> Result<Reactor, StartError> {
        Epoll::new(shared)
            .map(Reactor::Epoll)
            .map_err(StartError::from_setup)
    }

    pub(crate) fn engine(&self) -> Engine {
        match self {
            Reactor::Uring(_) => Engine::IoUring,
            Reactor::Epoll(_) => Engine::Threads,
        }
    }

    /// Whether it makes this call itself; else it is for a worker.
    #[inline]
    pub(crate) fn makes(&self, call: &Call) -> bool {
        match self {
            Reactor::Uring(_) => true,
            Reactor::Epoll(_) => matches!(call, Call::Poll { .. }),
        }
    }

    /// Starts an operation that it [makes](Self::makes), on behalf of `waker`.
    ///
    /// # Safety
    ///
    /// What `call` names stays valid until [`Reactor::poll`] or [`Reactor::cancel`] has returned its result.
    #[inline]
    pub(crate) unsafe fn start(&self, call: &Call, waker: &Waker) -> usize {
        // SAFETY: passed on to the caller.
        both!(self, engine => unsafe { engine.start(call, waker.clone()) })
    }

    /// The result of an operation, if it has one; else `cx` is woken when it has.
    #[inline]
    pub(crate) fn poll(&self, key: usize, cx: &Context<'_>) -> Poll<i32> {
        both!(self, engine => engine.poll(key, cx))
    }

    /// Ends an operation: when this returns nobody touches its memory.
    pub(crate) fn cancel(&self, key: usize) {
        both!(self, engine => engine.cancel(key));
    }

    /// Starts a poll on `fd` that reports until it is cancelled. The owner keeps `fd` open.
    pub(crate) fn start_multishot(&self, fd: BorrowedFd<'_>, events: u32) -> usize {
        both!(self, engine => engine.start_multishot(fd, events))
    }

    /// The events since the last call. An end of the poll is reported as `None`, after the events
    /// that came before it; its key is void then.
    pub(crate) fn poll_multishot(
        &self,
        key: usize,
        cx: &Context<'_>,
    ) -> Poll<Option<io::Result<u32>>> {
        both!(self, engine => engine.poll_multishot(key, cx))
    }

    /// Adds one to an eventfd of which no notification is under way.
    #[inline]
    pub(crate) fn notify(&self, bell: &Rc<Bell>) {
        both!(self, engine => engine.notify(bell));
    }

    /// Ends the notification that is under way, although the counter may be full.
    pub(crate) fn end_notification(&self, bell: &Bell) {
        both!(self, engine => engine.end_notification(bell));
    }

    /// Number of operations that somebody waits for: I/O, not notifications and kicks.
    #[inline]
    pub(crate) fn waiting(&self) -> usize {
        both!(self, engine => engine.waiting())
    }

    /// Hands over what is queued and takes what there is, without waiting.
    #[inline]
    pub(crate) fn turn(&self) {
        both!(self, engine => engine.turn());
    }

    /// Hands over what is queued and waits for something, at most for `timeout`; [`Reactor::reap`] takes it.
    #[inline]
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        both!(self, engine => engine.wait(timeout));
    }

    /// Takes what there is and wakes who waits for it.
    #[inline]
    pub(crate) fn reap(&self) {
        both!(self, engine => { engine.reap(); });
    }

    /// Has everything end that it can end; does not wait.
    pub(crate) fn cancel_all(&self) {
        match self {
            Reactor::Uring(uring) => uring.cancel_all(),
            // Nothing of it uses anybody's memory: it goes with the epoll.
            Reactor::Epoll(_) => {}
        }
    }

    /// Waits until nothing is in flight.
    pub(crate) fn reap_all(&self) {
        match self {
            Reactor::Uring(uring) => uring.reap_all(),
            Reactor::Epoll(_) => {}
        }
    }
}

/// Whether an iothread of default size would have an io_uring, by making one.
///
/// # Errors
///
/// Why not.
pub fn probe() -> Result<(), Unavailable> {
    match uring::make_ring(RING_ENTRIES) {
        Err(error) => Unavailable::of(&error, RING_ENTRIES).map_or(Ok(()), Err),
        Ok(_ring) => Ok(()),
    }
}

/// The default size of a submission queue.
pub(crate) const RING_ENTRIES: u32 = 256;
