//! Wire types of QMP and of the command line: keyval and JSON options, error classes.
//!
//! Nothing here does I/O. Text comes in as `&str` or bytes from people and clients who make
//! mistakes or mean harm; every parser is total, bounded in size and depth, and answers in the
//! words that QEMU's tools use, because scripts match them.
//!
//! * [`json`]: the JSON dialect of QMP, as a stream.
//! * [`keyval`] is `driver=file,node-name=n,cache.direct=on`.
//! * [`de`]: turns either into a Rust type, with errors that name the member (`addr.path`).
//! * [`os_text`]: file names that are no text, as text. [`backing_name`]: where those lead that images have.
//! * [`options`]: what the command line and `blockdev-add` and friends accept.
//! * [`introspect`]: what commands and events are made of.
//! * [`qom`]: the types of objects, and their properties.
//! * [`types`]: what commands return.
//! * [`command`]: arguments of commands. [`event`]: events. [`wire`]: the QMP envelope.
//!
//! All types describe themselves to serde: a member is optional exactly if its type is `Option`,
//! defaults are in accessor methods, flat unions and alternates follow the conventions of
//! [`de`]. A deserializer that records what it is asked for walks the schema ([`introspect`]).

pub mod backing_name;
pub mod command;
pub mod data_name;
pub mod de;
mod error;
pub mod event;
pub mod id;
pub mod introspect;
pub mod json;
pub mod keyval;
pub mod options;
pub mod os_text;
pub mod qom;
mod size;
pub mod types;
pub mod wire;

pub use error::{ErrorClass, QmpError};
pub use size::Size;

/// A JSON value, as it comes from the wire.
pub use serde_json::Value;

/// A JSON object; keeps the order of its members.
pub type Object = serde_json::Map<String, Value>;

/// Longest text any parser here takes: one message, one command line argument. Bytes.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// Most tokens (brackets, names, values, separators) that one JSON value may consist of. What is
/// kept of a token takes more room than its text.
pub const JSON_TOKENS_MAX: usize = 1 << 16;

/// Deepest nesting of objects and arrays any parser here takes.
pub const DEPTH_MAX: usize = 128;
