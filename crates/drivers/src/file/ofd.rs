//! Locks on bytes of an open file description, all of them shared ones.

#![expect(unsafe_code, reason = "system calls that have no safe wrapper")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Locks a byte.
pub fn lock(fd: BorrowedFd<'_>, byte: i64) -> io::Result<()> {
    call(fd, libc::F_OFD_SETLK, libc::F_RDLCK, byte..byte + 1).map(|_| ())
}

/// Gives locks back.
pub fn unlock(fd: BorrowedFd<'_>, bytes: Range<i64>) -> io::Result<()> {
    call(fd, libc::F_OFD_SETLK, libc::F_UNLCK, bytes).map(|_| ())
}

/// Whether another one has locked a byte.
pub fn is_locked(fd: BorrowedFd<'_>, byte: i64) -> io::Result<bool> {
    let found = call(fd, libc::F_OFD_GETLK, libc::F_WRLCK, byte..byte + 1)?;
    Ok(found != libc::F_UNLCK)
}

/// Sets, tests or gives back a lock; yields the type of lock that a test found.
fn call(
    fd: BorrowedFd<'_>,
    command: libc::c_int,
    kind: libc::c_int,
    bytes: Range<i64>,
) -> io::Result<libc::c_int> {
    let narrow = |value: libc::c_int| libc::c_short::try_from(value).unwrap_or(libc::c_short::MAX);
    // SAFETY: a flock of zeroes is a valid one; the OFD commands want l_pid to be 0.
    let mut flock: libc::flock = unsafe { std::mem::zeroed() };
    flock.l_type = narrow(kind);
    flock.l_whence = narrow(libc::SEEK_SET);
    flock.l_start = bytes.start;
    flock.l_len = bytes.end - bytes.start;
    // SAFETY: the descriptor is open, and the command reads and writes one flock.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut flock) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(libc::c_int::from(flock.l_type))
}
