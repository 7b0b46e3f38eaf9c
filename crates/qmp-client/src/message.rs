//! What a server sends. No I/O.

use qapi::types::Timestamp;
use qapi::wire::{Greeting, Response};
use qapi::{Object, Value};

use crate::error::ProtocolError;

/// One message of a server.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first.
    Greeting(Box<Greeting>),
    /// What it tells without being asked.
    Event(Event),
    /// The answer to a command.
    Response(Response),
}

impl Message {
    /// Tells what it is.
    ///
    /// # Errors
    /// If it is none of them.
    pub fn parse(value: Value) -> Result<Self, ProtocolError> {
        let Value::Object(object) = &value else {
            return Err(ProtocolError::NoObject);
        };
        if let Some(name) = object.get("event") {
            if !name.is_string() {
                return Err(ProtocolError::EventWithoutName);
            }
            return Ok(Self::Event(Event { message: value }));
        }
        if object.contains_key("QMP") {
            return match serde_json::from_value(value) {
                Ok(greeting) => Ok(Self::Greeting(Box::new(greeting))),
                Err(why) => Err(ProtocolError::Greeting(why.to_string())),
            };
        }
        match serde_json::from_value(value) {
            Ok(response) => Ok(Self::Response(response)),
            Err(why) => Err(ProtocolError::NoMessage(why.to_string())),
        }
    }
}

/// An event, as it came: servers have events, and members of events, that nobody here knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// An object whose member `event` is a string.
    message: Value,
}

impl Event {
    /// Its name.
    pub fn name(&self) -> &str {
        self.message["event"].as_str().unwrap_or_default()
    }

    /// Its data. None: it has none.
    pub fn data(&self) -> Option<&Object> {
        self.message.get("data").and_then(Value::as_object)
    }

    /// When it happened, on the server's clock. None: the server does not say it.
    pub fn timestamp(&self) -> Option<Timestamp> {
        let timestamp = self.message.get("timestamp")?;
        serde_json::from_value(timestamp.clone()).ok()
    }

    /// The whole message.
    pub fn message(&self) -> &Value {
        &self.message
    }

    /// The whole message.
    pub fn into_message(self) -> Value {
        self.message
    }

    /// About how much memory it takes, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        bytes(&self.message)
    }
}

/// What a member of an object has besides its name and its value: hash, index, the string's header.
const MEMBER_BYTES: usize = 48;

/// The depth is bounded by the parser.
fn bytes(value: &Value) -> usize {
    let inside = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(bytes).sum(),
        Value::Object(members) => (members.iter())
            .map(|(name, value)| MEMBER_BYTES + name.len() + bytes(value))
            .sum(),
    };
    size_of::<Value>() + inside
}
