//! The counters of a backend, as they are shown and saved.

use std::time::Duration;

/// The counters of one class, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStats {
    /// Bytes of successful requests.
    pub bytes: u64,
    /// Successful requests.
    pub operations: u64,
    /// Time from submission to end of successful and failed requests, in nanoseconds, without the
    /// time they were held.
    pub total_time_ns: u64,
    /// Requests that ended with an error.
    pub failed: u64,
    /// Requests refused as malformed or out of range.
    pub invalid: u64,
}

/// The counters of a backend, summed over its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendStats {
    /// Reads.
    pub rd: ClassStats,
    /// Writes and write-zeroes.
    pub wr: ClassStats,
    /// Flushes.
    pub flush: ClassStats,
    /// Discards.
    pub unmap: ClassStats,
    /// Submissions to storage, retries included.
    pub attempts: u64,
    /// Times a request was held.
    pub holds: u64,
    /// Time that requests were held, in nanoseconds; counted when they go on.
    pub hold_time_ns: u64,
    /// Failures under `report` and `ignore` of which no event tells, because others came within the
    /// same second.
    pub events_merged: u64,
    /// Requests that were never completed, because their device was reset, removed or given up.
    pub dropped: u64,
    /// Requests that were lost in the daemon itself, and went to the policy as EIO.
    pub lost: u64,
    /// Time since the last request ended, if there was one.
    pub idle: Option<Duration>,
}
