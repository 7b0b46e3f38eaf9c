//! A blocking QMP client.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

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
    stream: UnixStream,
    received: Vec<u8>,
    events: VecDeque<Event>,
    log: EventLog,
    greeting: Value,
    next_id: u64,
    timeout: Duration,
}

impl Qmp {
    /// Connects, reads the greeting and negotiates no capabilities. Replies are waited for 10
    /// seconds; see [`Qmp::set_timeout`].
    ///
    /// # Errors
    /// If nobody answers, or not as a QMP server.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, QmpError> {
        let mut qmp = Self::connect_raw(path)?;
        qmp.execute("qmp_capabilities", Value::Null)?;
        Ok(qmp)
    }

    /// Connects and reads the greeting.
    ///
    /// # Errors
    /// If nobody answers, or not as a QMP server.
    pub fn connect_raw(path: impl AsRef<Path>) -> Result<Self, QmpError> {
        let mut qmp = Self {
            stream: UnixStream::connect(path)?,
            received: Vec::new(),
            events: VecDeque::new(),
            log: EventLog::default(),
            greeting: Value::Null,
            next_id: 1,
            timeout: Duration::from_secs(10),
        };
        let deadline = Instant::now() + qmp.timeout;
        let greeting = qmp.receive(deadline)?;
        let greeting = greeting.ok_or_else(|| qmp.timed_out("greeting", qmp.timeout))?;
        if greeting.pointer("/QMP/version").is_none() {
            return Err(QmpError::Protocol(format!("greeting {greeting}")));
        }
        qmp.greeting = greeting;
        Ok(qmp)
    }

    /// The server's greeting.
    #[must_use]
    pub fn greeting(&self) -> &Value {
        &self.greeting
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
        let id = self.next_id;
        self.next_id += 1;
        let mut message = json!({ "execute": command, "id": id });
        if let (Value::Object(message), false) = (&mut message, arguments.is_null()) {
            message.insert("arguments".into(), arguments);
        }
        self.log.push(LogEntry::Command(command.to_owned()));
        self.send_raw(format!("{message}\n").as_bytes())?;
        let deadline = Instant::now() + self.timeout;
        while let Some(message) = self.receive(deadline)? {
            if let Some(event) = event(&message) {
                self.keep(event);
                continue;
            }
            self.log.push(LogEntry::Reply(message.clone()));
            return reply(message, id);
        }
        Err(self.timed_out(command, self.timeout))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// Errors of the connection.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<(), QmpError> {
        self.stream.set_write_timeout(Some(self.timeout))?;
        Ok(self.stream.write_all(bytes)?)
    }

    /// The next message of any kind. It is neither logged nor kept.
    ///
    /// # Errors
    /// [`QmpError::Timeout`], else errors of the connection.
    pub fn receive_raw(&mut self, timeout: Duration) -> Result<Value, QmpError> {
        let message = self.receive(Instant::now() + timeout)?;
        message.ok_or_else(|| self.timed_out("message", timeout))
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
                Some(message) => self.keep(expect_event(message)?),
                None => return Err(self.timed_out(name, timeout)),
            }
        }
    }

    /// Takes all events that are there or arrive within `timeout`, in their order.
    ///
    /// # Errors
    /// Errors of the connection.
    pub fn take_events(&mut self, timeout: Duration) -> Result<Vec<Event>, QmpError> {
        let deadline = Instant::now() + timeout;
        while let Some(message) = self.receive(deadline)? {
            self.keep(expect_event(message)?);
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

    fn keep(&mut self, event: Event) {
        self.log.push(LogEntry::Event(event.clone()));
        self.events.push_back(event);
    }

    fn timed_out(&self, what: &str, after: Duration) -> QmpError {
        QmpError::Timeout {
            what: what.to_owned(),
            after,
            seen: self.log.to_string(),
        }
    }

    /// The next message, or `None` at the deadline. At a deadline that has passed, what is already
    /// there is still taken.
    fn receive(&mut self, deadline: Instant) -> Result<Option<Value>, QmpError> {
        loop {
            if let Some(message) = self.parse()? {
                return Ok(Some(message));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // Zero would mean no timeout at all.
            self.stream
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(QmpError::Closed),
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Ok(None);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(QmpError::Closed);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes a complete JSON value off what has been received; it may span lines.
    fn parse(&mut self) -> Result<Option<Value>, QmpError> {
        let mut values = serde_json::Deserializer::from_slice(&self.received).into_iter::<Value>();
        match values.next() {
            None => Ok(None),
            Some(Ok(value)) => {
                let taken = values.byte_offset();
                self.received.drain(..taken);
                Ok(Some(value))
            }
            Some(Err(error)) if error.is_eof() => Ok(None),
            Some(Err(error)) => Err(QmpError::Protocol(format!(
                "{error}: {}",
                String::from_utf8_lossy(&self.received)
            ))),
        }
    }
}

fn event(message: &Value) -> Option<Event> {
    let name = message.get("event")?.as_str()?.to_owned();
    let data = message.get("data").cloned().unwrap_or(Value::Null);
    Some(Event {
        name,
        data,
        message: message.clone(),
    })
}

fn expect_event(message: Value) -> Result<Event, QmpError> {
    event(&message).ok_or_else(|| QmpError::Protocol(format!("a reply to nothing: {message}")))
}

fn reply(mut message: Value, id: u64) -> Result<Value, QmpError> {
    if message.get("id") != Some(&json!(id)) {
        return Err(QmpError::Protocol(format!(
            "reply without the id {id}: {message}"
        )));
    }
    let text = |error: &Map<String, Value>, name: &str| {
        error.get(name).and_then(Value::as_str).map(str::to_owned)
    };
    if let Some(value) = message.get_mut("return") {
        return Ok(value.take());
    }
    let error = message.get("error").and_then(Value::as_object);
    match error.and_then(|error| text(error, "class").zip(text(error, "desc"))) {
        Some((class, desc)) => Err(QmpError::Command { class, desc }),
        None => Err(QmpError::Protocol(format!(
            "neither return nor error: {message}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread::{self, JoinHandle};

    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 9}}, "capabilities": []}}"#;

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
