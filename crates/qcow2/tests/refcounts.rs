//! What is known of refcounts, in an image with many refcount blocks. Needs qemu-img (Debian: qemu-utils).

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::sync::Arc;

use block::Node;
use drivers::file::Medium;
use standfast_qcow2::CacheSizes;
use testkit::Place;
use testkit::qcow2_image::run;

use common::{Bench, Request};

const DISK: u64 = 4 << 20;
const PIECE: u64 = 16 << 10;

fn is_bounded(node: &Arc<Node>) {
    let cache = node.driver().info().format.unwrap().refcount_cache;
    assert!(cache.used > 0 && cache.used <= cache.size, "{cache:?}");
}

/// Blocks that were not on disk stayed in memory, however many they were: all of an image's, when all of it was discarded.
#[test]
fn what_is_not_on_disk_is_bounded_too() {
    let place = Place::new();
    let (path, name) = (place.file("image"), place.name("image"));
    let options = "cluster_size=512,refcount_bits=64";
    run(
        "qemu-img",
        &["create", "-qfqcow2", "-o", options, &name, "4M"],
    )
    .unwrap();
    let bench = Bench::new();
    // Four blocks, each of which counts 32 KiB.
    let caches = CacheSizes {
        refcounts: Some(0),
        ..CacheSizes::default()
    };
    let node = bench.open_writable(Medium::File, &path, caches).unwrap();
    // Here and there.
    let count = DISK / PIECE;
    let pieces: Vec<u64> = (0..count).map(|number| number * 37 % count).collect();
    let all = |request: &dyn Fn(u64) -> Request| {
        for some in pieces.chunks(8) {
            let requests = some.iter().map(|piece| request(piece * PIECE));
            for ended in bench.run(&node, requests.collect()) {
                ended.unwrap();
            }
            is_bounded(&node);
        }
    };
    let data = |at: u64| vec![u8::try_from(at / PIECE % 251).unwrap() + 1; 16 << 10];
    all(&|at| Request::Write { at, data: data(at) });
    let read = bench.whole(&node);
    for (at, found) in (0..).step_by(16 << 10).zip(read.chunks(16 << 10)) {
        assert!(found == data(at), "{at:#x}");
    }
    all(&|at| Request::Discard {
        range: at..at + PIECE,
    });
    let flushed = bench.run(&node, vec![Request::Flush]);
    assert!(flushed[0].is_ok());
    is_bounded(&node);
    assert!(bench.whole(&node).iter().all(|byte| *byte == 0));
    bench.close(node);
    // It fails if anything is wrong, or leaked.
    run("qemu-img", &["check", "-qfqcow2", &name]).unwrap();
}
