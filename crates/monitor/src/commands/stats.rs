//! Counters.

use block::{Boundaries, HistogramKind};
use qapi::QmpError;
use qapi::command::{BlockLatencyHistogramSet, QueryBlockstats};
use qapi::types::{BlockStats, Empty};

use crate::context::Context;
use crate::counters::{self, Furthest};

/// Most boundaries of a histogram: each part of an export has bins of its own.
const BOUNDARIES_MAX: usize = 4096;

pub(crate) async fn query_blockstats(
    context: &Context,
    arguments: QueryBlockstats,
) -> Result<Vec<BlockStats>, QmpError> {
    let nodes = context.registry.nodes();
    let furthest = Furthest::of(&nodes);
    if arguments.query_nodes.unwrap_or(false) {
        let nodes = nodes.iter();
        return Ok(nodes
            .map(|node| counters::of_node(node, &furthest))
            .collect());
    }
    let exports = context.registry.exports();
    let exports = exports.iter();
    Ok(exports
        .map(|export| counters::of_export(&**export, &furthest))
        .collect())
}

/// All is checked, then all is set: QEMU has set what comes before a mistake.
pub(crate) async fn latency_histogram_set(
    context: &Context,
    arguments: BlockLatencyHistogramSet,
) -> Result<Empty, QmpError> {
    let BlockLatencyHistogramSet {
        id,
        boundaries,
        boundaries_read,
        boundaries_write,
        boundaries_zap,
        boundaries_flush,
    } = arguments;
    let unknown = |_| QmpError::device_not_found(format!("Device '{id}' not found"));
    let export = context.registry.export(&id).map_err(unknown)?;
    let wanted = [
        (HistogramKind::Read, "read", boundaries_read),
        (HistogramKind::Write, "write", boundaries_write),
        (HistogramKind::ZoneAppend, "append write", boundaries_zap),
        (HistogramKind::Flush, "flush", boundaries_flush),
    ];
    let is_nothing_said = boundaries.is_none() && wanted.iter().all(|(.., own)| own.is_none());
    let mut changes = Vec::new();
    for (kind, name, own) in wanted {
        let given = own.as_ref().or(boundaries.as_ref());
        let set = match given {
            // Nothing is said at all, or an empty list: there is no histogram any more.
            None if !is_nothing_said => continue,
            None => None,
            Some(list) if list.is_empty() => None,
            Some(list) => {
                let fits = list.len() <= BOUNDARIES_MAX;
                let list = fits.then(|| Boundaries::new(list)).flatten();
                Some(list.ok_or_else(|| {
                    QmpError::generic(format!("Device '{id}' set {name} boundaries fail"))
                })?)
            }
        };
        changes.push((kind, set));
    }
    export.backend().set_histograms(&changes);
    Ok(Empty {})
}
