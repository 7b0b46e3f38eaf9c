//! Images with external data files, written by the driver and by QEMU in turns: for both the disk has every byte, and what
//! is in a raw one is the disk at any time. Needs qemu-img and qemu-io (Debian: qemu-utils).

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    reason = "the whole file is a test"
)]

mod common;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::Node;
use drivers::OpenError;
use drivers::file::Medium;
use standfast_qcow2::{Backing, CacheSizes, Qcow2Options};
use testkit::qcow2_image::run;
use testkit::{Place, Rng};

use common::disk::{Disk, SECTOR, index, is_same, qemu_agrees, qemu_writes};
use common::{Bench, Layer, Request};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const LENGTH: u64 = MIB + 64 * KIB + SECTOR;

/// An image and its data file.
struct Pair {
    path: PathBuf,
    data: PathBuf,
}

impl Pair {
    fn create(place: &Place, options: &str, length: u64, more: &[&str]) -> Self {
        let this = Self {
            path: place.file("disk.qcow2"),
            data: place.file("disk.data"),
        };
        let _ = fs::remove_file(&this.data);
        let options = format!("{options},data_file={}", this.data.display());
        let (name, length) = (this.path.to_str().unwrap(), length.to_string());
        let all = [
            &["create", "-qfqcow2", "-o", &options],
            more,
            &[name, &length],
        ]
        .concat();
        run("qemu-img", &all).unwrap();
        this
    }

    fn open(
        &self,
        bench: &Bench,
        change: impl FnOnce(&mut Qcow2Options),
    ) -> Result<Arc<Node>, OpenError> {
        bench.writable(Medium::File, &self.path, |options| {
            options.data_file = Some(bench.data_file(&self.data));
            change(options);
        })
    }

    /// The first L2 table becomes another one.
    fn entry(&self, number: u64, entry: u64) {
        let file = OpenOptions::new().write(true).open(&self.path).unwrap();
        let header = fs::read(&self.path).unwrap();
        let be64 = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().unwrap());
        let table = be64(index(be64(40))) & 0x00ff_ffff_ffff_fe00;
        file.write_all_at(&entry.to_be_bytes(), table + 8 * number)
            .unwrap();
    }
}

fn in_turns(place: &Place, options: &str, cluster: u64, seed: u64) {
    let raw = options.contains("data_file_raw=on");
    let mut rng = Rng::new(seed);
    let pair = Pair::create(place, options, LENGTH, &[]);
    let mut content = vec![0; index(LENGTH)];
    let bench = Bench::new();
    let tiny = CacheSizes {
        l2: Some(512),
        l2_entry: Some(512),
        ..CacheSizes::default()
    };
    let is_shown = |content: &[u8], what: &str| {
        if raw {
            // QEMU makes it so long that the last cluster is whole.
            let shown = fs::read(&pair.data).unwrap();
            is_same(&shown[..content.len()], content, what);
        }
    };
    for turn in 0..4 {
        let what = format!("{options}, seed {seed}, turn {turn}");
        if turn == 1 {
            qemu_writes(&pair.path, &mut content, &mut rng);
            qemu_agrees(&pair.path, &content, &what);
            is_shown(&content, &what);
            continue;
        }
        let caches = [tiny, CacheSizes::default()][usize::from(turn != 2)];
        let node = pair.open(&bench, |options| {
            options.caches = caches;
            options.discard_no_unref = turn == 3;
        });
        let mut disk = Disk {
            bench: &bench,
            node: node.unwrap_or_else(|error| panic!("{what}: {error}")),
            content: &mut content,
            rng: &mut rng,
            cluster,
        };
        is_same(&bench.whole(&disk.node), disk.content, &what);
        for batch in 0..5 {
            disk.batch(8);
            is_shown(disk.content, &format!("{what}, batch {batch}"));
        }
        disk.resize(2 * LENGTH);
        is_shown(disk.content, &format!("{what}, another length"));
        for batch in 5..8 {
            disk.batch(8);
            is_shown(disk.content, &format!("{what}, batch {batch}"));
        }
        let node = disk.node;
        bench.close(node);
        qemu_agrees(&pair.path, &content, &what);
    }
}

#[test]
fn data_files_are_written_in_turns_with_qemu() {
    let rounds = match std::env::var_os("STANDFAST_SOAK") {
        Some(_) => 50,
        None => 1,
    };
    for (number, (options, cluster)) in [
        ("cluster_size=4k", 4 * KIB),
        ("cluster_size=64k,refcount_bits=1", 64 * KIB),
        ("cluster_size=256k,preallocation=metadata", 256 * KIB),
        ("cluster_size=64k,extended_l2=on", 2 * KIB),
        ("cluster_size=2M,lazy_refcounts=on", 2 * MIB),
        ("data_file_raw=on,cluster_size=4k", 4 * KIB),
        ("data_file_raw=on,cluster_size=64k", 64 * KIB),
        ("data_file_raw=on,cluster_size=256k", 256 * KIB),
        ("data_file_raw=on,cluster_size=64k,extended_l2=on", 2 * KIB),
    ]
    .into_iter()
    .enumerate()
    {
        for round in 0..rounds {
            in_turns(
                &Place::new(),
                options,
                cluster,
                (number + 100 * round) as u64,
            );
        }
    }
}

/// What is behind shows where nothing is, and never in the place of what was discarded.
#[test]
fn over_a_backing_file() {
    let place = Place::new();
    let base = place.file("base.raw");
    let mut rng = Rng::new(7);
    let words = (0..LENGTH / 8).flat_map(|_| rng.next_u64().to_le_bytes());
    let mut content: Vec<u8> = words.collect();
    fs::write(&base, &content).unwrap();
    let behind = ["-Fraw", "-b", base.to_str().unwrap()];
    let pair = Pair::create(&place, "cluster_size=64k", LENGTH, &behind);
    let bench = Bench::new();
    for turn in 0..2 {
        qemu_writes(&pair.path, &mut content, &mut rng);
        let node = pair.open(&bench, |options| {
            options.backing = Backing::Node(bench.chain(&[Layer::Raw(base.clone())]));
        });
        let mut disk = Disk {
            bench: &bench,
            node: node.unwrap(),
            content: &mut content,
            rng: &mut rng,
            cluster: 64 * KIB,
        };
        for _ in 0..4 {
            disk.batch(8);
        }
        let node = disk.node;
        bench.close(node);
        qemu_agrees(&pair.path, &content, &format!("turn {turn}"));
    }
}

fn whole(bench: &Bench, node: &Arc<Node>, request: Request) {
    let ended = bench.run(node, vec![request]);
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
}

/// Behind its end there are zeroes, and what is written there makes it longer.
#[test]
fn a_data_file_that_is_shorter_than_the_disk() {
    for options in ["cluster_size=64k", "cluster_size=64k,data_file_raw=on"] {
        let place = Place::new();
        let pair = Pair::create(&place, options, LENGTH, &[]);
        let bench = Bench::new();
        let file = OpenOptions::new().write(true).open(&pair.data).unwrap();
        file.set_len(0).unwrap();
        let node = pair.open(&bench, |_| {}).unwrap();
        assert!(bench.whole(&node).iter().all(|byte| *byte == 0));
        let data = vec![0x5a; 4096];
        whole(&bench, &node, Request::Write { at: MIB, data });
        let mut content = vec![0; index(LENGTH)];
        content[index(MIB)..index(MIB) + 4096].fill(0x5a);
        is_same(&bench.whole(&node), &content, options);
        bench.close(node);
        let length = pair.data.metadata().unwrap().len();
        assert!((MIB + 4096..=LENGTH).contains(&length), "{length}");
        qemu_agrees(&pair.path, &content, options);
    }
}

/// What is discarded gives its space back, and what was there before does not come back with what is written beside it.
#[test]
fn what_is_discarded_is_given_back_and_does_not_come_back() {
    for passed in [true, false] {
        let place = Place::new();
        let pair = Pair::create(&place, "cluster_size=64k", 4 * MIB, &[]);
        let bench = Bench::new();
        let open = || {
            let node = pair.open(&bench, |options| options.discards.request = passed);
            node.unwrap()
        };
        let node = open();
        let data = vec![0x5a; index(4 * MIB)];
        whole(&bench, &node, Request::Write { at: 0, data });
        whole(&bench, &node, Request::Flush);
        assert!(pair.data.metadata().unwrap().blocks() * 512 >= 4 * MIB);
        let range = 0..2 * MIB;
        whole(&bench, &node, Request::Discard { range });
        let (range, unmap) = (2 * MIB..4 * MIB, true);
        whole(&bench, &node, Request::Zeroes { range, unmap });
        assert!(bench.whole(&node).iter().all(|byte| *byte == 0));
        let left = pair.data.metadata().unwrap().blocks() * 512;
        assert_eq!(left < MIB, passed, "{left}");
        for at in [64 * KIB + 4096, 3 * MIB + 8192] {
            let data = vec![1; 4096];
            whole(&bench, &node, Request::Write { at, data });
        }
        let mut content = vec![0; index(4 * MIB)];
        for at in [64 * KIB + 4096, 3 * MIB + 8192] {
            content[index(at)..index(at) + 4096].fill(1);
        }
        is_same(&bench.whole(&node), &content, "what is read");
        bench.close(node);
        qemu_agrees(&pair.path, &content, "for QEMU");
        let node = open();
        is_same(&bench.whole(&node), &content, "opened anew");
        bench.close(node);
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let place = Place::new();
    let pair = Pair::create(&place, "cluster_size=64k", MIB, &[]);
    let bench = Bench::new();
    let said = |opened: Result<Arc<Node>, OpenError>| opened.unwrap_err().to_string();
    let none = pair.open(&bench, |options| options.data_file = None);
    assert_eq!(said(none), "'data-file' is required for this image");
    let itself = pair.open(&bench, |options| {
        options.data_file = Some(bench.data_file(&pair.path));
    });
    assert_eq!(said(itself), "the image cannot be its own data file");
    let read_only = bench.open_as(&pair.path, |options| {
        options.data_file = Some(bench.data_file(&pair.data));
    });
    assert!(
        bench
            .whole(&read_only.unwrap())
            .iter()
            .all(|byte| *byte == 0)
    );

    let raw = Pair::create(&place, "data_file_raw=on", MIB, &[]);
    let behind = raw.open(&bench, |options| {
        let base = Layer::Raw(raw.data.clone());
        options.backing = Backing::Node(bench.chain(&[base]));
    });
    assert_eq!(
        said(behind),
        "Backing file and data-file-raw cannot be used at the same time"
    );

    let plain = place.file("plain.qcow2");
    let all = ["create", "-qfqcow2", plain.to_str().unwrap(), "1M"];
    run("qemu-img", &all).unwrap();
    let given = bench.open_as(&plain, |options| {
        options.data_file = Some(bench.data_file(&raw.data));
    });
    assert_eq!(
        said(given),
        "'data-file' can only be set for images with an external data file"
    );
}

/// An entry that points elsewhere, or to what is compressed, is nothing to go by: nothing is read or written there, and the
/// image is marked when it would be written.
#[test]
fn entries_that_cannot_be() {
    for (entry, words) in [
        (1 << 63 | 0x3_0000, "not the one of the guest"),
        (1 << 62 | 0x1_0000, "compressed cluster"),
    ] {
        let place = Place::new();
        let pair = Pair::create(&place, "preallocation=metadata", MIB, &[]);
        pair.entry(1, entry);
        let bench = Bench::new();
        let node = pair.open(&bench, |_| {}).unwrap();
        let read = bench.read(
            &node,
            vec![64 * KIB..65 * KIB, 0..4096, 128 * KIB..129 * KIB],
        );
        let error = read[0].as_ref().unwrap_err();
        assert_eq!(error.errno(), libc::EIO);
        assert!(error.to_string().contains(words), "{error}");
        assert!(read[1].is_ok() && read[2].is_ok(), "{read:?}");
        let before = fs::read(&pair.data).unwrap();
        let data = vec![7; 4096];
        let ended = bench.run(&node, vec![Request::Write { at: 65 * KIB, data }]);
        let error = ended[0].as_ref().unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(fs::read(&pair.data).unwrap() == before, "it was written");
        drop(node);
        let again = pair.open(&bench, |_| {}).unwrap_err().to_string();
        assert!(again.contains("corrupt"), "{again}");
    }
}

/// A raw one follows the disk when that becomes longer, whatever was behind its end.
#[test]
fn a_raw_data_file_has_zeroes_behind_the_former_end() {
    let place = Place::new();
    let pair = Pair::create(&place, "data_file_raw=on", LENGTH, &[]);
    let bench = Bench::new();
    fs::write(&pair.data, vec![0x77; index(2 * LENGTH)]).unwrap();
    let mut content = vec![0x77; index(LENGTH)];
    let node = pair.open(&bench, |_| {}).unwrap();
    is_same(&bench.whole(&node), &content, "what was there is the disk");
    node.resize(3 * LENGTH).unwrap();
    content.resize(index(3 * LENGTH), 0);
    is_same(&bench.whole(&node), &content, "longer");
    is_same(&fs::read(&pair.data).unwrap(), &content, "the data file");
    node.resize(2 * LENGTH).unwrap();
    content.truncate(index(2 * LENGTH));
    is_same(&fs::read(&pair.data).unwrap(), &content, "shorter");
    bench.close(node);
    qemu_agrees(&pair.path, &content, "for QEMU");
    is_mapped(&pair.path, 2 * LENGTH);
}

/// Nothing of the disk is without an entry.
fn is_mapped(path: &Path, length: u64) {
    let name = path.to_str().unwrap();
    let said = run("qemu-img", &["map", "--output=json", name]).unwrap();

    let extents: serde_json::Value = serde_json::from_str(&said).unwrap();
    let extents = extents.as_array().unwrap();
    assert_eq!(extents.len(), 1, "{said}");
    assert_eq!(extents[0]["length"], length, "{said}");
    assert_eq!(extents[0]["offset"], 0, "{said}");
    assert_eq!(extents[0]["data"], true, "{said}");
}
