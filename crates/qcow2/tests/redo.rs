//! Daemons that are killed: what they had acknowledged and not flushed is there for the next, and for nobody else. The fault sweep kills them in
//! memory, at any moment (`e2e_sweep_write`); here are real files, and others who write them. Needs qemu-img and qemu-io (Debian: qemu-utils).

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    reason = "the whole file is a test"
)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Access, Node, Permissions};
use drivers::file::Medium;
use standfast_qcow2::CacheSizes;
use standfast_qcow2::check::{Limits, check};
use standfast_qcow2::driver::{RedoChange, RedoHead, RedoRecord, RedoRing, RedoTable};
use standfast_qcow2::format::{GuestOffset, L2Entry};
use testkit::qcow2_image::{create, run};
use testkit::{Place, Rng};

use common::disk::{Disk, index, is_same, qemu_agrees, qemu_writes};
use common::{Bench, Request, qemu_check};

const MIB: u64 = 1 << 20;
const CLUSTER: u64 = 64 << 10;

/// An image, and where its log is.
struct Image {
    bench: Bench,
    place: Place,
    path: PathBuf,
}

impl Image {
    fn new(options: &str, bytes: u64) -> Self {
        let place = Place::new();
        let path = place.file("disk.qcow2");
        create(&path, options, bytes).unwrap();
        fs::create_dir(place.file("state")).unwrap();
        let bench = Bench::new();
        Self { bench, place, path }
    }

    fn logs(&self) -> usize {
        fs::read_dir(self.place.file("state")).unwrap().count()
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    /// In the same file.
    fn put(&self, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(&self.path).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        file.write_all_at(bytes, 0).unwrap();
    }

    fn open_at(&self, path: &Path, caches: CacheSizes) -> Arc<Node> {
        let state = self.place.file("state");
        let node = self.bench.writable(Medium::File, path, |options| {
            options.redo_dir = Some(state.as_path().into());
            options.caches = caches;
        });
        let node = node.unwrap();
        let all = Access {
            held: Permissions::ALL,
            shared: Permissions::ALL,
        };
        node.activate(all).unwrap();
        node
    }

    fn open(&self) -> Arc<Node> {
        self.open_at(&self.path, CacheSizes::default())
    }

    /// As a daemon that is killed: nothing is written any more.
    fn kill(&self, node: Arc<Node>) {
        drop(node);
    }

    fn run(&self, node: &Arc<Node>, requests: Vec<Request>) {
        for ended in self.bench.run(node, requests) {
            ended.unwrap();
        }
    }

    /// One cluster full of `byte`.
    fn write(&self, node: &Arc<Node>, cluster: u64, byte: u8) {
        let data = vec![byte; index(CLUSTER)];
        let at = cluster * CLUSTER;
        self.run(node, vec![Request::Write { at, data }]);
    }

    fn discard(&self, node: &Arc<Node>, cluster: u64) {
        let range = cluster * CLUSTER..(cluster + 1) * CLUSTER;
        self.run(node, vec![Request::Discard { range }]);
    }

    fn flush(&self, node: &Arc<Node>) {
        self.run(node, vec![Request::Flush]);
    }
}

fn tag(image: &[u8]) -> u32 {
    u32::from_be_bytes(image[88..92].try_into().unwrap())
}

/// All of it was as never written, and the guest's next flush succeeded.
#[test]
fn what_was_acknowledged_is_there_for_the_next() {
    for (options, cluster) in [
        ("cluster_size=64k", CLUSTER),
        ("cluster_size=512,refcount_bits=64", 512),
        ("cluster_size=16k,extended_l2=on", 16 << 10),
    ] {
        let image = Image::new(options, MIB);
        let header = image.bytes()[..512].to_vec();
        let mut content = vec![0; index(MIB)];
        let mut rng = Rng::new(1);
        for round in 0..6 {
            let mut disk = Disk {
                bench: &image.bench,
                node: image.open(),
                content: &mut content,
                rng: &mut rng,
                cluster,
            };
            is_same(&image.bench.whole(&disk.node), disk.content, options);
            disk.batch(12);
            // What was flushed at last is not all there is.
            let unmap = true;
            image.run(
                &disk.node,
                vec![Request::Zeroes {
                    range: 0..cluster,
                    unmap,
                }],
            );
            image.run(
                &disk.node,
                vec![Request::Write {
                    at: 0,
                    data: vec![round; 512],
                }],
            );
            disk.content[..index(cluster)].fill(0);
            disk.content[..512].fill(round);
            image.kill(disk.node);
            assert_eq!(image.logs(), 1, "{options}, round {round}");
            assert!(tag(&image.bytes()) != 0);
        }
        // Nobody who reads it takes offence, or changes anything.
        let killed = image.bytes();
        run("qemu-img", &["info", image.path.to_str().unwrap()]).unwrap();
        let reader = image
            .bench
            .open(&image.path, CacheSizes::default())
            .unwrap();
        image.bench.whole(&reader);
        drop(reader);
        assert!(image.bytes() == killed && image.logs() == 1);
        let node = image.open();
        is_same(&image.bench.whole(&node), &content, options);
        image.bench.close(node);
        assert_eq!(image.logs(), 0);
        let name = image.path.to_str().unwrap();
        run("qemu-img", &["check", "-qfqcow2", "-rleaks", name]).unwrap();
        qemu_agrees(&image.path, &content, options);
        let tables = 36..60;
        let mut now = image.bytes()[..512].to_vec();
        now[tables.clone()].copy_from_slice(&header[tables]);
        assert_eq!(now, header, "{options}: the header says more than before");
    }
}

/// What QEMU has written since would have been lost, or worse.
#[test]
fn what_somebody_else_has_written_since_stays() {
    let image = Image::new("cluster_size=64k", 4 * MIB);
    let mut content = vec![0; index(4 * MIB)];
    let node = image.open();
    image.write(&node, 3, 0x11);
    image.flush(&node);
    content[index(3 * CLUSTER)..index(4 * CLUSTER)].fill(0x11);
    // Not flushed, and void as soon as QEMU has opened the image for writing.
    for cluster in 10..20 {
        image.write(&node, cluster, 0x22);
    }
    image.kill(node);
    assert!(tag(&image.bytes()) != 0);
    qemu_writes(&image.path, &mut content, &mut Rng::new(5));
    assert_eq!(tag(&image.bytes()), 0);
    let node = image.open();
    is_same(&image.bench.whole(&node), &content, "after QEMU");
    image.write(&node, 30, 0x33);
    content[index(30 * CLUSTER)..index(31 * CLUSTER)].fill(0x33);
    image.bench.close(node);
    assert_eq!(image.logs(), 0);
    qemu_agrees(&image.path, &content, "after QEMU");
}

/// Neither a copy, nor one that is put in the place of the image.
#[test]
fn it_is_of_one_file_alone() {
    let image = Image::new("cluster_size=64k", 4 * MIB);
    let node = image.open();
    image.write(&node, 3, 0x11);
    image.flush(&node);
    let flushed = image.bench.whole(&node);
    image.write(&node, 10, 0x22);
    let all = image.bench.whole(&node);
    image.kill(node);
    let copy = image.place.file("copy.qcow2");
    fs::copy(&image.path, &copy).unwrap();
    let node = image.open_at(&copy, CacheSizes::default());
    is_same(&image.bench.whole(&node), &flushed, "the copy");
    image.bench.close(node);
    // That of the other one is still there.
    assert_eq!(image.logs(), 1);
    let moved = image.place.file("moved.qcow2");
    fs::rename(&image.path, &moved).unwrap();
    fs::copy(&moved, &image.path).unwrap();
    let node = image.open();
    is_same(
        &image.bench.whole(&node),
        &flushed,
        "another one in its place",
    );
    image.bench.close(node);
    let node = image.open_at(&moved, CacheSizes::default());
    is_same(&image.bench.whole(&node), &all, "moved");
    image.bench.close(node);
    assert_eq!(image.logs(), 0);
}

/// In the same file, with the same tag; what is recorded is of a later state. Nothing of it may be made again.
#[test]
fn an_older_state_of_the_image_is_recognized() {
    let image = Image::new("cluster_size=64k", 4 * MIB);
    let node = image.open();
    for cluster in 0..8 {
        image.write(&node, cluster, 0x11);
    }
    image.flush(&node);
    let older = image.bytes();
    let content = image.bench.whole(&node);
    image.discard(&node, 2);
    for _ in 0..4 {
        image.flush(&node);
        // Two rounds, and it is free.
        image.write(&node, 20, 0x20);
        image.discard(&node, 20);
    }
    image.flush(&node);
    let between = image.bytes();
    // One takes the place of cluster 2, the other follows a change that there has never been.
    type Case = fn(&Image, &Arc<Node>);
    let cases: [Case; 2] = [
        |image, node| image.write(node, 30, 0x33),
        |image, node| {
            image.write(node, 20, 0x44);
            image.flush(node);
            image.discard(node, 20);
        },
    ];
    image.kill(node);
    for (number, case) in cases.iter().enumerate() {
        image.put(&between);
        let node = image.open();
        case(&image, &node);
        image.kill(node);
        // With the tag of the latest log.
        let now = image.bytes();
        let mut restored = older.clone();
        restored[88..92].copy_from_slice(&now[88..92]);
        assert!(tag(&restored) != 0 && image.logs() == 1);
        image.put(&restored);
        let node = image.open();
        is_same(
            &image.bench.whole(&node),
            &content,
            &format!("case {number}"),
        );
        image.write(&node, 40, 0x55);
        image.bench.close(node);
        qemu_check::is_clean(&image.path, &format!("case {number}"));
    }
}

/// With nobody there to write back, its mark was left in the header, and the node could not be replaced.
#[test]
fn a_change_of_length_leaves_no_mark() {
    let image = Image::new("cluster_size=64k,preallocation=metadata", MIB);
    let node = image.open();
    node.resize(CLUSTER).unwrap();
    assert!(node.left_unwritten().is_none());
    assert_eq!(tag(&image.bytes()), 0);
    image.write(&node, 0, 0x11);
    node.resize(MIB).unwrap();
    image.bench.close(node);
    assert_eq!(image.logs(), 0);
    qemu_check::is_clean(&image.path, "another length");
}

#[test]
fn version_2_has_no_place_for_the_tag() {
    let image = Image::new("compat=0.10", MIB);
    let node = image.open();
    image.write(&node, 3, 0x11);
    assert_eq!(image.logs(), 0);
    image.bench.close(node);
    qemu_check::is_clean(&image.path, "version 2");
}

/// A directory that cannot have it is no reason not to serve.
#[test]
fn without_a_directory_it_is_as_before() {
    let image = Image::new("cluster_size=64k", MIB);
    fs::remove_dir(image.place.file("state")).unwrap();
    let node = image.open();
    image.write(&node, 3, 0x11);
    image.bench.close(node);
    assert_eq!(tag(&image.bytes()), 0);
    qemu_check::is_clean(&image.path, "no directory");
}

/// More changes than the log has records, none of them flushed: a round makes room.
#[test]
fn a_log_that_is_full() {
    let image = Image::new("cluster_size=512", 20 * MIB);
    let caches = CacheSizes {
        l2: Some(4 << 20),
        l2_entry: Some(512),
        ..CacheSizes::default()
    };
    let node = image.open_at(&image.path, caches);
    let all = 20 * MIB / 512;
    for some in (0..all).step_by(2).collect::<Vec<_>>().chunks(512) {
        let write = |cluster: &u64| Request::Write {
            at: cluster * 512,
            data: vec![1 + cluster.to_le_bytes()[0]; 512],
        };
        image.run(&node, some.iter().map(write).collect());
    }
    let content = image.bench.whole(&node);
    image.kill(node);
    let node = image.open_at(&image.path, caches);
    is_same(&image.bench.whole(&node), &content, "after the kill");
    image.bench.close(node);
    // The refcount table has grown, and who had to give back the former one was killed.
    let name = image.path.to_str().unwrap();
    run("qemu-img", &["check", "-qfqcow2", "-rleaks", name]).unwrap();
    qemu_agrees(&image.path, &content, "a log that was full");
}

/// Records that nobody has written for this image, with its tag: they are made again or they are not, but the image stays whole.
#[test]
fn records_of_anybody_do_no_harm() {
    let rounds = match std::env::var_os("STANDFAST_SOAK") {
        Some(_) => 20_000,
        None => 150,
    };
    for (options, seed) in [
        ("cluster_size=512", 1),
        ("cluster_size=16k,extended_l2=on", 2),
    ] {
        let image = Image::new(options, MIB);
        // Two L2 tables at least, and one that a snapshot has, too.
        let name = image.path.to_str().unwrap();
        let writes = ["-c", "write -q -P 1 0 80k", "-c", "write -q -P 2 300k 40k"];
        run("qemu-io", &[&["-fqcow2"], &writes[..], &[name]].concat()).unwrap();
        run("qemu-img", &["snapshot", "-c", "one", name]).unwrap();
        // And clusters that are free.
        let writes = [
            "-c",
            "write -q -P 3 0 64k",
            "-c",
            "write -q -P 3 512k 256k",
            "-c",
            "discard -q 512k 256k",
        ];
        run("qemu-io", &[&["-fqcow2"], &writes[..], &[name]].concat()).unwrap();
        let whole = image.bytes();
        let mut rng = Rng::new(seed);
        let mut made = 0;
        for round in 0..rounds {
            let what = format!("{options}, round {round}");
            image.put(&whole);
            let tag = 1 + u32::try_from(rng.below(1000)).unwrap();
            let records = any_records(&whole, &mut rng);
            image.leave(tag, &records);
            let node = image.open();
            image.bench.close(node);
            made += u32::from(image.bytes()[512..] != whole[512..]);
            let bytes = image.bytes();
            let bytes = &bytes[..];
            let opened = standfast_qcow2::Image::open(&bytes).unwrap();
            let report = check(&opened, &Limits::default());
            let bad = report.corruptions + report.errors;
            assert_eq!(bad, 0, "{what}: {:?}: {records:?}", report.findings);
        }
        assert!(
            made > rounds / 20 && made < rounds,
            "{options}: {made} of {rounds}"
        );
    }
}

impl Image {
    /// As if a daemon had left these records.
    fn leave(&self, tag: u32, records: &[RedoRecord]) {
        let bytes = self.bytes();
        let mut marked = bytes.clone();
        marked[88..92].copy_from_slice(&tag.to_be_bytes());
        self.put(&marked);
        let node = self.bench.open(&self.path, CacheSizes::default()).unwrap();
        let bytes = &bytes[..];
        let opened = standfast_qcow2::Image::open(&bytes).unwrap();
        let head = RedoHead {
            tag,
            cluster_bits: opened.geometry().cluster_bits(),
            extended: opened.geometry().extended_l2(),
            boot_id: block::state_file::boot_id().unwrap(),
            image: node.driver().children()[0].node().image(),
        };
        let mut ring = RedoRing::new(vec![0; 1 << 20], &head).unwrap();
        for record in records {
            assert!(ring.push(record));
        }
        let state = self.place.file("state");
        let old = fs::read_dir(&state).unwrap();
        old.for_each(|file| fs::remove_file(file.unwrap().path()).unwrap());
        let path = state.join(format!("qcow2-{tag:08x}.redo"));
        fs::write(path, ring.storage()).unwrap();
    }
}

/// Mostly of what the image has, and what it could become.
fn any_records(bytes: &[u8], rng: &mut Rng) -> Vec<RedoRecord> {
    const COPIED: u64 = 1 << 63;
    let image = standfast_qcow2::Image::open(&bytes).unwrap();
    let geometry = image.geometry();
    let size = geometry.cluster_size();
    let l1_at = index(image.header.l1_offset.0);
    let l1 = |number: usize| {
        let at = l1_at + number * 8;
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
    };
    let l1_entries = usize::try_from(image.header.l1_entries).unwrap();
    let clusters = bytes.len() as u64 / size;
    let mut records: Vec<RedoRecord> = Vec::new();
    let mut last: Option<RedoChange> = None;
    for _ in 0..1 + rng.below(6) {
        // Behind the end, sometimes, where nothing is counted.
        let host = rng.below(clusters + 3) * size;
        let entry = |descriptor| L2Entry {
            descriptor,
            bitmap: 0,
        };
        let mut change = match rng.below(5) {
            0 => {
                let number = index(rng.below(l1_entries as u64 + 1));
                let before = if number < l1_entries { l1(number) } else { 0 };
                RedoChange {
                    which: RedoTable::L1,
                    at: number as u64,
                    before: entry(before),
                    after: entry(host | COPIED),
                }
            }
            _ => {
                let end = [MIB + 2 * size, 64 << 10][index(rng.below(4).min(1))];
                let at = rng.below(end / size);
                let place = geometry.place(GuestOffset(at * size));
                let table = match index(place.l1) {
                    number if number < l1_entries => l1(number) & !COPIED,
                    _ => 0,
                };
                let before = match table {
                    0 => L2Entry::default(),
                    table => L2Entry::read(&bytes[index(table)..], place.l2, geometry).unwrap(),
                };
                let (after, bits) = match rng.below(6) {
                    0 => (L2Entry::default(), 0),
                    1 => (
                        entry(u64::from(!geometry.extended_l2())),
                        rng.below(1 << 32) << 32,
                    ),
                    2 => (entry(before.descriptor ^ COPIED), before.bitmap),
                    3 => (entry(rng.next_u64()), rng.next_u64()),
                    _ => (entry(host | COPIED), rng.below(1 << 32)),
                };
                let bitmap = match geometry.extended_l2() {
                    true => bits,
                    false => 0,
                };
                RedoChange {
                    which: RedoTable::L2,
                    at,
                    before,
                    after: L2Entry { bitmap, ..after },
                }
            }
        };
        // The same entry once more.
        if let Some(last) = last.filter(|_| rng.below(4) == 0) {
            change = RedoChange {
                before: last.after,
                after: last.before,
                ..last
            };
        }
        last = Some(change);
        records.push(RedoRecord::of(&change));
    }
    records
}
