//! Reading goes through the fault sweep (`standfast-sweep`): images as qemu-img writes them, on storage whose reads fail and
//! end in any order, many requests at a time on two iothreads. In memory, beside `read`, which has real files.
//!
//! Needs qemu-img (Debian package qemu-utils).

#![allow(clippy::panic, reason = "a failed test")]
#![allow(clippy::unwrap_used, reason = "a failed test")]

use std::sync::Arc;

use block::{Node, NodeInfo};
use standfast_qcow2::check::{Limits, check};
use standfast_qcow2::{CacheSizes, Image, Qcow2, Qcow2Options};
use sweep::sector::fill;
use sweep::{Finding, Format, Hands, SECTOR, Size, Totals, Value, sweep_seed};

const SECTORS: u64 = 96;

#[derive(Debug)]
struct Made {
    kind: String,
    image: Vec<u8>,
    cluster: u64,
}

/// Which request has written a sector: some have been written by none.
fn stamp(sector: u64) -> Option<u32> {
    let piece = sector / 5;
    (piece % 3 != 1).then(|| u32::try_from(piece + 100_000).unwrap())
}

impl Made {
    fn new(kind: &str, cluster: u64, compressed: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (raw, made) = (dir.path().join("raw"), dir.path().join("qcow2"));
        let mut content = vec![0; usize::try_from(SECTORS).unwrap() * SECTOR];
        for (sector, bytes) in (0..).zip(content.chunks_mut(SECTOR)) {
            if let Some(stamp) = stamp(sector) {
                fill(bytes, stamp, sector);
            }
        }
        std::fs::write(&raw, content).unwrap();
        let (from, to) = (raw.to_str().unwrap(), made.to_str().unwrap());
        let mut arguments = vec!["convert", "-S512", "-fraw", "-Oqcow2", "-o", kind, from, to];
        if compressed {
            arguments.insert(1, "-c");
        }
        testkit::qcow2_image::run("qemu-img", &arguments).unwrap();
        Self {
            kind: format!("{kind} compressed: {compressed}"),
            image: std::fs::read(&made).unwrap(),
            cluster,
        }
    }
}

impl Format for Made {
    fn name(&self) -> String {
        format!("qcow2 {}", self.kind)
    }

    fn create(&self, _sectors: u64) -> Vec<u8> {
        self.image.clone()
    }

    fn content(&self, sectors: u64) -> Vec<Value> {
        (0..sectors)
            .map(|sector| stamp(sector).map_or(Value::Zero, Value::Stamp))
            .collect()
    }

    fn read_only(&self) -> bool {
        true
    }

    fn open(&self, file: Arc<Node>) -> Result<Arc<Node>, String> {
        let opened = pollster::block_on(Qcow2::open(Qcow2Options {
            // So little that what was read has to be read again.
            caches: CacheSizes {
                l2: Some(512),
                l2_entry: Some(512),
                ..CacheSizes::default()
            },
            info: NodeInfo {
                read_only: true,
                ..NodeInfo::default()
            },
            ..Qcow2Options::new("qcow2", file)
        }));
        let opened = opened.map_err(|error| error.to_string())?;
        Ok(Node::new("qcow2", Box::new(opened)))
    }

    fn check(&self, disk: &[u8]) -> Vec<Finding> {
        let image = match Image::open(&disk) {
            Ok(image) => image,
            Err(error) => return vec![Finding::corruption(error.to_string())],
        };
        let report = check(&image, &Limits::default());
        let bad = report.corruptions + report.errors > 0;
        let texts: Vec<_> = report
            .findings
            .iter()
            .map(|finding| format!("{finding:?}"))
            .collect();
        match (bad, report.leaks > 0) {
            (true, _) => vec![Finding::corruption(texts.join("; "))],
            (false, true) => vec![Finding::leak(texts.join("; "))],
            (false, false) => Vec::new(),
        }
    }

    fn cluster(&self) -> u64 {
        self.cluster
    }
}

#[test]
fn what_qemu_has_written_is_read_whatever_fails_and_in_whatever_order() {
    let size = Size {
        sectors: SECTORS,
        one_in: 0,
        subsets: 1,
        fault_one_in: 0,
        ..Size::SMALL
    };
    let mut hands = Hands::iothreads().unwrap();
    for (kind, cluster, compressed) in [
        ("cluster_size=512", 1, false),
        ("cluster_size=4k", 8, false),
        ("compat=0.10,cluster_size=1k", 2, false),
        ("cluster_size=16k,extended_l2=on", 32, false),
        ("cluster_size=4k", 8, true),
        ("cluster_size=4k,compression_type=zstd", 8, true),
    ] {
        let format = Made::new(kind, cluster, compressed);
        let mut totals = Totals::default();
        for seed in 0..3 {
            let swept = sweep_seed(&format, &mut hands, seed, &size, &mut totals);
            swept.unwrap_or_else(|found| panic!("{found}"));
        }
        println!("{kind}: {totals:?}");
        assert!(
            totals.failed > 0 && totals.operations > 300,
            "{kind}: {totals:?}"
        );
    }
}
