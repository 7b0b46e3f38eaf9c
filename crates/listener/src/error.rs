//! Why there is no socket.

use std::io;
use std::path::{Path, PathBuf};

/// Why a socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody else serves this path.
    #[error(
        "socket {} is in use by another process; stop it, or choose another path", path.display()
    )]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// Somebody else has put something in its place while it was made.
    #[error(
        "somebody else has replaced the new socket {}; choose a directory that others cannot write to",
        path.display()
    )]
    Replaced {
        /// The socket's path.
        path: PathBuf,
    },
    /// An empty path: the system would make up an abstract name, which everybody may connect to.
    #[error("a socket needs a path, and this one is empty; name a file")]
    NoPath,
    /// Something else has this name.
    #[error("{} exists and is not a socket; remove it, or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Not a unix stream socket that listens.
    #[error("the file descriptor is not a listening unix stream socket")]
    Kind,
    /// Clients would reach either export, as it happens.
    #[error("the socket is in use by another export")]
    Claimed,
    /// The system refuses a change of an inherited socket.
    #[error("the inherited socket cannot be made non-blocking: {0}")]
    Inherited(io::Error),
    /// The system refuses.
    #[error("socket {}: cannot {what}: {source}", path.display())]
    System {
        /// The path concerned.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What it says.
        source: io::Error,
    },
}

/// Why a descriptor that the process was started with cannot be used, by its number as it was given. In
/// QEMU's words.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// No such descriptor was passed, or it is something else.
    #[error("File descriptor '{0}' is not a socket")]
    NotASocket(String),
    /// A socket of another family.
    #[error("File descriptor '{0}' is not a unix socket")]
    NotUnix(String),
    /// A connection where clients are to come.
    #[error("File descriptor '{0}' is not a listening socket")]
    NotListening(String),
    /// No connection.
    #[error("File descriptor '{0}' is a listening socket")]
    Listening(String),
}

/// An error of the system, with what was tried.
pub(crate) fn system<E: Into<io::Error>>(
    path: &Path,
    what: &'static str,
) -> impl FnOnce(E) -> SocketError {
    move |source| SocketError::System {
        path: path.to_owned(),
        what,
        source: source.into(),
    }
}
