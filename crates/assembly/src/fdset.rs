//! Images that are passed as descriptors: `/dev/fdset/N`.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use drivers::file::OpenImage;
use monitor::{Descriptors, fdset_of};

use crate::setup_error::SetupError;

/// A set of descriptors, as an image.
#[derive(Debug)]
struct Fdset {
    descriptors: Arc<Descriptors>,
    id: i64,
}

/// What opens `filename`, if that is the path of a set.
///
/// # Errors
/// If it is none, although it begins like one.
pub fn opener(
    descriptors: &Arc<Descriptors>,
    filename: &str,
) -> Result<Option<Arc<dyn OpenImage>>, SetupError> {
    let Some(id) = fdset_of(filename) else {
        return Ok(None);
    };
    Ok(Some(Arc::new(Fdset {
        descriptors: Arc::clone(descriptors),
        id: id.map_err(SetupError::new)?,
    })))
}

impl OpenImage for Fdset {
    fn open(&self, writable: bool, direct: bool) -> io::Result<OwnedFd> {
        self.descriptors.open(self.id, writable, direct)
    }

    /// QEMU's words, with the number of O_RDONLY or O_RDWR.
    fn failed(&self, writable: bool, reason: &str) -> String {
        let flags = match writable {
            true => libc::O_RDWR,
            false => libc::O_RDONLY,
        };
        let id = self.id;
        format!("Could not dup FD for /dev/fdset/{id} flags {flags}: {reason}")
    }
}
