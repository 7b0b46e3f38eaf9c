//! Image locking, byte for byte as QEMU does it, so that both see each other.
//!
//! A permission that is held is a shared lock on byte 100 + its bit, a permission that is *not
//! shared* with others one on byte 200 + its bit. Nobody ever holds an exclusive lock: whoever
//! wants a permission asks (`F_OFD_GETLK`) whether an exclusive lock on the opposite byte would meet
//! resistance. The own locks are taken before asking, so of two that open at the same time at least
//! one sees the other.
//!
//! The locks are OFD locks on the very descriptor that does the I/O: they end when the last request
//! of a dying process has let go of it, not before.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::OpenError;

/// First byte of the permissions held.
const PERM_BASE: i64 = 100;
/// First byte of the permissions not shared.
const SHARED_BASE: i64 = 200;

/// A set of QEMU's `BLK_PERM_*` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions(u8);

impl Permissions {
    /// Reads see what was written.
    pub const CONSISTENT_READ: Self = Self(1);
    /// Writing.
    pub const WRITE: Self = Self(2);
    /// Writing what reads back the same.
    pub const WRITE_UNCHANGED: Self = Self(4);
    /// Changing the length.
    pub const RESIZE: Self = Self(8);
    /// All.
    pub const ALL: Self = Self(15);

    /// The union.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn not(self) -> Self {
        Self(Self::ALL.0 & !self.0)
    }

    fn bits(self) -> impl Iterator<Item = (i64, &'static str)> {
        [
            (0, "consistent read"),
            (1, "write"),
            (2, "write unchanged"),
            (3, "resize"),
        ]
        .into_iter()
        .filter(move |(bit, _)| self.0 & (1 << bit) != 0)
    }
}

/// Takes `held` and denies others what is not in `shared`, until the descriptor is closed.
///
/// # Errors
///
/// Names the permission that another user of the image stands in the way of (EAGAIN), or says that
/// the filesystem cannot lock. The locks taken so far are left to the close of the descriptor.
pub fn acquire(
    fd: BorrowedFd<'_>,
    filename: &str,
    held: Permissions,
    shared: Permissions,
) -> Result<(), OpenError> {
    for byte in taken(held, shared) {
        fcntl_lock(fd, libc::F_OFD_SETLK, libc::F_RDLCK, byte).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            let message = format!(
                "Failed to lock byte {byte} of '{filename}': {}",
                block::Cause::of_errno(errno).reason()
            );
            if errno == libc::EAGAIN {
                return OpenError::new(errno, message).hint(in_use(filename));
            }
            OpenError::new(errno, message).hint(
                "Does the filesystem support locks? locking=off opens the image without them.",
            )
        })?;
    }
    for (bit, name) in held.bits() {
        if is_locked(fd, SHARED_BASE + bit, filename)? {
            return Err(conflict(format!("Failed to get \"{name}\" lock"), filename));
        }
    }
    for (bit, name) in shared.not().bits() {
        if is_locked(fd, PERM_BASE + bit, filename)? {
            return Err(conflict(
                format!("Failed to get shared \"{name}\" lock"),
                filename,
            ));
        }
    }
    Ok(())
}

/// Takes the same for another descriptor of the same image as [`acquire`] has for the first: the locks
/// end with the last of the two.
pub fn share(fd: BorrowedFd<'_>, held: Permissions, shared: Permissions) -> io::Result<()> {
    for byte in taken(held, shared) {
        fcntl_lock(fd, libc::F_OFD_SETLK, libc::F_RDLCK, byte)?;
    }
    Ok(())
}

/// The bytes to be locked.
fn taken(held: Permissions, shared: Permissions) -> impl Iterator<Item = i64> {
    let held = held.bits().map(|(bit, _)| PERM_BASE + bit);
    held.chain(shared.not().bits().map(|(bit, _)| SHARED_BASE + bit))
}

fn conflict(desc: String, filename: &str) -> OpenError {
    OpenError::new(libc::EAGAIN, desc).hint(in_use(filename))
}

fn in_use(filename: &str) -> String {
    format!("Is another process using the image [{filename}]?")
}

fn is_locked(fd: BorrowedFd<'_>, byte: i64, filename: &str) -> Result<bool, OpenError> {
    let found = fcntl_lock(fd, libc::F_OFD_GETLK, libc::F_WRLCK, byte).map_err(|error| {
        OpenError::new(
            error.raw_os_error().unwrap_or(libc::EIO),
            format!("Failed to test the lock on byte {byte} of '{filename}': {error}"),
        )
    })?;
    Ok(found != libc::F_UNLCK)
}

/// Sets or tests a lock on one byte; yields the type of lock that a test found.
fn fcntl_lock(
    fd: BorrowedFd<'_>,
    command: libc::c_int,
    kind: libc::c_int,
    byte: i64,
) -> io::Result<libc::c_int> {
    let narrow = |value: libc::c_int| libc::c_short::try_from(value).unwrap_or(libc::c_short::MAX);
    // SAFETY: a flock of zeroes is a valid one; the OFD commands want l_pid to be 0.
    let mut flock: libc::flock = unsafe { std::mem::zeroed() };
    flock.l_type = narrow(kind);
    flock.l_whence = narrow(libc::SEEK_SET);
    flock.l_start = byte;
    flock.l_len = 1;
    // SAFETY: the descriptor is open, and the command reads and writes one flock.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut flock) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(libc::c_int::from(flock.l_type))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    const WRITER: Permissions = Permissions::CONSISTENT_READ
        .and(Permissions::WRITE)
        .and(Permissions::RESIZE);
    const READER: Permissions = Permissions::CONSISTENT_READ;
    const NO_WRITERS: Permissions = Permissions::CONSISTENT_READ.and(Permissions::WRITE_UNCHANGED);

    /// The second descriptor of an image does I/O as well: until that has ended, others stay out.
    #[test]
    fn shared_locks_end_with_the_last_descriptor() {
        let image = tempfile::NamedTempFile::new().expect("a temporary file");
        let open = || {
            let options = File::options().read(true).write(true).open(image.path());
            options.expect("the file exists")
        };
        let (one, two) = (open(), open());
        acquire(one.as_fd(), "b.img", WRITER, NO_WRITERS).expect("nobody else is there");
        share(two.as_fd(), WRITER, NO_WRITERS).expect("it is ours");
        drop(one);
        let other = open();
        let refused = acquire(other.as_fd(), "b.img", WRITER, NO_WRITERS);
        assert!(refused.expect_err("it is in use").is_locked());
        drop((two, other));
        acquire(open().as_fd(), "b.img", WRITER, NO_WRITERS).expect("the locks are gone");
    }

    /// Each pair of users of one image, as QEMU's permission rules have it.
    #[test]
    fn conflicts_table() {
        for (first, second, expected) in [
            (
                (WRITER, NO_WRITERS),
                (WRITER, NO_WRITERS),
                "Failed to get \"write\" lock",
            ),
            (
                (WRITER, NO_WRITERS),
                (WRITER, Permissions::ALL),
                "Failed to get \"write\" lock",
            ),
            (
                (WRITER, Permissions::ALL),
                (WRITER, NO_WRITERS),
                "Failed to get shared \"write\" lock",
            ),
            (
                (WRITER, NO_WRITERS),
                (READER, NO_WRITERS),
                "Failed to get shared \"write\" lock",
            ),
            ((WRITER, NO_WRITERS), (READER, Permissions::ALL), ""),
            ((READER, NO_WRITERS), (READER, NO_WRITERS), ""),
            (
                (READER, NO_WRITERS),
                (WRITER, Permissions::ALL),
                "Failed to get \"write\" lock",
            ),
            ((WRITER, Permissions::ALL), (WRITER, Permissions::ALL), ""),
        ] {
            let image = tempfile::NamedTempFile::new().expect("a temporary file");
            let open = || {
                File::options()
                    .read(true)
                    .write(true)
                    .open(image.path())
                    .expect("the file exists")
            };
            let (one, two) = (open(), open());
            acquire(one.as_fd(), "b.img", first.0, first.1).expect("nobody else is there");
            let got = acquire(two.as_fd(), "b.img", second.0, second.1);
            let desc = got.as_ref().err().map_or("", |error| &error.desc);
            assert_eq!(desc, expected, "{first:?} {second:?}");
            if let Err(error) = got {
                assert!(error.is_locked());
                assert_eq!(
                    error.hint.as_deref(),
                    Some("Is another process using the image [b.img]?")
                );
            }
            drop((one, two));
            acquire(open().as_fd(), "b.img", WRITER, NO_WRITERS).expect("the locks are gone");
        }
    }
}
