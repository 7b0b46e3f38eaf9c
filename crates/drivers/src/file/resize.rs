//! How the length of a node changes.

use std::sync::atomic::Ordering;

use block::{BlockError, Result};

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
        let node = node_length(self.kind, image, self.zero_align)
            .ok_or_else(|| BlockError::from(std::io::Error::from_raw_os_error(libc::EFBIG)))?;
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
        let failed = |error: std::io::Error| {
            BlockError::from(error)
                .doing("resize")
                .at(&self.node_name, 0, length)
        };
        self.tail.prepare(node, &self.fd).map_err(failed)?;
        rustix::fs::ftruncate(self.fd(), length).map_err(|errno| failed(errno.into()))?;
        self.length.store(node, Ordering::Release);
        self.tail.set(image, node);
        Ok(())
    }
}
