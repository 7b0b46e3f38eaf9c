//! What is known of a notifier.

use std::{
    cell::Cell,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// An eventfd, and the notification that is under way to it.
pub(crate) struct Bell {
    fd: OwnedFd,
    /// The operation that is under way.
    pub(crate) under_way: Cell<Option<usize>>,
    /// Asked for again since that was started.
    pub(crate) again: Cell<bool>,
}

impl Bell {
    pub(crate) fn new(fd: OwnedFd) -> Bell {
        Bell {
            fd,
            under_way: Cell::new(None),
            again: Cell::new(false),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
