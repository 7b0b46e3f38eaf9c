//! Images over others, whose reads are copied (`copy-on-read`): beside QEMU's filter of that name, which reads the same of the same
//! image. Needs qemu-img and qemu-io (Debian: qemu-utils).

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    reason = "the whole file is a test"
)]

mod common;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Node, NodeInfo};
use drivers::{CopyOnRead, CopyOnReadOptions};
use standfast_qcow2::CacheSizes;
use testkit::qcow2_image::{content, run};
use testkit::{Place, Rng};

use common::disk::{Disk, index, is_same, qemu_agrees, qemu_writes};
use common::{Bench, Layer};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
const LENGTH: u64 = 2 * MIB + 64 * KIB + 512;

/// The options of an image over a raw file, the length of that, and the options of an image in between.
const CASES: [(&str, u64, Option<&str>); 7] = [
    ("cluster_size=64k", LENGTH, None),
    ("cluster_size=4k", 300 * KIB + 100, None),
    ("cluster_size=64k,extended_l2=on", 3 * LENGTH, None),
    ("compat=0.10,cluster_size=16k", LENGTH, None),
    ("cluster_size=2M", LENGTH, Some("cluster_size=4k")),
    (
        "cluster_size=64k,extended_l2=on",
        MIB,
        Some("cluster_size=512"),
    ),
    (
        "cluster_size=4k",
        2 * MIB,
        Some("cluster_size=64k,extended_l2=on"),
    ),
];

/// Data, with holes and zeroes in them.
fn raw_base(place: &Place, bytes: u64, rng: &mut Rng) -> (PathBuf, Vec<u8>) {
    let path = place.file("base.raw");
    let words = (0..bytes.div_ceil(8)).flat_map(|_| rng.next_u64().to_le_bytes());
    let mut content: Vec<u8> = words.collect();
    content.truncate(index(bytes));
    content[index(bytes / 4)..index(bytes / 3)].fill(0);
    let hole = index(bytes / 2) / 4096 * 4096..index(bytes * 5 / 8);
    content[hole.clone()].fill(0);
    let file = fs::File::create(&path).unwrap();
    use std::os::unix::fs::FileExt;
    file.write_all_at(&content[..hole.start], 0).unwrap();
    file.write_all_at(&content[hole.end..], hole.end as u64)
        .unwrap();
    (path, content)
}

fn created(path: &Path, below: &Layer, options: &str) {
    let (name, bytes) = (path.to_str().unwrap(), LENGTH.to_string());
    let behind = below.path().to_str().unwrap();
    let arguments = [
        "create",
        "-qfqcow2",
        "-o",
        options,
        "-F",
        below.format(),
        "-b",
        behind,
        name,
        &bytes,
    ];
    run("qemu-img", &arguments).unwrap();
}

/// What lies below an image, and what shows there.
struct Chain {
    place: Place,
    layers: Vec<Layer>,
    content: Vec<u8>,
    rng: Rng,
}

impl Chain {
    fn new((options, base, between): (&str, u64, Option<&str>), seed: u64) -> (Self, PathBuf) {
        let place = Place::new();
        let mut rng = Rng::new(seed);
        let (lowest, mut content) = raw_base(&place, base, &mut rng);
        content.resize(index(LENGTH), 0);
        let mut layers = vec![Layer::Raw(lowest)];
        if let Some(options) = between {
            let path = place.file("between.qcow2");
            created(&path, &layers[0], options);
            qemu_writes(&path, &mut content, &mut rng);
            layers.push(Layer::Qcow2(path));
        }
        let top = place.file("top.qcow2");
        created(&top, layers.last().unwrap(), options);
        let chain = Self {
            place,
            layers,
            content,
            rng,
        };
        (chain, top)
    }

    fn open(&self, bench: &Bench, top: &Path, caches: CacheSizes) -> (Arc<Node>, Arc<Node>) {
        let image = bench
            .open_over(top, bench.chain(&self.layers), caches)
            .unwrap();
        let copy = CopyOnRead::new(CopyOnReadOptions {
            node_name: "copy0".into(),
            file: Arc::clone(&image),
            bottom: None,
            info: NodeInfo::default(),
        });
        (Node::new("copy0", Box::new(copy.unwrap())), image)
    }

    /// Ranges that are read: of any bytes, for nobody reads only whole sectors.
    fn ranges(&mut self) -> Vec<Range<u64>> {
        let mut some = || {
            let unit = if self.rng.below(2) == 0 { 1 } else { SECTOR };
            let start = self.rng.below(LENGTH) / unit * unit;
            let bytes = (1 + self.rng.below(40 * KIB / unit)) * unit;
            start..(start + bytes).min(LENGTH)
        };
        (0..12).map(|_| some()).collect()
    }

    /// Nobody writes to what is below.
    fn below(&self) -> Vec<Vec<u8>> {
        let layers = self.layers.iter();
        layers
            .map(|layer| fs::read(layer.path()).unwrap())
            .collect()
    }
}

/// QEMU's filter reads these of the same image.
fn qemu_reads(top: &Path, ranges: &[Range<u64>]) {
    let options = format!(
        "driver=copy-on-read,file.driver=qcow2,file.file.driver=file,file.file.filename={}",
        top.display()
    );
    let mut arguments = vec!["--image-opts".to_owned()];
    for range in ranges {
        let read = format!("read -q {} {}", range.start, range.end - range.start);
        arguments.extend(["-c".to_owned(), read]);
    }
    arguments.push(options);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run("qemu-io", &arguments).unwrap();
}

/// What the image itself has: whether a sector is its own, and whether that is data.
fn own(top: &Path) -> Vec<(bool, bool)> {
    let name = top.to_str().unwrap();
    let map = run("qemu-img", &["map", "--output=json", name]).unwrap();
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let mut sectors = vec![(false, false); index(LENGTH.div_ceil(SECTOR))];
    for entry in map.as_array().unwrap() {
        let number = |member: &str| entry[member].as_u64().unwrap();
        let own = number("depth") == 0 && entry["present"] == true;
        let data = own && entry["data"] == true;
        let end = (number("start") + number("length")).min(LENGTH);
        sectors[index(number("start") / SECTOR)..index(end.div_ceil(SECTOR))].fill((own, data));
    }
    sectors
}

/// What was read is there, and no more than QEMU has copied; zeroes are no data.
#[test]
fn reads_are_copied_as_by_qemu() {
    let bench = Bench::new();
    for (number, case) in CASES.into_iter().enumerate() {
        let (mut chain, top) = Chain::new(case, number as u64);
        let theirs = chain.place.file("theirs.qcow2");
        fs::copy(&top, &theirs).unwrap();
        let before = chain.below();
        let ranges = chain.ranges();
        let (node, image) = chain.open(&bench, &top, CacheSizes::default());
        let read = bench.read(&node, ranges.clone());
        for (range, read) in ranges.iter().zip(read) {
            let expected = &chain.content[index(range.start)..index(range.end)];
            is_same(&read.unwrap(), expected, &format!("{case:?}, {range:?}"));
        }
        bench.close(image);
        qemu_reads(&theirs, &ranges);
        qemu_agrees(&top, &chain.content, &format!("{case:?}"));
        assert!(chain.below() == before, "{case:?}: written below");

        let is_old = case.0.starts_with("compat=0.10");
        let (ours, theirs) = (own(&top), own(&theirs));
        for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            let what = format!("{case:?}, sector {at}: {ours:?}, QEMU {theirs:?}");
            assert!(theirs.0 || !ours.0, "{what}");
            assert!(theirs.1 || !ours.1, "{what}");
        }
        for range in &ranges {
            let all = index(range.start / SECTOR)..index(range.end.div_ceil(SECTOR));
            for at in all {
                let bytes = index(SECTOR) * at..(index(SECTOR) * (at + 1)).min(index(LENGTH));
                let is_zero = chain.content[bytes].iter().all(|byte| *byte == 0);
                // What the image is not over is zeroes that nothing is behind of.
                assert!(ours[at].0 || is_zero, "{case:?}: sector {at} of {range:?}");
                assert!(theirs[at].1 || !ours[at].1 || !is_old);
            }
        }
        let data = |sectors: &[(bool, bool)]| sectors.iter().filter(|one| one.1).count();
        assert!(data(&ours) > 0 && data(&ours) <= data(&theirs), "{case:?}");
    }
}

/// Once all has been read nothing behind it is needed any more.
#[test]
fn what_was_read_needs_nothing_behind_it() {
    let bench = Bench::new();
    let tiny = CacheSizes {
        l2: Some(512),
        l2_entry: Some(512),
        ..CacheSizes::default()
    };
    for (number, case) in CASES.into_iter().enumerate() {
        let (chain, top) = Chain::new(case, 100 + number as u64);
        for caches in [tiny, CacheSizes::default()] {
            let (node, image) = chain.open(&bench, &top, caches);
            is_same(&bench.whole(&node), &chain.content, &format!("{case:?}"));
            bench.close(image);
        }
        let name = top.to_str().unwrap();
        run("qemu-img", &["rebase", "-u", "-fqcow2", "-b", "", name]).unwrap();
        is_same(
            &content(&top).unwrap(),
            &chain.content,
            &format!("{case:?}"),
        );
    }
}

/// Reads and writes at once, and changes of the length.
#[test]
fn written_while_it_is_copied() {
    let rounds = match std::env::var_os("STANDFAST_SOAK") {
        Some(_) => 50,
        None => 1,
    };
    let bench = Bench::new();
    for (number, case) in CASES.into_iter().enumerate() {
        for round in 0..rounds {
            let (mut chain, top) = Chain::new(case, number as u64 + 100 * round);
            let before = chain.below();
            let (node, image) = chain.open(&bench, &top, CacheSizes::default());
            let mut disk = Disk {
                bench: &bench,
                node,
                content: &mut chain.content,
                rng: &mut chain.rng,
                cluster: 64 * KIB,
            };
            for _ in 0..4 {
                disk.batch(8);
            }
            if !case.0.starts_with("compat") {
                disk.resize(2 * LENGTH);
                disk.batch(8);
            }
            drop(disk);
            bench.close(image);
            qemu_agrees(&top, &chain.content, &format!("{case:?}, {round}"));
            assert!(chain.below() == before, "{case:?}: written below");
        }
    }
}
