//! What the demo measures, as `--json` prints it.

use serde::Serialize;

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether all was as it has to be.
    pub ok: bool,
    /// Version of this program.
    pub version: &'static str,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// Bytes that could be allocated at first.
    pub limit_bytes: u64,
    /// Length of each request in bytes.
    pub request_bytes: u64,
    /// Requests outstanding at once.
    pub queue_depth: u64,
    /// With `werror=stop`.
    pub stop: Figures,
    /// With `werror=report`, the control.
    pub report: Figures,
    /// Everything together, in seconds.
    pub seconds: f64,
}

/// One run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Whether all was as it has to be under this policy.
    pub ok: bool,
    /// What was not.
    pub problems: Vec<String>,
    /// Writes that the VM sent.
    pub writes: u64,
    /// Writes that were completed with success.
    pub writes_done: u64,
    /// I/O errors that the VM saw.
    pub guest_errors: u64,
    /// Requests that were held when space had run out.
    pub held: u64,
    /// Requests completed while the VM waited for space.
    pub completed_while_held: u64,
    /// How long the VM waited for space, in milliseconds.
    pub waited_ms: u64,
    /// `query-status` when space had run out.
    pub status_without_space: String,
    /// `io-status` when space had run out; none: the export has no I/O status.
    pub io_status_without_space: Option<String>,
    /// `query-status` at the end.
    pub status_at_end: String,
    /// `io-status` at the end.
    pub io_status_at_end: Option<String>,
    /// Names of events, each as often as it came.
    pub events: Vec<EventCount>,
    /// Blocks read back that are, byte for byte, what was written.
    pub blocks_verified: u64,
    /// Bytes that were written and are not there.
    pub bytes_lost: u64,
}

/// How often an event came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventCount {
    /// Its name.
    pub event: String,
    /// How often.
    pub count: u64,
}

impl Figures {
    /// Counts an event.
    pub fn count(&mut self, event: &str) {
        match self.events.iter_mut().find(|known| known.event == event) {
            Some(known) => known.count += 1,
            None => self.events.push(EventCount {
                event: event.to_owned(),
                count: 1,
            }),
        }
    }

    /// How often an event came.
    pub fn counted(&self, event: &str) -> u64 {
        let known = self.events.iter().find(|known| known.event == event);
        known.map_or(0, |known| known.count)
    }

    /// Notes `problem` unless `is` holds.
    pub fn expect(&mut self, is: bool, problem: impl FnOnce() -> String) {
        if !is {
            self.problems.push(problem());
        }
    }
}
