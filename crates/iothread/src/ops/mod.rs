//! The operations of an iothread's tasks.
//!
//! Every operation is a future that yields the result of the system call it stands for. Who makes that call
//! is up to the iothread's engine, and to the operation's [`Lane`]:
//!
//! - **io_uring**: it is handed to the kernel at the end of the round in which it is first polled, together
//!   with all others of that round; if there are many, the first ones go ahead, so that storage need not
//!   wait for the last one to be prepared. A full submission queue never fails an operation.
//! - **threads**, and every operation of a lane that goes by workers: a thread of the iothread's pool makes
//!   the call. If there is none for it, it waits in its lane, first in, first out.
//!
//! **Dropping** an operation in flight cancels it and waits until nobody touches its memory any more, so
//! that buffers and descriptors can be released right after. That wait blocks the whole thread, and
//! storage does not know how to cancel, nor does a worker that is in a call: drop operations on the way out
//! only. What has not been handed to the kernel yet, or waits for a worker, is not waited for.
//!
//! **Leaking** one (`mem::forget`) must not happen while it is in flight: its descriptor number
//! could be reused before the kernel looks at it.

mod notifier;
mod readiness;

use std::{
    fmt,
    future::Future,
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd},
    pin::Pin,
    task::{self, Poll, Waker, ready},
};

pub use self::{
    notifier::Notifier,
    readiness::{EventFd, Readiness},
};
pub use crate::lane::Lane;
use crate::{
    call::{Call, poll_bits},
    context::{self, Context},
    last_words,
};

/// An operation: a future that yields the system call's result, or its errno.
///
/// # Panics
///
/// When polled outside an iothread, or again after it has yielded its result.
#[must_use = "futures do nothing unless polled"]
pub struct Op<'a> {
    state: OpState<'a>,
    /// Borrows the descriptor and the buffers, and belongs to this thread.
    borrows: PhantomData<(BorrowedFd<'a>, *const ())>,
}

enum OpState<'a> {
    New(Call, Option<&'a Lane>),
    /// Refused without asking the kernel.
    Refused(i32),
    /// In what the iothread waits in.
    InFlight(usize),
    /// With a worker, or in line for one.
    Pooled(usize),
    Done,
}

impl<'a> Op<'a> {
    fn new(call: Call) -> Self {
        Self::with_state(OpState::New(call, None))
    }

    fn with_state(state: OpState<'a>) -> Self {
        Op {
            state,
            borrows: PhantomData,
        }
    }

    /// Puts the operation on a lane, before it is first polled.
    #[inline]
    pub fn on(mut self, lane: &'a Lane) -> Self {
        if let OpState::New(_, on) = &mut self.state {
            *on = Some(lane);
        }
        self
    }
}

/// Hands a call to who makes it.
///
/// # Safety
///
/// What it names stays valid until the operation has ended, by its result or by its drop.
unsafe fn start<'a>(
    thread: &Context,
    call: &Call,
    lane: Option<&Lane>,
    waker: &Waker,
) -> OpState<'a> {
    let by_worker = lane.is_some_and(Lane::is_by_workers) && !matches!(call, Call::Poll { .. });
    // SAFETY: passed on to the caller.
    unsafe {
        if by_worker || !thread.reactor.makes(call) {
            OpState::Pooled(thread.pool.submit(*call, lane, waker))
        } else {
            OpState::InFlight(thread.reactor.start(call, waker))
        }
    }
}

impl Future for Op<'_> {
    type Output = io::Result<u32>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<u32>> {
        let result = match &self.state {
            OpState::New(call, lane) => {
                // SAFETY: whoever made the operation vouched for its buffers until it has ended,
                // and dropping it ends it.
                let started =
                    context::with(|thread| unsafe { start(thread, call, *lane, cx.waker()) });
                self.state = started;
                return Poll::Pending;
            }
            OpState::InFlight(key) => {
                ready!(context::with(|thread| thread.reactor.poll(*key, cx)))
            }
            OpState::Pooled(key) => ready!(context::with(|thread| thread.pool.poll(*key, cx))),
            OpState::Refused(errno) => -*errno,
            OpState::Done => unreachable!("an operation was polled after it had ended"),
        };
        self.state = OpState::Done;
        Poll::Ready(match u32::try_from(result) {
            Ok(result) => Ok(result),
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
        })
    }
}

impl Drop for Op<'_> {
    fn drop(&mut self) {
        match self.state {
            OpState::InFlight(key) => end_in_flight(|thread| thread.reactor.cancel(key)),
            OpState::Pooled(key) => end_in_flight(|thread| thread.pool.cancel(key)),
            OpState::New(..) | OpState::Refused(_) | OpState::Done => {}
        }
    }
}

/// Cancels and waits. Without a context the thread's end has done that already.
fn end_in_flight(cancel: impl FnOnce(&Context)) {
    if std::thread::panicking() {
        // The process is about to abort anyway (see the crate's documentation); storage that does
        // not answer must not keep it from doing so.
        last_words::abort("a task of an iothread panicked; aborting");
    }
    context::try_with(cancel);
}

impl fmt::Debug for Op<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            OpState::New(..) | OpState::Refused(_) => "new",
            OpState::InFlight(_) | OpState::Pooled(_) => "in flight",
            OpState::Done => "done",
        };
        f.debug_struct("Op").field("state", &state).finish()
    }
}

/// `pread(2)`: reads at `offset` bytes into `len` bytes at `base`; yields the bytes read.
///
/// # Safety
///
/// This memory may be written until the operation has ended, by its result or by its drop. The
/// operation is not leaked.
pub unsafe fn read(fd: BorrowedFd<'_>, base: *mut u8, len: u32, offset: u64) -> Op<'_> {
    Op::new(Call::Read {
        fd: fd.as_raw_fd(),
        base,
        len,
        offset,
    })
}

/// `pwritev2(2)` of one buffer: writes `len` bytes at `base` at `offset` bytes, with `rw_flags`
/// (`RWF_*`); yields the bytes written.
///
/// # Safety
///
/// This memory may be read until the operation has ended, by its result or by its drop. The
/// operation is not leaked.
pub unsafe fn write(
    fd: BorrowedFd<'_>,
    base: *const u8,
    len: u32,
    offset: u64,
    rw_flags: i32,
) -> Op<'_> {
    Op::new(Call::Write {
        fd: fd.as_raw_fd(),
        base,
        len,
        offset,
        rw_flags,
    })
}

/// `preadv(2)`: reads at `offset` bytes into `iov`; yields the bytes read.
///
/// # Safety
///
/// Every element of `iov` describes memory that may be written until the operation has ended, by
/// its result or by its drop. The operation is not leaked.
pub unsafe fn readv<'a>(fd: BorrowedFd<'a>, iov: &'a [libc::iovec], offset: u64) -> Op<'a> {
    if let Some((base, len)) = single(iov) {
        // SAFETY: the caller's promise is the condition.
        return unsafe { read(fd, base, len, offset) };
    }
    match vector_len(iov) {
        Ok(count) => Op::new(Call::Readv {
            fd: fd.as_raw_fd(),
            iov: iov.as_ptr(),
            count,
            offset,
        }),
        Err(errno) => Op::with_state(OpState::Refused(errno)),
    }
}

/// `pwritev2(2)`: writes `iov` at `offset` bytes, with `rw_flags` (`RWF_*`); yields the bytes
/// written.
///
/// # Safety
///
/// Every element of `iov` describes memory that may be read until the operation has ended, by its
/// result or by its drop. The operation is not leaked.
pub unsafe fn writev<'a>(
    fd: BorrowedFd<'a>,
    iov: &'a [libc::iovec],
    offset: u64,
    rw_flags: i32,
) -> Op<'a> {
    if let Some((base, len)) = single(iov) {
        // SAFETY: the caller's promise is the condition.
        return unsafe { write(fd, base, len, offset, rw_flags) };
    }
    match vector_len(iov) {
        Ok(count) => Op::new(Call::Writev {
            fd: fd.as_raw_fd(),
            iov: iov.as_ptr(),
            count,
            offset,
            rw_flags,
        }),
        Err(errno) => Op::with_state(OpState::Refused(errno)),
    }
}

/// More than the kernel takes is left for it to refuse, up to what is a number to it.
fn vector_len(iov: &[libc::iovec]) -> Result<u32, i32> {
    match i32::try_from(iov.len()) {
        Ok(len) => Ok(len.cast_unsigned()),
        Err(_) => Err(libc::EINVAL),
    }
}

/// A single buffer goes without the kernel copying and checking a vector.
fn single(iov: &[libc::iovec]) -> Option<(*mut u8, u32)> {
    match iov {
        [one] => Some((one.iov_base.cast(), u32::try_from(one.iov_len).ok()?)),
        _ => None,
    }
}

/// `fsync(2)`, or `fdatasync(2)` if `datasync`.
pub fn fsync(fd: BorrowedFd<'_>, datasync: bool) -> Op<'_> {
    Op::new(Call::Fsync {
        fd: fd.as_raw_fd(),
        datasync,
    })
}

/// `fallocate(2)`: applies `mode` (`FALLOC_FL_*`) to `len` bytes at `offset`.
pub fn fallocate(fd: BorrowedFd<'_>, mode: i32, offset: u64, len: u64) -> Op<'_> {
    Op::new(Call::Fallocate {
        fd: fd.as_raw_fd(),
        mode,
        offset,
        len,
    })
}

/// Waits once for `events` (`POLLIN`...); yields the events that are there. For a descriptor that
/// is waited for over and over use [`Readiness`].
pub fn poll_add(fd: BorrowedFd<'_>, events: libc::c_short) -> Op<'_> {
    Op::new(Call::Poll {
        fd: fd.as_raw_fd(),
        events: poll_bits(events),
    })
}
