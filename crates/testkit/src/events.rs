//! What a monitor connection has seen, and whether its order keeps the promises.

use std::fmt;

use serde_json::Value;

/// An event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// Its data; `Null` if there are none.
    pub data: Value,
    /// The whole message.
    pub message: Value,
}

/// One thing sent or received.
#[derive(Debug, Clone, PartialEq)]
pub enum LogEntry {
    /// A command was sent.
    Command(String),
    /// A reply arrived.
    Reply(Value),
    /// An event arrived.
    Event(Event),
    /// Somebody else (another monitor, a VMM) was told to stop the VM.
    StopRequested,
}

impl fmt::Display for LogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(name) => write!(f, "-> {name}"),
            Self::Reply(reply) => write!(f, "<- {reply}"),
            Self::Event(event) => write!(f, "event {} {}", event.name, event.data),
            Self::StopRequested => f.write_str("stop requested elsewhere"),
        }
    }
}

/// Everything a monitor connection has sent and received, in order.
#[derive(Debug, Clone, Default)]
pub struct EventLog {
    entries: Vec<LogEntry>,
}

impl EventLog {
    /// Appends an entry.
    pub fn push(&mut self, entry: LogEntry) {
        self.entries.push(entry);
    }

    /// The entries in order.
    #[must_use]
    pub fn entries(&self) -> &[LogEntry] {
        &self.entries
    }

    /// The events in order.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.entries.iter().filter_map(|entry| match entry {
            LogEntry::Event(event) => Some(event),
            _ => None,
        })
    }

    /// Checks the order of an error's events, for a log that begins in state running:
    ///
    /// - STOP comes only after its cause: a `BLOCK_IO_ERROR` with action *stop* since the last
    ///   RESUME, or a `stop` command;
    /// - RESUME comes only after a `cont` command since the last RESUME, if `cont` is only ever said
    ///   on this connection (`conts_here`). It may have been said before STOP was read;
    /// - STOP and RESUME alternate.
    ///
    /// # Errors
    /// What is wrong, with the whole log.
    pub fn check_order(&self, conts_here: bool) -> Result<(), String> {
        let mut running = true;
        let (mut cause, mut stop_said, mut cont_said) = (false, false, false);
        for (position, entry) in self.entries.iter().enumerate() {
            let wrong = |what: &str| Err(format!("entry {position}: {what}\n{self}"));
            match entry {
                LogEntry::StopRequested => stop_said = true,
                LogEntry::Command(name) if name == "stop" => stop_said = true,
                LogEntry::Command(name) if name == "cont" => cont_said = true,
                LogEntry::Event(event) => match event.name.as_str() {
                    "BLOCK_IO_ERROR" if event.data["action"] == "stop" => cause = true,
                    "STOP" if !running => return wrong("STOP while stopped"),
                    "STOP" if !cause && !stop_said => return wrong("STOP before its cause"),
                    "STOP" => (running, stop_said) = (false, false),
                    "RESUME" if running => return wrong("RESUME while running"),
                    "RESUME" if conts_here && !cont_said => return wrong("RESUME without cont"),
                    "RESUME" => {
                        (running, cause, stop_said, cont_said) = (true, false, false, false)
                    }
                    _ => {}
                },
                LogEntry::Command(_) | LogEntry::Reply(_) => {}
            }
        }
        Ok(())
    }
}

impl fmt::Display for EventLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entries
            .iter()
            .enumerate()
            .try_for_each(|(at, entry)| writeln!(f, "  {at}: {entry}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `E` error with action stop, `e` with action report, `S` STOP, `R` RESUME, `s` stop, `c` cont.
    fn log(script: &str) -> EventLog {
        let event = |name: &str, data: Value| {
            LogEntry::Event(Event {
                name: name.into(),
                data,
                message: Value::Null,
            })
        };
        let entries = script.chars().map(|what| match what {
            'E' => event("BLOCK_IO_ERROR", json!({ "action": "stop" })),
            'e' => event("BLOCK_IO_ERROR", json!({ "action": "report" })),
            'S' => event("STOP", Value::Null),
            'R' => event("RESUME", Value::Null),
            's' => LogEntry::Command("stop".into()),
            'c' => LogEntry::Command("cont".into()),
            other => panic!("{other}"),
        });
        EventLog {
            entries: entries.collect(),
        }
    }

    #[test]
    fn good_orders_pass() {
        for script in [
            "",
            "ES",
            "EScR",
            "EEScRES",
            "ESEEcRcES",
            "sScR",
            "sEScR",
            "EcSR",
        ] {
            assert_eq!(log(script).check_order(true), Ok(()), "{script}");
        }
        assert!(log("ESR").check_order(false).is_ok());
    }

    #[test]
    fn bad_orders_are_found() {
        for (script, what) in [
            ("S", "before its cause"),
            ("SE", "before its cause"),
            ("eS", "before its cause"),
            ("EScRS", "before its cause"),
            ("ESS", "while stopped"),
            ("ESES", "while stopped"),
            ("R", "while running"),
            ("EScRR", "while running"),
            ("EScRESR", "without cont"),
            ("ESR", "without cont"),
        ] {
            let error = log(script).check_order(true).unwrap_err();
            assert!(error.contains(what), "{script}: {error}");
        }
    }
}
