//! Images with external data files: both files lie on the storage under test, the data first, or those that grow behind the image. A cut
//! loses parts of each, and a flush is of one of them.
//!
//! One that is raw is compared with the disk whenever an image is looked at: after a cut, too, they are the same.

use std::sync::LazyLock;

use block::{Io, NodeInfo, OwnedBuffer};
use standfast_qcow2::{Qcow2, Qcow2Options};
use sweep::sector::{bytes_of, index};
use sweep::{Hands, Memory, SECTOR};

use crate::format::Kind;
use crate::images::{Filled, convert};
use crate::{swept, swept_by};
use testkit::qcow2_image::run;

/// Where the data files are that images name: qemu-img wants one to be there when it checks an image.
static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir_in("/dev/shm").unwrap());

/// An image with a disk of so many sectors, and its data file: of each the bytes that it has. One of them has no end, and comes
/// behind; a data file without an end is as short as it can be.
pub fn make(options: &str, filled: Filled, sectors: u64, bytes: [Option<u64>; 2]) -> Vec<u8> {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (path, name_of_data) = (dir.path().join("image"), DIR.path().join("data"));
    let (own, name) = (dir.path().join("data"), path.to_str().unwrap());
    let of = |file: &std::path::Path| {
        options.replace("data_file=x", &format!("data_file={}", file.display()))
    };
    let length = bytes_of(sectors).to_string();
    match filled {
        Filled::Stored => convert(&dir.path().join("raw"), name, &of(&own), sectors, false),
        _ => drop(
            run(
                "qemu-img",
                &["create", "-qfqcow2", "-o", &of(&own), name, &length],
            )
            .unwrap(),
        ),
    }
    if filled == Filled::ZeroedInPlace {
        let (write, zero) = (
            format!("write -q -P 85 0 {length}"),
            format!("write -q -z 0 {length}"),
        );
        run("qemu-io", &["-fqcow2", "-c", &write, "-c", &zero, name]).unwrap();
    }
    std::fs::write(&name_of_data, "").unwrap();
    let mut data = std::fs::read(&own).unwrap();
    let mut image = std::fs::read(&path).unwrap();
    let (from, to) = (own.to_str().unwrap(), name_of_data.to_str().unwrap());
    rename(&mut image, from.as_bytes(), to.as_bytes());
    let end = index(bytes_of(sectors));
    match bytes {
        [_, Some(bytes)] => {
            // What is behind the end of a disk is not zeroes.
            data.truncate(end);
            data.resize(index(bytes), 0xbb);
            data.extend(image);
            data
        }
        [room, None] => {
            let room = index(room.unwrap());
            assert!(image.len() < room, "{} bytes of tables", image.len());
            image.resize(room, 0);
            let needed = match filled {
                // Zeroes: raw ones have a part of them, and end in the middle of a cluster.
                Filled::Not => data.len().min(end / 2 + SECTOR),
                _ => data.len().min(end),
            };
            image.extend(&data[..needed]);
            image
        }
    }
}

/// The header names a file that stays.
fn rename(image: &mut [u8], from: &[u8], to: &[u8]) {
    let at = image
        .windows(from.len())
        .position(|name| name == from)
        .unwrap();
    assert_eq!(
        from.len(),
        to.len(),
        "they lie in directories with names as long"
    );
    image[at..at + to.len()].copy_from_slice(to);
}

/// Whether `data` has what the guest finds in `image`. Of subclusters QEMU preallocates only the clusters: what has just been
/// written there may be in the data file after a cut, and not in the disk, where nothing points to it.
pub fn is_the_disk(image: &[u8], data: &[u8], has_parts: bool) -> Result<(), String> {
    let fixed = |bytes: &[u8]| Memory::new(bytes).bounded(0).fixed();
    let options = Qcow2Options {
        data_file: Some(fixed(data).node("data")),
        info: NodeInfo {
            read_only: true,
            ..NodeInfo::default()
        },
        ..Qcow2Options::new("disk", fixed(image).node("image"))
    };
    let disk = pollster::block_on(Qcow2::open(options)).map_err(|error| error.to_string())?;
    let node = block::Node::new("disk", Box::new(disk));
    let length = index(node.driver().length());
    let mut read = OwnedBuffer::new(length).unwrap();
    let done = pollster::block_on(node.submit(Io::read(0, read.lend())));
    done.map_err(|error| error.to_string())?;
    // What it is too short for is zeroes.
    let mut data = data.to_vec();
    data.resize(length.max(data.len()), 0);
    let mut sectors = read.chunks(SECTOR).zip(data.chunks(SECTOR));
    let differs = sectors.position(|(disk, data)| {
        disk != data && !(has_parts && disk.iter().all(|byte| *byte == 0))
    });
    match differs {
        None => Ok(()),
        Some(sector) => Err(format!(
            "sector {sector} of the raw data file differs from that of the disk"
        )),
    }
}

#[test]
fn data_files() {
    let kind = |options, cluster| Kind::new(options, cluster);
    swept(&kind("data_file=x,cluster_size=512", 1), 5);
    swept(&kind("data_file=x,cluster_size=4k", 8), 6);
    let tiny = kind("data_file=x,cluster_size=4k", 8).with_tiny_caches();
    swept(&tiny.filled(Filled::Stored), 4);
    let stored = kind("data_file=x,cluster_size=4k", 8).filled(Filled::Stored);
    swept(&stored.without_unref(), 3);
    swept(
        &kind("data_file=x,cluster_size=4k", 8).filled(Filled::ZeroedInPlace),
        3,
    );
    let parts = || kind("data_file=x,cluster_size=16k,extended_l2=on", 32);
    swept(&parts(), 3);
    swept(&parts().filled(Filled::Stored), 3);
}

#[test]
fn raw_data_files() {
    let kind = |options, cluster| Kind::new(options, cluster);
    swept(&kind("data_file=x,data_file_raw=on,cluster_size=512", 1), 5);
    let small = || kind("data_file=x,data_file_raw=on,cluster_size=4k", 8);
    swept(&small().filled(Filled::Stored), 5);
    swept(&small().with_tiny_caches(), 4);
    let parts = "data_file=x,data_file_raw=on,cluster_size=16k,extended_l2=on";
    swept(&kind(parts, 32).filled(Filled::Stored), 3);
}

/// As they are made: without any data, or shorter than the disk, and longer with each write behind the end.
///
/// Seed 12 of the first: a new L2 table lay where the former L1 table had been. The flush that was to make it durable failed; when the
/// loss had been accepted, and the power was cut later, entries of the former L1 table were taken for the guest's clusters.
#[test]
fn data_files_that_grow() {
    swept(&Kind::new("data_file=x,cluster_size=512", 1).growing(), 13);
    let small = || Kind::new("data_file=x,cluster_size=4k", 8).growing();
    swept(&small(), 2);
    swept(&small().filled(Filled::Stored), 1);
    // The one with seed 13: what a daemon that was killed had written, and not flushed, was lost in a failed flush of the next, which took
    // it for durable, and linked what it had to count.
    swept(&small().with_redo(), 14);
    let parts = Kind::new("data_file=x,cluster_size=16k,extended_l2=on", 32);
    swept(&parts.growing(), 1);
    let raw = |options, cluster| Kind::new(options, cluster).growing();
    swept(&raw("data_file=x,data_file_raw=on,cluster_size=512", 1), 2);
    swept(&raw("data_file=x,data_file_raw=on,cluster_size=4k", 8), 2);
}

#[test]
fn data_files_over_others() {
    let kind = || Kind::new("data_file=x,cluster_size=4k", 8);
    swept(&kind().over(203, &[]), 3);
    swept(
        &kind().over(70, &[("cluster_size=16k,extended_l2=on", 150)]),
        2,
    );
}

#[test]
fn daemons_with_data_files_are_killed() {
    let kind = Kind::new("data_file=x,cluster_size=4k", 8);
    swept(&kind.filled(Filled::Stored).with_redo(), 4);
    let parts = Kind::new("data_file=x,cluster_size=16k,extended_l2=on", 32);
    swept(&parts.with_redo(), 3);
    let raw = Kind::new("data_file=x,data_file_raw=on,cluster_size=512", 1);
    swept(&raw.with_redo(), 3);
}

#[test]
fn data_files_on_two_iothreads() {
    let mut hands = Hands::iothreads().unwrap();
    swept_by(&Kind::new("data_file=x,cluster_size=512", 1), &mut hands, 2);
    let raw = "data_file=x,data_file_raw=on,cluster_size=4k";
    swept_by(&Kind::new(raw, 8), &mut hands, 2);
}
