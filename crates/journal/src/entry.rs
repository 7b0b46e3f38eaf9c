//! One line: the envelope around what the caller appends.

use std::io::Write;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The longest line, in bytes, envelope and line feed included. Longer ones are neither written nor read.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// What the envelope takes at most, in bytes.
pub(crate) const ENVELOPE_BYTES_MAX: usize = 96;

/// The greatest number that any reader of JSON understands.
pub(crate) const SEQ_MAX: u64 = (1 << 53) - 1;

/// How each line begins.
pub(crate) const BEGINNING: &[u8] = b"{\"seq\":";

/// A line of the journal.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its number; each line has one more than the one before.
    pub seq: u64,
    /// When it was appended.
    pub time: Timestamp,
    /// What it says.
    pub content: Content,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// What was appended.
    Data(Value),
    /// So many entries could not be kept since the line before.
    Dropped(u64),
}

#[derive(Deserialize)]
struct Line {
    seq: u64,
    time: Time,
    #[serde(default, deserialize_with = "some")]
    data: Option<Value>,
    dropped: Option<u64>,
}

struct Time(Timestamp);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// A value that is there, `null` included.
fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Entry {
    /// Reads a line, without its line feed. None: it is damaged, or no line of a journal.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line: Line = serde_json::from_slice(line).ok()?;
        if line.seq > SEQ_MAX {
            return None;
        }
        let content = match (line.data, line.dropped) {
            (Some(data), None) => Content::Data(data),
            (None, Some(count)) => Content::Dropped(count),
            _ => return None,
        };
        Some(Self {
            seq: line.seq,
            time: line.time.0,
            content,
        })
    }
}

/// What is to become a line.
#[derive(Debug)]
pub(crate) enum Text {
    /// JSON, without line feeds.
    Data(Box<[u8]>),
    /// So many were dropped.
    Dropped(u64),
}

/// Adds a line to `buffer`.
pub(crate) fn write_line(buffer: &mut Vec<u8>, seq: u64, time: Timestamp, text: &Text) {
    buffer.extend_from_slice(BEGINNING);
    // Writing to memory does not fail.
    let _ = write!(buffer, "{seq},\"time\":\"{time}\"");
    match text {
        Text::Data(json) => {
            buffer.extend_from_slice(b",\"data\":");
            buffer.extend_from_slice(json);
        }
        Text::Dropped(count) => {
            let _ = write!(buffer, ",\"dropped\":{count}");
        }
    }
    buffer.extend_from_slice(b"}\n");
}

/// The time, as precise as a line has it.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(seq: u64, time: Timestamp, text: &Text) -> Vec<u8> {
        let mut buffer = Vec::new();
        write_line(&mut buffer, seq, time, text);
        assert_eq!(buffer.pop(), Some(b'\n'));
        buffer
    }

    #[test]
    fn the_form_is_the_documented_one() {
        let time: Timestamp = "2026-11-27T17:58:12.123456Z".parse().unwrap();
        let data = Text::Data(Box::from(&br#"{"event":"STOP"}"#[..]));
        assert_eq!(
            String::from_utf8(line(17, time, &data)).unwrap(),
            r#"{"seq":17,"time":"2026-11-27T17:58:12.123456Z","data":{"event":"STOP"}}"#
        );
        let time: Timestamp = "2026-11-27T17:58:12.2Z".parse().unwrap();
        assert_eq!(
            String::from_utf8(line(18, time, &Text::Dropped(3))).unwrap(),
            r#"{"seq":18,"time":"2026-11-27T17:58:12.2Z","dropped":3}"#
        );
    }

    #[test]
    fn what_is_written_is_read() {
        for value in [json!(null), json!({"a": ["\n", 1.5, null]}), json!("\u{0}")] {
            let time = now();
            let text = Text::Data(serde_json::to_vec(&value).unwrap().into_boxed_slice());
            let found = Entry::parse(&line(SEQ_MAX, time, &text)).unwrap();
            let content = Content::Data(value);
            assert_eq!((found.seq, found.time), (SEQ_MAX, time));
            assert_eq!(found.content, content);
        }
        for time in [Timestamp::MIN, Timestamp::MAX] {
            let line = line(SEQ_MAX, time, &Text::Dropped(u64::MAX));
            assert!(line.len() < ENVELOPE_BYTES_MAX + 20);
            assert_eq!(Entry::parse(&line).unwrap().time, time);
        }
    }

    #[test]
    fn other_lines_are_none() {
        for foreign in [
            "",
            "{}",
            "null",
            r#"{"seq":1,"time":"2026-11-27T17:58:12Z"}"#,
            r#"{"seq":1,"time":"yesterday","data":1}"#,
            r#"{"seq":9007199254740992,"time":"2026-11-27T17:58:12Z","data":1}"#,
            r#"{"seq":-1,"time":"2026-11-27T17:58:12Z","data":1}"#,
            r#"{"seq":1,"time":"2026-11-27T17:58:12Z","data":1,"dropped":1}"#,
            r#"{"seq":1,"time":"2026-11-27T17:58:12Z","data":1}{"seq":2"#,
        ] {
            assert_eq!(Entry::parse(foreign.as_bytes()), None, "{foreign}");
        }
        let later = r#"{"seq":1,"time":"2026-11-27T17:58:12Z","boot":"x","data":1}"#;
        assert!(Entry::parse(later.as_bytes()).is_some());
    }
}
