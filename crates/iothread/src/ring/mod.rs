//! Operations through the iothread's io_uring.
//!
//! Every operation is a future that is handed to the kernel at the end of the round in which it is
//! first polled, together with all others of that round; if there are many, the first ones go ahead,
//! so that storage need not wait for the last one to be prepared. It yields the result of the system
//! call it stands for. A full submission queue never fails an operation.
//!
//! **Dropping** an operation in flight cancels it and waits until the kernel has let go of it, so
//! that buffers and descriptors can be released right after. That wait blocks the whole thread, and
//! storage does not know how to cancel: drop operations on the way out only.
//!
//! **Leaking** one (`mem::forget`) must not happen while it is in flight: its descriptor number
//! could be reused before the kernel looks at it.

mod bell;
mod notifier;
mod readiness;
pub(crate) mod uring;

use std::{
    fmt,
    future::Future,
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll},
};

use io_uring::{
    opcode, squeue,
    types::{Fd, FsyncFlags},
};

pub use self::{
    notifier::Notifier,
    readiness::{EventFd, Readiness},
};
use crate::{context, last_words};

/// An operation: a future that yields the system call's result, or its errno.
///
/// # Panics
///
/// When polled outside an iothread, or again after it has yielded its result.
#[must_use = "futures do nothing unless polled"]
pub struct Op<'a> {
    state: OpState,
    /// Borrows the descriptor and the buffers, and belongs to this thread's ring.
    borrows: PhantomData<(BorrowedFd<'a>, *const ())>,
}

enum OpState {
    New(squeue::Entry),
    /// Refused without asking the kernel.
    Refused(i32),
    InFlight(usize),
    Done,
}

impl Op<'_> {
    fn new(entry: squeue::Entry) -> Self {
        Self::with_state(OpState::New(entry))
    }

    fn with_state(state: OpState) -> Self {
        Op {
            state,
            borrows: PhantomData,
        }
    }
}

impl Future for Op<'_> {
    type Output = io::Result<u32>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<u32>> {
        match std::mem::replace(&mut self.state, OpState::Done) {
            OpState::New(entry) => {
                // SAFETY: whoever made the operation vouched for its buffers until it has ended,
                // and dropping it ends it.
                let key = context::with(|thread| unsafe {
                    thread.uring.start(entry, cx.waker().clone())
                });
                self.state = OpState::InFlight(key);
                Poll::Pending
            }
            OpState::InFlight(key) => match context::with(|thread| thread.uring.poll(key, cx)) {
                Poll::Ready(result) => Poll::Ready(match u32::try_from(result) {
                    Ok(result) => Ok(result),
                    Err(_) => Err(io::Error::from_raw_os_error(-result)),
                }),
                Poll::Pending => {
                    self.state = OpState::InFlight(key);
                    Poll::Pending
                }
            },
            OpState::Refused(errno) => Poll::Ready(Err(io::Error::from_raw_os_error(errno))),
            OpState::Done => unreachable!("an operation was polled after it had ended"),
        }
    }
}

impl Drop for Op<'_> {
    fn drop(&mut self) {
        if let OpState::InFlight(key) = self.state {
            end_in_flight(key);
        }
    }
}

/// Cancels and reaps. Without a context the thread's end has done that already.
fn end_in_flight(key: usize) {
    if std::thread::panicking() {
        // The process is about to abort anyway (see the crate's documentation); storage that does
        // not answer must not keep it from doing so.
        last_words::abort("a task of an iothread panicked; aborting");
    }
    context::try_with(|thread| thread.uring.cancel(key));
}

impl fmt::Debug for Op<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            OpState::New(_) | OpState::Refused(_) => "new",
            OpState::InFlight(_) => "in flight",
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
    let fd = Fd(fd.as_raw_fd());
    Op::new(opcode::Read::new(fd, base, len).offset(offset).build())
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
    Op::new(
        opcode::Write::new(Fd(fd.as_raw_fd()), base, len)
            .offset(offset)
            .rw_flags(rw_flags)
            .build(),
    )
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
    let fd = Fd(fd.as_raw_fd());
    match u32::try_from(iov.len()) {
        Ok(count) => Op::new(
            opcode::Readv::new(fd, iov.as_ptr(), count)
                .offset(offset)
                .build(),
        ),
        Err(_) => Op::with_state(OpState::Refused(libc::EINVAL)),
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
    let fd = Fd(fd.as_raw_fd());
    match u32::try_from(iov.len()) {
        Ok(count) => Op::new(
            opcode::Writev::new(fd, iov.as_ptr(), count)
                .offset(offset)
                .rw_flags(rw_flags)
                .build(),
        ),
        Err(_) => Op::with_state(OpState::Refused(libc::EINVAL)),
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
    let flags = if datasync {
        FsyncFlags::DATASYNC
    } else {
        FsyncFlags::empty()
    };
    Op::new(opcode::Fsync::new(Fd(fd.as_raw_fd())).flags(flags).build())
}

/// `fallocate(2)`: applies `mode` (`FALLOC_FL_*`) to `len` bytes at `offset`.
pub fn fallocate(fd: BorrowedFd<'_>, mode: i32, offset: u64, len: u64) -> Op<'_> {
    Op::new(
        opcode::Fallocate::new(Fd(fd.as_raw_fd()), len)
            .offset(offset)
            .mode(mode)
            .build(),
    )
}

/// Waits once for `events` (`POLLIN`...); yields the events that are there. For a descriptor that
/// is waited for over and over use [`Readiness`].
pub fn poll_add(fd: BorrowedFd<'_>, events: libc::c_short) -> Op<'_> {
    let fd = Fd(fd.as_raw_fd());
    Op::new(opcode::PollAdd::new(fd, uring::poll_bits(events)).build())
}
