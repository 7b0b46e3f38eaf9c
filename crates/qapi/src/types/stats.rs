//! Result of `query-blockstats`.

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
    /// The backing file, or the node that this one filters; of exports only.
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
    /// Bytes appended to zones; there are none, here and in the following.
    #[serde(default)]
    pub zone_append_bytes: u64,
    /// Bytes discarded.
    pub unmap_bytes: u64,
    /// Reads done.
    pub rd_operations: u64,
    /// Writes and write-zeroes done.
    pub wr_operations: u64,
    /// Appends to zones done.
    #[serde(default)]
    pub zone_append_operations: u64,
    /// Flushes done.
    pub flush_operations: u64,
    /// Discards done.
    pub unmap_operations: u64,
    /// Time in reads, in nanoseconds.
    pub rd_total_time_ns: u64,
    /// Time in writes, in nanoseconds.
    pub wr_total_time_ns: u64,
    /// Time in appends to zones, in nanoseconds.
    #[serde(default)]
    pub zone_append_total_time_ns: u64,
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
    /// Appends to zones merged with others.
    #[serde(default)]
    pub zone_append_merged: u64,
    /// Discards merged with others; none are.
    pub unmap_merged: u64,
    /// Time since the last request in nanoseconds; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_time_ns: Option<u64>,
    /// Reads failed.
    pub failed_rd_operations: u64,
    /// Writes failed.
    pub failed_wr_operations: u64,
    /// Appends to zones failed.
    #[serde(default)]
    pub failed_zone_append_operations: u64,
    /// Flushes failed.
    pub failed_flush_operations: u64,
    /// Discards failed.
    pub failed_unmap_operations: u64,
    /// Reads refused.
    pub invalid_rd_operations: u64,
    /// Writes refused.
    pub invalid_wr_operations: u64,
    /// Appends to zones refused.
    #[serde(default)]
    pub invalid_zone_append_operations: u64,
    /// Flushes refused.
    pub invalid_flush_operations: u64,
    /// Discards refused.
    pub invalid_unmap_operations: u64,
    /// Whether refused requests end the idle time.
    pub account_invalid: bool,
    /// Whether failed requests count in times.
    pub account_failed: bool,
    /// Statistics over the intervals that the export was told (`stats-intervals`).
    pub timed_stats: Vec<BlockDeviceTimedStats>,
    /// How long reads took; the histograms are there as long as somebody wants them
    /// (`block-latency-histogram-set`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rd_latency_histogram: Option<BlockLatencyHistogramInfo>,
    /// How long writes took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wr_latency_histogram: Option<BlockLatencyHistogramInfo>,
    /// How long appends to zones took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone_append_latency_histogram: Option<BlockLatencyHistogramInfo>,
    /// How long flushes took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flush_latency_histogram: Option<BlockLatencyHistogramInfo>,
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

/// Statistics over an interval that ends now, and begins two to four thirds of its length before. The latencies
/// are of requests that ended in it; 0 if none did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockDeviceTimedStats {
    /// The length of the interval in seconds.
    pub interval_length: u64,
    /// The shortest read, in nanoseconds, as all that follow.
    pub min_rd_latency_ns: u64,
    /// The longest read.
    pub max_rd_latency_ns: u64,
    /// The average read.
    pub avg_rd_latency_ns: u64,
    /// The shortest write.
    pub min_wr_latency_ns: u64,
    /// The longest write.
    pub max_wr_latency_ns: u64,
    /// The average write.
    pub avg_wr_latency_ns: u64,
    /// The shortest append to a zone.
    pub min_zone_append_latency_ns: u64,
    /// The longest append to a zone.
    pub max_zone_append_latency_ns: u64,
    /// The average append to a zone.
    pub avg_zone_append_latency_ns: u64,
    /// The shortest flush.
    pub min_flush_latency_ns: u64,
    /// The longest flush.
    pub max_flush_latency_ns: u64,
    /// The average flush.
    pub avg_flush_latency_ns: u64,
    /// How many reads there were at once, on average.
    pub avg_rd_queue_depth: f64,
    /// How many writes there were at once, on average.
    pub avg_wr_queue_depth: f64,
    /// How many appends to zones there were at once, on average.
    pub avg_zone_append_queue_depth: f64,
}

/// How many requests took how long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockLatencyHistogramInfo {
    /// Where a bin ends and the next one begins, in nanoseconds.
    pub boundaries: Vec<u64>,
    /// How many requests there are in each bin: one more than boundaries.
    pub bins: Vec<u64>,
}
