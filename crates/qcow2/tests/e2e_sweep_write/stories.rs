//! Failures that were told in public, each in several orders, and with each of its operations failing.

use sweep::stories::{ALL, retried_often};
use sweep::{Format, Totals};

use crate::format::Kind;
use crate::images::Filled;

/// Orders of each story.
const SEEDS: u64 = 2;

/// All of them; of most kinds of images operations fail only in a soak.
pub fn told(kind: &Kind, faults: bool) {
    let faults = faults || std::env::var_os("STANDFAST_SOAK").is_some();
    let mut told = Totals::default();
    for story in ALL {
        let totals = story.tell(kind, SEEDS, faults);
        let totals = totals.unwrap_or_else(|found| panic!("{}: {found}", story.name));
        told.cuts += totals.cuts;
        told.faults += totals.faults;
    }
    println!("{}: {told:?}", kind.name());
    assert!(told.cuts > 500 && (told.faults > 50 || !faults), "{told:?}");
}

#[test]
fn none_is_told_of_clusters_of_512_bytes() {
    told(&Kind::new("cluster_size=512", 1), true);
}

#[test]
fn none_is_told_of_clusters_of_4k() {
    told(&Kind::new("cluster_size=4k", 8).with_tiny_caches(), true);
}

#[test]
fn none_is_told_of_preallocated_clusters() {
    told(
        &Kind::new("cluster_size=4k", 8).filled(Filled::ZeroedInPlace),
        false,
    );
}

#[test]
fn none_is_told_of_subclusters() {
    told(&Kind::new("cluster_size=16k,extended_l2=on", 32), false);
}

#[test]
fn none_is_told_of_compressed_clusters() {
    told(
        &Kind::new("cluster_size=4k", 8).filled(Filled::Compressed),
        false,
    );
}

#[test]
fn none_is_told_of_snapshots() {
    told(
        &Kind::new("cluster_size=4k", 8).filled(Filled::Snapshots),
        false,
    );
}

/// A request that is tried a thousand times leaks nothing.
#[test]
fn retried_a_thousand_times() {
    for kind in [
        Kind::new("cluster_size=512,refcount_bits=64", 1),
        Kind::new("cluster_size=4k", 8),
        Kind::new("cluster_size=16k,extended_l2=on", 32),
        Kind::new("cluster_size=4k", 8).filled(Filled::Snapshots),
    ] {
        let totals = retried_often(&kind);
        let totals = totals.unwrap_or_else(|found| panic!("{found}"));
        assert!(totals.failed > 500, "{totals:?}");
    }
}
