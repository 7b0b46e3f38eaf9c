//! What is told of incidents: to the journal, the log, the metrics and the alert hook.

use serde::Serialize;

use super::room::Measure;

/// What an incident is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// There was no space, as an error of this incident has said.
    Nospace,
    /// Something else.
    Failed,
    /// It stopped while nobody listened, and what its disk remembers may be of an earlier error.
    Unknown,
}

/// How an incident has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The watcher has continued the machine.
    Continued,
    /// Somebody else has.
    ContinuedByOther,
    /// It ran when it was looked at again.
    FoundRunning,
    /// The machine never stopped.
    NotStopped,
    /// What the disk remembered was not why the machine had stopped.
    Stale,
    /// The connection has ended; what is found at the next one is another incident.
    LostSight,
    /// The disk has gone.
    DiskGone,
}

/// How an extension has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extended {
    /// The storage has grown.
    Grown,
    /// It was tried, and the storage has not grown by what was asked for.
    Failed,
    /// A guard was in the way.
    Refused,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// The watcher began.
    WatcherStarted,
    /// The watcher ends.
    WatcherStopped,
    /// A machine is seen.
    MachineConnected {
        /// Its run state.
        state: String,
    },
    /// It is not seen any more, or cannot be.
    MachineLost {
        /// Why.
        why: String,
    },
    /// A request failed, and the guest was told, or told of success.
    Reported {
        /// `report` or `ignore`.
        action: &'static str,
        /// Whether for want of space.
        nospace: bool,
        /// The error, for people.
        reason: String,
        /// How many since the last record of this kind.
        count: u64,
    },
    /// A machine is stopped by an error, or about to be.
    IncidentBegan {
        /// What it is about.
        cause: Cause,
        /// `read` or `write`; empty: not known.
        operation: String,
        /// The error, for people.
        reason: String,
    },
    /// What is done, or not, and why.
    Decision {
        /// What.
        decision: &'static str,
        /// Why.
        reason: String,
    },
    /// An attempt to make room has ended.
    Extension {
        /// How.
        result: Extended,
        /// What was asked for, in bytes.
        by: u64,
        /// What has come, in bytes.
        grown: u64,
        /// What was there.
        #[serde(skip_serializing_if = "Option::is_none")]
        before: Option<Measure>,
        /// Whether it was done before it was full.
        early: bool,
        /// How much was to be free, in bytes; 0: that is not known.
        head_room: u64,
        /// How long it took, in seconds: from the event or the decision to the verification.
        seconds: f64,
        /// How long of that until it began.
        seconds_to_start: f64,
        /// How long of that it went on itself.
        seconds_running: f64,
        /// More, for people.
        #[serde(skip_serializing_if = "String::is_empty")]
        detail: String,
    },
    /// An incident has ended.
    IncidentEnded {
        /// How.
        ending: Ending,
        /// How long the machine, or its disk, did not go on, in seconds.
        seconds_paused: f64,
        /// Extensions that have succeeded meanwhile.
        extensions: u32,
    },
    /// Nothing more is tried.
    GaveUp {
        /// After so many attempts.
        attempts: u32,
        /// What was wrong last.
        reason: String,
    },
}

/// One thing that is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// The machine; empty: the watcher itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub machine: String,
    /// The disk, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// The number of the incident, if it is part of one; with the watcher's start, unique.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incident: Option<u64>,
    /// What.
    #[serde(flatten)]
    pub what: What,
    /// Whether somebody has to be woken.
    #[serde(skip)]
    pub alert: bool,
}
