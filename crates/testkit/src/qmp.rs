//! A QMP client that blocks, and remembers what it has seen.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use qapi::Object;
use qmp_client::{ClientError, Connection, Incoming, Wire, connect_unix};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

use crate::events::{Event, EventLog, LogEntry};

/// Why a command or a wait failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// The server's answer was an error.
    #[error("{class}: {desc}")]
    Command {
        /// Error class.
        class: String,
        /// Description.
        desc: String,
    },
    /// Nothing came in time.
    #[error("no {what} within {after:?}; seen so far: {seen}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
        /// The log, for the reader of a failed test.
        seen: String,
    },
    /// The server closed the connection.
    #[error("the QMP server closed the connection")]
    Closed,
    /// What came is not QMP.
    #[error("not QMP: {0}")]
    Protocol(String),
    /// The connection failed.
    #[error("QMP connection")]
    Io(#[from] io::Error),
}

impl From<ClientError> for QmpError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(error) => Self::Command {
                class: error.class.name().to_owned(),
                desc: error.desc,
            },
            ClientError::Closed => Self::Closed,
            ClientError::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Self::Closed
            }
            ClientError::Io(error) => Self::Io(io::Error::new(error.kind(), error)),
            other => Self::Protocol(other.to_string()),
        }
    }
}

impl QmpError {
    /// Class and description, if the server answered with an error.
    #[must_use]
    pub fn command(&self) -> Option<(&str, &str)> {
        match self {
            Self::Command { class, desc } => Some((class, desc)),
            _ => None,
        }
    }
}

/// A connection to a QMP server, past the capabilities negotiation.
#[derive(Debug)]
pub struct Qmp {
    connection: Connection<UnixStream>,
    /// Its own: whoever has the connection may be any thread.
    runtime: Runtime,
    events: VecDeque<Event>,
    log: EventLog,
    timeout: Duration,
}

impl Qmp {
    /// Connects, reads the greeting and negotiates no capabilities. Replies are waited for 10
    /// seconds; see [`Qmp::set_timeout`].
    ///
    /// # Errors
    /// If nobody answers, or not as a QMP server.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, QmpError> {
        let timeout = Duration::from_secs(10);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let stream = runtime.block_on(connect_unix(path.as_ref(), timeout))?;
        let greeted = Connection::greet(Wire::new(stream));
        let Some(connection) = until(&runtime, Instant::now() + timeout, greeted)? else {
            return Err(timed_out("greeting", timeout, &EventLog::default()));
        };
        let mut qmp = Self {
            connection,
            runtime,
            events: VecDeque::new(),
            log: EventLog::default(),
            timeout,
        };
        qmp.execute("qmp_capabilities", Value::Null)?;
        Ok(qmp)
    }

    /// How long replies are waited for.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Executes a command. `arguments` is an object, or `Null` for none. Events that arrive before
    /// the reply are kept.
    ///
    /// # Errors
    /// [`QmpError::Command`] if the server says so, else errors of the connection.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let arguments = match arguments {
            Value::Null => Object::new(),
            Value::Object(arguments) => arguments,
            other => {
                let why = format!("{other} is no object: say it with send_raw");
                return Err(QmpError::Protocol(why));
            }
        };
        let id = self.connection.send(command, &arguments)?;
        self.log.push(LogEntry::Command(command.to_owned()));
        let deadline = Instant::now() + self.timeout;
        while let Some(incoming) = self.receive(deadline)? {
            let answer = match incoming {
                Incoming::Event(event) => {
                    self.keep(event);
                    continue;
                }
                Incoming::Answer(answer) => answer,
            };
            let reply = match &answer.result {
                Ok(value) => json!({ "return": value, "id": answer.id }),
                Err(error) => json!({ "error": error, "id": answer.id }),
            };
            if answer.id != id {
                let why = format!("reply without the id {id}: {reply}");
                return Err(QmpError::Protocol(why));
            }
            self.log.push(LogEntry::Reply(reply));
            return answer
                .result
                .map_err(|error| ClientError::Refused(error).into());
        }
        Err(timed_out(command, self.timeout, &self.log))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// Errors of the connection.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<(), QmpError> {
        let deadline = Instant::now() + self.timeout;
        let wire = self.connection.wire();
        wire.push(bytes);
        match until(&self.runtime, deadline, wire.flush())? {
            Some(()) => Ok(()),
            None => Err(timed_out("end of writing", self.timeout, &self.log)),
        }
    }

    /// The next message of any kind: the reply to what [`Qmp::send_raw`] has sent, an event. It is
    /// neither logged nor kept.
    ///
    /// # Errors
    /// [`QmpError::Timeout`], else errors of the connection.
    pub fn receive_raw(&mut self, timeout: Duration) -> Result<Value, QmpError> {
        let deadline = Instant::now() + timeout;
        let message = until(&self.runtime, deadline, self.connection.wire().read())?;
        message.ok_or_else(|| timed_out("message", timeout, &self.log))
    }

    /// Waits for the next event called `name` and takes it; others stay to be taken later.
    ///
    /// # Errors
    /// [`QmpError::Timeout`], else errors of the connection.
    pub fn wait_event(&mut self, name: &str, timeout: Duration) -> Result<Event, QmpError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(at) = self.events.iter().position(|event| event.name == name)
                && let Some(event) = self.events.remove(at)
            {
                return Ok(event);
            }
            match self.receive(deadline)? {
                Some(incoming) => self.keep(expect_event(incoming)?),
                None => return Err(timed_out(name, timeout, &self.log)),
            }
        }
    }

    /// Takes all events that are there or arrive within `timeout`, in their order.
    ///
    /// # Errors
    /// Errors of the connection.
    pub fn take_events(&mut self, timeout: Duration) -> Result<Vec<Event>, QmpError> {
        let deadline = Instant::now() + timeout;
        while let Some(incoming) = self.receive(deadline)? {
            self.keep(expect_event(incoming)?);
        }
        Ok(self.events.drain(..).collect())
    }

    /// Everything sent and received so far, in order; taken events included.
    #[must_use]
    pub fn log(&self) -> &EventLog {
        &self.log
    }

    /// The log, to note what happens outside of this connection.
    pub fn log_mut(&mut self) -> &mut EventLog {
        &mut self.log
    }

    fn keep(&mut self, event: qmp_client::Event) {
        let event = Event {
            name: event.name().to_owned(),
            data: event.message()["data"].clone(),
            message: event.into_message(),
        };
        self.log.push(LogEntry::Event(event.clone()));
        self.events.push_back(event);
    }

    fn receive(&mut self, deadline: Instant) -> Result<Option<Incoming>, QmpError> {
        until(&self.runtime, deadline, self.connection.next())
    }
}

/// What is waited for, or `None` at the deadline. At a deadline that has passed, what is already there
/// is still taken.
fn until<T>(
    runtime: &Runtime,
    deadline: Instant,
    waits: impl Future<Output = Result<T, ClientError>>,
) -> Result<Option<T>, QmpError> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = left.max(Duration::from_millis(1));
    match runtime.block_on(async { tokio::time::timeout(left, waits).await }) {
        Ok(result) => Ok(Some(result?)),
        Err(_) => Ok(None),
    }
}

fn timed_out(what: &str, after: Duration, log: &EventLog) -> QmpError {
    QmpError::Timeout {
        what: what.to_owned(),
        after,
        seen: log.to_string(),
    }
}

fn expect_event(incoming: Incoming) -> Result<qmp_client::Event, QmpError> {
    match incoming {
        Incoming::Event(event) => Ok(event),
        Incoming::Answer(answer) => Err(QmpError::Protocol(format!(
            "a reply to nothing: '{}' with the id {}",
            answer.command, answer.id
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;
    use std::thread::{self, JoinHandle};

    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 9},
        "package": ""}, "capabilities": []}}"#;

    /// A server that answers the n-th line it receives with the n-th of `answers`, then hangs up.
    fn serve(answers: Vec<&'static str>) -> (tempfile::TempDir, JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("qmp")).unwrap();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(GREETING.as_bytes()).unwrap();
            let mut lines = io::BufRead::lines(io::BufReader::new(stream.try_clone().unwrap()));
            for answer in [&[r#"{"return": {}, "id": 1}"#], answers.as_slice()].concat() {
                lines.next().unwrap().unwrap();
                // In two parts, to be put together again.
                let (first, second) = answer.split_at(answer.len() / 2);
                stream.write_all(first.as_bytes()).unwrap();
                thread::sleep(Duration::from_millis(5));
                stream.write_all(second.as_bytes()).unwrap();
            }
        });
        (dir, thread)
    }

    #[test]
    fn replies_and_events_are_told_apart_and_kept_in_order() {
        let (dir, server) = serve(vec![
            "{\"event\": \"STOP\",\n \"timestamp\": {}}\n{\"event\": \"B\", \"data\": {\"n\": 1}}
             {\"return\": {\"running\": false}, \"id\": 2}",
            r#"{"error": {"class": "GenericError", "desc": "no such thing"}, "id": 3}"#,
        ]);
        let mut qmp = Qmp::connect(dir.path().join("qmp")).unwrap();
        let status = qmp.execute("query-status", Value::Null).unwrap();
        assert_eq!(status, json!({ "running": false }));
        let event = qmp.wait_event("B", Duration::ZERO).unwrap();
        assert_eq!(event.data, json!({ "n": 1 }));
        let error = qmp.execute("nonsense", json!({ "x": 1 })).unwrap_err();
        assert_eq!(error.command(), Some(("GenericError", "no such thing")));
        let rest = qmp.wait_event("STOP", Duration::ZERO).unwrap();
        assert_eq!(rest.name, "STOP");
        let log: Vec<_> = qmp
            .log()
            .entries()
            .iter()
            .map(LogEntry::to_string)
            .collect();
        assert_eq!(log[0], "-> qmp_capabilities");
        assert!(
            log[3].starts_with("event STOP") && log[4].starts_with("event B"),
            "{log:?}"
        );
        server.join().unwrap();
        assert!(matches!(
            qmp.wait_event("X", Duration::from_secs(5)),
            Err(QmpError::Closed)
        ));
    }

    #[test]
    fn waiting_is_bounded_and_says_what_was_seen() {
        let (dir, _server) = serve(vec!["{\"return\": {}, \"id\": 2}", ""]);
        let mut qmp = Qmp::connect(dir.path().join("qmp")).unwrap();
        qmp.execute("query-status", Value::Null).unwrap();
        let error = qmp
            .wait_event("STOP", Duration::from_millis(20))
            .unwrap_err();
        assert!(error.to_string().contains("-> query-status"), "{error}");
        qmp.send_raw(b"\n").unwrap();
    }

    #[test]
    fn a_reply_to_another_command_is_an_error() {
        let (dir, _server) = serve(vec!["{\"return\": {}, \"id\": 7}"]);
        let mut qmp = Qmp::connect(dir.path().join("qmp")).unwrap();
        assert!(matches!(
            qmp.execute("x", Value::Null),
            Err(QmpError::Protocol(_))
        ));
    }
}
