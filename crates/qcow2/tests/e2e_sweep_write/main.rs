//! Writing goes through the fault sweep (`standfast-sweep`): whatever fails, and wherever the power is cut, an image is
//! whole and has what the guest was promised. In memory, beside `write`, which has real files.
//!
//! qemu-img makes the images, and looks at one of a hundred that a cut, a stop or an end has left, and at each that our
//! checker or the model objects to: the two checkers have to agree. With `STANDFAST_SOAK=1` each test goes on to a million faults
//! and cuts (see [`sweep::campaign`]); `STANDFAST_SWEEP_SEED=n` tries one seed, and `STANDFAST_SWEEP_IMAGE=path` keeps the image that
//! was objected to.
//!
//! Needs qemu-img and qemu-io (Debian package qemu-utils).

#![allow(clippy::expect_used, reason = "a failed test")]
#![allow(clippy::panic, reason = "a failed test")]
#![allow(clippy::unwrap_used, reason = "a failed test")]

mod below;
mod chains;
mod files;
mod format;
mod images;
mod kept;
mod overlays;
#[path = "../common/qemu_check.rs"]
mod qemu_check;
mod stories;

use sweep::{Format, Hands, Size, Totals, campaign_of};

use format::Kind;
use images::Filled;

/// More faults than cuts: those of a sequence in which nothing fails are found soon.
const SIZE: Size = Size {
    one_in: 10,
    subsets: 3,
    faults: Some(24),
    fault_one_in: 80,
    ..Size::SMALL
};
/// A test ends after so long even if there were fewer seeds.
const SECONDS: u64 = 40;

fn swept_by(kind: &Kind, hands: &mut Hands, seeds: u64) -> Totals {
    let totals = campaign_of(kind, hands, SIZE, seeds, SECONDS);
    let totals = totals.unwrap_or_else(|found| panic!("{found}"));
    println!(
        "{}: {totals:?}, qemu-img asked: {}",
        kind.name(),
        kind.asked()
    );
    assert!(
        totals.cuts > 20 && totals.faults > 10 && kind.asked() > 0,
        "{totals:?}"
    );
    totals
}

fn swept(kind: &Kind, seeds: u64) {
    swept_by(kind, &mut Hands::here(), seeds);
}

#[test]
fn clusters_of_512_bytes() {
    swept(&Kind::new("cluster_size=512", 1), 8);
    swept(&Kind::new("cluster_size=512", 1).with_tiny_caches(), 4);
}

#[test]
fn clusters_of_4k_and_64k() {
    swept(&Kind::new("cluster_size=4k", 8), 8);
    swept(&Kind::new("cluster_size=4k", 8).with_tiny_caches(), 4);
    swept(&Kind::new("cluster_size=64k", 128), 1);
}

#[test]
fn version_2() {
    swept(&Kind::new("compat=0.10,cluster_size=1k", 2), 6);
    swept(&Kind::new("compat=0.10,cluster_size=4k", 8), 4);
}

#[test]
fn subclusters() {
    let kind = || Kind::new("cluster_size=16k,extended_l2=on", 32);
    swept(&kind(), 5);
    swept(&kind().with_tiny_caches(), 2);
}

/// One bit: nothing can be counted twice. 64: a block counts 64 clusters, so that new ones are needed all the time.
#[test]
fn counts_of_1_and_64_bits() {
    swept(&Kind::new("cluster_size=512,refcount_bits=1", 1), 5);
    let many_blocks = || Kind::new("cluster_size=512,refcount_bits=64", 1);
    swept(&many_blocks(), 6);
    swept(&many_blocks().with_tiny_caches(), 4);
    swept(
        &Kind::new("cluster_size=4k,refcount_bits=64,lazy_refcounts=on", 8),
        4,
    );
}

/// What is compressed is read, and written elsewhere; its sectors are free when nobody has any of them.
#[test]
fn compressed_clusters() {
    for (options, cluster) in [
        ("cluster_size=4k", 8),
        ("cluster_size=4k,compression_type=zstd", 8),
        ("compat=0.10,cluster_size=4k", 8),
        ("cluster_size=16k,extended_l2=on", 32),
    ] {
        swept(&Kind::new(options, cluster).filled(Filled::Compressed), 3);
    }
}

#[test]
fn preallocated_clusters() {
    swept(&Kind::new("cluster_size=4k,preallocation=metadata", 8), 3);
    swept(
        &Kind::new("cluster_size=16k,extended_l2=on,preallocation=metadata", 32),
        2,
    );
    swept(
        &Kind::new("cluster_size=4k", 8).filled(Filled::ZeroedInPlace),
        4,
    );
    let subclusters = Kind::new("cluster_size=16k,extended_l2=on", 32);
    swept(&subclusters.filled(Filled::ZeroedInPlace), 2);
}

/// The disk becomes longer than its L1 table has entries for, which is a cluster and then several.
#[test]
fn the_l1_table_grows() {
    swept(&Kind::new("cluster_size=512", 1).longest(Some(4500)), 3);
}

/// The table of refcounts is full, and the next allocation needs a larger one.
#[test]
fn the_refcount_table_grows() {
    let kind = Kind::new("cluster_size=512,refcount_bits=64", 1);
    let kind = kind.filled(Filled::UpToTheTable);
    let length = kind.create(kind.sectors()).len();
    assert!(
        (2 << 20) - length < 24 * 512,
        "{length}: hardly any is free"
    );
    swept(&kind, 1);
}

#[test]
fn what_is_discarded_keeps_its_cluster() {
    swept(&Kind::new("cluster_size=4k", 8).without_unref(), 3);
    let subclusters = Kind::new("cluster_size=16k,extended_l2=on", 32);
    swept(&subclusters.without_unref(), 2);
}

/// What snapshots have is copied before it is written, tables and data.
#[test]
fn internal_snapshots() {
    let kind = |options, cluster| Kind::new(options, cluster).filled(Filled::Snapshots);
    swept(&kind("cluster_size=512", 1), 3);
    swept(&kind("cluster_size=512", 1).with_tiny_caches(), 2);
    swept(&kind("cluster_size=4k,refcount_bits=8", 8), 4);
    swept(
        &kind("cluster_size=4k,compression_type=zstd", 8).without_unref(),
        2,
    );
    swept(&kind("cluster_size=16k,extended_l2=on", 32), 3);
    // Their lengths are not known: the disk's must not change.
    swept(&kind("compat=0.10,cluster_size=1k", 2).longest(None), 3);
}

/// Those that do not follow are marked before anything is written.
#[test]
fn persistent_bitmaps() {
    let kind = |options, cluster| Kind::new(options, cluster).filled(Filled::Bitmaps);
    swept(&kind("cluster_size=512", 1).longest(None), 3);
    swept(&kind("cluster_size=4k", 8).longest(None), 3);
    let all_follow = Kind::new("cluster_size=4k", 8).filled(Filled::BitmapsThatFollow);
    swept(&all_follow, 3);
}

/// A daemon that is killed: all that it had acknowledged is there for the next, flushed or not. It was lost without a word, and the guest's next flush
/// succeeded.
#[test]
fn daemons_are_killed() {
    for (options, cluster) in [
        ("cluster_size=512", 1),
        ("cluster_size=4k", 8),
        ("cluster_size=16k,extended_l2=on", 32),
        ("cluster_size=512,refcount_bits=64", 1),
        ("cluster_size=512,refcount_bits=1", 1),
    ] {
        swept(&Kind::new(options, cluster).with_redo(), 2);
    }
    swept(
        &Kind::new("cluster_size=512", 1)
            .with_tiny_caches()
            .with_redo(),
        3,
    );
    let snapshots = Kind::new("cluster_size=512", 1).filled(Filled::Snapshots);
    swept(&snapshots.with_redo(), 2);
    let bitmaps = Kind::new("cluster_size=4k", 8).filled(Filled::BitmapsThatFollow);
    swept(&bitmaps.with_redo(), 2);
    let compressed = Kind::new("cluster_size=4k", 8).filled(Filled::Compressed);
    swept(&compressed.with_redo(), 2);
}

#[test]
fn two_iothreads() {
    let mut hands = Hands::iothreads().unwrap();
    swept_by(&Kind::new("cluster_size=512", 1), &mut hands, 2);
    swept_by(&Kind::new("cluster_size=4k", 8), &mut hands, 2);
    let subclusters = Kind::new("cluster_size=16k,extended_l2=on", 32);
    swept_by(&subclusters, &mut hands, 1);
    let snapshots = Kind::new("cluster_size=512", 1).filled(Filled::Snapshots);
    swept_by(&snapshots, &mut hands, 1);
}
