//! Images that QEMU has made, in memory.

use std::path::Path;

use sweep::sector::{bytes_of, fill, index};
use sweep::{SECTOR, Value};
use testkit::qcow2_image::run;

/// What is in an image at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Nothing.
    Not,
    /// Data in most of its clusters, some of which are compressed.
    Compressed,
    /// The same, none of them compressed.
    Stored,
    /// Each cluster has been written and then zeroed, and keeps its room.
    ZeroedInPlace,
    /// Nothing, but hardly any clusters are free below the place where the table of refcounts is full.
    UpToTheTable,
    /// As [`Self::Compressed`], with two internal snapshots, between and after which something was written.
    Snapshots,
    /// Two internal snapshots of an image that has little of its own: what is behind it shows in between.
    SnapshotsOver,
    /// As [`Self::Compressed`], with bitmaps that follow and bitmaps that do not.
    Bitmaps,
    /// With bitmaps that follow alone.
    BitmapsThatFollow,
}

impl Filled {
    /// Something in it is touched by no write.
    pub fn keeps_something(self) -> bool {
        matches!(
            self,
            Self::Snapshots | Self::SnapshotsOver | Self::Bitmaps | Self::BitmapsThatFollow
        )
    }
}

/// Sectors that were written between two snapshots, and after the second one; and the request that has.
const LATER: [(std::ops::Range<u64>, Option<u32>); 4] = [
    (10..26, Some(200_000)),
    (40..52, None),
    (60..70, None),
    (0..4, Some(300_000)),
];

/// The same of a [`Filled::SnapshotsOver`] image, in clusters: before the first snapshot, between them, and after.
const OVER: [&[(std::ops::Range<u64>, Option<u32>)]; 3] = [
    &[(1..3, Some(200_000)), (4..5, None)],
    &[(2..3, Some(300_000)), (5..6, Some(310_000))],
    &[(0..1, Some(400_000)), (1..2, None)],
];

fn over(cluster: u64) -> impl Iterator<Item = Vec<(std::ops::Range<u64>, Option<u32>)>> {
    let in_sectors = move |(range, stamp): &(std::ops::Range<u64>, Option<u32>)| {
        (range.start * cluster..range.end * cluster, *stamp)
    };
    OVER.into_iter()
        .map(move |writes| writes.iter().map(in_sectors).collect())
}

/// What a [`Filled::SnapshotsOver`] image has of its own.
pub fn own_over(cluster: u64, sectors: u64) -> Vec<Option<Value>> {
    let mut all = vec![None; index(sectors)];
    for (range, stamp) in over(cluster).flatten() {
        let value = stamp.map_or(Value::Zero, Value::Stamp);
        all[index(range.start)..index(range.end)].fill(Some(value));
    }
    all
}

/// What is in an image at first.
pub fn content(filled: Filled, sectors: u64) -> Vec<Value> {
    let has_data = matches!(filled, Filled::Compressed | Filled::Stored);
    if !has_data && !filled.keeps_something() {
        return vec![Value::Zero; index(sectors)];
    }
    let value = |stamp: Option<u32>| stamp.map_or(Value::Zero, Value::Stamp);
    let mut all: Vec<_> = (0..sectors).map(|sector| value(stamp(sector))).collect();
    if filled == Filled::Snapshots {
        for (range, stamp) in LATER {
            all[index(range.start)..index(range.end)].fill(value(stamp));
        }
    }
    all
}

/// Which request has written a sector of a [`Filled::Compressed`] image: some have been written by none.
pub fn stamp(sector: u64) -> Option<u32> {
    let piece = sector / 5;
    (piece % 3 != 1).then(|| u32::try_from(piece + 100_000).unwrap())
}

/// An image with clusters and a disk of so many sectors.
pub fn make(options: &str, filled: Filled, cluster: u64, sectors: u64) -> Vec<u8> {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("image");
    let name = path.to_str().unwrap();
    let bytes = bytes_of(sectors);
    let create = |length: u64| {
        let length = length.to_string();
        let all = ["create", "-qfqcow2", "-o", options, name, &length];
        run("qemu-img", &all).unwrap();
    };
    match filled {
        Filled::Not => create(bytes),
        Filled::Compressed => convert(&dir.path().join("raw"), name, options, sectors, true),
        Filled::Stored => convert(&dir.path().join("raw"), name, options, sectors, false),
        Filled::Snapshots => {
            convert(&dir.path().join("raw"), name, options, sectors, true);
            run("qemu-img", &["snapshot", "-cone", name]).unwrap();
            let [first, second, third, last] = LATER;
            later(name, first, "");
            later(name, second, "");
            later(name, third, "-u ");
            run("qemu-img", &["snapshot", "-ctwo", name]).unwrap();
            later(name, last, "");
        }
        Filled::SnapshotsOver => {
            create(bytes);
            for (number, writes) in over(cluster).enumerate() {
                for write in writes {
                    later(name, write, "");
                }
                if number < 2 {
                    run("qemu-img", &["snapshot", "-c", &number.to_string(), name]).unwrap();
                }
            }
        }
        Filled::Bitmaps | Filled::BitmapsThatFollow => {
            convert(&dir.path().join("raw"), name, options, sectors, true);
            // So long that the directory has several sectors.
            for number in 0..5 {
                let bitmap = format!("{number}{}", "x".repeat(300));
                let mut all = vec!["bitmap", "--add", "-g512", name, &bitmap];
                if number % 2 == 1 && filled == Filled::Bitmaps {
                    all.push("--disable");
                }
                run("qemu-img", &all).unwrap();
            }
        }
        Filled::ZeroedInPlace => {
            create(bytes);
            let write = format!("write -q -P 85 0 {bytes}");
            let zero = format!("write -q -z 0 {bytes}");
            run("qemu-io", &["-fqcow2", "-c", &write, "-c", &zero, name]).unwrap();
        }
        Filled::UpToTheTable => {
            // 64 counts in a block, 64 blocks in the one cluster of the table: 4096 clusters, of which an L1 table
            // takes most. It may be longer than the disk needs.
            assert!(options.contains("cluster_size=512") && options.contains("refcount_bits=64"));
            create(L1_CLUSTERS * 64 * 64 * 512);
            let mut image = std::fs::read(&path).unwrap();
            image[24..32].copy_from_slice(&bytes.to_be_bytes());
            return image;
        }
    }
    std::fs::read(&path).unwrap()
}

/// Writes a stamp, or zeroes.
fn later(name: &str, (range, stamp): (std::ops::Range<u64>, Option<u32>), unmap: &str) {
    let (at, bytes) = (bytes_of(range.start), bytes_of(range.end - range.start));
    let Some(stamp) = stamp else {
        let write = format!("write -q -z {unmap}{at} {bytes}");
        run("qemu-io", &["-fqcow2", "-c", &write, name]).unwrap();
        return;
    };
    let mut data = vec![0; index(bytes)];
    fill(&mut data, stamp, range.start);
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    std::fs::write(file.path(), data).unwrap();
    let write = format!("write -q -s {} {at} {bytes}", file.path().display());
    run("qemu-io", &["-fqcow2", "-c", &write, name]).unwrap();
}

/// Clusters of an L1 table, beside which a header, a table of refcounts and its 64 blocks leave less than 20 of 4096.
const L1_CLUSTERS: u64 = 4096 - 64 - 2 - 16;

/// Full clusters become compressed ones; the last one, if it is not whole, does not.
pub fn convert(raw: &Path, name: &str, options: &str, sectors: u64, compress: bool) {
    let mut content = vec![0; index(bytes_of(sectors))];
    for (sector, bytes) in (0..).zip(content.chunks_mut(SECTOR)) {
        if let Some(stamp) = stamp(sector) {
            fill(bytes, stamp, sector);
        }
    }
    std::fs::write(raw, content).unwrap();
    let from = raw.to_str().unwrap();
    let mut all = vec!["convert", "-S512", "-fraw", "-Oqcow2", "-o", options];
    if compress {
        all.push("-c");
    }
    all.extend([from, name]);
    run("qemu-img", &all).unwrap();
}
