//! One connection: greeting, negotiation, commands and what comes back, in order.

use std::collections::VecDeque;
use std::time::Duration;

use qapi::wire::{Greeting, Layout, Outcome, Response, to_line};
use qapi::{Object, QmpError, Value};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::error::{ClientError, ProtocolError};
use crate::limits::{COMMANDS_MAX, EVENTS_BYTES_MAX};
use crate::message::{Event, Message};
use crate::wire::Wire;

/// The command that ends the negotiation.
const NEGOTIATE: &str = "qmp_capabilities";

/// A connection after its greeting.
#[derive(Debug)]
pub struct Connection<S> {
    wire: Wire<S>,
    greeting: Greeting,
    /// The commands that have no answer yet, oldest first.
    under_way: VecDeque<(u64, String)>,
    last_id: u64,
    /// What was told during the negotiation.
    early: VecDeque<Event>,
    early_bytes: usize,
}

/// What comes of a server after its greeting.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// An event.
    Event(Event),
    /// An answer.
    Answer(Answer),
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What [`Connection::send`] has returned.
    pub id: u64,
    /// The command.
    pub command: String,
    /// What came of it.
    pub result: Result<Value, QmpError>,
}

#[derive(Serialize)]
struct Command<'a> {
    execute: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<&'a Object>,
    id: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Waits for the greeting, for as long as it takes. The negotiation is left to do: the command
    /// `qmp_capabilities`.
    ///
    /// # Errors
    /// If something else comes, or nothing at all.
    pub async fn greet(mut wire: Wire<S>) -> Result<Self, ClientError> {
        let first = wire.read().await?;
        let why = match Message::parse(first.clone()) {
            Ok(Message::Greeting(greeting)) => {
                return Ok(Self {
                    wire,
                    greeting: *greeting,
                    under_way: VecDeque::new(),
                    last_id: 0,
                    early: VecDeque::new(),
                    early_bytes: 0,
                });
            }
            Ok(_) => ProtocolError::NoGreeting,
            Err(why) => why,
        };
        let first = Box::new(first);
        Err(ClientError::NotGreeted { first, why })
    }

    /// Waits for the greeting and negotiates no capability, both within `limit`.
    ///
    /// # Errors
    /// As [`Self::greet`], and if it takes longer.
    pub async fn open(wire: Wire<S>, limit: Duration) -> Result<Self, ClientError> {
        let mut greeted = false;
        let opened = timeout(limit, async {
            let mut connection = Self::greet(wire).await?;
            greeted = true;
            connection.negotiate().await?;
            Ok(connection)
        });
        match opened.await {
            Ok(result) => result,
            Err(_) if greeted => Err(ClientError::NoAnswer {
                command: NEGOTIATE.to_owned(),
                after: limit,
            }),
            Err(_) => Err(ClientError::NoGreeting { after: limit }),
        }
    }

    async fn negotiate(&mut self) -> Result<(), ClientError> {
        self.send(NEGOTIATE, &Object::new())?;
        loop {
            match self.receive().await? {
                // Most servers tell nothing before this is over.
                Incoming::Event(event) => {
                    self.early_bytes += event.bytes();
                    if self.early_bytes > EVENTS_BYTES_MAX {
                        return Err(ClientError::EventsNotTaken);
                    }
                    self.early.push_back(event);
                }
                Incoming::Answer(answer) => {
                    return answer.result.map(drop).map_err(ClientError::Refused);
                }
            }
        }
    }

    /// Queues a command; it is sent by [`Self::next`], which brings the answer with the same id.
    ///
    /// # Errors
    /// If [`COMMANDS_MAX`] wait for their answers.
    pub fn send(&mut self, command: &str, arguments: &Object) -> Result<u64, ClientError> {
        if self.under_way.len() == COMMANDS_MAX {
            return Err(ClientError::TooManyCommands);
        }
        self.last_id += 1;
        let id = self.last_id;
        let command_line = Command {
            execute: command,
            arguments: (!arguments.is_empty()).then_some(arguments),
            id,
        };
        self.wire.push(&to_line(&command_line, Layout::Compact));
        self.under_way.push_back((id, command.to_owned()));
        Ok(id)
    }

    /// What comes next. Loses nothing if it is dropped while it waits.
    ///
    /// # Errors
    /// The end of the connection. It stays ended.
    pub async fn next(&mut self) -> Result<Incoming, ClientError> {
        match self.early.pop_front() {
            Some(event) => Ok(Incoming::Event(event)),
            None => self.receive().await,
        }
    }

    async fn receive(&mut self) -> Result<Incoming, ClientError> {
        let value = self.wire.read().await?;
        self.incoming(value).map_err(|why| {
            let error = ClientError::Protocol(why);
            self.wire.fail(&error);
            error
        })
    }

    /// How many commands have no answer yet.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// What the server said first.
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// What is below, for whoever wants to say what no client should. Whatever is read there is not
    /// known here.
    pub fn wire(&mut self) -> &mut Wire<S> {
        &mut self.wire
    }

    fn incoming(&mut self, value: Value) -> Result<Incoming, ProtocolError> {
        match Message::parse(value)? {
            Message::Event(event) => Ok(Incoming::Event(event)),
            Message::Response(response) => self.answer(response).map(Incoming::Answer),
            Message::Greeting(_) => Err(ProtocolError::SecondGreeting),
        }
    }

    fn answer(&mut self, response: Response) -> Result<Answer, ProtocolError> {
        let at = match (&response.id, &response.result) {
            // A command that the server could not read: it does not know the id. Servers take one
            // command after the other.
            (None, Outcome::Error(_)) => Some(0),
            (None, Outcome::Return(_)) => None,
            (Some(id), _) => (self.under_way.iter()).position(|(of, _)| id.as_u64() == Some(*of)),
        };
        match at.and_then(|at| self.under_way.remove(at)) {
            Some((id, command)) => Ok(Answer {
                id,
                command,
                result: match response.result {
                    Outcome::Return(value) => Ok(value),
                    Outcome::Error(error) => Err(error),
                },
            }),
            None => Err(match self.under_way.front() {
                Some((_, oldest)) => ProtocolError::OtherId {
                    oldest: oldest.clone(),
                },
                None => ProtocolError::Unasked,
            }),
        }
    }
}
