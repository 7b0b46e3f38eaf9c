//! Image locking, byte for byte as QEMU does it, so that both see each other.
//!
//! A permission that is held is a shared lock on byte 100 + its bit, a permission that is *not
//! shared* with others one on byte 200 + its bit. Nobody ever holds an exclusive lock: whoever
//! wants a permission asks (`F_OFD_GETLK`) whether an exclusive lock on the opposite byte would meet
//! resistance. The own locks are taken before asking, so of two that open at the same time at least
//! one sees the other.
//!
//! The locks are OFD locks on the very descriptor that does the I/O: they end when the last request
//! of a dying process has let go of it, not before. Who closes an image gives them back himself
//! ([`Locked`]).

#![expect(unsafe_code, reason = "system calls that have no safe wrapper")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

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

/// What is held, and what others may hold.
pub type Locks = (Permissions, Permissions);

/// A descriptor, with locks on its image or without. Dropping it gives them back, so nothing that goes
/// through it may be in flight any more.
///
/// Closing alone does not: the kernel keeps what it calls an open file, and with it the locks, for a
/// request whose result has been taken already, if another of its threads has carried it out, and
/// for every child that has been forked and has not come to its exec yet. Whoever opened the image
/// again at once was told that it is in use.
#[derive(Debug)]
pub struct Locked {
    fd: OwnedFd,
    locks: Option<Locks>,
}

impl Locked {
    /// Takes these locks, if any.
    ///
    /// # Errors
    ///
    /// Names the permission that another user of the image stands in the way of (EAGAIN), or says
    /// that the filesystem cannot lock.
    pub fn new(fd: OwnedFd, filename: &str, locks: Option<Locks>) -> Result<Self, OpenError> {
        let locked = Self { fd, locks };
        if let Some((held, shared)) = locks {
            acquire(locked.as_fd(), filename, held, shared)?;
        }
        Ok(locked)
    }

    /// Another descriptor of this image, with the same locks: they end with the last of the two.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn another(&self, fd: OwnedFd) -> io::Result<Self> {
        let locks = self.locks;
        let other = Self { fd, locks };
        if let Some((held, shared)) = locks {
            take(other.as_fd(), held, shared)?;
        }
        Ok(other)
    }
}

impl AsFd for Locked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if self.locks.is_some() {
            let all = PERM_BASE..SHARED_BASE + i64::from(u8::BITS);
            // What fails is left to the close.
            let _ = fcntl_lock(self.as_fd(), libc::F_OFD_SETLK, libc::F_UNLCK, all);
        }
    }
}

/// Takes `held` and denies others what is not in `shared`.
fn acquire(
    fd: BorrowedFd<'_>,
    filename: &str,
    held: Permissions,
    shared: Permissions,
) -> Result<(), OpenError> {
    for byte in taken(held, shared) {
        lock_byte(fd, byte).map_err(|error| {
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

/// Takes the same and asks nobody: for another descriptor of what is locked already.
fn take(fd: BorrowedFd<'_>, held: Permissions, shared: Permissions) -> io::Result<()> {
    taken(held, shared).try_for_each(|byte| lock_byte(fd, byte))
}

fn lock_byte(fd: BorrowedFd<'_>, byte: i64) -> io::Result<()> {
    fcntl_lock(fd, libc::F_OFD_SETLK, libc::F_RDLCK, byte..byte + 1).map(|_| ())
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
    let found = fcntl_lock(fd, libc::F_OFD_GETLK, libc::F_WRLCK, byte..byte + 1);
    let found = found.map_err(|error| {
        OpenError::new(
            error.raw_os_error().unwrap_or(libc::EIO),
            format!("Failed to test the lock on byte {byte} of '{filename}': {error}"),
        )
    })?;
    Ok(found != libc::F_UNLCK)
}

/// Sets, tests or gives back a lock; yields the type of lock that a test found.
fn fcntl_lock(
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

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
        let locked = || Locked::new(open().into(), "b.img", Some((WRITER, NO_WRITERS)));
        let one = locked().expect("nobody else is there");
        let two = one.another(open().into()).expect("it is ours");
        drop(one);
        assert!(locked().expect_err("it is in use").is_locked());
        drop(two);
        locked().expect("the locks are gone");
    }

    /// A node that was opened again at once was told now and then that its image is in use: a request
    /// whose end had been reported, or a child that was just being forked, still had the descriptor.
    #[test]
    fn locks_are_given_back_whoever_still_has_the_descriptor() {
        let image = tempfile::NamedTempFile::new().expect("a temporary file");
        let locked = || {
            let file = File::options().read(true).write(true).open(image.path());
            let fd = OwnedFd::from(file.expect("the file exists"));
            let others = fd.try_clone().expect("a descriptor");
            let locked = Locked::new(fd, "b.img", Some((WRITER, NO_WRITERS)));
            (locked, others)
        };
        let (one, _others) = locked();
        let (two, _refused) = locked();
        assert!(two.expect_err("it is in use").is_locked());
        drop(one.expect("nobody else is there"));
        locked().0.expect("neither the first nor the refused one");
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
