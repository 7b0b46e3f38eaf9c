//! Images that QEMU has made, written by the driver and by QEMU in turns: for both they are clean afterwards and have every
//! byte. Needs qemu-img and qemu-io (Debian: qemu-utils), and root for loop devices.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    reason = "the whole file is a test"
)]

#[path = "write/bitmaps.rs"]
mod bitmaps;
mod common;
#[path = "write/snapshots.rs"]
mod snapshots;

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use drivers::file::Medium;
use standfast_qcow2::CacheSizes;
use testkit::qcow2_image::{self, run};
use testkit::{LoopDevice, Place, Rng};

use common::disk::{Disk, SECTOR, index, is_same, qemu_agrees, qemu_writes};
use common::{Bench, Request, qemu_check};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
fn soaks() -> bool {
    std::env::var_os("STANDFAST_SOAK").is_some()
}

/// Options of `qemu-img create`, and the cluster size in bytes.
fn combinations() -> Vec<(String, u64)> {
    let mut all = Vec::new();
    let clusters = [
        ("512", 512),
        ("4k", 4 * KIB),
        ("16k", 16 * KIB),
        ("64k", 64 * KIB),
        ("2M", 2 * MIB),
    ];
    let preallocated = ["off", "metadata", "falloc", "full"];
    for (size, bytes) in clusters {
        for preallocation in preallocated {
            let rest = format!("cluster_size={size},preallocation={preallocation}");
            all.push((format!("compat=0.10,{rest}"), bytes));
            for bits in [1, 2, 16, 64] {
                for lazy in ["off", "on"] {
                    for compression in ["zlib", "zstd"] {
                        for extended in ["off", "on"] {
                            if extended == "on" && bytes < 16 * KIB {
                                continue;
                            }
                            let options = format!(
                                "{rest},refcount_bits={bits},lazy_refcounts={lazy},compression_type={compression},extended_l2={extended}"
                            );
                            all.push((options, bytes));
                        }
                    }
                }
            }
        }
    }
    all
}

/// One image, by us, by QEMU, and by us again.
fn in_turns(place: &Place, options: &str, cluster: u64, seed: u64) {
    let path = place.file("disk.qcow2");
    let name = path.to_str().unwrap();
    let mut rng = Rng::new(seed);
    let length = MIB + 64 * KIB + SECTOR;
    let bytes = length.to_string();
    run(
        "qemu-img",
        &["create", "-qfqcow2", "-o", options, name, &bytes],
    )
    .unwrap();
    let mut content = vec![0; index(length)];
    let bench = Bench::new();
    let tiny = CacheSizes {
        l2: Some(512),
        l2_entry: Some(512),
        ..CacheSizes::default()
    };
    for turn in 0..3 {
        let what = format!("{options}, seed {seed}, turn {turn}");
        if turn == 1 {
            qemu_writes(&path, &mut content, &mut rng);
            qemu_agrees(&path, &content, &what);
            continue;
        }
        let caches = if rng.below(3) == 0 {
            tiny
        } else {
            CacheSizes::default()
        };
        let node = match seed % 2 {
            0 => bench.open_writable(Medium::File, &path, caches),
            _ => Ok(bench.open_direct(&path, caches)),
        };
        let node = node.unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut disk = Disk {
            bench: &bench,
            node,
            content: &mut content,
            rng: &mut rng,
            cluster,
        };
        is_same(&bench.whole(&disk.node), disk.content, &what);
        for _ in 0..4 {
            disk.batch(8);
        }
        disk.resize(2 * length);
        for _ in 0..3 {
            disk.batch(8);
        }
        let node = disk.node;
        bench.close(node);
        qemu_agrees(&path, &content, &what);
    }
}

/// Every combination in a soak; else some of each feature.
#[test]
fn all_kinds_of_images_are_written_in_turns_with_qemu() {
    let place = Place::new();
    let all = combinations();
    // Prime to the numbers of values, so that all of them are met.
    let one_in = if soaks() { 1 } else { 11 };
    for (number, (options, cluster)) in all.iter().enumerate().step_by(one_in) {
        in_turns(&place, options, *cluster, number as u64);
    }
}

/// With data of all kinds in them, compressed ones, too.
#[test]
fn images_with_something_of_everything_are_written() {
    let place = Place::new();
    let path = place.file("disk.qcow2");
    let clusters = |kind: &str| match kind {
        _ if kind.contains("=512") => 512,
        _ if kind.contains("=4k") => 4 * KIB,
        _ if kind.contains("=16k") => 16 * KIB,
        _ if kind.contains("=2M") => 2 * MIB,
        _ if kind.contains("=1M") => MIB,
        _ if kind.contains("=128k") => 128 * KIB,
        _ => 64 * KIB,
    };
    for (seed, kind) in qcow2_image::KINDS.iter().enumerate() {
        qcow2_image::make(&path, kind).unwrap();
        let mut content = qcow2_image::content(&path).unwrap();
        let mut rng = Rng::new(seed as u64);
        let bench = Bench::new();
        let node = bench.open_writable(Medium::File, &path, CacheSizes::default());
        let mut disk = Disk {
            bench: &bench,
            node: node.unwrap(),
            content: &mut content,
            rng: &mut rng,
            cluster: clusters(kind),
        };
        for _ in 0..4 {
            disk.batch(32);
        }
        // What was compressed is there at 8 MiB and above.
        let over = vec![0x42; 2000];
        let at = 8 * MIB + 3 * SECTOR;
        let write = Request::Write {
            at,
            data: over.clone(),
        };
        assert!(bench.run(&disk.node, vec![write]).iter().all(Result::is_ok));
        disk.content[index(at)..index(at) + over.len()].copy_from_slice(&over);
        disk.resize(22 * MIB);
        disk.batch(8);
        let node = disk.node;
        bench.close(node);
        qemu_agrees(&path, &content, kind);
        qemu_writes(&path, &mut content, &mut rng);
        qemu_agrees(&path, &content, kind);
    }
}

/// As Proxmox makes them: subclusters, big clusters, metadata preallocated.
#[test]
fn an_image_as_proxmox_makes_it() {
    let place = Place::new();
    for (seed, options) in [
        "extended_l2=on,cluster_size=128k,preallocation=metadata",
        "extended_l2=on,cluster_size=128k",
    ]
    .iter()
    .enumerate()
    {
        in_turns(&place, options, 4 * KIB, 1000 + seed as u64);
    }
}

/// First writes to a file that is open with O_DIRECT each made it longer, which io_uring leaves to a worker: a stream of small
/// ones cost four thirds of QEMU's CPU. Now it is longer ahead of them, and that is no harm to anybody.
#[test]
fn a_file_is_longer_ahead_of_first_writes() {
    let place = Place::new();
    let path = place.file("disk.qcow2");
    let name = path.to_str().unwrap();
    run("qemu-img", &["create", "-qfqcow2", name, "64M"]).unwrap();
    let bench = Bench::new();
    let mut content = vec![0; index(64 * MIB)];
    let node = bench.open_direct(&path, CacheSizes::default());
    let write = |at: u64, byte| Request::Write {
        at,
        data: vec![byte; 4096],
    };
    // The beginnings of two clusters, the middle of a third.
    for (at, byte) in [(0, 1), (5 * MIB, 2), (8 * MIB + 12 * KIB, 3)] {
        assert!(
            bench
                .run(&node, vec![write(at, byte)])
                .iter()
                .all(Result::is_ok)
        );
        content[index(at)..index(at) + 4096].fill(byte);
    }
    let reserved = fs::metadata(&path).unwrap().len();
    assert!(reserved > MIB && reserved < 3 * MIB, "{reserved}");
    // What is reserved is used before there is more.
    let requests = (1..14).map(|cluster| write(cluster * 64 * KIB, 4));
    assert!(
        bench
            .run(&node, requests.collect())
            .iter()
            .all(Result::is_ok)
    );
    for cluster in 1..14 {
        content[index(cluster * 64 * KIB)..][..4096].fill(4);
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), reserved);
    is_same(&bench.whole(&node), &content, "while it is open");
    bench.close(node);
    qemu_agrees(&path, &content, "as QEMU has it");
    // Zeroes are there, but the next one does not know.
    let node = bench.open_direct(&path, CacheSizes::default());
    assert!(
        bench
            .run(&node, vec![write(32 * MIB + 4 * KIB, 5)])
            .iter()
            .all(Result::is_ok)
    );
    content[index(32 * MIB + 4 * KIB)..][..4096].fill(5);
    is_same(&bench.whole(&node), &content, "opened again");
    bench.close(node);
    qemu_agrees(&path, &content, "opened again, as QEMU has it");
}

fn device_on(file: &Path, bytes: u64) -> LoopDevice {
    File::create(file).unwrap().set_len(bytes).unwrap();
    LoopDevice::new(file, false).unwrap()
}

/// As Incus makes them: on a device that is longer than the image, and has something else in it before.
#[test]
fn an_image_on_a_device_that_is_longer() {
    let place = Place::new();
    let device = device_on(&place.file("device"), 24 * MIB);
    fs::write(device.path(), vec![0x99; index(24 * MIB)]).unwrap();
    let name = device.path().to_str().unwrap();
    run(
        "qemu-img",
        &["create", "-qfqcow2", "-ocluster_size=64k", name, "16M"],
    )
    .unwrap();
    let mut content = vec![0; index(16 * MIB)];
    let mut rng = Rng::new(5);
    let bench = Bench::new();
    for _ in 0..2 {
        let node = bench.open_writable(Medium::HostDevice, device.path(), CacheSizes::default());
        let mut disk = Disk {
            bench: &bench,
            node: node.unwrap(),
            content: &mut content,
            rng: &mut rng,
            cluster: 64 * KIB,
        };
        for _ in 0..4 {
            disk.batch(16);
        }
        let node = disk.node;
        bench.close(node);
        qemu_check::is_clean(device.path(), "on a device");
        let raw = place.name("raw");
        run("qemu-img", &["convert", "-fqcow2", "-Oraw", name, &raw]).unwrap();
        is_same(&fs::read(&raw).unwrap(), &content, "on a device");
    }
}

/// As oVirt has them: on a small device that becomes longer when it is full. A write for which there is no room is told as that,
/// with the node that is full; it goes through when there is room, and all else goes on meanwhile.
#[test]
fn an_image_on_a_device_that_grows() {
    let place = Place::new();
    let file = place.file("device");
    let device = device_on(&file, 2 * MIB);
    let name = device.path().to_str().unwrap();
    run(
        "qemu-img",
        &["create", "-qfqcow2", "-ocluster_size=64k", name, "32M"],
    )
    .unwrap();
    let mut content = vec![0; index(32 * MIB)];
    let bench = Bench::new();
    let node = bench.open_writable(Medium::HostDevice, device.path(), CacheSizes::default());
    let node = node.unwrap();
    let mut failures = 0;
    let mut bytes = 2 * MIB;
    for number in 0..60_u64 {
        let at = number * 256 * KIB + (number % 3) * 4 * KIB;
        let byte = u8::try_from(number + 1).unwrap();
        let data = vec![byte; index(100 * KIB)];
        let write = Request::Write {
            at,
            data: data.clone(),
        };
        loop {
            let ended = bench.run(&node, vec![write.clone()]).pop().unwrap();
            let Err(error) = ended else { break };
            assert_eq!(error.errno(), libc::ENOSPC, "{error}");
            let full = error.context().node.as_deref();
            assert_eq!(full, Some("file0"), "{error}");
            failures += 1;
            // It stays so, and nothing else is disturbed.
            let again = bench.run(&node, vec![write.clone()]).pop().unwrap();
            assert_eq!(again.map_err(|error| error.errno()), Err(libc::ENOSPC));
            let before = index(at);
            is_same(
                &bench.whole(&node)[..before],
                &content[..before],
                "while it is full",
            );
            if failures % 2 == 0 {
                let flush = bench.run(&node, vec![Request::Flush]).pop().unwrap();
                assert!(flush.is_ok(), "{flush:?}");
            }
            bytes += MIB;
            let grown = OpenOptions::new().write(true).open(&file).unwrap();
            grown.set_len(bytes).unwrap();
            device.update_size().unwrap();
            assert!(failures < 40, "it does not help that there is room");
        }
        content[index(at)..index(at) + data.len()].copy_from_slice(&data);
    }
    assert!(failures > 2, "{failures}");
    is_same(&bench.whole(&node), &content, "in the end");
    bench.close(node);
    qemu_check::is_clean(device.path(), "on a device that has grown");
    let raw = place.name("raw");
    run("qemu-img", &["convert", "-fqcow2", "-Oraw", name, &raw]).unwrap();
    is_same(
        &fs::read(&raw).unwrap(),
        &content,
        "on a device that has grown",
    );
}

/// What is discarded is free when nothing on disk knows of it any more, which takes two rounds of writing tables. A write for which
/// there was no other room failed until the guest had flushed twice, though it had given back enough.
#[test]
fn what_was_just_discarded_makes_room() {
    let place = Place::new();
    let device = device_on(&place.file("device"), 2 * MIB);
    let name = device.path().to_str().unwrap();
    let size = &["create", "-qfqcow2", "-ocluster_size=64k", name, "32M"];
    run("qemu-img", size).unwrap();
    let bench = Bench::new();
    let node = bench.open_writable(Medium::HostDevice, device.path(), CacheSizes::default());
    let node = node.unwrap();
    let mut content = vec![0; index(32 * MIB)];
    let mut write = |at: u64| {
        let data = vec![0x5a; index(128 * KIB)];
        let there = index(at)..index(at) + data.len();
        let ended = bench.run(&node, vec![Request::Write { at, data }]).pop();
        let ended = ended.unwrap().map_err(|error| error.errno());
        if ended.is_ok() {
            content[there].fill(0x5a);
        }
        ended
    };
    let full = (0..30).find(|number| write(number * MIB).is_err());
    let full = full.expect("the device has 2 MiB");
    assert_eq!(write(full * MIB), Err(libc::ENOSPC));
    let range = 0..128 * KIB;
    let discard = Request::Discard { range };
    bench.run(&node, vec![discard]).pop().unwrap().unwrap();
    assert_eq!(write(full * MIB), Ok(()), "there is room again");
    assert_eq!(write((full + 1) * MIB), Err(libc::ENOSPC), "and no more");
    content[..index(128 * KIB)].fill(0);
    is_same(&bench.whole(&node), &content, "in the end");
    bench.close(node);
    qemu_check::is_clean(device.path(), "on a device that was full");
}
