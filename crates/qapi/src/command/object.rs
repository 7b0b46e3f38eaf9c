//! Arguments of `qom-list` and its like.

use crate::Value;
use serde::{Deserialize, Serialize};

/// Arguments of `qom-list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QomList {
    /// The path of the object, or a part of it that no other has.
    pub path: String,
}

/// Arguments of `qom-get`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QomGet {
    /// The path of the object, or a part of it that no other has.
    pub path: String,
    /// Its property.
    pub property: String,
}

/// Arguments of `qom-set`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QomSet {
    /// The path of the object, or a part of it that no other has.
    pub path: String,
    /// Its property.
    pub property: String,
    /// What it becomes.
    pub value: Value,
}

/// Arguments of `qom-list-types`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QomListTypes {
    /// Only types that are of this one. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub implements: Option<String>,
    /// Those, too, of which there are no objects. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#abstract: Option<bool>,
}

/// Arguments of `qom-list-properties`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QomListProperties {
    /// The type.
    pub typename: String,
}
