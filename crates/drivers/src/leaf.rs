//! Where the memory of a request meets the kernel: descriptors that read into buffers and write them.
//!
//! The functions are safe because of what [`Buffers`] promise. They move at most [`IOV_MAX`] pieces at
//! a time and, like the system calls, may move less than that: callers go on with the rest.

#![expect(
    unsafe_code,
    reason = "buffers are mapped as long as whoever has made them promises"
)]

use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use block::Buffers;
use iothread::ops;
use libc::iovec;

/// Most pieces that the kernel takes in one call.
const IOV_MAX: usize = 1024;

/// Most bytes that the kernel moves in one call: what a page leaves of an `i32`.
const BYTES_MAX: u32 = 0x7fff_f000;

/// A transfer under way, through the ring of this iothread; yields the bytes moved. As every operation
/// of [`iothread::ops`] it waits for the kernel when it is dropped, and must not be leaked.
#[must_use = "futures do nothing unless polled"]
#[derive(Debug)]
pub struct Transfer<'a> {
    /// First, so that it ends before the list goes.
    op: ops::Op<'a>,
    _list: Option<Vec<iovec>>,
}

impl Future for Transfer<'_> {
    type Output = io::Result<u32>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.op).poll(cx)
    }
}

impl<'a> Transfer<'a> {
    /// Puts it on the lane of its node.
    #[inline]
    pub fn on(self, lane: &'a ops::Lane) -> Self {
        Self {
            op: self.op.on(lane),
            ..self
        }
    }
}

impl<'a> From<ops::Op<'a>> for Transfer<'a> {
    fn from(op: ops::Op<'a>) -> Self {
        Self { op, _list: None }
    }
}

/// Reads at `offset` of a file into `buffers`.
#[inline]
pub fn read_at<'a>(fd: BorrowedFd<'a>, buffers: Buffers<'a>, offset: u64) -> Transfer<'a> {
    if let Some(segments) = buffers.uncut(IOV_MAX) {
        // SAFETY: the memory is there for `'a`, as is the list. What must not be leaked is said there
        // (`block::driver::buffers`).
        return unsafe { ops::readv(fd, segments, offset) }.into();
    }
    match Listed::of(&buffers) {
        // SAFETY: as above.
        Listed::One { base, len } => unsafe { ops::read(fd, base, len, offset) }.into(),
        Listed::Many(list) => {
            let listed: *const [iovec] = list.as_slice();
            // SAFETY: as above, and the list stays where it is until the operation is dropped.
            let op = unsafe { ops::readv(fd, &*listed, offset) };
            Transfer {
                op,
                _list: Some(list),
            }
        }
    }
}

/// Writes `buffers` at `offset` of a file, with `rw_flags` (`RWF_*`).
#[inline]
pub fn write_at<'a>(
    fd: BorrowedFd<'a>,
    buffers: Buffers<'a>,
    offset: u64,
    rw_flags: i32,
) -> Transfer<'a> {
    if let Some(segments) = buffers.uncut(IOV_MAX) {
        // SAFETY: as in `read_at`.
        return unsafe { ops::writev(fd, segments, offset, rw_flags) }.into();
    }
    match Listed::of(&buffers) {
        // SAFETY: as in `read_at`.
        Listed::One { base, len } => unsafe { ops::write(fd, base, len, offset, rw_flags) }.into(),
        Listed::Many(list) => {
            let listed: *const [iovec] = list.as_slice();
            // SAFETY: as in `read_at`.
            let op = unsafe { ops::writev(fd, &*listed, offset, rw_flags) };
            Transfer {
                op,
                _list: Some(list),
            }
        }
    }
}

/// Reads at `offset` of a file that lies in memory into `buffers`, now, on this thread.
pub fn read_now(fd: BorrowedFd<'_>, buffers: &Buffers<'_>, offset: u64) -> io::Result<u32> {
    let at = position(offset)?;
    result(with_list(buffers, |list| match list {
        // SAFETY: the memory is mapped and writable while there is a view of it.
        [one] => unsafe { libc::pread(fd.as_raw_fd(), one.iov_base, one.iov_len, at) },
        // SAFETY: as above, for each.
        _ => unsafe { libc::preadv(fd.as_raw_fd(), list.as_ptr(), count(list), at) },
    }))
}

/// Writes `buffers` at `offset` of a file that lies in memory, now, on this thread.
pub fn write_now(fd: BorrowedFd<'_>, buffers: &Buffers<'_>, offset: u64) -> io::Result<u32> {
    let at = position(offset)?;
    result(with_list(buffers, |list| match list {
        // SAFETY: the memory is mapped and readable while there is a view of it.
        [one] => unsafe { libc::pwrite(fd.as_raw_fd(), one.iov_base, one.iov_len, at) },
        // SAFETY: as above, for each.
        _ => unsafe { libc::pwritev(fd.as_raw_fd(), list.as_ptr(), count(list), at) },
    }))
}

/// A view that begins or ends inside a segment, for the kernel.
enum Listed {
    /// Needs no list.
    One {
        base: *mut u8,
        len: u32,
    },
    Many(Vec<iovec>),
}

impl Listed {
    fn of(buffers: &Buffers<'_>) -> Self {
        let mut pieces = buffers.iovecs();
        match (pieces.next(), pieces.next()) {
            (Some(one), None) => Self::One {
                base: one.iov_base.cast(),
                len: u32::try_from(one.iov_len).map_or(BYTES_MAX, |len| len.min(BYTES_MAX)),
            },
            _ => Self::Many(buffers.iovecs().take(IOV_MAX).collect()),
        }
    }
}

fn with_list<T>(buffers: &Buffers<'_>, call: impl FnOnce(&[iovec]) -> T) -> T {
    match buffers.uncut(IOV_MAX) {
        Some(segments) => call(segments),
        None => call(&buffers.iovecs().take(IOV_MAX).collect::<Vec<_>>()),
    }
}

fn position(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Of a list that is at most [`IOV_MAX`] long.
fn count(list: &[iovec]) -> libc::c_int {
    libc::c_int::try_from(list.len()).unwrap_or(libc::c_int::MAX)
}

fn result(moved: libc::ssize_t) -> io::Result<u32> {
    if moved < 0 {
        return Err(io::Error::last_os_error());
    }
    // The kernel moves at most `BYTES_MAX`.
    u32::try_from(moved).map_err(|_| io::Error::from_raw_os_error(libc::EIO))
}
