//! What can be wrong with a journal.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

/// Why a journal cannot be opened, or not be written now.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Two writers would mix their lines.
    #[error(
        "journal {} is written by another process; stop it, or choose another path", path.display()
    )]
    InUse {
        /// The journal's path.
        path: PathBuf,
    },
    /// It might be somebody's data.
    #[error("{} exists and is not a journal; move it away, or choose another path", path.display())]
    NotAJournal {
        /// The path.
        path: PathBuf,
    },
    /// Limits that contradict each other.
    #[error("journal {}: {why}", path.display())]
    Options {
        /// The journal's path.
        path: PathBuf,
        /// Which, and what is allowed.
        why: String,
    },
    /// The system refuses.
    #[error("journal {}: cannot {what}: {source}", path.display())]
    System {
        /// The path concerned.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What it says.
        source: io::Error,
    },
}

impl JournalError {
    /// Whether it is about the storage, which may go well again without anybody changing an option.
    pub(crate) fn is_storage(&self) -> bool {
        let Self::System { source, .. } = self else {
            return false;
        };
        !matches!(
            Errno::from_io_error(source),
            Some(
                Errno::NOENT
                    | Errno::ACCESS
                    | Errno::PERM
                    | Errno::NOTDIR
                    | Errno::ISDIR
                    | Errno::LOOP
                    | Errno::NAMETOOLONG
                    | Errno::INVAL
            )
        )
    }
}

/// An error of the system, with what was tried.
pub(crate) fn system<E: Into<io::Error>>(
    path: &Path,
    what: &'static str,
) -> impl FnOnce(E) -> JournalError {
    move |source| JournalError::System {
        path: path.to_owned(),
        what,
        source: source.into(),
    }
}

/// Why it is not known that everything is on the disk.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FlushError {
    /// It cannot be written or synced.
    #[error("{0}")]
    Failed(#[source] Arc<JournalError>),
    /// The storage has not answered.
    #[error("journal {}: the storage has not answered within {limit:?}", path.display())]
    Slow {
        /// The journal's path.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
}
