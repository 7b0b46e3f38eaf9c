//! Whether anybody but this daemon still has an inflight region: if not, nobody can hand it back, and
//! what it remembers is gone. QEMU frees its region when the device is reset or unplugged, and when it
//! ends; it keeps it over a pause of the VM and over the loss of the connection. Neither of them is
//! said in a message, and after `device_del` not even the connection ends.
//!
//! The client's descriptors and mappings are one open file description, that which came with the
//! message. An OFD lock is put on it. It goes with the last of them, and that can be seen through
//! another description of the same memory, which is the one that is mapped here.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Far beyond the end of any region: nobody else locks that.
const BYTE: i64 = 1 << 62;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Witness(File);

impl Witness {
    /// Takes over what a client has handed in. An error gives it back: what becomes of that region
    /// cannot be seen then.
    pub fn of(theirs: OwnedFd) -> Result<Self, (OwnedFd, io::Error)> {
        let name = format!("/proc/self/fd/{}", theirs.as_raw_fd());
        let ours = OpenOptions::new().read(true).write(true).open(name);
        let locked = ours.and_then(|ours| {
            lock(&theirs, libc::F_OFD_SETLK)?;
            Ok(ours)
        });
        match locked {
            Ok(ours) => Ok(Self(ours)),
            Err(error) => Err((theirs, error)),
        }
    }

    /// What to map: not the client's.
    pub fn file(&self) -> &File {
        &self.0
    }

    /// Whether nobody has it any more.
    pub fn is_alone(&self) -> bool {
        // If it cannot be asked, somebody may have it.
        lock(&self.0, libc::F_OFD_GETLK).is_ok_and(|kind| kind == libc::F_UNLCK)
    }
}

/// The kind of lock that the system answers with.
fn lock(file: &impl AsRawFd, command: i32) -> io::Result<i32> {
    let kind = |kind: i32| libc::c_short::try_from(kind).unwrap_or_default();
    // SAFETY: a flock of zeroes is a valid one; the OFD commands want l_pid to be 0.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind(libc::F_WRLCK);
    lock.l_whence = kind(libc::SEEK_SET);
    lock.l_start = BYTE;
    lock.l_len = 1;
    // SAFETY: the descriptor is open, and `lock` a flock that lives on.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(lock.l_type.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::{Mapping, sealed_memfd};
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    #[test]
    fn a_mapping_or_a_descriptor_of_the_clients_is_enough() {
        let theirs = sealed_memfd("test", 4096).unwrap();
        let kept = theirs.try_clone().unwrap();
        let witness = Witness::of(theirs).unwrap();
        let ours = Mapping::of_file(witness.file().as_fd(), 0, 4096).unwrap();
        assert!(!witness.is_alone());
        let mapping = Mapping::of_file(kept.as_fd(), 0, 4096).unwrap();
        // The next daemon takes it over from the same client.
        let next = Witness::of(kept).unwrap();
        assert!(!witness.is_alone() && !next.is_alone());
        drop(mapping);
        // A child that another test has just forked has it for a moment.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !(witness.is_alone() && next.is_alone()) {
            assert!(Instant::now() < deadline, "somebody has it");
            std::thread::yield_now();
        }
        drop(ours);
    }
}
