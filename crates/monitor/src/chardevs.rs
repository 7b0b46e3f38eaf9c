//! The character devices of the daemon, which the monitor adds and removes but does not know.

use std::fmt;

use block::BoxFuture;
use qapi::QmpError;
use qapi::options::{ChardevBackend, ChardevOptions};
use qapi::types::{ChardevInfo, ChardevReturn};

/// All character devices. The errors are those of the commands.
pub trait Chardevs: Send + Sync + fmt::Debug {
    /// `chardev-add`. The options have been checked by themselves.
    ///
    /// # Errors
    /// If the id is taken, or it cannot be made; nothing is added then.
    fn add(&self, options: ChardevOptions) -> BoxFuture<'_, Result<ChardevReturn, QmpError>>;

    /// `chardev-change`: another backend under the same id.
    ///
    /// # Errors
    /// If there is none of that id, it is in use, or the new one cannot be made; nothing has changed then.
    fn change(
        &self,
        id: String,
        backend: ChardevBackend,
    ) -> BoxFuture<'_, Result<ChardevReturn, QmpError>>;

    /// `chardev-remove`.
    ///
    /// # Errors
    /// If there is none of that id, or it is in use; nothing is removed then.
    fn remove(&self, id: String) -> BoxFuture<'_, Result<(), QmpError>>;

    /// `query-chardev`, in the order in which they came.
    fn query(&self) -> Vec<ChardevInfo>;

    /// Writes to a `ringbuf`; what is older than its size is lost.
    ///
    /// # Errors
    /// If there is none of that id, or it is something else.
    fn ringbuf_write(&self, id: &str, data: &[u8]) -> Result<(), QmpError>;

    /// Takes up to `bytes_max` bytes out of a `ringbuf`, oldest first.
    ///
    /// # Errors
    /// If there is none of that id, or it is something else.
    fn ringbuf_read(&self, id: &str, bytes_max: usize) -> Result<Vec<u8>, QmpError>;
}
