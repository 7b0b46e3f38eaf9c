//! How long a node is, and how that changes.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use block::{BlockError, Result};

use super::FileDriver;
use super::probe::{self, Kind};
use super::tail::whole_sectors;

/// The length of a node on an image of `bytes` bytes: a file is rounded up to whole sectors (see
/// [`super::tail`]). What a block device has beyond its last whole block even the kernel cannot reach.
pub fn node_length(kind: Kind, bytes: u64, logical_block: u32) -> Option<u64> {
    match kind {
        Kind::Block => Some(bytes & !(u64::from(logical_block) - 1)),
        _ => whole_sectors(bytes),
    }
}

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
        let node = node_length(self.kind, image, self.zero_align)
            .ok_or_else(|| BlockError::from(std::io::Error::from_raw_os_error(libc::EFBIG)))?;
        Ok((node, image))
    }

    /// See [`block::Driver::resized_length`].
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
        let failed = |error: std::io::Error| {
            BlockError::from(error)
                .doing("resize")
                .at(&self.node_name, 0, length)
        };
        self.tail
            .prepare(node, self.fd.as_fd(), self.locks)
            .map_err(failed)?;
        rustix::fs::ftruncate(&self.fd, length).map_err(|errno| failed(errno.into()))?;
        self.length.store(node, Ordering::Release);
        self.tail.set(image, node);
        Ok(())
    }
}
