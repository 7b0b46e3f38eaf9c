//! Where a journal is, and its limits.

use std::path::PathBuf;

use crate::entry::LINE_BYTES_MAX;
use crate::error::JournalError;

/// Readers open all files at once.
const OLD_FILES_MAX: u32 = 100;

/// Where a journal is, and its limits.
#[derive(Clone, Debug)]
pub struct Options {
    /// The newest file; its directory must exist.
    pub path: PathBuf,
    /// The size of a file, in bytes: at least [`LINE_BYTES_MAX`]. Default: 16 MiB.
    pub file_bytes_max: u64,
    /// How many old files are kept: 1 to 100. Default: 7.
    pub old_files_max: u32,
    /// What may wait to be written, in bytes, each entry with some 50 bytes of its own: at least
    /// [`LINE_BYTES_MAX`]. Default: 4 MiB.
    pub queue_bytes_max: usize,
}

impl Options {
    /// The defaults, for a journal at `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            file_bytes_max: 16 << 20,
            old_files_max: 7,
            queue_bytes_max: 4 << 20,
        }
    }

    /// # Errors
    /// [`JournalError::Options`].
    pub(crate) fn check(&self) -> Result<(), JournalError> {
        let why = if self.path.file_name().is_none() {
            "the path names no file".to_owned()
        } else if self.file_bytes_max < LINE_BYTES_MAX as u64 {
            format!(
                "a file of {} bytes is too small, use {LINE_BYTES_MAX} or more",
                self.file_bytes_max
            )
        } else if self.queue_bytes_max < LINE_BYTES_MAX {
            format!(
                "a queue of {} bytes is too small, use {LINE_BYTES_MAX} or more",
                self.queue_bytes_max
            )
        } else if !(1..=OLD_FILES_MAX).contains(&self.old_files_max) {
            format!(
                "{} old files cannot be kept, use 1 to {OLD_FILES_MAX}",
                self.old_files_max
            )
        } else {
            return Ok(());
        };
        Err(JournalError::Options {
            path: self.path.clone(),
            why,
        })
    }
}
