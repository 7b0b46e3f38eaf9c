//! What the node says of itself.

use block::{CacheUse, FormatInfo, NodeInfo, Qcow2Info, Qcow2Snapshot};
use drivers::pseudo_filename;

use super::base::Base;
use super::state::State;
use crate::format::SnapshotEntry;

/// QEMU's name of the driver.
pub const NAME: &str = "qcow2";

pub fn of(base: &Base, state: &State) -> NodeInfo {
    let file = base.file.info();
    NodeInfo {
        filename: match pseudo_filename::names_its_parent(&base.file) {
            true => file.filename,
            false => pseudo_filename::of(NAME, &[], Some(&base.file)),
        },
        child_offset: None,
        warning: is_corrupt(base, state).then(|| {
            format!(
                "node '{}': the image is marked as corrupt, what is read may be wrong: \
                 qemu-img check -r all repairs what can be",
                base.name
            )
        }),
        format: Some(format(base, state).into()),
        ..base.info.clone()
    }
}

/// It was when it was opened, or has turned out to be.
fn is_corrupt(base: &Base, state: &State) -> bool {
    state.header.features.is_corrupt() || base.corruption.is_fatal()
}

fn format(base: &Base, state: &State) -> FormatInfo {
    let header = &state.header;
    let features = &header.features;
    let new = header.version >= 3;
    FormatInfo {
        cluster_size: header.geometry.cluster_size(),
        dirty: features.is_dirty(),
        encrypted: false,
        l2_cache: CacheUse {
            size: state.cache.size() as u64,
            used: state.cache.used() as u64,
            misses: state.cache.misses(),
        },
        qcow2: Qcow2Info {
            compat: if new { "1.1" } else { "0.10" },
            lazy_refcounts: new.then(|| features.has_lazy_refcounts()),
            corrupt: new.then(|| is_corrupt(base, state)),
            extended_l2: new.then(|| features.has_extended_l2()),
            refcount_bits: header.geometry.refcount_bits(),
            compression_type: state.compression.name(),
            snapshots: state.snapshots.entries.iter().map(snapshot_of).collect(),
            bitmaps: state.bitmaps.shown(),
        },
    }
}

fn snapshot_of(entry: &SnapshotEntry) -> Qcow2Snapshot {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Qcow2Snapshot {
        id: text(&entry.id),
        name: text(&entry.name),
        vm_state_size: entry.vm_state_size(),
        date_sec: entry.date_sec,
        date_nsec: entry.date_nsec,
        vm_clock_nsec: entry.vm_clock_nsec,
        icount: entry.icount(),
    }
}
