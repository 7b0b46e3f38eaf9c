//! What the journal tells, for people.

use std::collections::BTreeMap;
use std::path::Path;

use journal::{Content, JournalError};
use serde::Serialize;
use serde_json::Value;

/// An incident, from its records.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Told {
    /// When it began, RFC 3339.
    pub began: String,
    /// The machine.
    pub machine: String,
    /// The disk.
    pub disk: String,
    /// What it was about; `early`: an extension before the storage was full, and no incident.
    pub cause: String,
    /// Its first error, for people.
    pub reason: String,
    /// Extensions that have succeeded.
    pub extensions: u64,
    /// By how many bytes in all.
    pub extended_bytes: u64,
    /// How long the successful ones took, in seconds.
    pub extension_seconds: f64,
    /// Attempts that failed or were refused.
    pub failed_attempts: u64,
    /// Whether it was given up.
    pub gave_up: bool,
    /// What was decided, in order: what and why.
    pub decisions: Vec<String>,
    /// How it ended; none: the journal does not say.
    pub ending: Option<String>,
    /// How long the machine, or its disk, did not go on, in seconds.
    pub seconds_paused: Option<f64>,
}

/// The incidents of a journal, in the order in which they began; and what could not be read, if anything.
#[derive(Debug, Default)]
pub struct History {
    /// The incidents.
    pub incidents: Vec<Told>,
    /// What is missing, for people.
    pub missing: Option<String>,
}

/// Decisions of one incident that are kept: who waits for days decides often.
const DECISIONS_MAX: usize = 100;

impl History {
    /// Reads a journal, also while it is written.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn read(path: &Path) -> Result<Self, JournalError> {
        let mut reader = journal::read(path)?;
        let mut history = Self::default();
        let mut known = BTreeMap::new();
        let (mut dropped, mut unread) = (0, None);
        for entry in &mut reader {
            match entry {
                Ok(entry) => match entry.content {
                    Content::Data(record) => {
                        history.add(&mut known, &format!("{:.3}", entry.time), &record);
                    }
                    Content::Dropped(count) => dropped += count,
                },
                Err(error) => unread = Some(error),
            }
        }
        let skipped = reader.skipped();
        if dropped + skipped.lines + skipped.missing > 0 || unread.is_some() {
            let error = unread.map(|error| format!("; {error}")).unwrap_or_default();
            history.missing = Some(format!(
                "{dropped} records were never written, {} lines are damaged, {} are missing{error}",
                skipped.lines, skipped.missing
            ));
        }
        Ok(history)
    }

    fn add(&mut self, known: &mut BTreeMap<(i64, u64), usize>, time: &str, record: &Value) {
        let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        let Some(key) = record["run"].as_i64().zip(record["incident"].as_u64()) else {
            if record["early"] == true && record["event"] == "extension" {
                self.incidents.push(early(time, record));
            }
            return;
        };
        let at = *known.entry(key).or_insert_with(|| {
            self.incidents.push(Told {
                began: time.to_owned(),
                machine: text("machine"),
                disk: text("disk"),
                ..Told::default()
            });
            self.incidents.len() - 1
        });
        let incident = &mut self.incidents[at];
        match record["event"].as_str() {
            Some("incident-began") => {
                (incident.cause, incident.reason) = (text("cause"), text("reason"));
            }
            Some("decision") if incident.decisions.len() < DECISIONS_MAX => {
                incident.decisions.push(words(record));
            }
            Some("extension") if record["result"] == "grown" => {
                incident.extensions += 1;
                incident.extended_bytes += record["grown"].as_u64().unwrap_or(0);
                incident.extension_seconds += record["seconds"].as_f64().unwrap_or(0.0);
            }
            Some("extension") => incident.failed_attempts += 1,
            Some("gave-up") => incident.gave_up = true,
            Some("incident-ended") => {
                incident.ending = Some(text("ending"));
                incident.seconds_paused = record["seconds_paused"].as_f64();
            }
            _ => {}
        }
    }
}

/// An extension before it was full.
fn early(time: &str, record: &Value) -> Told {
    let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    let grown = record["result"] == "grown";
    Told {
        began: time.to_owned(),
        machine: text("machine"),
        disk: text("disk"),
        cause: "early".to_owned(),
        reason: format!("less than {} bytes were free", record["head_room"]),
        extensions: grown.into(),
        extended_bytes: record["grown"].as_u64().unwrap_or(0),
        extension_seconds: match grown {
            true => record["seconds"].as_f64().unwrap_or(0.0),
            false => 0.0,
        },
        failed_attempts: (!grown).into(),
        decisions: vec![words(record)],
        ending: Some(if grown { "extended" } else { "not extended" }.to_owned()),
        ..Told::default()
    }
}

/// A record in words, without its machine and disk.
#[must_use]
pub fn words(record: &Value) -> String {
    let text = |name: &str| record[name].as_str().unwrap_or_default();
    let number = |name: &str| record[name].as_u64().unwrap_or(0);
    let seconds = |name: &str| record[name].as_f64().unwrap_or(0.0);
    match text("event") {
        "watcher-started" => "the watcher has started".to_owned(),
        "watcher-stopped" => "the watcher has stopped".to_owned(),
        "machine-connected" => format!("connected, it is '{}'", text("state")),
        "machine-lost" => format!("not reached: {}", text("why")),
        "reported" => {
            let what = match text("action") {
                "ignore" => "success of a request that has failed",
                _ => "an error",
            };
            format!(
                "the guest was told of {what}: {} ({} times)",
                text("reason"),
                number("count")
            )
        }
        "incident-began" => format!("stopped: {} ({})", text("cause"), text("reason")),
        "decision" => format!("{}: {}", text("decision"), text("reason")),
        "extension" => {
            let detail = match text("detail") {
                "" => String::new(),
                detail => format!(": {detail}"),
            };
            let early = match record["early"] == true {
                true => format!("early, for {} bytes of head-room: ", number("head_room")),
                false => String::new(),
            };
            let said = match text("result") {
                "grown" => format!(
                    "extended by {} bytes ({} were asked for) in {:.3} s{detail}",
                    number("grown"),
                    number("by"),
                    seconds("seconds")
                ),
                "failed" => format!("could not be extended by {} bytes{detail}", number("by")),
                _ => format!("is not extended{detail}"),
            };
            early + &said
        }
        "incident-ended" => {
            let how = match text("ending") {
                "continued" => "continued",
                "continued-by-other" => "continued by somebody else",
                "found-running" => "it runs",
                "not-stopped" => "it has not stopped",
                "stale" => "another disk was the reason",
                "lost-sight" => "lost out of sight",
                "disk-gone" => "the disk has gone",
                other => other,
            };
            format!("{how} after {:.3} s", seconds("seconds_paused"))
        }
        "gave-up" => format!(
            "given up after {} attempts: {}",
            number("attempts"),
            text("reason")
        ),
        other => format!("{other}?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::record::{Cause, Ending, Extended, Record, What};
    use serde_json::json;

    fn line(run: i64, incident: Option<u64>, what: What) -> Value {
        let record = Record {
            machine: "db".to_owned(),
            disk: incident.map(|_| "vda".to_owned()),
            incident,
            what,
            alert: true,
        };
        let mut value = serde_json::to_value(&record).unwrap();
        value["run"] = run.into();
        value
    }

    fn began(cause: Cause) -> What {
        What::IncidentBegan {
            cause,
            operation: "write".to_owned(),
            reason: "No space left on device".to_owned(),
        }
    }

    #[test]
    fn incidents_are_put_together_by_run_and_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = journal::Journal::open(&journal::Options::new(path.clone())).unwrap();
        let grown = What::Extension {
            result: Extended::Grown,
            by: 100,
            grown: 120,
            before: None,
            early: false,
            head_room: 0,
            seconds: 0.25,
            seconds_to_start: 0.0,
            seconds_running: 0.0,
            detail: String::new(),
        };
        let ended = What::IncidentEnded {
            ending: Ending::Continued,
            seconds_paused: 1.5,
            extensions: 1,
        };
        let early = What::Extension {
            result: Extended::Grown,
            by: 7,
            grown: 8,
            before: None,
            early: true,
            head_room: 5,
            seconds: 0.5,
            seconds_to_start: 0.1,
            seconds_running: 0.3,
            detail: String::new(),
        };
        for value in [
            line(1, None, What::WatcherStarted),
            line(1, Some(1), began(Cause::Nospace)),
            line(2, Some(1), began(Cause::Failed)),
            line(1, Some(1), grown),
            line(
                1,
                Some(1),
                What::Decision {
                    decision: "wait",
                    reason: "so".to_owned(),
                },
            ),
            line(1, Some(1), ended),
            line(1, None, early),
            json!("of the future"),
        ] {
            journal.append(&value);
        }
        drop(journal);
        let history = History::read(&path).unwrap();
        assert_eq!(history.missing, None);
        let [first, second, early] = history.incidents.as_slice() else {
            panic!("{history:?}");
        };
        assert_eq!(
            (
                first.machine.as_str(),
                first.disk.as_str(),
                first.cause.as_str()
            ),
            ("db", "vda", "nospace")
        );
        assert_eq!((first.extensions, first.extended_bytes), (1, 120));
        assert_eq!(
            (first.ending.as_deref(), first.seconds_paused),
            (Some("continued"), Some(1.5))
        );
        assert_eq!(first.decisions, ["wait: so"]);
        assert_eq!((second.cause.as_str(), &second.ending), ("failed", &None));
        assert_eq!(
            (early.cause.as_str(), early.reason.as_str()),
            ("early", "less than 5 bytes were free")
        );
        assert_eq!((early.extensions, early.extended_bytes), (1, 8));
        assert!(History::read(&dir.path().join("none")).is_err());
    }

    #[test]
    fn every_record_has_words() {
        let measured = |result, early| What::Extension {
            result,
            by: 1,
            grown: 0,
            before: None,
            early,
            head_room: 0,
            seconds: 0.0,
            seconds_to_start: 0.0,
            seconds_running: 0.0,
            detail: "why".to_owned(),
        };
        let ended = |ending| What::IncidentEnded {
            ending,
            seconds_paused: 1.0,
            extensions: 0,
        };
        let why = || "why".to_owned();
        for what in [
            What::WatcherStarted,
            What::WatcherStopped,
            What::MachineConnected { state: why() },
            What::MachineLost { why: why() },
            What::Reported {
                action: "report",
                nospace: true,
                reason: why(),
                count: 3,
            },
            began(Cause::Unknown),
            What::Decision {
                decision: "leave",
                reason: why(),
            },
            measured(Extended::Grown, false),
            measured(Extended::Grown, true),
            measured(Extended::Failed, false),
            measured(Extended::Failed, true),
            measured(Extended::Refused, false),
            measured(Extended::Refused, true),
            ended(Ending::Continued),
            ended(Ending::ContinuedByOther),
            ended(Ending::FoundRunning),
            ended(Ending::NotStopped),
            ended(Ending::Stale),
            ended(Ending::LostSight),
            ended(Ending::DiskGone),
            What::GaveUp {
                attempts: 3,
                reason: why(),
            },
        ] {
            let value = line(1, Some(1), what);
            let text = words(&value);
            assert!(
                !text.ends_with('?') && !text.contains("-by-") && !text.contains("  "),
                "{value} {text}"
            );
            if value.to_string().contains("why") {
                assert!(text.contains("why"), "{value} {text}");
            }
        }
    }
}
