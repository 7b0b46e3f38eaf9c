//! The character devices of the daemon, which the monitor adds and removes but does not know.

use std::fmt;

use block::BoxFuture;
use qapi::options::{ChardevBackend, ChardevOptions};
use qapi::qom::Type;
use qapi::types::{ChardevInfo, ChardevReturn};
use qapi::{QmpError, Value};

/// A character device, as an object in the tree of all.
#[derive(Debug)]
pub struct ChardevObject {
    /// Its name in `/chardevs`.
    pub id: String,
    /// What it is.
    pub r#type: &'static Type,
    /// Its properties but `type`, which all have.
    pub values: Vec<(&'static str, Value)>,
}

impl ChardevObject {
    /// The value of a property.
    pub fn value(&self, property: &str) -> Option<&Value> {
        let found = self.values.iter().find(|(name, _)| *name == property);
        found.map(|(_, value)| value)
    }
}

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

    /// What `qom-list` and its like say of them, in the order in which they came.
    fn objects(&self) -> Vec<ChardevObject>;

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
