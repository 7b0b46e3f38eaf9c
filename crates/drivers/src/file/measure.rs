//! How long an image is: looked at when it is opened, and again when its use begins, as others may have
//! changed it until then.

use std::os::fd::BorrowedFd;

use super::probe::{self, Kind};
use super::tail::node_length;
use crate::OpenError;

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// Of the image.
    pub image: u64,
    /// Of a node on it.
    pub node: u64,
}

impl Length {
    /// Looks.
    ///
    /// # Errors
    /// In words: the storage does not say, or it is more than there can be.
    pub fn of(
        fd: BorrowedFd<'_>,
        kind: Kind,
        logical_block: u32,
        filename: &str,
    ) -> Result<Self, OpenError> {
        let image = probe::length(fd)
            .map_err(|error| OpenError::system("Could not get size of", filename, &error))?;
        let node = node_length(kind, image, logical_block);
        let node = node.ok_or_else(|| {
            let error = std::io::Error::from_raw_os_error(libc::EFBIG);
            OpenError::system("Could not round up the length of", filename, &error)
        })?;
        Ok(Self { image, node })
    }

    /// Where what is stored ends, for the node.
    pub fn end(self) -> u64 {
        self.image.min(self.node)
    }
}
