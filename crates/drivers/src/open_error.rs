//! Why a node could not be opened.

use std::fmt;

/// Why a node could not be opened, in QEMU's words, which management software knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct OpenError {
    /// The (positive) errno; EAGAIN: somebody else holds a lock on the image, and may yet let go.
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

    /// Whether another process (or another node of this one) has locked the image.
    pub fn is_locked(&self) -> bool {
        self.errno == libc::EAGAIN
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.desc)
    }
}
