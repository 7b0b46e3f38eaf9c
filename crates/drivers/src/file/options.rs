//! How an image is to be opened.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What happens to discards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discard {
    /// They do nothing, and write-zeroes never deallocates.
    #[default]
    Ignore,
    /// They give space back.
    Unmap,
}

/// Whether the image is locked against other users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locking {
    /// As `On`: Linux always has the locks that this takes.
    #[default]
    Auto,
    /// Locked, or not opened.
    On,
    /// Not locked: whoever else writes to the image destroys it.
    Off,
}

/// Who makes the system calls (`aio`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aio {
    /// Workers, on every iothread.
    Threads,
    /// io_uring where it is to be had, else workers; only with `cache_direct`.
    Native,
    /// io_uring, or the image is not opened; on file systems that would block the iothread, workers.
    IoUring,
    /// io_uring, or the image is not opened, whatever the file system is: one that does not answer then stops
    /// all that the iothread serves. For tests of what it says through a ring.
    IoUringAnywhere,
}

/// What opens an image that is not to be had by its path.
pub trait OpenImage: Send + Sync + fmt::Debug {
    /// Opens it for reading, or for reading and writing; `direct`: with O_DIRECT, else without it. What is
    /// returned ends with an exec. It may be asked several times, and may wait for the storage.
    ///
    /// # Errors
    /// EACCES, if it cannot be written or read; others are the system's.
    fn open(&self, writable: bool, direct: bool) -> io::Result<OwnedFd>;

    /// What is said when it fails.
    fn failed(&self, writable: bool, reason: &str) -> String;
}

/// Options of [`FileDriver`](super::FileDriver). The defaults are QEMU's.
#[derive(Clone, Debug, Default)]
pub struct FileOptions {
    /// Name of the node, for messages.
    pub node_name: Arc<str>,
    /// Path of the image, as it is shown.
    pub filename: String,
    /// The path itself, if that is something else: it need not be UTF-8.
    pub path: Option<PathBuf>,
    /// What opens it; none: the path does.
    pub opener: Option<Arc<dyn OpenImage>>,
    /// `cache.direct`: O_DIRECT, past the page cache.
    pub cache_direct: bool,
    /// `cache.no-flush`: nothing is ever made durable.
    pub cache_no_flush: bool,
    /// Open for reading only.
    pub read_only: bool,
    /// Open for reading only if writing is not permitted (EACCES, EPERM, EROFS).
    pub auto_read_only: bool,
    /// What happens to discards.
    pub discard: Discard,
    /// Whether to lock the image.
    pub locking: Locking,
    /// Do not mind writers; only with `read_only`.
    pub force_share: bool,
    /// Who makes the system calls; none: io_uring where it is to be had and blocks nobody, else workers.
    pub aio: Option<Aio>,
}

impl FileOptions {
    /// The path itself.
    pub fn path(&self) -> &Path {
        let path = self.path.as_deref();
        path.unwrap_or_else(|| Path::new(&self.filename))
    }
}
