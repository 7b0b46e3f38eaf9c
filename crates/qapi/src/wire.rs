//! The QMP envelope: greeting, requests, responses, events, and how they are written.

use crate::event::Event;
use crate::types::{Timestamp, VersionInfo};
use crate::{Object, QmpError, Value};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};
use std::io;

/// What a server says first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Greeting {
    /// The greeting itself.
    #[serde(rename = "QMP")]
    pub qmp: GreetingBody,
}

/// The greeting without its envelope.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GreetingBody {
    /// Who speaks.
    pub version: VersionInfo,
    /// Capabilities that a client may enable.
    pub capabilities: Vec<String>,
}

impl Greeting {
    /// A greeting that offers `oob`.
    pub fn new(version: VersionInfo) -> Self {
        Greeting {
            qmp: GreetingBody {
                version,
                capabilities: vec!["oob".to_owned()],
            },
        }
    }
}

/// A command, as it was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The name of the command.
    pub execute: String,
    /// It is to be executed out of band: the client must have enabled that.
    pub is_oob: bool,
    /// Its arguments.
    pub arguments: Object,
    /// What the client wants back with the response.
    pub id: Option<Value>,
}

/// What came in is not a command.
#[derive(Clone, Debug, PartialEq)]
pub struct BadRequest {
    /// Why.
    pub error: QmpError,
    /// It is about out of band execution, of which a client that has not enabled it knows nothing.
    pub is_oob: bool,
    /// What the client wants back with the response.
    pub id: Option<Value>,
}

/// The member that names a command which is executed out of band.
const EXEC_OOB: &str = "exec-oob";

impl BadRequest {
    /// The client has not enabled out of band execution.
    pub fn not_enabled(id: Option<Value>) -> Self {
        BadRequest {
            error: QmpError::generic(format!("QMP input member '{EXEC_OOB}' is unexpected")),
            is_oob: false,
            id,
        }
    }
}

impl Request {
    /// Reads a request out of a JSON value.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(value: Value) -> Result<Self, Box<BadRequest>> {
        let is_oob = value.get(EXEC_OOB).is_some();
        let bad = |desc: &str, id: Option<Value>| {
            Box::new(BadRequest {
                error: QmpError::generic(desc),
                is_oob,
                id,
            })
        };
        let Value::Object(mut object) = value else {
            return Err(bad("QMP input must be a JSON object", None));
        };
        let id = object.shift_remove("id");
        let mut execute = None;
        let mut arguments = Object::new();
        for (name, value) in object {
            match (name.as_str(), value) {
                ("execute" | EXEC_OOB, Value::String(_)) if execute.is_some() => {
                    let desc = "QMP input member 'execute' clashes with 'exec-oob'";
                    return Err(bad(desc, id));
                }
                ("execute" | EXEC_OOB, Value::String(command)) => execute = Some(command),
                ("execute" | EXEC_OOB, _) => {
                    let desc = format!("QMP input member '{name}' must be a string");
                    return Err(bad(&desc, id));
                }
                ("arguments", Value::Object(object)) => arguments = object,
                ("arguments", _) => {
                    return Err(bad("QMP input member 'arguments' must be an object", id));
                }
                _ => {
                    return Err(bad(&format!("QMP input member '{name}' is unexpected"), id));
                }
            }
        }
        match execute {
            Some(execute) => Ok(Request {
                execute,
                is_oob,
                arguments,
                id,
            }),
            None => Err(bad("QMP input lacks member 'execute'", id)),
        }
    }
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// What came of it.
    #[serde(flatten)]
    pub result: Outcome,
    /// What the client wanted back.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub id: Option<Value>,
}

/// A member that is there, even as `null`, is an id.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It succeeded with this result.
    Return(Value),
    /// It failed.
    Error(QmpError),
}

impl Response {
    /// The answer to the request with this id.
    pub fn new(result: Result<Value, QmpError>, id: Option<Value>) -> Self {
        let result = match result {
            Ok(value) => Outcome::Return(value),
            Err(error) => Outcome::Error(error),
        };
        Response { result, id }
    }
}

/// An event and when it happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventMessage {
    /// When.
    pub timestamp: Timestamp,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// How messages are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// On one line.
    #[default]
    Compact,
    /// Indented by four spaces.
    Pretty,
}

/// Writes a message, with the line end that QMP has.
pub fn to_line(message: &impl Serialize, layout: Layout) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let written = match layout {
        Layout::Compact => message.serialize(&mut serde_json::Serializer::with_formatter(
            &mut out, Spaced,
        )),
        Layout::Pretty => {
            let pretty = PrettyFormatter::with_indent(b"    ");
            message.serialize(&mut serde_json::Serializer::with_formatter(
                &mut out, pretty,
            ))
        }
    };
    debug_assert!(
        written.is_ok(),
        "messages have string keys and are written to memory"
    );
    out.extend_from_slice(b"\r\n");
    out
}

/// One line with a space after `:` and `,`, as QEMU writes it: people match it with grep.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        separate(writer, first)
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        separate(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// What comes before an element or a member.
fn separate(writer: &mut (impl ?Sized + io::Write), first: bool) -> io::Result<()> {
    if first {
        Ok(())
    } else {
        writer.write_all(b", ")
    }
}

#[cfg(test)]
mod tests;
