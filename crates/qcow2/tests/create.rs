//! Images that are made here, beside those of `qemu-img create` with the same options: QEMU finds nothing wrong with them,
//! says the same of both, and header and tables are the same bytes where both have put them into the same places.
//! Needs qemu-img and qemu-io (Debian: qemu-utils), and root for loop devices.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    reason = "the whole file is a test"
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use block::Node;
use drivers::file::Medium;
use drivers::{FileDriver, FileOptions};
use serde_json::Value;
use standfast_qcow2::CacheSizes;
use standfast_qcow2::create::{CreateOptions, Preallocation, Version, make_alone};
use standfast_qcow2::format::CompressionType;
use testkit::qcow2_image::run;
use testkit::{LoopDevice, Place};

use common::{Bench, Request, qemu_check};

const MIB: u64 = 1 << 20;

fn node(name: &str, medium: Medium, path: &Path) -> Arc<Node> {
    let options = FileOptions {
        node_name: name.into(),
        path: Some(path.to_owned()),
        filename: path.display().to_string(),
        ..FileOptions::default()
    };
    let file = pollster::block_on(FileDriver::open(medium, options)).unwrap();
    Node::new(name, Box::new(file))
}

fn make_on(
    medium: Medium,
    path: &Path,
    data: Option<&Path>,
    options: &CreateOptions,
) -> block::Result<()> {
    let file = node("file0", medium, path);
    let data = data.map(|data| node("data0", Medium::File, data));
    let going_on = Arc::new(AtomicBool::new(false));
    make_alone(&file, data.as_ref(), options, going_on)
}

/// `qemu-img create`'s words for the same, but for the names.
fn words(options: &CreateOptions) -> String {
    let on = |set: bool| if set { "on" } else { "off" };
    let mut all = format!(
        "compat={},cluster_size={},extended_l2={},lazy_refcounts={},refcount_bits={},preallocation={}",
        if options.version == Version::V2 {
            "0.10"
        } else {
            "1.1"
        },
        options.cluster_bytes,
        on(options.extended_l2),
        on(options.lazy_refcounts),
        options.refcount_bits,
        match options.preallocation {
            Preallocation::Off => "off",
            Preallocation::Metadata => "metadata",
            Preallocation::Falloc => "falloc",
            Preallocation::Full => "full",
        }
    );
    if options.version == Version::V3 {
        all.push_str(&format!(",compression_type={}", options.compression.name()));
    }
    all
}

/// What QEMU says of it, but for what depends on where it is.
fn info(path: &Path) -> Value {
    let text = run(
        "qemu-img",
        &["info", "--output=json", "-U", path.to_str().unwrap()],
    );
    let mut info: Value = serde_json::from_str(&text.unwrap()).unwrap();
    let object = info.as_object_mut().unwrap();
    for key in ["filename", "actual-size", "full-backing-filename"] {
        object.remove(key);
    }
    info
}

struct Pair {
    options: CreateOptions,
    /// Header and tables are where QEMU puts them.
    same_places: bool,
}

fn pairs() -> Vec<Pair> {
    let pair = |same_places, options| Pair {
        options,
        same_places,
    };
    let base = CreateOptions::new(20 * MIB + 512);
    let with = |change: &dyn Fn(&mut CreateOptions)| {
        let mut options = base.clone();
        change(&mut options);
        options
    };
    vec![
        pair(true, base.clone()),
        pair(true, with(&|o| o.size = 0)),
        pair(true, with(&|o| o.size = 3 << 40)),
        pair(true, with(&|o| o.version = Version::V2)),
        pair(true, with(&|o| o.lazy_refcounts = true)),
        pair(true, with(&|o| o.refcount_bits = 1)),
        pair(true, with(&|o| o.refcount_bits = 64)),
        pair(true, with(&|o| o.compression = CompressionType::Zstd)),
        pair(true, with(&|o| o.extended_l2 = true)),
        pair(true, with(&|o| o.cluster_bytes = 4 << 10)),
        pair(true, with(&|o| o.cluster_bytes = 8 << 10)),
        pair(true, with(&|o| o.cluster_bytes = 2 * MIB)),
        pair(
            true,
            with(&|o| {
                o.cluster_bytes = 512;
                o.size = 2 * MIB;
            }),
        ),
        // The L1 table alone has more clusters than one block counts.
        pair(
            false,
            with(&|o| {
                o.cluster_bytes = 512;
                o.size = 1 << 30;
            }),
        ),
        pair(true, with(&|o| o.preallocation = Preallocation::Metadata)),
        pair(
            true,
            with(&|o| {
                o.preallocation = Preallocation::Metadata;
                o.version = Version::V2;
            }),
        ),
        // QEMU puts the refcount table behind the L1 table.
        pair(false, with(&|o| o.preallocation = Preallocation::Falloc)),
        pair(false, with(&|o| o.preallocation = Preallocation::Full)),
        pair(
            false,
            with(&|o| {
                o.preallocation = Preallocation::Metadata;
                o.cluster_bytes = 4 << 10;
            }),
        ),
        pair(
            true,
            with(&|o| {
                o.preallocation = Preallocation::Metadata;
                o.extended_l2 = true;
            }),
        ),
        pair(
            true,
            CreateOptions {
                size: 20 * MIB,
                ..CreateOptions::overlay(0, b"base.raw", "raw")
            },
        ),
        pair(
            true,
            CreateOptions {
                size: 20 * MIB,
                extended_l2: true,
                preallocation: Preallocation::Metadata,
                ..CreateOptions::overlay(0, b"base.raw", "raw")
            },
        ),
    ]
}

/// Both have the same bytes up to the end of the L2 tables, which are before `end`; the file may be shorter.
fn same_bytes(ours: &Path, theirs: &Path, end: u64) -> bool {
    let read = |path: &Path| {
        let mut bytes = vec![0; usize::try_from(end).unwrap()];
        let file = File::open(path).unwrap();
        let there = usize::try_from(file.metadata().unwrap().len().min(end)).unwrap();
        file.read_exact_at(&mut bytes[..there], 0).unwrap();
        bytes
    };
    read(ours) == read(theirs)
}

#[test]
fn as_qemu_makes_them() {
    let place = Place::new();
    fs::write(place.file("base.raw"), vec![7; 20 << 20]).unwrap();
    for Pair {
        options,
        same_places,
    } in pairs()
    {
        let words = words(&options);
        let (ours, theirs) = (place.file("ours.qcow2"), place.file("theirs.qcow2"));
        fs::write(&ours, "").unwrap();
        let their_name = theirs.to_str().unwrap();
        let size = options.size.to_string();
        let mut arguments = vec!["create", "-qfqcow2", "-o", &words];
        if options.backing_file.is_some() {
            arguments.extend(["-b", "base.raw", "-F", "raw"]);
        }
        arguments.extend([their_name, &size]);
        run("qemu-img", &arguments).unwrap();
        make_on(Medium::File, &ours, None, &options).unwrap();

        qemu_check::is_clean(&ours, &words);
        assert_eq!(info(&ours), info(&theirs), "{words}");
        let our_name = ours.to_str().unwrap();
        let compared = match options.preallocation {
            // What is allocated, too.
            Preallocation::Off => run("qemu-img", &["compare", "-s", our_name, their_name]),
            // Where the file has holes is another question.
            _ => run("qemu-img", &["compare", our_name, their_name]),
        };
        assert!(compared.is_ok(), "{words}: {compared:?}");
        if same_places {
            // Header, refcount table, block, L1 table, L2 table.
            let l1 = if options.size > 1 << 40 { 49 } else { 1 };
            let end = (3 + l1 + 1) * options.cluster_bytes;
            let end = match options.cluster_bytes {
                512 => ours.metadata().unwrap().len(),
                _ => end,
            };
            assert!(same_bytes(&ours, &theirs, end), "{words}");
        }
        // What QEMU writes there, and what we do.
        if options.size >= MIB {
            run(
                "qemu-io",
                &["-fqcow2", "-c", "write -q -P 5 64k 300k", our_name],
            )
            .unwrap();
        }
        if options.size >= MIB && options.backing_file.is_none() {
            let bench = Bench::new();
            let caches = CacheSizes::default();
            let node = bench.open_writable(Medium::File, &ours, caches).unwrap();
            let data = vec![9; 70_000];
            let ended = bench.run(&node, vec![Request::Write { at: 99_000, data }]);
            assert!(ended[0].is_ok(), "{ended:?}");
            bench.close(node);
        }
        qemu_check::is_clean(&ours, &words);
    }
}

/// Space is taken as QEMU takes it.
///
/// Where there was a file that ended within a block of its file system, as each new image of 197,120 bytes does, the rest of
/// that block made the whole disk something to be zeroed: `metadata` took as much space as `falloc`, and on a small file
/// system there was no image.
#[test]
fn preallocation_takes_room() {
    let place = Place::new();
    let ways = [
        (Preallocation::Off, 0, 1 << 18),
        (Preallocation::Metadata, 0, 1 << 19),
        (Preallocation::Falloc, 32 * MIB, 33 * MIB),
        (Preallocation::Full, 32 * MIB, 33 * MIB),
    ];
    let ways = |before: usize| ways.map(|way| (before, way));
    for (before, (preallocation, least, most)) in
        [1 << 20, 197_120, 1000].into_iter().flat_map(ways)
    {
        let path = place.file("a.qcow2");
        // What is there has no part in it.
        fs::write(&path, vec![0xaa; before]).unwrap();
        let options = CreateOptions {
            preallocation,
            ..CreateOptions::new(32 * MIB)
        };
        make_on(Medium::File, &path, None, &options).unwrap();
        qemu_check::is_clean(&path, "made here");
        let name = path.to_str().unwrap();
        run("qemu-io", &["-rfqcow2", "-c", "read -q -P 0 0 32M", name]).unwrap();
        let used = 512 * path.metadata().unwrap().blocks();
        let stale = if preallocation == Preallocation::Off {
            MIB
        } else {
            MIB + (1 << 18)
        };
        assert!(
            (least..most + stale).contains(&used),
            "{preallocation:?}, {before} bytes before: {used}"
        );
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn external_data_files() {
    let place = Place::new();
    for (raw, preallocation) in [
        (false, Preallocation::Off),
        (false, Preallocation::Metadata),
        (false, Preallocation::Full),
        (true, Preallocation::Off),
        (true, Preallocation::Falloc),
    ] {
        let (path, data) = (place.file("a.qcow2"), place.file("a.data"));
        fs::write(&path, "").unwrap();
        fs::write(&data, vec![0x77; 5 << 20]).unwrap();
        let name = data.to_str().unwrap();
        let options = CreateOptions {
            data_file: Some(name.into()),
            data_file_raw: raw,
            preallocation,
            ..CreateOptions::new(4 * MIB)
        };
        make_on(Medium::File, &path, Some(&data), &options).unwrap();
        qemu_check::is_clean(&path, "made here");
        let name = path.to_str().unwrap();
        // What was in a raw one is the disk, as far as it reaches.
        let pattern = if raw { 0x77 } else { 0 };
        let read = format!("read -q -P {pattern} 0 4M");
        run(
            "qemu-io",
            &["-fqcow2", "-c", &read, "-c", "write -q -P 3 1M 2M", name],
        )
        .unwrap();
        qemu_check::is_clean(&path, "made here");
        let length = data.metadata().unwrap().len();
        assert_eq!(
            length,
            if raw { 4 * MIB } else { 5 * MIB },
            "{preallocation:?}"
        );
        let info = info(&path);
        assert_eq!(info["format-specific"]["data"]["data-file-raw"], raw);
    }
}

/// A device has its length: too short, and it keeps what it has.
#[test]
fn on_a_device() {
    let place = Place::new();
    let backing = place.file("device");
    fs::write(&backing, vec![0x99; 8 << 20]).unwrap();
    let device = LoopDevice::new(&backing, false).unwrap();
    let options = |preallocation, size| CreateOptions {
        preallocation,
        ..CreateOptions::new(size)
    };
    let too_long = options(Preallocation::Metadata, 16 * MIB);
    let error = make_on(Medium::HostDevice, device.path(), None, &too_long).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("node 'file0': it has 8388608 bytes, and"),
        "{text}"
    );
    assert!(fs::read(&backing).unwrap().iter().all(|byte| *byte == 0x99));
    for preallocation in [
        Preallocation::Off,
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ] {
        let options = options(preallocation, 4 * MIB);
        make_on(Medium::HostDevice, device.path(), None, &options).unwrap();
        qemu_check::is_clean(device.path(), "on a device");
        let name = device.path().to_str().unwrap();
        run("qemu-io", &["-rfqcow2", "-c", "read -q -P 0 0 4M", name]).unwrap();
    }
}

/// The user of an image keeps others from making another one there.
#[test]
fn not_where_somebody_writes() {
    let place = Place::new();
    let path = place.file("a.qcow2");
    fs::write(&path, "").unwrap();
    let options = CreateOptions::new(4 * MIB);
    make_on(Medium::File, &path, None, &options).unwrap();
    let before = fs::read(&path).unwrap();
    let mut user = std::process::Command::new("qemu-io");
    let name = path.to_str().unwrap();
    let user = user.args([
        "-fqcow2",
        "-c",
        "write -q 0 64k",
        "-c",
        "sleep 600000",
        name,
    ]);
    let mut user = user.spawn().unwrap();
    while fs::read(&path).unwrap() == before {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let error = make_on(Medium::File, &path, None, &options).unwrap_err();
    assert!(error.to_string().starts_with("Failed to get "), "{error}");
    user.kill().unwrap();
    user.wait().unwrap();
    make_on(Medium::File, &path, None, &options).unwrap();
}
