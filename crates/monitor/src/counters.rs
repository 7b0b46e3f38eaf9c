//! `query-blockstats`: from the block layer's counters to those of the wire.

use std::collections::HashMap;
use std::sync::Arc;

use block::{
    Accounted, BackendStats, DATA_FILE, Export, Histogram, IntervalStats, Latencies, Node,
};
use qapi::types::{
    BlockDeviceStats, BlockDeviceTimedStats, BlockLatencyHistogramInfo, BlockStats,
    BlockStatsSpecificFile,
};

/// Where the furthest successful write to each node ends, those included that came through nodes above.
#[derive(Debug)]
pub(crate) struct Furthest(HashMap<*const Node, u64>);

impl Furthest {
    /// Of `nodes`, which are all there are.
    pub(crate) fn of(nodes: &[Arc<Node>]) -> Self {
        let own = nodes
            .iter()
            .map(|node| (Arc::as_ptr(node), node.wr_highest_offset()));
        let mut furthest = Self(own.collect());
        for node in nodes {
            furthest.tell_below(node);
        }
        furthest
    }

    fn get(&self, node: &Arc<Node>) -> u64 {
        let known = self.0.get(&Arc::as_ptr(node)).copied();
        known.unwrap_or_else(|| node.wr_highest_offset())
    }

    /// What has gone through `node` was written below it, too.
    fn tell_below(&mut self, node: &Arc<Node>) {
        let end = self.get(node);
        let Some(offset) = node.driver().info().child_offset.filter(|_| end > 0) else {
            return;
        };
        for child in node.driver().children() {
            let child = child.node();
            let end = end.saturating_add(offset);
            if self.get(&child) < end {
                self.0.insert(Arc::as_ptr(&child), end);
                self.tell_below(&child);
            }
        }
    }
}

fn driver_specific(node: &Node) -> Option<BlockStatsSpecificFile> {
    let discards = node.discard_stats()?;
    Some(BlockStatsSpecificFile {
        driver: node.driver().name().to_owned(),
        discard_nb_ok: discards.nb_ok,
        discard_nb_failed: discards.nb_failed,
        discard_bytes_ok: discards.bytes_ok,
    })
}

/// A node, as `query-blockstats` shows it: requests are counted by backends, not by nodes.
pub(crate) fn of_node(node: &Arc<Node>, furthest: &Furthest) -> BlockStats {
    below(node, furthest, false)
}

/// `of_export`: with its backing node; one that is filtered is shown as such, too, as in QEMU.
fn below(node: &Arc<Node>, furthest: &Furthest, of_export: bool) -> BlockStats {
    let children = node.driver().children();
    let boxed = |node| Box::new(below(&node, furthest, of_export));
    let backing = match of_export {
        true => node.backing().or_else(|| node.filtered()),
        false => None,
    };
    BlockStats {
        device: None,
        qdev: None,
        node_name: Some(node.name().to_string()),
        stats: BlockDeviceStats {
            wr_highest_offset: furthest.get(node),
            ..BlockDeviceStats::default()
        },
        driver_specific: driver_specific(node),
        // Where the data are.
        parent: (node.child(DATA_FILE))
            .or_else(|| children.first().map(|child| child.node()))
            .map(boxed),
        backing: backing.map(boxed),
    }
}

/// The backend of an export, as `query-blockstats` shows it.
pub(crate) fn of_export(export: &dyn Export, furthest: &Furthest) -> BlockStats {
    let backend = export.backend();
    let node = backend.node();
    BlockStats {
        device: Some(export.id().to_owned()),
        qdev: Some(export.id().to_owned()),
        stats: counters(&backend.stats(), backend.accounted(), furthest.get(&node)),
        ..below(&node, furthest, true)
    }
}

fn counters(stats: &BackendStats, accounted: Accounted, furthest: u64) -> BlockDeviceStats {
    let [rd, wr, zone_append, flush] = accounted.histograms;
    BlockDeviceStats {
        rd_bytes: stats.rd.bytes,
        wr_bytes: stats.wr.bytes,
        unmap_bytes: stats.unmap.bytes,
        rd_operations: stats.rd.operations,
        wr_operations: stats.wr.operations,
        flush_operations: stats.flush.operations,
        unmap_operations: stats.unmap.operations,
        rd_total_time_ns: stats.rd.total_time_ns,
        wr_total_time_ns: stats.wr.total_time_ns,
        flush_total_time_ns: stats.flush.total_time_ns,
        unmap_total_time_ns: stats.unmap.total_time_ns,
        wr_highest_offset: furthest,
        idle_time_ns: stats
            .idle
            .map(|idle| u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX)),
        failed_rd_operations: stats.rd.failed,
        failed_wr_operations: stats.wr.failed,
        failed_flush_operations: stats.flush.failed,
        failed_unmap_operations: stats.unmap.failed,
        invalid_rd_operations: stats.rd.invalid,
        invalid_wr_operations: stats.wr.invalid,
        invalid_flush_operations: stats.flush.invalid,
        invalid_unmap_operations: stats.unmap.invalid,
        account_invalid: accounted.options.invalid,
        account_failed: accounted.options.failed,
        timed_stats: accounted.intervals.iter().map(timed).collect(),
        rd_latency_histogram: rd.map(histogram),
        wr_latency_histogram: wr.map(histogram),
        zone_append_latency_histogram: zone_append.map(histogram),
        flush_latency_histogram: flush.map(histogram),
        x_attempts: Some(stats.attempts),
        x_holds: Some(stats.holds),
        x_hold_time_ns: Some(stats.hold_time_ns),
        x_events_merged: Some(stats.events_merged),
        x_dropped: Some(stats.dropped),
        x_lost: Some(stats.lost),
        // Nothing is merged, and nothing appended to zones.
        ..BlockDeviceStats::default()
    }
}

fn timed(interval: &IntervalStats) -> BlockDeviceTimedStats {
    let IntervalStats {
        seconds,
        rd,
        wr,
        flush,
    } = interval;
    let latencies = |of: &Latencies| (of.min_ns, of.max_ns, of.average_ns);
    let (min_rd_latency_ns, max_rd_latency_ns, avg_rd_latency_ns) = latencies(rd);
    let (min_wr_latency_ns, max_wr_latency_ns, avg_wr_latency_ns) = latencies(wr);
    let (min_flush_latency_ns, max_flush_latency_ns, avg_flush_latency_ns) = latencies(flush);
    BlockDeviceTimedStats {
        interval_length: u64::from(*seconds),
        min_rd_latency_ns,
        max_rd_latency_ns,
        avg_rd_latency_ns,
        min_wr_latency_ns,
        max_wr_latency_ns,
        avg_wr_latency_ns,
        min_flush_latency_ns,
        max_flush_latency_ns,
        avg_flush_latency_ns,
        avg_rd_queue_depth: rd.queue_depth,
        avg_wr_queue_depth: wr.queue_depth,
        ..BlockDeviceTimedStats::default()
    }
}

fn histogram(histogram: Histogram) -> BlockLatencyHistogramInfo {
    BlockLatencyHistogramInfo {
        boundaries: histogram.boundaries().to_vec(),
        bins: histogram.bins().to_vec(),
    }
}
