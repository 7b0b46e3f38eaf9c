//! Why there is no answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use qapi::json::JsonError;
use qapi::{QmpError, Value};

use crate::limits::{COMMANDS_MAX, EVENTS_BYTES_MAX};

/// Why a command has no result, or there are no more events. All but [`ClientError::Refused`],
/// [`ClientError::NoAnswer`] and [`ClientError::TooManyCommands`] are the end of the connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// The server refuses the command.
    #[error("{0}")]
    Refused(QmpError),
    /// The server does not answer.
    #[error("no answer to '{command}' within {} s", after.as_secs())]
    NoAnswer {
        /// The command.
        command: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// More than [`COMMANDS_MAX`] commands wait for their answers.
    #[error("{COMMANDS_MAX} commands wait for their answers already")]
    TooManyCommands,
    /// There is somebody, who says nothing: something else, or a server that has another client.
    #[error("no greeting within {} s; or another client holds the monitor", after.as_secs())]
    NoGreeting {
        /// How long it was waited for.
        after: Duration,
    },
    /// What came first is no greeting.
    #[error("it does not speak QMP: {why}")]
    NotGreeted {
        /// What came first.
        first: Box<Value>,
        /// What is wrong with it.
        why: ProtocolError,
    },
    /// What came is no QMP.
    #[error("it does not speak QMP: {0}")]
    Protocol(#[from] ProtocolError),
    /// The server has closed the connection.
    #[error("the connection was closed")]
    Closed,
    /// The connection has failed.
    #[error("the connection has failed: {0}")]
    Io(Arc<io::Error>),
    /// Events came faster than they were taken.
    #[error("more than {} MiB of events were not taken", EVENTS_BYTES_MAX >> 20)]
    EventsNotTaken,
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// Why what a server sent is no QMP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// It is no JSON, or longer than the limit.
    #[error("{0}")]
    Json(JsonError),
    /// A JSON value that is no object.
    #[error("a message is no JSON object")]
    NoObject,
    /// An event whose name is no string.
    #[error("an event has no name")]
    EventWithoutName,
    /// A greeting that lacks something.
    #[error("a greeting cannot be read: {0}")]
    Greeting(String),
    /// None of greeting, event and answer.
    #[error("a message is neither an answer nor an event: {0}")]
    NoMessage(String),
    /// The first message is another one.
    #[error("it begins with no greeting")]
    NoGreeting,
    /// There is one greeting.
    #[error("a second greeting")]
    SecondGreeting,
    /// An answer with an id that no command has which is under way.
    #[error("the answer to '{oldest}' has another id")]
    OtherId {
        /// The command that is under way for longest.
        oldest: String,
    },
    /// An answer while no command is under way.
    #[error("an answer to nothing")]
    Unasked,
}
