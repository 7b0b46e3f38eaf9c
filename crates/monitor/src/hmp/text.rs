//! What HMP prints.

use std::fmt::Write;

use qapi::options::DetectZeroes;
use qapi::types::{
    BlockDeviceInfo, BlockDeviceIoStatus, BlockInfo, BlockJobInfo, BlockStats, ChardevInfo,
    ImageInfo, ImageInfoSpecific, ImageInfoSpecificQcow2, IothreadInfo, Qcow2BitmapInfoFlags,
    RunState, StatusInfo, VersionInfo, VersionTriple,
};

use super::size::human_size;
use super::snapshots;

/// Printing to a string cannot fail.
macro_rules! print {
    ($out:expr, $($args:tt)*) => {{ let _ = write!($out, $($args)*); }};
}

/// `info chardev`.
pub(super) fn chardevs(infos: &[ChardevInfo]) -> String {
    let lines = infos
        .iter()
        .map(|info| format!("{}: filename={}\n", info.label, info.filename));
    lines.collect()
}

/// `info block-jobs`.
pub(super) fn block_jobs(infos: &[BlockJobInfo]) -> String {
    if infos.is_empty() {
        return "No active jobs\n".to_owned();
    }
    let lines = infos.iter().map(|info| {
        format!(
            "Type {}, device {}: Completed {} of {} bytes, speed limit {} bytes/s\n",
            info.r#type.name(),
            info.device,
            info.offset,
            info.len,
            info.speed
        )
    });
    lines.collect()
}

/// `info status`.
pub(super) fn status(info: &StatusInfo) -> String {
    let word = if info.running { "running" } else { "paused" };
    let mut out = match info.status {
        RunState::Running | RunState::Paused => format!("VM status: {word}\n"),
        other => format!("VM status: {word} ({})\n", other.name()),
    };
    if let Some(vmm) = &info.x_vmm {
        print!(
            out,
            "VMM link: {} ({}): {}, VM {}", vmm.id, vmm.r#type, vmm.state, vmm.vm
        );
        if vmm.paused_by != "nobody" {
            print!(out, ", paused by {}", vmm.paused_by);
        }
        if let Some(pending) = &vmm.pending {
            print!(out, ", pending: {pending}");
        }
        out.push('\n');
        if let Some(error) = &vmm.error {
            print!(out, "    {error}\n");
        }
    }
    out
}

/// `info iothreads`.
pub(super) fn iothreads(list: &[IothreadInfo]) -> String {
    let mut out = String::new();
    for one in list {
        print!(
            out,
            "{}:\n  thread_id={}\n  poll-max-ns={}\n  poll-grow={}\n  poll-shrink={}\n  \
             aio-max-batch={}\n",
            one.id,
            one.thread_id,
            one.poll_max_ns,
            one.poll_grow,
            one.poll_shrink,
            one.aio_max_batch
        );
    }
    out
}

/// `info version`.
pub(super) fn version(info: &VersionInfo) -> String {
    let VersionTriple {
        major,
        minor,
        micro,
    } = info.qemu;
    format!("{major}.{minor}.{micro}{}\n", info.package)
}

/// `info block`. Every entry but the first of the list, shown or not, begins with an empty line.
pub(super) fn backends(list: &[BlockInfo], device: Option<&str>, verbose: bool) -> String {
    let mut out = String::new();
    for (n, info) in list.iter().enumerate() {
        if device.is_some_and(|device| device != info.device) {
            continue;
        }
        if n > 0 {
            out.push('\n');
        }
        backend(&mut out, info, verbose);
    }
    out
}

/// `info block -n`.
pub(super) fn nodes(list: &[BlockDeviceInfo], device: Option<&str>, verbose: bool) -> String {
    let mut out = String::new();
    for (n, info) in list.iter().enumerate() {
        let name = info.node_name.as_deref().unwrap_or_default();
        if device.is_some_and(|device| device != name) {
            continue;
        }
        if n > 0 {
            out.push('\n');
        }
        out.push_str(name);
        inserted_head(&mut out, info);
        inserted(&mut out, info, verbose);
    }
    out
}

fn backend(out: &mut String, info: &BlockInfo, verbose: bool) {
    let node = info
        .inserted
        .as_ref()
        .and_then(|inserted| inserted.node_name.as_deref());
    if info.device.is_empty() {
        out.push_str(node.or(info.qdev.as_deref()).unwrap_or("<anonymous>"));
    } else {
        out.push_str(&info.device);
        if let Some(node) = node {
            print!(out, " ({node})");
        }
    }
    match &info.inserted {
        Some(inserted) => inserted_head(out, inserted),
        None => out.push_str(": [not inserted]\n"),
    }
    if let Some(qdev) = &info.qdev {
        print!(out, "    Attached to:      {qdev}\n");
    }
    if let Some(status) = info.io_status.filter(|s| *s != BlockDeviceIoStatus::Ok) {
        print!(out, "    I/O status:       {}\n", status.name());
        // Ours: the status does not say whether the disk is full or gone.
        if let Some(error) = &info.x_first_error {
            print!(out, "    Cause:            {} (", error.cause);
            if let Some(node) = info.failed_below(error) {
                print!(out, "node '{node}': ");
            }
            print!(out, "{})\n", error.reason);
        }
    }
    if info.removable {
        print!(
            out,
            "    Removable device: {}locked, tray {}\n",
            if info.locked { "" } else { "not " },
            if info.tray_open == Some(true) {
                "open"
            } else {
                "closed"
            }
        );
    }
    if let Some(info) = &info.inserted {
        inserted(out, info, verbose);
    }
}

fn inserted_head(out: &mut String, info: &BlockDeviceInfo) {
    print!(
        out,
        ": {} ({}{}{})\n",
        info.file,
        info.drv,
        if info.ro { ", read-only" } else { "" },
        if info.encrypted { ", encrypted" } else { "" }
    );
}

fn inserted(out: &mut String, info: &BlockDeviceInfo, verbose: bool) {
    print!(
        out,
        "    Cache mode:       {}{}{}\n",
        if info.cache.writeback {
            "writeback"
        } else {
            "writethrough"
        },
        if info.cache.direct { ", direct" } else { "" },
        if info.cache.no_flush {
            ", ignore flushes"
        } else {
            ""
        }
    );
    if let Some(file) = &info.backing_file {
        print!(
            out,
            "    Backing file:     {file} (chain depth: {})\n", info.backing_file_depth
        );
    }
    if info.detect_zeroes != DetectZeroes::Off {
        print!(out, "    Detect zeroes:    {}\n", info.detect_zeroes.name());
    }
    if verbose {
        out.push_str("\nImages:\n");
        image(out, &info.image);
    }
}

fn image(out: &mut String, info: &ImageInfo) {
    print!(
        out,
        "image: {}\nfile format: {}\n", info.filename, info.format
    );
    let size = u64::try_from(info.virtual_size).unwrap_or_default();
    print!(out, "virtual size: {} ({size} bytes)\n", human_size(size));
    match info.actual_size.and_then(|size| u64::try_from(size).ok()) {
        Some(size) => print!(out, "disk size: {}\n", human_size(size)),
        None => out.push_str("disk size: unavailable\n"),
    }
    if info.encrypted == Some(true) {
        out.push_str("encrypted: yes\n");
    }
    if let Some(size) = info.cluster_size {
        print!(out, "cluster_size: {size}\n");
    }
    if info.dirty_flag == Some(true) {
        out.push_str("cleanly shut down: no\n");
    }
    if let Some(file) = &info.backing_filename {
        print!(out, "backing file: {file}");
        match &info.full_backing_filename {
            None => out.push_str(" (cannot determine actual path)"),
            Some(full) if full != file => print!(out, " (actual path: {full})"),
            Some(_) => {}
        }
        out.push('\n');
        if let Some(format) = &info.backing_filename_format {
            print!(out, "backing file format: {format}\n");
        }
    }
    if let Some(list) = &info.snapshots {
        out.push_str("Snapshot list:\n");
        snapshots::list(out, list);
    }
    match &info.format_specific {
        Some(ImageInfoSpecific::File(specific)) => {
            if let Some(hint) = specific.extent_size_hint {
                out.push_str(SPECIFIC);
                print!(out, "    extent size hint: {hint}\n");
            }
        }
        Some(ImageInfoSpecific::Qcow2(specific)) => {
            out.push_str(SPECIFIC);
            qcow2(out, specific);
        }
        None => {}
    }
    if let Some(below) = &info.backing_image {
        image(out, below);
    }
}

const SPECIFIC: &str = "Format specific information:\n";

/// In the order in which QEMU prints it.
fn qcow2(out: &mut String, specific: &ImageInfoSpecificQcow2) {
    print!(out, "    compat: {}\n", specific.compat);
    print!(out, "    compression type: {}\n", specific.compression_type);
    if let Some(lazy) = specific.lazy_refcounts {
        print!(out, "    lazy refcounts: {lazy}\n");
    }
    for (number, bitmap) in specific.bitmaps.iter().flatten().enumerate() {
        if number == 0 {
            out.push_str("    bitmaps:\n");
        }
        print!(out, "        [{number}]:\n            flags:\n");
        for (number, flag) in bitmap.flags.iter().enumerate() {
            let flag = match flag {
                Qcow2BitmapInfoFlags::InUse => "in-use",
                Qcow2BitmapInfoFlags::Auto => "auto",
            };
            print!(out, "                [{number}]: {flag}\n");
        }
        print!(out, "            name: {}\n", bitmap.name);
        print!(out, "            granularity: {}\n", bitmap.granularity);
    }
    print!(out, "    refcount bits: {}\n", specific.refcount_bits);
    if let Some(name) = &specific.data_file {
        print!(out, "    data file: {name}\n");
    }
    if let Some(raw) = specific.data_file_raw {
        print!(out, "    data file raw: {raw}\n");
    }
    if let Some(corrupt) = specific.corrupt {
        print!(out, "    corrupt: {corrupt}\n");
    }
    if let Some(extended) = specific.extended_l2 {
        print!(out, "    extended l2: {extended}\n");
    }
}

/// `info blockstats`.
pub(super) fn blockstats(list: &[BlockStats]) -> String {
    let mut out = String::new();
    for entry in list {
        let Some(device) = &entry.device else {
            continue;
        };
        let s = &entry.stats;
        print!(
            out,
            "{device}: rd_bytes={} wr_bytes={} rd_operations={} wr_operations={} \
             flush_operations={} wr_total_time_ns={} rd_total_time_ns={} \
             flush_total_time_ns={} rd_merged={} wr_merged={} idle_time_ns={}\n",
            s.rd_bytes,
            s.wr_bytes,
            s.rd_operations,
            s.wr_operations,
            s.flush_operations,
            s.wr_total_time_ns,
            s.rd_total_time_ns,
            s.flush_total_time_ns,
            s.rd_merged,
            s.wr_merged,
            s.idle_time_ns.unwrap_or(0)
        );
    }
    out
}

#[cfg(test)]
mod tests;
