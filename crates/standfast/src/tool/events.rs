//! `standfast events`: what happens, one line each.

use std::io::{self, Write};
use std::path::Path;

use qapi::Value;
use qapi::types::Timestamp;

use super::client::{Client, ClientError};
use super::failure::Failure;
use super::time;

/// Follows the events of a daemon until it ends or nobody reads any more.
///
/// # Errors
/// If there is no daemon, or it goes without saying so.
pub fn follow(socket: &Path, json: bool) -> Result<(), Failure> {
    let mut client = Client::connect(socket)?;
    let mut shut_down = false;
    let mut out = io::stdout().lock();
    loop {
        let event = match client.next_event() {
            Ok(event) => event,
            Err(ClientError::Closed) if shut_down => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        shut_down |= event["event"] == "SHUTDOWN";
        let line = if json {
            event.to_string()
        } else {
            line(&event)
        };
        match writeln!(out, "{line}").and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Failure::Output(error)),
        }
    }
}

/// An event on one line: time, name, and its data as `key=value`.
pub fn line(event: &Value) -> String {
    let at = serde_json::from_value::<Timestamp>(event["timestamp"].clone());
    let at = at.map_or_else(|_| "-".to_owned(), |at| time::utc(&at));
    let name = event["event"].as_str().unwrap_or("-");
    let data = data(event);
    if data.is_empty() {
        format!("{at} {name}")
    } else {
        format!("{at} {name} {data}")
    }
}

/// The data of an event as `key=value`, in the order in which it came.
pub fn data(event: &Value) -> String {
    let members = event["data"].as_object();
    // The path repeats the device.
    let members = members
        .into_iter()
        .flatten()
        .filter(|(name, _)| *name != "qom-path");
    let words = members.map(|(name, value)| match value {
        Value::String(text) if plain(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Whether a text needs no quotes.
fn plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'='))
}

#[cfg(test)]
mod tests {
    use super::line;
    use serde_json::json;

    #[test]
    fn an_event_is_one_line() {
        let event = json!({
            "timestamp": {"seconds": 1_795_384_279, "microseconds": 5000},
            "event": "BLOCK_IO_ERROR",
            "data": {"device": "vda", "nospace": true, "reason": "No space\nleft", "qom-path": "vda", "x-cause": ""},
        });
        assert_eq!(
            line(&event),
            "2026-11-22T21:51:19.005Z BLOCK_IO_ERROR device=vda nospace=true \
             reason=\"No space\\nleft\" x-cause=\"\""
        );
        assert_eq!(line(&json!({"event": "STOP"})), "- STOP");
    }
}
