//! Result of `query-blockstats`.

use crate::Value;
use serde::{Deserialize, Serialize};

/// Element of the result of `query-blockstats`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockStats {
    /// The id of the export.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The id of the export.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qdev: Option<String>,
    /// The node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The counters.
    pub stats: BlockDeviceStats,
    /// What the driver counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_specific: Option<BlockStatsSpecificFile>,
    /// The node below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Box<BlockStats>>,
    /// The backing file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<Box<BlockStats>>,
}

/// What `file` and `host_device` count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockStatsSpecificFile {
    /// The driver.
    pub driver: String,
    /// Discards that succeeded.
    pub discard_nb_ok: u64,
    /// Discards that failed.
    pub discard_nb_failed: u64,
    /// Bytes discarded.
    pub discard_bytes_ok: u64,
}

/// Counters. Each request is counted once, by how it ended: done, failed (by the storage) or
/// invalid (by the client).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockDeviceStats {
    /// Bytes read.
    pub rd_bytes: u64,
    /// Bytes written.
    pub wr_bytes: u64,
    /// Bytes discarded.
    pub unmap_bytes: u64,
    /// Reads done.
    pub rd_operations: u64,
    /// Writes and write-zeroes done.
    pub wr_operations: u64,
    /// Flushes done.
    pub flush_operations: u64,
    /// Discards done.
    pub unmap_operations: u64,
    /// Time in reads, in nanoseconds.
    pub rd_total_time_ns: u64,
    /// Time in writes, in nanoseconds.
    pub wr_total_time_ns: u64,
    /// Time in flushes, in nanoseconds.
    pub flush_total_time_ns: u64,
    /// Time in discards, in nanoseconds.
    pub unmap_total_time_ns: u64,
    /// The offset in bytes behind the furthest successful write to the node.
    pub wr_highest_offset: u64,
    /// Reads merged with others; none are.
    pub rd_merged: u64,
    /// Writes merged with others; none are.
    pub wr_merged: u64,
    /// Discards merged with others; none are.
    pub unmap_merged: u64,
    /// Time since the last request in nanoseconds; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_time_ns: Option<u64>,
    /// Reads failed.
    pub failed_rd_operations: u64,
    /// Writes failed.
    pub failed_wr_operations: u64,
    /// Flushes failed.
    pub failed_flush_operations: u64,
    /// Discards failed.
    pub failed_unmap_operations: u64,
    /// Reads refused.
    pub invalid_rd_operations: u64,
    /// Writes refused.
    pub invalid_wr_operations: u64,
    /// Flushes refused.
    pub invalid_flush_operations: u64,
    /// Discards refused.
    pub invalid_unmap_operations: u64,
    /// Whether refused requests end the idle time.
    pub account_invalid: bool,
    /// Whether failed requests count in times.
    pub account_failed: bool,
    /// Statistics over intervals; none are kept.
    pub timed_stats: Vec<Value>,
    /// Attempts to execute a request, retries included.
    #[serde(rename = "x-attempts", skip_serializing_if = "Option::is_none")]
    pub x_attempts: Option<u64>,
    /// How often a request was held.
    #[serde(rename = "x-holds", skip_serializing_if = "Option::is_none")]
    pub x_holds: Option<u64>,
    /// How long requests were held, in nanoseconds; counted when they go on.
    #[serde(rename = "x-hold-time-ns", skip_serializing_if = "Option::is_none")]
    pub x_hold_time_ns: Option<u64>,
    /// Failures under `report` and `ignore` of which no event tells, because others came within the
    /// same second.
    #[serde(rename = "x-events-merged", skip_serializing_if = "Option::is_none")]
    pub x_events_merged: Option<u64>,
    /// Requests that were never completed, because their device was reset, removed or given up.
    #[serde(rename = "x-dropped", skip_serializing_if = "Option::is_none")]
    pub x_dropped: Option<u64>,
    /// Requests that were lost in the daemon itself, and went to the policy as EIO.
    #[serde(rename = "x-lost", skip_serializing_if = "Option::is_none")]
    pub x_lost: Option<u64>,
}
