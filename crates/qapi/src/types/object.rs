//! Results of `query-iothreads` and of `qom-list` and its like.

use serde::{Deserialize, Serialize};

/// Element of the result of `query-iothreads`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct IothreadInfo {
    /// The id of the object.
    pub id: String,
    /// The kernel's id of the thread.
    pub thread_id: i64,
    /// See the property of that name.
    pub poll_max_ns: i64,
    /// See the property of that name.
    pub poll_grow: i64,
    /// See the property of that name.
    pub poll_shrink: i64,
    /// See the property of that name.
    pub aio_max_batch: i64,
    /// How it does I/O: io_uring, threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_engine: Option<String>,
    /// Why that is not io_uring, for people; there if nobody has asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_engine_reason: Option<String>,
}

/// Element of the result of `qom-list` and `qom-list-properties`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ObjectPropertyInfo {
    /// The name of the property.
    pub name: String,
    /// Its type: that of QAPI, `child<TYPE>`, `bool`, `int`, `string`.
    pub r#type: String,
    /// What it is, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Element of the result of `qom-list-types`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectTypeInfo {
    /// The name of the type.
    pub name: String,
    /// Whether there are no objects of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#abstract: Option<bool>,
    /// The type that it is a kind of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}
