//! The objects of the daemon, which the monitor adds and deletes but does not know.

use std::fmt;

use block::BoxFuture;
use qapi::QmpError;
use qapi::options::ObjectOptions;

/// Everything that `object-add` makes. The errors are those of the commands.
pub trait Objects: Send + Sync + fmt::Debug {
    /// `object-add`. The options have been checked by themselves.
    ///
    /// # Errors
    /// If the id is taken, or the object cannot be made; nothing is added then.
    fn add(&self, options: ObjectOptions) -> BoxFuture<'_, Result<(), QmpError>>;

    /// `object-del`.
    ///
    /// # Errors
    /// If there is no such object, or it is in use; nothing is deleted then.
    fn delete(&self, id: String) -> BoxFuture<'_, Result<(), QmpError>>;
}
