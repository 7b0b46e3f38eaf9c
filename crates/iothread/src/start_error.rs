//! Why an iothread cannot start.

use std::io;

/// Why an iothread cannot start, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The name cannot be given to a thread.
    #[error("iothread name {0:?} contains a NUL character; choose another name")]
    Name(String),
    /// ENOSYS: built without io_uring, or hidden by a seccomp filter.
    #[error(
        "this kernel has no io_uring (ENOSYS); use Linux 6.1 or newer with CONFIG_IO_URING, or let \
         the seccomp filter pass io_uring_setup, io_uring_enter and io_uring_register"
    )]
    NotSupported,
    /// EPERM or EACCES.
    #[error(
        "io_uring is forbidden here (EPERM); set kernel.io_uring_disabled=0 (or 1 and join the \
         group kernel.io_uring_group), and let the seccomp filter or security module pass it"
    )]
    Forbidden,
    /// EINVAL: a flag that this kernel does not know.
    #[error(
        "the io_uring of this kernel is too old (EINVAL): SINGLE_ISSUER and DEFER_TASKRUN need \
         Linux 6.1 or newer"
    )]
    TooOld,
    /// ENOMEM.
    #[error(
        "no memory for an io_uring of {entries} entries (ENOMEM); raise the memory limit of the \
         cgroup or the locked memory limit (ulimit -l, LimitMEMLOCK=), or use fewer entries"
    )]
    Memory {
        /// The entries asked for.
        entries: u32,
    },
    /// EMFILE or ENFILE.
    #[error(
        "no file descriptor left for an iothread; raise the limit (ulimit -n, LimitNOFILE=): {0}"
    )]
    Descriptors(#[source] io::Error),
    /// The thread itself cannot be made.
    #[error("cannot start the iothread's thread; raise the limit of tasks (TasksMax=): {0}")]
    Thread(#[source] io::Error),
    /// Anything else.
    #[error("cannot set up the iothread's io_uring: {0}")]
    Other(#[source] io::Error),
}

impl StartError {
    /// Tells the errors of making a ring (or an eventfd) apart.
    pub(crate) fn from_setup(error: io::Error, entries: u32) -> StartError {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => StartError::NotSupported,
            Some(libc::EPERM | libc::EACCES) => StartError::Forbidden,
            Some(libc::EINVAL) => StartError::TooOld,
            Some(libc::ENOMEM) => StartError::Memory { entries },
            Some(libc::EMFILE | libc::ENFILE) => StartError::Descriptors(error),
            _ => StartError::Other(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(errno: i32) -> String {
        StartError::from_setup(io::Error::from_raw_os_error(errno), 256).to_string()
    }

    #[test]
    fn every_cause_names_its_remedy() {
        for (errno, remedy) in [
            (libc::ENOSYS, "CONFIG_IO_URING"),
            (libc::EPERM, "kernel.io_uring_disabled"),
            (libc::EACCES, "security module"),
            (libc::EINVAL, "6.1"),
            (libc::ENOMEM, "LimitMEMLOCK"),
            (libc::EMFILE, "LimitNOFILE"),
            (libc::ENFILE, "ulimit -n"),
            (libc::EIO, "os error 5"),
        ] {
            let text = text(errno);
            assert!(text.contains(remedy), "errno {errno}: {text}");
        }
        assert!(text(libc::ENOMEM).contains("256 entries"));
    }
}
