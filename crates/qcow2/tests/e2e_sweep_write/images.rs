//! Images that QEMU has made, in memory.

use std::path::Path;

use sweep::SECTOR;
use sweep::sector::{bytes_of, fill, index};
use testkit::qcow2_image::run;

/// What is in an image at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Nothing.
    Not,
    /// Data in most of its clusters, some of which are compressed.
    Compressed,
    /// Each cluster has been written and then zeroed, and keeps its room.
    ZeroedInPlace,
    /// Nothing, but hardly any clusters are free below the place where the table of refcounts is full.
    UpToTheTable,
}

/// Which request has written a sector of a [`Filled::Compressed`] image: some have been written by none.
pub fn stamp(sector: u64) -> Option<u32> {
    let piece = sector / 5;
    (piece % 3 != 1).then(|| u32::try_from(piece + 100_000).unwrap())
}

/// An image with a disk of so many sectors.
pub fn make(options: &str, filled: Filled, sectors: u64) -> Vec<u8> {
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
        Filled::Compressed => convert(&dir.path().join("raw"), name, options, sectors),
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

/// Clusters of an L1 table, beside which a header, a table of refcounts and its 64 blocks leave less than 20 of 4096.
const L1_CLUSTERS: u64 = 4096 - 64 - 2 - 16;

/// Full clusters become compressed ones; the last one, if it is not whole, does not.
fn convert(raw: &Path, name: &str, options: &str, sectors: u64) {
    let mut content = vec![0; index(bytes_of(sectors))];
    for (sector, bytes) in (0..).zip(content.chunks_mut(SECTOR)) {
        if let Some(stamp) = stamp(sector) {
            fill(bytes, stamp, sector);
        }
    }
    std::fs::write(raw, content).unwrap();
    let from = raw.to_str().unwrap();
    let all = [
        "convert", "-c", "-S512", "-fraw", "-Oqcow2", "-o", options, from, name,
    ];
    run("qemu-img", &all).unwrap();
}
