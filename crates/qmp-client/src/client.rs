//! A connection that many use.

use std::collections::HashMap;
use std::time::Duration;

use qapi::{Object, QmpError, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::connection::{Connection, Incoming};
use crate::error::ClientError;
use crate::events::{End, Events, Outlet, queue};
use crate::limits::COMMANDS_MAX;

/// A handle of a connection; clones of it are handles of the same one.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    end: End,
}

#[derive(Debug)]
struct Command {
    name: String,
    arguments: Object,
    result: oneshot::Sender<Result<Value, QmpError>>,
}

/// Shares a connection that has been negotiated. The future is its driver: it has to be spawned, or
/// polled together with whatever uses the handles. It ends with the connection, or when all handles
/// and the [`Events`] have been dropped; dropping it closes the connection.
pub fn start<S>(connection: Connection<S>) -> (Client, Events, impl Future<Output = ()> + use<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (sender, commands) = mpsc::channel(1);
    let end = End::default();
    let (outlet, events) = queue(end.clone());
    let client = Client {
        commands: sender,
        end: end.clone(),
    };
    (client, events, drive(connection, commands, outlet, end))
}

impl Client {
    /// Executes a command and waits for its result, for as long as the connection lives. Waits first
    /// while [`COMMANDS_MAX`] are under way.
    ///
    /// # Errors
    /// [`ClientError::Refused`], or the end of the connection.
    pub async fn execute(&self, command: &str, arguments: Object) -> Result<Value, ClientError> {
        let (sender, result) = oneshot::channel();
        let command = Command {
            name: command.to_owned(),
            arguments,
            result: sender,
        };
        let sent = self.commands.send(command).await;
        sent.map_err(|_| self.end.error())?;
        let result = result.await.map_err(|_| self.end.error())?;
        result.map_err(ClientError::Refused)
    }

    /// [`Self::execute`], but waits no longer than that. The connection stays as it is.
    ///
    /// # Errors
    /// As [`Self::execute`], and [`ClientError::NoAnswer`].
    pub async fn execute_within(
        &self,
        limit: Duration,
        command: &str,
        arguments: Object,
    ) -> Result<Value, ClientError> {
        match timeout(limit, self.execute(command, arguments)).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::NoAnswer {
                command: command.to_owned(),
                after: limit,
            }),
        }
    }
}

async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    mut connection: Connection<S>,
    mut commands: mpsc::Receiver<Command>,
    outlet: Outlet,
    end: End,
) {
    let mut waiting = HashMap::new();
    let (mut asked, mut heard) = (true, true);
    while asked || heard {
        tokio::select! {
            command = commands.recv(), if asked && connection.under_way() < COMMANDS_MAX => {
                match command {
                    None => asked = false,
                    // Given up before it was sent.
                    Some(command) if command.result.is_closed() => {}
                    Some(Command { name, arguments, result }) => {
                        match connection.send(&name, &arguments) {
                            Ok(id) => drop(waiting.insert(id, result)),
                            Err(error) => return end.set(error),
                        }
                    }
                }
            }
            () = outlet.unwanted(), if heard => heard = false,
            incoming = connection.next() => match incoming {
                // Before any answer that comes behind it: whoever has seen that finds the event.
                Ok(Incoming::Event(event)) => {
                    if let Err(error) = outlet.put(event) {
                        return end.set(error);
                    }
                }
                Ok(Incoming::Answer(answer)) => {
                    if let Some(result) = waiting.remove(&answer.id) {
                        // Nobody waits for it any more.
                        let _ = result.send(answer.result);
                    }
                }
                Err(error) => return end.set(error),
            },
        }
    }
}
