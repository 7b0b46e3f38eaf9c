//! What a QMP server sends, taken apart. No I/O.

use qapi::Value;
use qapi::json::Stream;
use qapi::wire::{Greeting, Outcome, Response};

/// One message of a server.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first.
    Greeting(Box<Greeting>),
    /// An event, by its name.
    Event(String),
    /// The answer to a command.
    Response(Response),
}

impl Message {
    fn parse(value: Value) -> Result<Self, String> {
        let Value::Object(object) = &value else {
            return Err("a message is no JSON object".to_owned());
        };
        if let Some(event) = object.get("event") {
            return match event {
                Value::String(name) => Ok(Self::Event(name.clone())),
                _ => Err("an event has no name".to_owned()),
            };
        }
        if object.contains_key("QMP") {
            let greeting = serde_json::from_value(value);
            return greeting
                .map(Box::new)
                .map(Self::Greeting)
                .map_err(|e| format!("a greeting cannot be read: {e}"));
        }
        let response: Response = serde_json::from_value(value)
            .map_err(|e| format!("a message is neither an answer nor an event: {e}"))?;
        Ok(Self::Response(response))
    }
}

/// Bytes of a server, taken apart. What is kept is bounded by [`qapi::TEXT_BYTES_MAX`].
#[derive(Debug, Default)]
pub struct Input {
    stream: Stream,
}

impl Input {
    /// Takes the next bytes and hands every message that they complete to `emit`.
    ///
    /// # Errors
    /// What is no QMP: nothing that follows can be trusted.
    pub fn feed(&mut self, bytes: &[u8], mut emit: impl FnMut(Message)) -> Result<(), String> {
        let mut wrong = None;
        self.stream.feed(bytes, |value| {
            if wrong.is_some() {
                return;
            }
            match value.map_err(|e| e.to_string()).and_then(Message::parse) {
                Ok(message) => emit(message),
                Err(why) => wrong = Some(why),
            }
        });
        wrong.map_or(Ok(()), Err)
    }
}

/// The state of a VM, from the answer to `query-status`: whether it runs, and QEMU's name for it.
///
/// # Errors
/// If it is none.
pub fn status(outcome: &Value) -> Result<(bool, String), String> {
    let running = outcome.get("running").and_then(Value::as_bool);
    let status = outcome.get("status").and_then(Value::as_str);
    match (running, status) {
        (Some(running), Some(status)) => Ok((running, status.to_owned())),
        _ => Err("the answer to 'query-status' lacks 'running' or 'status'".to_owned()),
    }
}

/// A command on its way.
pub fn command(name: &str, id: u64) -> Vec<u8> {
    format!("{{\"execute\": \"{name}\", \"id\": {id}}}\r\n").into_bytes()
}

/// The result of the command with this id. None: it is the answer to something else.
pub fn outcome(response: Response, id: u64) -> Option<Outcome> {
    (response.id == Some(Value::from(id))).then_some(response.result)
}
