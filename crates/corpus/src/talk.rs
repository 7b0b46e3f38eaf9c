//! A conversation in QMP: lines go out, answers and events come in.

use anyhow::{Context, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Deserializer, Value};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long an answer or an event may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A conversation.
#[derive(Debug)]
pub struct Talk {
    out: Out,
    messages: Receiver<Value>,
    /// Events that nobody has waited for yet.
    events: VecDeque<Value>,
    /// What the next message carries.
    descriptor: Option<File>,
    /// The other side has agreed to end: what it says until then will come.
    ends: bool,
}

#[derive(Debug)]
enum Out {
    Pipe(ChildStdin),
    Socket(UnixStream),
    Nobody,
}

impl Talk {
    /// With a process, by its standard input and output.
    pub fn stdio((stdin, stdout): (ChildStdin, ChildStdout)) -> Self {
        Self::new(Out::Pipe(stdin), stdout)
    }

    /// With whoever listens on a socket.
    pub fn socket(stream: UnixStream) -> Result<Self> {
        let reader = stream.try_clone()?;
        Ok(Self::new(Out::Socket(stream), reader))
    }

    /// With nobody: what could not be connected has nothing to say.
    pub fn nobody() -> Self {
        Self::new(Out::Nobody, std::io::empty())
    }

    fn new(out: Out, from: impl Read + Send + 'static) -> Self {
        let (sender, messages) = channel();
        thread::spawn(move || read(from, &sender));
        Self {
            out,
            messages,
            events: VecDeque::new(),
            descriptor: None,
            ends: false,
        }
    }

    /// Ends it: nobody hears or says anything any more.
    pub fn close(&mut self) {
        if let Out::Socket(socket) = &self.out {
            // The other side may have gone first.
            let _ = socket.shutdown(Shutdown::Both);
        }
        *self = Self::nobody();
    }

    /// The next message carries this file.
    pub fn carries(&mut self, file: File) {
        self.descriptor = Some(file);
    }

    /// The other side has said that it ends.
    pub fn will_end(&mut self) {
        self.ends = true;
    }

    /// Sends a line. That nobody reads it is seen by the answer that does not come.
    pub fn send(&mut self, line: &str) -> Result<()> {
        let line = format!("{line}\n");
        let sent = match (&mut self.out, self.descriptor.take()) {
            (Out::Nobody, _) => Ok(()),
            (Out::Pipe(pipe), _) => pipe.write_all(line.as_bytes()),
            (Out::Socket(socket), None) => socket.write_all(line.as_bytes()),
            (Out::Socket(socket), Some(file)) => send_with(socket, line.as_bytes(), &file),
        };
        match sent {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent.context("cannot send"),
        }
    }

    /// The next message that is no event, or a text that says that there is none.
    pub fn answer(&mut self) -> Value {
        let end = Instant::now() + ANSWER_MAX;
        loop {
            match self.next(end) {
                Ok(message) if message.get("event").is_some() => self.events.push_back(message),
                Ok(message) => return message,
                Err(RecvTimeoutError::Timeout) => return "no answer".into(),
                Err(RecvTimeoutError::Disconnected) => return "the end".into(),
            }
        }
    }

    /// The first event of this name with these members in its data, and what came before it stays.
    pub fn event(&mut self, name: &str, members: &[(String, String)]) -> Value {
        let is_wanted = |event: &Value| {
            event["event"] == name
                && members
                    .iter()
                    .all(|(name, value)| match &event["data"][name] {
                        Value::String(text) => text == value,
                        other => {
                            serde_json::from_str(value).is_ok_and(|value: Value| value == *other)
                        }
                    })
        };
        if let Some(at) = self.events.iter().position(is_wanted) {
            return self.events.remove(at).unwrap_or_default();
        }
        let end = Instant::now() + ANSWER_MAX;
        loop {
            match self.next(end) {
                Ok(message) if is_wanted(&message) => return message,
                Ok(message) => self.events.push_back(message),
                Err(_) => return "no such event".into(),
            }
        }
    }

    /// The events that have come and that nobody has waited for; all there will be, if the other side
    /// has ended.
    pub fn rest(&mut self, has_ended: bool) -> Vec<Value> {
        let end = Instant::now() + ANSWER_MAX;
        while (has_ended || self.ends)
            && let Ok(message) = self.next(end)
        {
            self.events.push_back(message);
        }
        self.events.extend(self.messages.try_iter());
        let events = self.events.drain(..);
        events
            .filter(|message| message.get("event").is_some())
            .collect()
    }

    fn next(&self, end: Instant) -> Result<Value, RecvTimeoutError> {
        let left = end.saturating_duration_since(Instant::now());
        self.messages.recv_timeout(left)
    }
}

/// Reads values until there are no more. What is no JSON is one text to the end.
fn read(mut from: impl Read, to: &Sender<Value>) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 65536];
    loop {
        match from.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
        }
        loop {
            let mut values = Deserializer::from_slice(&bytes).into_iter::<Value>();
            let mut done = 0;
            while let Some(Ok(value)) = values.next() {
                done = values.byte_offset();
                if to.send(value).is_err() {
                    return;
                }
            }
            bytes.drain(..done);
            if !skip_note(&mut bytes) {
                break;
            }
        }
    }
    let rest = String::from_utf8_lossy(&bytes);
    if !rest.trim().is_empty() {
        // Whoever would hear it has gone.
        let _ = to.send(Value::String(rest.trim().to_owned()));
    }
}

/// What QEMU prints where it makes an image (`Formatting 'NAME', fmt=...`), on the standard output that a monitor may
/// have, is no part of the conversation. False: there is no such line next, or not all of it yet.
fn skip_note(bytes: &mut Vec<u8>) -> bool {
    let from = bytes.iter().position(|byte| !byte.is_ascii_whitespace());
    let Some(rest) = from.and_then(|from| bytes.get(from..)) else {
        return false;
    };
    let end = bytes.len() - rest.len() + rest.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let is_note = rest.starts_with(b"Formatting '") && bytes.get(end) == Some(&b'\n');
    if is_note {
        bytes.drain(..=end);
    }
    is_note
}

fn send_with(socket: &UnixStream, line: &[u8], file: &File) -> std::io::Result<()> {
    let descriptors = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(
        socket,
        &[IoSlice::new(line)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_between_messages_are_skipped() {
        let said =
            "{\"a\": 1}\r\nFormatting 'x {', fmt=qcow2 size=1\n{\"b\": 2}\nFormatting 'y'\nno JSON";
        let (sender, messages) = channel();
        read(said.as_bytes(), &sender);
        drop(sender);
        let all: Vec<Value> = messages.iter().collect();
        let wanted = ["{\"a\":1}", "{\"b\":2}", "\"no JSON\""];
        assert!(all.iter().map(Value::to_string).eq(wanted), "{all:?}");
    }
}
