//! How the length of a node changes.

use std::sync::atomic::Ordering;

use block::{BlockError, Cause, Result};

use rustix::io::Errno;

use super::driver::FileDriver;
use super::probe::{self, Kind};
use super::tail::node_length;

impl FileDriver {
    /// The length of the node after a resize to `length`, and that of its image.
    fn after_resize(&self, length: u64) -> Result<(u64, u64)> {
        let mut image = length;
        if self.kind == Kind::Block {
            image = probe::length(self.fd()).map_err(BlockError::from)?;
            if length > image {
                return Err(BlockError::new(
                    libc::EINVAL,
                    format!(
                        "Cannot grow device files: '{}' has {image} bytes, asked for {length}",
                        self.filename
                    ),
                ));
            }
        }
        let node =
            node_length(self.kind, image, self.zero_align).ok_or_else(|| could_not(Errno::FBIG))?;
        Ok((node, image))
    }

    /// See [`block::Resize::resized_length`].
    pub(super) fn length_after(&self, length: u64) -> Result<u64> {
        Ok(self.after_resize(length)?.0)
    }

    /// Changes the length of a file; takes over that of a block device, which is not ours to change.
    pub(super) fn change_length(&self, length: u64) -> Result<()> {
        let (node, image) = self.after_resize(length)?;
        if self.kind == Kind::Block {
            self.length.store(node, Ordering::Release);
            self.tail.set(node, node);
            self.size_taken(image);
            return Ok(());
        }
        if self.read_only {
            return Err(BlockError::new(
                libc::EACCES,
                format!("'{}' is open for reading only", self.filename),
            ));
        }
        let prepared = self.tail.prepare(node, &self.fd);
        prepared.map_err(|error| could_not(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        rustix::fs::ftruncate(self.fd(), length).map_err(could_not)?;
        self.length.store(node, Ordering::Release);
        self.tail.set(image, node);
        Ok(())
    }
}

/// In QEMU's words, which are all that whoever asked for the resize is told.
fn could_not(errno: Errno) -> BlockError {
    let errno = errno.raw_os_error();
    let reason = Cause::of_errno(errno).reason();
    BlockError::new(errno, format!("Could not resize file: {reason}"))
}
