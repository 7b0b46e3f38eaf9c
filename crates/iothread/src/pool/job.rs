//! One operation as a worker gets it: the call, and what it came to.

use std::{
    io,
    sync::atomic::{AtomicI64, Ordering},
    task::{Context, Poll, Waker},
};

use atomic_waker::AtomicWaker;

use crate::{call::Call, lane::LaneId};

/// No call returns this.
const UNDER_WAY: i64 = i64::MIN;

/// A call for a worker.
#[derive(Debug)]
pub(super) struct Job {
    call: Call,
    pub(super) lane: LaneId,
    /// What the call returned, or the negative errno.
    result: AtomicI64,
    waker: AtomicWaker,
}

// SAFETY: whoever made the operation vouches for the memory that the call names until the job is over, and
// says by that (`ops`) that another thread, or the kernel, may use it meanwhile.
unsafe impl Send for Job {}
// SAFETY: as above; one thread makes the call.
unsafe impl Sync for Job {}

impl Job {
    /// # Safety
    ///
    /// What `call` names stays valid until [`Job::result`] says something, or the job is dropped without
    /// [`Job::run`].
    pub(super) unsafe fn new(call: Call, lane: LaneId, waker: &Waker) -> Job {
        let job = Job {
            call,
            lane,
            result: AtomicI64::new(UNDER_WAY),
            waker: AtomicWaker::new(),
        };
        job.waker.register(waker);
        job
    }

    /// Makes the call, once: EINTR may be the storage's answer, and is the caller's to try again.
    pub(super) fn run(&self) -> i32 {
        // SAFETY: `new` has the promise.
        unsafe { make(&self.call) }
    }

    /// The job has come to `result`, and who waits for it is told.
    pub(super) fn end(&self, result: i32) {
        // Release: what the call has read into memory is seen by who sees the result.
        self.result.store(result.into(), Ordering::Release);
        self.waker.wake();
    }

    /// What it came to, if it is over.
    pub(super) fn result(&self) -> Option<i32> {
        let result = self.result.load(Ordering::Acquire);
        i32::try_from(result).ok()
    }

    /// What it came to; else `cx` is woken when it is over.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<i32> {
        if self.result().is_none() {
            self.waker.register(cx.waker());
        }
        self.result().map_or(Poll::Pending, Poll::Ready)
    }
}

/// Makes a call on this thread; what it returns, or the negative errno.
///
/// # Safety
///
/// The memory that `call` names is valid, as is its descriptor.
unsafe fn make(call: &Call) -> i32 {
    let result = match *call {
        Call::Read {
            fd,
            base,
            len,
            offset,
        } => {
            let one = iovec(base, len);
            // SAFETY: the caller's promise.
            unsafe { libc::preadv2(fd, &raw const one, 1, offset.cast_signed(), 0) }
        }
        Call::Write {
            fd,
            base,
            len,
            offset,
            rw_flags,
        } => {
            let one = iovec(base.cast_mut(), len);
            // SAFETY: the caller's promise.
            unsafe { libc::pwritev2(fd, &raw const one, 1, offset.cast_signed(), rw_flags) }
        }
        Call::Readv {
            fd,
            iov,
            count,
            offset,
        } => {
            // SAFETY: the caller's promise.
            unsafe { libc::preadv2(fd, iov, count.cast_signed(), offset.cast_signed(), 0) }
        }
        Call::Writev {
            fd,
            iov,
            count,
            offset,
            rw_flags,
        } => {
            let count = count.cast_signed();
            // SAFETY: the caller's promise.
            unsafe { libc::pwritev2(fd, iov, count, offset.cast_signed(), rw_flags) }
        }
        Call::Fsync { fd, datasync } => {
            // SAFETY: only the descriptor is passed on.
            let result = unsafe {
                match datasync {
                    true => libc::fdatasync(fd),
                    false => libc::fsync(fd),
                }
            };
            of_int(result)
        }
        Call::Fallocate {
            fd,
            mode,
            offset,
            len,
        } => {
            // SAFETY: only the descriptor is passed on.
            let result =
                unsafe { libc::fallocate(fd, mode, offset.cast_signed(), len.cast_signed()) };
            of_int(result)
        }
        // Goes by what the iothread waits in, never by a worker.
        Call::Poll { .. } => return -libc::EOPNOTSUPP,
    };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => result,
        _ => match io::Error::last_os_error().raw_os_error() {
            Some(errno) if errno > 0 => -errno,
            _ => -libc::EIO,
        },
    }
}

/// Calls return numbers of two sizes.
fn of_int(result: libc::c_int) -> libc::ssize_t {
    libc::ssize_t::try_from(result).unwrap_or(-1)
}

fn iovec(base: *mut u8, len: u32) -> libc::iovec {
    libc::iovec {
        iov_base: base.cast(),
        iov_len: len as usize,
    }
}
