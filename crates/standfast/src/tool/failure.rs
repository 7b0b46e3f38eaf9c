//! Why the tool fails, and the exit status that says it.

use std::io;

use qapi::QmpError;

use super::client::ClientError;
use super::image::ImageError;

const EXIT_REFUSED: u8 = 1;
/// The command line makes no sense.
pub const EXIT_USAGE: u8 = 2;
const EXIT_UNREACHABLE: u8 = 3;

/// Why the tool fails.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The daemon refused or cannot be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The arguments of a command are wrong.
    #[error("{0}")]
    Arguments(QmpError),
    /// The watcher cannot begin.
    #[error(transparent)]
    Watch(::watch::WatchError),
    /// There is no log.
    #[error("{0}")]
    Log(String),
    /// No watcher says how it is.
    #[error(transparent)]
    Watcher(::watch::StatusError),
    /// There is no journal.
    #[error(transparent)]
    Journal(journal::JournalError),
    /// An image cannot be looked at.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// What came of it cannot be printed.
    #[error("cannot write to stdout: {0}")]
    Output(io::Error),
}

impl Failure {
    /// What the process says by its exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Client(ClientError::Refused(_)) | Self::Output(_) => EXIT_REFUSED,
            Self::Watch(::watch::WatchError::Config(_)) | Self::Log(_) | Self::Arguments(_) => {
                EXIT_USAGE
            }
            Self::Watch(_) => EXIT_REFUSED,
            Self::Image(error) => error.exit_status(),
            Self::Client(_) | Self::Watcher(_) | Self::Journal(_) => EXIT_UNREACHABLE,
        }
    }
}
