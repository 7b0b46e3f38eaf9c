//! Why a node could not be opened.

use std::{fmt, io};

/// Why a node could not be opened, in QEMU's words, which management software knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct OpenError {
    /// The (positive) errno.
    pub errno: i32,
    /// What a monitor shows (`desc`).
    pub desc: String,
    /// A line that a command line shows after it.
    pub hint: Option<String>,
}

impl OpenError {
    /// An error without a hint.
    pub fn new(errno: i32, desc: impl Into<String>) -> Self {
        Self {
            errno,
            desc: desc.into(),
            hint: None,
        }
    }

    /// Adds the hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A failure of the system with `filename`, in words.
    pub(crate) fn system(text: &str, filename: &str, error: &io::Error) -> Self {
        // Such as a NUL in the file name.
        let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
        let reason = block::strerror(error);
        Self::new(errno, format!("{text} '{filename}': {reason}"))
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.desc)
    }
}
