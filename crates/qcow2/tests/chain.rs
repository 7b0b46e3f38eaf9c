//! Images over others, written by the driver and by QEMU in turns: for both the disk has every byte, and what is
//! behind is not written. Needs qemu-img and qemu-io (Debian: qemu-utils).

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    reason = "the whole file is a test"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use standfast_qcow2::{CacheSizes, Qcow2Options};
use testkit::qcow2_image::run;
use testkit::{Place, Rng};

use common::disk::{Disk, index, is_same, qemu_agrees, qemu_writes};
use common::{Bench, Layer};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const LENGTH: u64 = MIB + 64 * KIB + 512;

/// What is lowest: a file with something in it, as long as that.
fn raw_base(place: &Place, bytes: u64, rng: &mut Rng) -> (PathBuf, Vec<u8>) {
    let path = place.file("base.raw");
    let words = (0..bytes.div_ceil(8)).flat_map(|_| rng.next_u64().to_le_bytes());
    let mut content: Vec<u8> = words.collect();
    content.truncate(index(bytes));
    // With holes and zeroes in it.
    let hole = index(bytes / 4)..index(bytes / 3);
    content[hole].fill(0);
    fs::write(&path, &content).unwrap();
    (path, content)
}

fn created(path: &Path, below: &Path, format: &str, options: &str, bytes: u64) {
    let name = path.to_str().unwrap();
    let below = below.to_str().unwrap();
    let bytes = bytes.to_string();
    let options = [
        "create", "-qfqcow2", "-o", options, "-F", format, "-b", below, name, &bytes,
    ];
    run("qemu-img", &options).unwrap();
}

/// Clusters of an image that nobody has written to yet, compressed.
fn qemu_compresses(path: &Path, content: &mut [u8], rng: &mut Rng) {
    const UNIT: u64 = 64 * KIB;
    let mut arguments = vec!["-fqcow2".to_owned()];
    let units = content.len() as u64 / UNIT;
    let first = rng.below(3);
    for at in (first..units).step_by(4) {
        let byte = 1 + rng.next_u64().to_le_bytes()[0] % 250;
        content[index(at * UNIT)..index((at + 1) * UNIT)].fill(byte);
        let write = format!("write -q -c -P {byte} {} {UNIT}", at * UNIT);
        arguments.extend(["-c".to_owned(), write]);
    }
    arguments.push(path.to_str().unwrap().to_owned());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run("qemu-io", &arguments).unwrap();
}

fn resized(content: &[u8], length: u64) -> Vec<u8> {
    let mut all = content.to_vec();
    all.resize(index(length), 0);
    all
}

struct Case {
    /// Length of the lowest file.
    base: u64,
    /// Options of the images above it, and their lengths: from the bottom.
    images: Vec<(&'static str, u64)>,
    cluster: u64,
}

fn cases() -> Vec<Case> {
    let case = |base, cluster, images: &[(&'static str, u64)]| Case {
        base,
        images: images.to_vec(),
        cluster,
    };
    let small = "cluster_size=4k";
    let usual = "cluster_size=64k";
    let parts = "cluster_size=64k,extended_l2=on";
    let old = "compat=0.10,cluster_size=16k";
    vec![
        case(LENGTH, 64 * KIB, &[(usual, LENGTH)]),
        case(100 * KIB + 100, 4 * KIB, &[(small, LENGTH)]),
        case(3 * LENGTH, 64 * KIB, &[(usual, LENGTH)]),
        case(3 * LENGTH, 64 * KIB, &[(parts, LENGTH)]),
        case(LENGTH, 16 * KIB, &[(old, 2 * LENGTH)]),
        case(
            LENGTH,
            2 * KIB,
            &[(parts, LENGTH / 1024 * 512), (parts, LENGTH)],
        ),
        case(
            MIB,
            2 * MIB,
            &[
                (small, 2 * MIB),
                (old, MIB / 2),
                (parts, MIB),
                (usual, 3 * MIB / 2),
                ("cluster_size=2M", LENGTH),
            ],
        ),
    ]
}

fn in_turns(place: &Place, case: &Case, seed: u64) {
    let mut rng = Rng::new(seed);
    let (lowest, mut content) = raw_base(place, case.base, &mut rng);
    let mut layers = vec![Layer::Raw(lowest)];
    for (number, (options, length)) in case.images.iter().enumerate() {
        let below = layers.last().unwrap();
        let path = place.file(&format!("{number}.qcow2"));
        let _ = fs::remove_file(&path);
        created(&path, below.path(), below.format(), options, *length);
        content = resized(&content, *length);
        // No whole cluster of the largest is that short.
        if !options.contains("2M") {
            qemu_compresses(&path, &mut content, &mut rng);
        }
        if number + 1 < case.images.len() {
            // Something of its own, and zeroes over what is below.
            qemu_writes(&path, &mut content, &mut rng);
        }
        layers.push(Layer::Qcow2(path));
    }
    let top = layers.pop().unwrap();
    let below: Vec<Vec<u8>> = layers
        .iter()
        .map(|layer| fs::read(layer.path()).unwrap())
        .collect();
    let bench = Bench::new();
    let tiny = CacheSizes {
        l2: Some(512),
        l2_entry: Some(512),
        ..CacheSizes::default()
    };
    let old = case.images.last().unwrap().0.starts_with("compat");
    for turn in 0..4 {
        let what = format!("{:?}, seed {seed}, turn {turn}", case.images);
        if turn == 2 {
            qemu_writes(top.path(), &mut content, &mut rng);
            qemu_agrees(top.path(), &content, &what);
            continue;
        }
        let caches = [tiny, CacheSizes::default()][usize::from(turn != 1)];
        let behind = bench.chain(&layers);
        let node = bench.open_over(top.path(), behind, caches);
        let mut disk = Disk {
            bench: &bench,
            node: node.unwrap_or_else(|error| panic!("{what}: {error}")),
            content: &mut content,
            rng: &mut rng,
            cluster: case.cluster,
        };
        is_same(&bench.whole(&disk.node), disk.content, &what);
        for _ in 0..4 {
            disk.batch(8);
        }
        // What is behind must not show behind the former end.
        if !old {
            disk.resize(2 * LENGTH);
        }
        for _ in 0..3 {
            disk.batch(8);
        }
        let node = disk.node;
        bench.close(node);
        qemu_agrees(top.path(), &content, &what);
    }
    for (layer, before) in layers.iter().zip(below) {
        let now = fs::read(layer.path()).unwrap();
        assert!(now == before, "{:?} was written", layer.path());
    }
}

/// A short base shows as zeroes behind its end, a long one not behind the end of the disk when that becomes longer; a
/// discard shows nothing that is behind.
#[test]
fn chains_are_written_in_turns_with_qemu() {
    let rounds = match std::env::var_os("STANDFAST_SOAK") {
        Some(_) => 50,
        None => 1,
    };
    for (number, case) in cases().iter().enumerate() {
        for round in 0..rounds {
            in_turns(&Place::new(), case, (number + 100 * round) as u64);
        }
    }
}

/// In version 2 of the format nothing hides what is behind.
#[test]
fn an_old_image_does_not_become_longer_over_a_long_one() {
    let place = Place::new();
    let (base, _) = raw_base(&place, 2 * MIB, &mut Rng::new(1));
    let path = place.file("disk.qcow2");
    created(&path, &base, "raw", "compat=0.10", MIB);
    let bench = Bench::new();
    let behind = bench.chain(&[Layer::Raw(base)]);
    let node = bench
        .open_over(&path, behind, CacheSizes::default())
        .unwrap();
    let error = node.resize(3 * MIB).unwrap_err().to_string();
    assert!(error.contains("compat=1.1"), "{error}");
    assert_eq!(node.driver().length(), MIB);
    node.resize(MIB / 2).unwrap();
    bench.close(node);
}

/// Of a header that names a backing file nobody reads zeroes by mistake.
#[test]
fn nobody_forgets_what_is_behind() {
    let place = Place::new();
    let (base, _) = raw_base(&place, MIB, &mut Rng::new(1));
    let path = place.file("disk.qcow2");
    created(&path, &base, "raw", "compat=1.1", MIB);
    let bench = Bench::new();
    let error = bench.open(&path, CacheSizes::default()).unwrap_err();
    assert!(error.to_string().contains("base.raw"), "{error}");
    let none = |options: &mut Qcow2Options| options.backing = standfast_qcow2::Backing::None;
    let node = bench.open_as(&path, none).unwrap();
    assert!(bench.whole(&node).iter().all(|byte| *byte == 0));
}
