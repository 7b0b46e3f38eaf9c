//! Why an iothread cannot start.

use std::io;

use crate::engine::Unavailable;

/// Why an iothread cannot start, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The name cannot be given to a thread.
    #[error("iothread name {0:?} contains a NUL character; choose another name")]
    Name(String),
    /// No io_uring, and nothing else was asked for.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// EMFILE or ENFILE.
    #[error(
        "no file descriptor left for an iothread; raise the limit (ulimit -n, LimitNOFILE=): {0}"
    )]
    Descriptors(#[source] io::Error),
    /// The thread itself cannot be made, or its first worker.
    #[error("cannot start the iothread's thread; raise the limit of tasks (TasksMax=): {0}")]
    Thread(#[source] io::Error),
    /// Anything else.
    #[error("cannot set up the iothread: {0}")]
    Other(#[source] io::Error),
}

impl StartError {
    /// Tells the errors of making what an iothread waits in apart.
    pub(crate) fn from_setup(error: io::Error) -> StartError {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => StartError::Descriptors(error),
            _ => StartError::Other(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_names_its_remedy() {
        for (errno, remedy) in [
            (libc::EMFILE, "LimitNOFILE"),
            (libc::ENFILE, "ulimit -n"),
            (libc::EIO, "os error 5"),
        ] {
            let text = StartError::from_setup(io::Error::from_raw_os_error(errno)).to_string();
            assert!(text.contains(remedy), "errno {errno}: {text}");
        }
    }
}
