//! The objects of the daemon, which the monitor adds and deletes but does not know.

use std::fmt;

use block::BoxFuture;
use qapi::options::ObjectOptions;
use qapi::types::{IothreadInfo, ObjectPropertyInfo};
use qapi::{QmpError, Value};

use crate::chardevs::ChardevObject;

/// Everything that `object-add` makes. The errors are those of the commands. Where a path may lead to a
/// character device, they are told of those.
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

    /// `query-iothreads`.
    fn iothreads(&self) -> Vec<IothreadInfo>;

    /// `qom-list`.
    ///
    /// # Errors
    /// If `path` names nothing, or several.
    fn list(
        &self,
        chardevs: &[ChardevObject],
        path: &str,
    ) -> Result<Vec<ObjectPropertyInfo>, QmpError>;

    /// `qom-get`.
    ///
    /// # Errors
    /// If `path` names nothing, or several, or there is no such property.
    fn get(
        &self,
        chardevs: &[ChardevObject],
        path: &str,
        property: &str,
    ) -> Result<Value, QmpError>;

    /// `qom-set`.
    ///
    /// # Errors
    /// As [`Self::get`]; if the property cannot be changed, or not to that value.
    fn set(
        &self,
        chardevs: &[ChardevObject],
        path: &str,
        property: &str,
        value: Value,
    ) -> Result<(), QmpError>;
}
