//! What the node says of itself.

use block::{CacheUse, FormatInfo, NodeInfo, Qcow2Bitmap, Qcow2Info};
use drivers::pseudo_filename;

use super::base::Base;
use super::state::State;
use crate::format::bitmap;

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
            bitmaps: state.bitmaps.iter().map(bitmap_of).collect(),
        },
    }
}

fn bitmap_of(entry: &bitmap::BitmapEntry) -> Qcow2Bitmap {
    Qcow2Bitmap {
        name: String::from_utf8_lossy(&entry.name).into_owned(),
        granularity: 1 << (entry.granularity_bits % 64),
        in_use: entry.flags & bitmap::IN_USE != 0,
        auto: entry.flags & bitmap::AUTO != 0,
    }
}
