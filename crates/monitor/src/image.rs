//! The image of a node, and of those that it filters.

use std::sync::Arc;

use block::{FormatInfo, Node, NodeInfo, Qcow2Snapshot};
use qapi::backing_name;
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

/// Of the image that a node shows, itself or as a filter.
fn cluster_size(node: &Node) -> Option<i64> {
    match node.driver().info().format {
        Some(format) => Some(signed(format.cluster_size)),
        None => cluster_size(&*node.filtered()?),
    }
}

/// The image of `node`; unless `flat`, with those of its backing nodes and of those that it filters.
pub(crate) fn of(node: &Arc<Node>, sizes: &Sizes, flat: bool) -> ImageInfo {
    let chain: Vec<_> = match flat {
        true => vec![Arc::clone(node)],
        false => node.chain().collect(),
    };
    let (top, below) = chain.split_first().map_or((node, &[][..]), |split| split);
    let below = below.iter().rev();
    let below = below.fold(None, |below, node| Some(one(node, sizes, below)));
    one(top, sizes, below)
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
        cluster_size: cluster_size(node),
        backing_filename: format.and_then(|format| format.backing_name.clone()),
        full_backing_filename: format.and_then(|format| full_backing_name(node, format)),
        backing_filename_format: format.and_then(|format| format.backing_format.clone()),
        backing_image: backing_image.map(Box::new),
        snapshots: format.and_then(snapshots),
        format_specific,
    }
}

/// Where the name of the backing file leads that an image has.
fn full_backing_name(node: &Arc<Node>, format: &FormatInfo) -> Option<String> {
    let name = format.backing_name.as_deref()?;
    backing_name::full(&node.storage().driver().info().filename, name)
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
        data_file: known.data_file.clone(),
        data_file_raw: known.data_file_raw,
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
