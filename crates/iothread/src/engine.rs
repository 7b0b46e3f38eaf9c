//! Which engines there are, and why the better one cannot be had.

use std::{fmt, io};

/// How an iothread waits, and how the operations on it reach the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// One io_uring.
    IoUring,
    /// Waits in epoll; workers make the calls.
    Threads,
}

impl Engine {
    /// QEMU's word for it (`aio=`).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Engine::IoUring => "io_uring",
            Engine::Threads => "threads",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why there is no io_uring here, and what to do about it. An iothread can do without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// ENOSYS: built without io_uring, or hidden by a seccomp filter.
    #[error(
        "io_uring is not available (Function not implemented: use Linux 6.1 or newer with \
         CONFIG_IO_URING, or let the seccomp filter pass io_uring_setup, io_uring_enter and \
         io_uring_register)"
    )]
    NotSupported,
    /// EPERM or EACCES.
    #[error(
        "io_uring is not available (Operation not permitted: set kernel.io_uring_disabled=0, or 1 \
         and join the group kernel.io_uring_group, and let the seccomp filter or security module \
         pass it)"
    )]
    Forbidden,
    /// EINVAL: a flag that this kernel does not know.
    #[error(
        "io_uring is not available (Invalid argument: that of this kernel is too old, \
         SINGLE_ISSUER and DEFER_TASKRUN need Linux 6.1 or newer)"
    )]
    TooOld,
    /// ENOMEM.
    #[error(
        "io_uring is not available (Cannot allocate memory: no room for {entries} entries, raise the \
         memory limit of the cgroup or the locked memory limit (ulimit -l, LimitMEMLOCK=), or use \
         fewer entries)"
    )]
    Memory {
        /// The entries asked for.
        entries: u32,
    },
}

impl Unavailable {
    /// What an error of making a ring means, unless it says nothing about rings: an iothread without one
    /// would not start either.
    pub(crate) fn of(error: &io::Error, entries: u32) -> Option<Unavailable> {
        match error.raw_os_error()? {
            libc::ENOSYS => Some(Unavailable::NotSupported),
            libc::EPERM | libc::EACCES => Some(Unavailable::Forbidden),
            libc::EINVAL => Some(Unavailable::TooOld),
            libc::ENOMEM => Some(Unavailable::Memory { entries }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_names_its_remedy() {
        for (errno, remedy) in [
            (libc::ENOSYS, "CONFIG_IO_URING"),
            (libc::EPERM, "kernel.io_uring_disabled"),
            (libc::EACCES, "security module"),
            (libc::EINVAL, "6.1"),
            (libc::ENOMEM, "LimitMEMLOCK"),
        ] {
            let error = io::Error::from_raw_os_error(errno);
            let text = Unavailable::of(&error, 256).unwrap().to_string();
            assert!(
                text.starts_with("io_uring is not available (") && text.contains(remedy),
                "errno {errno}: {text}"
            );
        }
        let error = io::Error::from_raw_os_error(libc::ENOMEM);
        let text = Unavailable::of(&error, 256).unwrap().to_string();
        assert!(text.contains("256 entries"), "{text}");
        let error = io::Error::from_raw_os_error(libc::EMFILE);
        assert_eq!(Unavailable::of(&error, 256), None);
    }
}
