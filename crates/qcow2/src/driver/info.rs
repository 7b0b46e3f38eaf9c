//! What the node says of itself.

use block::{CacheUse, Child, FormatInfo, NodeInfo, Qcow2Info, Qcow2Snapshot};
use drivers::pseudo_filename;

use super::base::Base;
use super::state::State;
use crate::format::{SnapshotEntry, extension};

/// QEMU's name of the driver.
pub const NAME: &str = "qcow2";

pub fn of(base: &Base, state: &State) -> NodeInfo {
    let file = base.file.info();
    // Asked for once: what is behind asks what is behind it.
    let backing = base.backing.as_ref();
    let backing = backing.map(|backing| (backing, backing.info().filename));
    let backing = backing
        .as_ref()
        .map(|(backing, filename)| (*backing, filename.as_str()));
    NodeInfo {
        filename: match (overriding(base, state, backing), file.filename) {
            (None, name) if pseudo_filename::names_its_parent(&base.file) => name,
            (backing, _) => {
                let data_file = base.data_file.as_ref();
                pseudo_filename::of_image(NAME, &base.file, data_file, backing)
            }
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

/// The backing node, or that there is none, if the image says something else.
fn overriding<'a>(
    base: &Base,
    state: &State,
    backing: Option<(&'a Child, &'a str)>,
) -> Option<Option<(&'a Child, &'a str)>> {
    let name = state.header.backing_name.as_deref();
    match backing {
        None => name.map(|_| None),
        Some(_) if base.named_backing.is_some() => None,
        Some((_, filename)) => {
            let is_named = name == Some(filename.as_bytes());
            (!is_named).then_some(backing)
        }
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
        backing_name: (header.backing_name.as_deref()).map(lossy),
        backing_format: header.extension(extension::BACKING_FORMAT).map(lossy),
        dirty: features.is_dirty(),
        encrypted: false,
        l2_cache: CacheUse {
            size: state.cache.size() as u64,
            used: state.cache.used() as u64,
            misses: state.cache.misses(),
        },
        refcount_cache: state.writer.tables().refcounts.cache_use(),
        qcow2: Qcow2Info {
            compat: if new { "1.1" } else { "0.10" },
            lazy_refcounts: new.then(|| features.has_lazy_refcounts()),
            corrupt: new.then(|| is_corrupt(base, state)),
            extended_l2: new.then(|| features.has_extended_l2()),
            refcount_bits: header.geometry.refcount_bits(),
            compression_type: state.compression.name(),
            data_file: header.extension(extension::DATA_FILE).map(lossy),
            data_file_raw: features.has_external_data().then_some(state.raw_data),
            snapshots: state.snapshots.entries.iter().map(snapshot_of).collect(),
            bitmaps: state.bitmaps.shown(),
        },
    }
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

fn snapshot_of(entry: &SnapshotEntry) -> Qcow2Snapshot {
    Qcow2Snapshot {
        id: lossy(&entry.id),
        name: lossy(&entry.name),
        vm_state_size: entry.vm_state_size(),
        date_sec: entry.date_sec,
        date_nsec: entry.date_nsec,
        vm_clock_nsec: entry.vm_clock_nsec,
        icount: entry.icount(),
    }
}
