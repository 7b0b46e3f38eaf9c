//! A QMP client: one connection, commands in turn, events as they come.

use std::collections::VecDeque;
use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use qapi::wire::{Greeting, Outcome, Response};
use qapi::{Object, QmpError, Value};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::de::DeserializeOwned;
use serde_json::json;

/// How long a daemon may take to greet, before it is taken for something else.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// The daemon refuses.
    #[error("{0}")]
    Refused(QmpError),
}

type Message = Result<Value, serde_json::Error>;

/// A connection after its greeting and negotiation.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    inbox: Receiver<Message>,
    events: VecDeque<Value>,
    last_id: u64,
}

/// Connects. A daemon that hangs accepts nobody, and then nobody waits for it for ever.
fn dial(path: &Path) -> io::Result<UnixStream> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(GREETING_TIMEOUT))?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => Ok(socket.into()),
        Err(Errno::AGAIN) => Err(io::Error::other(format!(
            "it has accepted nobody for {} s, whoever listens there hangs",
            GREETING_TIMEOUT.as_secs()
        ))),
        Err(errno) => Err(errno.into()),
    }
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
        let stream = dial(path).map_err(failed)?;
        let reader = stream.try_clone().map_err(failed)?;
        let (outbox, inbox) = mpsc::channel();
        std::thread::Builder::new()
            .name("qmp-reader".to_owned())
            .spawn(move || {
                let messages = serde_json::Deserializer::from_reader(BufReader::new(reader));
                for message in messages.into_iter::<Value>() {
                    let last = message.is_err();
                    if outbox.send(message).is_err() || last {
                        break;
                    }
                }
            })
            .map_err(failed)?;
        let mut client = Self {
            stream,
            inbox,
            events: VecDeque::new(),
            last_id: 0,
        };
        client.greeting(path)?;
        client.execute("qmp_capabilities", Object::new())?;
        Ok(client)
    }

    fn greeting(&mut self, path: &Path) -> Result<(), ClientError> {
        let why = match self.inbox.recv_timeout(GREETING_TIMEOUT) {
            Ok(Ok(message)) => match serde_json::from_value::<Greeting>(message) {
                Ok(_) => return Ok(()),
                Err(error) => format!("it sent something else first ({error})"),
            },
            Ok(Err(error)) => format!("it did not send JSON ({error})"),
            Err(RecvTimeoutError::Timeout) => {
                format!(
                    "it sent no greeting within {} s; or another client holds the monitor",
                    GREETING_TIMEOUT.as_secs()
                )
            }
            Err(RecvTimeoutError::Disconnected) => "it closed the connection at once".to_owned(),
        };
        Err(ClientError::NotQmp {
            path: path.to_owned(),
            why,
        })
    }

    /// Executes a command and waits for its result.
    ///
    /// # Errors
    /// If the daemon refuses, goes or does not answer.
    pub fn execute(&mut self, command: &str, arguments: Object) -> Result<Value, ClientError> {
        self.last_id += 1;
        let id = json!(self.last_id);
        let mut line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        line.push('\n');
        // A failure is told by the end of what comes in; it may still bring the reason.
        let sent = self.stream.write_all(line.as_bytes());
        let deadline = Instant::now() + REPLY_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = match self.inbox.recv_timeout(left) {
                Ok(Ok(message)) => message,
                Ok(Err(error)) if error.is_io() => return Err(ClientError::Closed),
                Ok(Err(error)) => {
                    return Err(ClientError::Malformed {
                        command: command.to_owned(),
                        why: error.to_string(),
                    });
                }
                Err(RecvTimeoutError::Disconnected) => return Err(ClientError::Closed),
                Err(RecvTimeoutError::Timeout) if sent.is_err() => {
                    return Err(ClientError::Closed);
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(ClientError::Timeout {
                        command: command.to_owned(),
                    });
                }
            };
            if message.get("event").is_some() {
                self.events.push_back(message);
                continue;
            }
            // An answer without an id is to something that the daemon could not read.
            if message.get("id").is_some_and(|of| *of != id) {
                continue;
            }
            let response = serde_json::from_value::<Response>(message);
            let response = response.map_err(|error| ClientError::Malformed {
                command: command.to_owned(),
                why: error.to_string(),
            })?;
            return match response.result {
                Outcome::Return(value) => Ok(value),
                Outcome::Error(error) => Err(ClientError::Refused(error)),
            };
        }
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
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        loop {
            match self.inbox.try_recv() {
                Ok(Ok(message)) if message.get("event").is_some() => return Ok(Some(message)),
                // The late answer to a command that nobody waits for any more.
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(TryRecvError::Disconnected) => return Err(ClientError::Closed),
                Err(TryRecvError::Empty) => return Ok(None),
            }
        }
    }

    /// The next event; waits for it.
    ///
    /// # Errors
    /// If the daemon goes.
    pub fn next_event(&mut self) -> Result<Value, ClientError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(event);
        }
        loop {
            match self.inbox.recv() {
                Ok(Ok(message)) if message.get("event").is_some() => return Ok(message),
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return Err(ClientError::Closed),
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Ends the reader. An error means that the connection has ended already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
