//! A QMP client that blocks: one connection, commands in turn, events as they come.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use qapi::wire::Greeting;
use qapi::{Object, QmpError, Value};
use qmp_client::{Connection, Events, GREETING_TIMEOUT, Wire, connect_unix};
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Runtime};

/// How long a command may take. All of ours are quick; a resize waits for I/O in flight.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is nothing at the path.
    #[error(
        "'{}' does not exist: is the daemon running, with --chardev socket,path=... and --monitor?",
        .0.display()
    )]
    NoSocket(PathBuf),
    /// There is something else.
    #[error("'{}' is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// Nobody listens there.
    #[error("cannot connect to '{}': {source}", path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Whoever listens does not speak QMP.
    #[error(
        "'{}' is not a QMP socket: {why} (an export's socket is for the VMM; name that of the \
         monitor)",
        path.display()
    )]
    NotQmp {
        /// The socket's path.
        path: PathBuf,
        /// What was seen instead of a greeting.
        why: String,
    },
    /// No answer.
    #[error("no answer to '{command}' within {} s", REPLY_TIMEOUT.as_secs())]
    Timeout {
        /// The command.
        command: String,
    },
    /// The daemon has gone.
    #[error("the daemon closed the connection")]
    Closed,
    /// An answer that is none.
    #[error("the daemon's answer to '{command}' cannot be understood: {why}")]
    Malformed {
        /// The command.
        command: String,
        /// What is wrong.
        why: String,
    },
    /// More happened than was read.
    #[error("the connection was given up: {0}")]
    EventsNotTaken(qmp_client::ClientError),
    /// The daemon refuses.
    #[error("{0}")]
    Refused(QmpError),
}

/// A connection after its greeting and negotiation.
#[derive(Debug)]
pub struct Client {
    qmp: qmp_client::Client,
    events: Events,
    runtime: Arc<Runtime>,
}

impl Client {
    /// Connects, waits for the greeting and negotiates.
    ///
    /// # Errors
    /// If nobody is there, or not one who speaks QMP.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        match std::fs::metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ClientError::NotASocket(path.to_owned()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ClientError::NoSocket(path.to_owned()));
            }
            // connect() says what else there is to say.
            Ok(_) | Err(_) => {}
        }
        let failed = |source| ClientError::Connect {
            path: path.to_owned(),
            source,
        };
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = Arc::new(runtime.map_err(failed)?);
        let connection = runtime.block_on(async {
            let stream = connect_unix(path, GREETING_TIMEOUT).await.map_err(failed)?;
            let greeted = Connection::greet(Wire::new(stream));
            match tokio::time::timeout(GREETING_TIMEOUT, greeted).await {
                Ok(Ok(connection)) => Ok(connection),
                Ok(Err(error)) => Err(why(error)),
                Err(_) => Err(format!(
                    "it sent no greeting within {} s; or another client holds the monitor",
                    GREETING_TIMEOUT.as_secs()
                )),
            }
            .map_err(|why| ClientError::NotQmp {
                path: path.to_owned(),
                why,
            })
        })?;
        let (qmp, events, driver) = qmp_client::start(connection);
        let driving = Arc::clone(&runtime);
        // Events are taken off the socket while nobody asks for them. It ends with the connection, or
        // when the client is dropped.
        std::thread::Builder::new()
            .name("qmp-reader".to_owned())
            .spawn(move || driving.block_on(driver))
            .map_err(failed)?;
        let mut client = Self {
            qmp,
            events,
            runtime,
        };
        client.execute("qmp_capabilities", Object::new())?;
        Ok(client)
    }

    /// Executes a command and waits for its result.
    ///
    /// # Errors
    /// If the daemon refuses, goes or does not answer.
    pub fn execute(&mut self, command: &str, arguments: Object) -> Result<Value, ClientError> {
        use qmp_client::ClientError as Error;
        let executed = self.qmp.execute_within(REPLY_TIMEOUT, command, arguments);
        self.runtime
            .block_on(executed)
            .map_err(|error| match error {
                Error::Refused(error) => ClientError::Refused(error),
                Error::NoAnswer { command, .. } => ClientError::Timeout { command },
                Error::Protocol(why) => ClientError::Malformed {
                    command: command.to_owned(),
                    why: why.to_string(),
                },
                error => end(error),
            })
    }

    /// [`Self::execute`] without arguments, with a typed result.
    ///
    /// # Errors
    /// As [`Self::execute`], and if the result is not a `T`.
    pub fn query<T: DeserializeOwned>(&mut self, command: &str) -> Result<T, ClientError> {
        let value = self.execute(command, Object::new())?;
        serde_json::from_value(value).map_err(|error| ClientError::Malformed {
            command: command.to_owned(),
            why: error.to_string(),
        })
    }

    /// The next event that has come, if one has. Does not wait.
    ///
    /// # Errors
    /// If the daemon has gone.
    pub fn poll_event(&mut self) -> Result<Option<Value>, ClientError> {
        let event = self.events.try_next().map_err(end)?;
        Ok(event.map(qmp_client::Event::into_message))
    }

    /// The next event; waits for it.
    ///
    /// # Errors
    /// If the daemon goes.
    pub fn next_event(&mut self) -> Result<Value, ClientError> {
        let event = self.runtime.block_on(self.events.next()).map_err(end)?;
        Ok(event.into_message())
    }
}

/// What came instead of a greeting.
fn why(error: qmp_client::ClientError) -> String {
    use qmp_client::{ClientError as Error, ProtocolError};
    match error {
        Error::NotGreeted { first, why } => match serde_json::from_value::<Greeting>(*first) {
            Err(error) => format!("it sent something else first ({error})"),
            Ok(_) => format!("it sent something else first ({why})"),
        },
        Error::Protocol(ProtocolError::Json(error)) => format!("it did not send JSON ({error})"),
        _ => "it closed the connection at once".to_owned(),
    }
}

/// Why there is a connection no more.
fn end(error: qmp_client::ClientError) -> ClientError {
    match error {
        error @ qmp_client::ClientError::EventsNotTaken => ClientError::EventsNotTaken(error),
        _ => ClientError::Closed,
    }
}
