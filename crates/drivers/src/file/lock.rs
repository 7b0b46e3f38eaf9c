//! Image locking, byte for byte as QEMU does it, so that both see each other.
//!
//! A permission that is held is a shared lock on byte 100 + its bit, a permission that is *not
//! shared* with others one on byte 200 + its bit. Nobody ever holds an exclusive lock: whoever
//! wants a permission asks (`F_OFD_GETLK`) whether an exclusive lock on the opposite byte would meet
//! resistance. The own locks are taken before asking, so of two that begin at the same time at least
//! one sees the other.
//!
//! The locks are OFD locks on the very descriptors that do the I/O: they end when the last request
//! of a dying process has let go of them, not before. An image may have two ([`super::tail`]), which
//! carry the same locks. To the kernel they are two strangers: while one of them asks, what the other one
//! has on that byte is given back. Who closes an image gives its locks back himself ([`Descriptor`]).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use block::{Access, LockError};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};

use super::ofd;

/// First byte of the permissions held.
const PERM_BASE: i64 = 100;
/// First byte of the permissions not shared.
const SHARED_BASE: i64 = 200;

/// An image that is open, and what is locked of it.
#[derive(Debug)]
pub struct Locked {
    /// For messages.
    filename: String,
    image: Descriptor,
    second: OnceLock<Descriptor>,
    /// What both have locks for. Locked while that changes, and while there comes a second one.
    has: Mutex<Access>,
}

/// A descriptor of the image. Dropping it gives its locks back, so nothing that goes through it may be in
/// flight any more.
///
/// Closing alone does not: the kernel keeps what it calls an open file, and with it the locks, for a
/// request whose result has been taken already, if another of its threads has carried it out, and
/// for every child that has been forked and has not come to its exec yet. Whoever opened the image
/// again at once was told that it is in use.
#[derive(Debug)]
struct Descriptor {
    fd: OwnedFd,
    /// Whether there may be some.
    locks: bool,
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if self.locks {
            // What fails is left to the close.
            let _ = ofd::unlock(self.as_fd(), PERM_BASE..SHARED_BASE + i64::from(u8::BITS));
        }
    }
}

impl Locked {
    /// Nothing is locked yet. `locks`: whether anything may be.
    pub fn new(fd: OwnedFd, filename: &str, locks: bool) -> Self {
        Self {
            filename: filename.to_owned(),
            image: Descriptor { fd, locks },
            second: OnceLock::new(),
            has: Mutex::default(),
        }
    }

    /// Opens the second descriptor, which goes through the page cache, unless it is there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open_second(&self) -> io::Result<()> {
        let has = self.has.lock();
        if self.second.get().is_some() {
            return Ok(());
        }
        // Not by its name, which may be another file's by now.
        let path = format!("/proc/self/fd/{}", self.as_fd().as_raw_fd());
        let fd = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let locks = self.image.locks;
        let second = Descriptor { fd, locks };
        bytes(*has).try_for_each(|byte| ofd::lock(second.as_fd(), byte))?;
        // Nobody else has: `has` is locked.
        let _: Result<(), Descriptor> = self.second.set(second);
        Ok(())
    }

    /// The second descriptor, if it was needed.
    pub fn second(&self) -> Option<BorrowedFd<'_>> {
        self.second.get().map(Descriptor::as_fd)
    }

    /// Takes what `wanted` needs and is not there yet.
    ///
    /// # Errors
    /// Names the permission that another user of the image stands in the way of, or says that the
    /// filesystem cannot lock. What was there is there then, and no more.
    pub fn lock(&self, wanted: Access) -> Result<(), LockError> {
        self.take(wanted, |new, has| self.ask(new, has))
    }

    /// As [`Self::lock`], and asks nobody: whoever else has opened the image with these locks is one of us.
    ///
    /// # Errors
    /// If the filesystem cannot lock.
    pub fn lock_beside(&self, wanted: Access) -> Result<(), LockError> {
        self.take(wanted, |_, _| Ok(()))
    }

    /// Gives back what `wanted` does not need.
    pub fn settle(&self, wanted: Access) {
        let mut has = self.has.lock();
        let rest = Access {
            held: has.held.both(wanted.held),
            shared: has.shared.and(wanted.shared),
        };
        self.give_back(beyond(*has, rest));
        *has = rest;
    }

    fn take(
        &self,
        wanted: Access,
        ask: impl FnOnce(Access, Access) -> Result<(), LockError>,
    ) -> Result<(), LockError> {
        let mut has = self.has.lock();
        let all = has.and(wanted);
        let new = beyond(all, *has);
        let taken = self.lock_bytes(self.as_fd(), new);
        let taken = taken.and_then(|()| ask(new, *has));
        let taken = taken.and_then(|()| match self.second() {
            Some(second) => self.lock_bytes(second, new),
            None => Ok(()),
        });
        match taken {
            Ok(()) => *has = all,
            Err(_) => self.give_back(new),
        }
        taken
    }

    fn lock_bytes(&self, fd: BorrowedFd<'_>, locks: Access) -> Result<(), LockError> {
        bytes(locks)
            .try_for_each(|byte| ofd::lock(fd, byte).map_err(|error| self.cannot(byte, &error)))
    }

    fn give_back(&self, locks: Access) {
        let all = [Some(self.as_fd()), self.second()];
        for fd in all.into_iter().flatten() {
            for byte in bytes(locks) {
                // What fails is left to the close.
                let _ = ofd::unlock(fd, byte..byte + 1);
            }
        }
    }

    /// Whether others let us have `new`; `has` is what we had before.
    fn ask(&self, new: Access, has: Access) -> Result<(), LockError> {
        let opposite = Access {
            held: new.shared.not(),
            shared: new.held.not(),
        };
        let ours = Access {
            held: opposite.held.both(has.held),
            shared: opposite.shared.and(has.shared),
        };
        let second = self.second();
        if let Some(second) = second {
            for byte in bytes(ours) {
                // If it stays, we are in our own way, and are told so.
                let _ = ofd::unlock(second, byte..byte + 1);
            }
        }
        let answer = self.ask_others(new);
        let again = second.map_or(Ok(()), |second| self.lock_bytes(second, ours));
        answer.and(again)
    }

    fn ask_others(&self, new: Access) -> Result<(), LockError> {
        for (bit, name) in new.held.bits() {
            if self.is_locked(SHARED_BASE + i64::from(bit))? {
                return Err(self.refused(&format!("\"{name}\"")));
            }
        }
        for (bit, name) in new.shared.not().bits() {
            if self.is_locked(PERM_BASE + i64::from(bit))? {
                return Err(self.refused(&format!("shared \"{name}\"")));
            }
        }
        Ok(())
    }

    fn is_locked(&self, byte: i64) -> Result<bool, LockError> {
        ofd::is_locked(self.as_fd(), byte).map_err(|error| LockError {
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            desc: format!(
                "Failed to test the lock on byte {byte} of '{}': {}",
                self.filename,
                block::strerror(&error)
            ),
            hint: None,
        })
    }

    fn cannot(&self, byte: i64, error: &io::Error) -> LockError {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let reason = block::strerror(error);
        let desc = format!(
            "Failed to lock byte {byte} of '{}': {reason}",
            self.filename
        );
        if errno == libc::EAGAIN {
            return self.in_use(desc);
        }
        let hint = "Does the filesystem support locks? locking=off opens the image without them.";
        LockError {
            errno,
            desc,
            hint: Some(hint.to_owned()),
        }
    }

    /// QEMU's words, and the file: of several disks, or of a chain, nobody would know which one it is.
    fn refused(&self, lock: &str) -> LockError {
        self.in_use(format!("Failed to get {lock} lock on '{}'", self.filename))
    }

    fn in_use(&self, desc: String) -> LockError {
        LockError {
            errno: libc::EAGAIN,
            desc,
            hint: Some(format!(
                "Is another process using the image [{}]?",
                self.filename
            )),
        }
    }
}

impl AsFd for Locked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.image.as_fd()
    }
}

/// The bytes to be locked.
fn bytes(locks: Access) -> impl Iterator<Item = i64> {
    let held = locks.held.bits();
    let held = held.map(|(bit, _)| PERM_BASE + i64::from(bit));
    let unshared = locks.shared.not().bits();
    held.chain(unshared.map(|(bit, _)| SHARED_BASE + i64::from(bit)))
}

/// What `all` has more than `has`.
const fn beyond(all: Access, has: Access) -> Access {
    Access {
        held: all.held.without(has.held),
        shared: all.shared.and(has.shared.not()),
    }
}

#[cfg(test)]
mod tests;
