//! The image of a node, and of those that it filters.

use std::sync::Arc;

use block::{FormatInfo, Node, NodeInfo, Qcow2Snapshot};
use qapi::types::{
    ImageInfo, ImageInfoSpecific, ImageInfoSpecificFile, ImageInfoSpecificQcow2, Qcow2BitmapInfo,
    Qcow2BitmapInfoFlags, SnapshotInfo,
};

use crate::storage::Sizes;

/// What lengths that guests see are multiples of, in bytes.
const SECTOR: u64 = 512;

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The node that this one filters.
pub(crate) fn filtered(node: &Node) -> Option<Arc<Node>> {
    let child = node.driver().children().first().map(|child| child.node());
    child.filter(|_| node.driver().info().filter)
}

/// The node, and those that it filters, from the top.
pub(crate) fn chain(node: &Arc<Node>) -> Vec<Arc<Node>> {
    std::iter::successors(Some(Arc::clone(node)), |node| filtered(node)).collect()
}

/// Whether it is known of an image that it was closed in order: a format says so, a file is, and what lies on one.
fn dirty_flag(node: &Node) -> Option<bool> {
    if let Some(format) = node.driver().info().format {
        return Some(format.dirty);
    }
    match node.driver().children().first() {
        Some(child) => dirty_flag(&child.node()),
        None => node.driver().info().host_file.then_some(false),
    }
}

/// The image of `node`; unless `flat`, with those of the nodes that it filters.
pub(crate) fn of(node: &Arc<Node>, sizes: &Sizes, flat: bool) -> ImageInfo {
    let below = match flat {
        true => None,
        false => filtered(node),
    };
    one(node, sizes, below.map(|below| of(&below, sizes, false)))
}

fn one(node: &Arc<Node>, sizes: &Sizes, backing_image: Option<ImageInfo>) -> ImageInfo {
    let info = node.driver().info();
    let format = info.format.as_deref();
    let format_specific = specific(&info);
    ImageInfo {
        filename: info.filename.clone(),
        format: node.driver().name().to_owned(),
        virtual_size: signed(
            node.driver()
                .length()
                .div_ceil(SECTOR)
                .saturating_mul(SECTOR),
        ),
        actual_size: sizes.of(node).map(signed),
        dirty_flag: dirty_flag(node),
        encrypted: format.filter(|format| format.encrypted).map(|_| true),
        cluster_size: format.map(|format| signed(format.cluster_size)),
        backing_filename: None,
        backing_image: backing_image.map(Box::new),
        snapshots: format.and_then(snapshots),
        format_specific,
    }
}

/// What only images of its format have.
fn specific(info: &NodeInfo) -> Option<ImageInfoSpecific> {
    if let Some(format) = info.format.as_deref() {
        return Some(ImageInfoSpecific::Qcow2(qcow2(format)));
    }
    let file = ImageInfoSpecificFile {
        extent_size_hint: info.extent_size_hint,
    };
    info.host_file.then_some(ImageInfoSpecific::File(file))
}

fn qcow2(format: &FormatInfo) -> ImageInfoSpecificQcow2 {
    let known = &format.qcow2;
    let bitmaps = known.bitmaps.iter().map(|bitmap| {
        let in_use = bitmap.in_use.then_some(Qcow2BitmapInfoFlags::InUse);
        let auto = bitmap.auto.then_some(Qcow2BitmapInfoFlags::Auto);
        Qcow2BitmapInfo {
            name: bitmap.name.clone(),
            granularity: u32::try_from(bitmap.granularity).unwrap_or(u32::MAX),
            flags: in_use.into_iter().chain(auto).collect(),
        }
    });
    ImageInfoSpecificQcow2 {
        compat: known.compat.to_owned(),
        extended_l2: known.extended_l2,
        lazy_refcounts: known.lazy_refcounts,
        corrupt: known.corrupt,
        refcount_bits: known.refcount_bits.into(),
        bitmaps: (!known.bitmaps.is_empty()).then(|| bitmaps.collect()),
        compression_type: known.compression_type.to_owned(),
    }
}

/// The internal snapshots, if there are any.
fn snapshots(format: &FormatInfo) -> Option<Vec<SnapshotInfo>> {
    const NANOSECONDS: u64 = 1_000_000_000;
    let known = &format.qcow2.snapshots;
    let shown = |snapshot: &Qcow2Snapshot| SnapshotInfo {
        id: snapshot.id.clone(),
        name: snapshot.name.clone(),
        vm_state_size: signed(snapshot.vm_state_size),
        date_sec: snapshot.date_sec.into(),
        date_nsec: snapshot.date_nsec.into(),
        vm_clock_sec: signed(snapshot.vm_clock_nsec / NANOSECONDS),
        vm_clock_nsec: signed(snapshot.vm_clock_nsec % NANOSECONDS),
        icount: snapshot.icount.map(signed),
    };
    (!known.is_empty()).then(|| known.iter().map(shown).collect())
}

/// How many images there are below this one.
pub(crate) fn depth(image: &ImageInfo) -> i64 {
    let below = image.backing_image.as_deref();
    below.map_or(0, |below| 1 + depth(below))
}
