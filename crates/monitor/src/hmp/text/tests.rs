use super::*;
use qapi::types::{BlockDeviceStats, BlockdevCacheInfo, VmmInfo};

fn image(name: &str) -> ImageInfo {
    ImageInfo {
        filename: name.to_owned(),
        format: "file".to_owned(),
        virtual_size: 1 << 20,
        actual_size: Some(4096),
        dirty_flag: None,
        encrypted: None,
        cluster_size: None,
        backing_filename: None,
        full_backing_filename: None,
        backing_filename_format: None,
        backing_image: None,
        snapshots: None,
        format_specific: None,
    }
}

fn node(name: &str) -> BlockDeviceInfo {
    BlockDeviceInfo {
        file: format!("/{name}.img"),
        node_name: Some(name.to_owned()),
        ro: false,
        drv: "file".to_owned(),
        backing_file: None,
        backing_file_depth: 0,
        children: Vec::new(),
        active: true,
        encrypted: false,
        detect_zeroes: DetectZeroes::Off,
        bps: 0,
        bps_rd: 0,
        bps_wr: 0,
        iops: 0,
        iops_rd: 0,
        iops_wr: 0,
        cache: BlockdevCacheInfo {
            writeback: true,
            direct: true,
            no_flush: false,
        },
        write_threshold: 0,
        image: image(&format!("/{name}.img")),
        x_quota_limit: None,
        x_quota_used: None,
        x_engine: None,
        x_l2_cache: None,
        x_refcount_cache: None,
        x_unwritten: None,
    }
}

fn entry(device: &str, node: Option<BlockDeviceInfo>) -> BlockInfo {
    BlockInfo {
        device: device.to_owned(),
        qdev: Some(device.to_owned()),
        r#type: "unknown".to_owned(),
        removable: false,
        locked: false,
        tray_open: None,
        io_status: None,
        inserted: node,
        x_werror: None,
        x_rerror: None,
        x_hold_scope: None,
        x_held: None,
        x_incident: None,
        x_incident_since: None,
        x_incident_cause: None,
        x_incident_node: None,
        x_incidents: None,
        x_first_error: None,
        x_last_error: None,
        x_warnings: None,
    }
}

#[test]
fn info_status() {
    let text = |status| status_text(status);
    assert_eq!(text(RunState::Running), "VM status: running\n");
    assert_eq!(text(RunState::Paused), "VM status: paused\n");
    assert_eq!(text(RunState::IoError), "VM status: paused (io-error)\n");
    assert_eq!(text(RunState::Shutdown), "VM status: paused (shutdown)\n");
}

fn status_text(state: RunState) -> String {
    let running = state == RunState::Running;
    status(&StatusInfo {
        running,
        status: state,
        singlestep: false,
        x_vmm: None,
    })
}

#[test]
fn info_status_shows_the_link() {
    let mut vmm = VmmInfo {
        id: "vm0".to_owned(),
        r#type: "vmm-qemu".to_owned(),
        state: "connected".to_owned(),
        vm: "running".to_owned(),
        pending: None,
        paused_by: "nobody".to_owned(),
        error: None,
    };
    let text = |vmm: &VmmInfo| {
        status(&StatusInfo {
            running: false,
            status: RunState::Paused,
            singlestep: false,
            x_vmm: Some(vmm.clone()),
        })
    };
    assert_eq!(
        text(&vmm),
        "VM status: paused\nVMM link: vm0 (vmm-qemu): connected, VM running\n"
    );
    vmm.vm = "paused".to_owned();
    vmm.paused_by = "link".to_owned();
    vmm.pending = Some("resume".to_owned());
    vmm.state = "down".to_owned();
    vmm.error = Some("gone".to_owned());
    assert_eq!(
        text(&vmm),
        "VM status: paused\nVMM link: vm0 (vmm-qemu): down, VM paused, paused by link, \
         pending: resume\n    gone\n"
    );
}

#[test]
fn info_block() {
    let mut first = entry("e0", Some(node("a")));
    first.io_status = Some(BlockDeviceIoStatus::Ok);
    let mut second = entry("e1", Some(node("b")));
    second.io_status = Some(BlockDeviceIoStatus::Nospace);
    if let Some(inserted) = &mut second.inserted {
        inserted.ro = true;
        inserted.cache = BlockdevCacheInfo {
            writeback: false,
            direct: false,
            no_flush: true,
        };
        inserted.detect_zeroes = DetectZeroes::Unmap;
        inserted.backing_file = Some("/base".to_owned());
        inserted.backing_file_depth = 1;
    }
    let list = [first, second];
    let a = "e0 (a): /a.img (file)\n    \
                 Attached to:      e0\n    \
                 Cache mode:       writeback, direct\n";
    let b = "\ne1 (b): /b.img (file, read-only)\n    \
                 Attached to:      e1\n    \
                 I/O status:       nospace\n    \
                 Cache mode:       writethrough, ignore flushes\n    \
                 Backing file:     /base (chain depth: 1)\n    \
                 Detect zeroes:    unmap\n";
    assert_eq!(backends(&list, None, false), format!("{a}{b}"));
    assert_eq!(backends(&list, Some("e0"), false), a);
    // Not the first of the list, so it begins with an empty line even when it is alone.
    assert_eq!(backends(&list, Some("e1"), false), b);
    assert_eq!(backends(&list, Some("nosuch"), false), "");
}

#[test]
fn info_block_without_name_or_medium() {
    let mut anonymous = entry("", Some(node("a")));
    anonymous.qdev = None;
    assert!(backends(&[anonymous], None, false).starts_with("a: /a.img (file)\n"));
    let mut empty = entry("cd", None);
    empty.qdev = None;
    empty.removable = true;
    assert_eq!(
        backends(&[empty], None, false),
        "cd: [not inserted]\n    Removable device: not locked, tray closed\n"
    );
}

#[test]
fn info_block_verbose_and_nodes() {
    let list = [node("a"), node("b")];
    assert_eq!(
        nodes(&list, None, true),
        "a: /a.img (file)\n    Cache mode:       writeback, direct\n\nImages:\n\
         image: /a.img\nfile format: file\nvirtual size: 1 MiB (1048576 bytes)\n\
         disk size: 4 KiB\n\n\
         b: /b.img (file)\n    Cache mode:       writeback, direct\n\nImages:\n\
         image: /b.img\nfile format: file\nvirtual size: 1 MiB (1048576 bytes)\n\
         disk size: 4 KiB\n"
    );
    assert_eq!(
        nodes(&list, Some("b"), false),
        "\nb: /b.img (file)\n    Cache mode:       writeback, direct\n"
    );
    let mut out = String::new();
    super::image(
        &mut out,
        &ImageInfo {
            actual_size: None,
            ..image("x")
        },
    );
    assert!(out.ends_with("disk size: unavailable\n"));
    for (full, told) in [
        (Some("b"), ""),
        (Some("d/b"), " (actual path: d/b)"),
        (None, " (cannot determine actual path)"),
    ] {
        let mut out = String::new();
        super::image(
            &mut out,
            &ImageInfo {
                backing_filename: Some("b".to_owned()),
                full_backing_filename: full.map(str::to_owned),
                backing_filename_format: Some("raw".to_owned()),
                ..image("x")
            },
        );
        let end = format!("backing file: b{told}\nbacking file format: raw\n");
        assert!(out.ends_with(&end), "{out}");
    }
}

#[test]
fn info_blockstats() {
    let stats = BlockDeviceStats {
        rd_bytes: 1,
        wr_bytes: 2,
        rd_operations: 3,
        wr_operations: 4,
        flush_operations: 5,
        wr_total_time_ns: 6,
        rd_total_time_ns: 7,
        flush_total_time_ns: 8,
        ..BlockDeviceStats::default()
    };
    let entry = |device: Option<&str>| BlockStats {
        device: device.map(str::to_owned),
        qdev: None,
        node_name: None,
        stats: stats.clone(),
        driver_specific: None,
        parent: None,
        backing: None,
    };
    assert_eq!(
        blockstats(&[entry(None), entry(Some("e0"))]),
        "e0: rd_bytes=1 wr_bytes=2 rd_operations=3 wr_operations=4 flush_operations=5 \
         wr_total_time_ns=6 rd_total_time_ns=7 flush_total_time_ns=8 rd_merged=0 wr_merged=0 \
         idle_time_ns=0\n"
    );
}
