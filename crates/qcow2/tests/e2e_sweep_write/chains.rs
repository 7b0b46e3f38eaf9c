//! Images over others: the raw file and the disks in between are shorter or longer than the disk, and hardly any ends where a
//! cluster does.

use crate::format::Kind;
use crate::images::Filled;
use crate::stories::told;
use crate::{swept, swept_by};
use sweep::Hands;

const SMALL: &str = "cluster_size=4k";
const PARTS: &str = "cluster_size=16k,extended_l2=on";

#[test]
fn over_a_raw_file() {
    swept(&Kind::new("cluster_size=512", 1).over(61, &[]), 4);
    swept(&Kind::new(SMALL, 8).over(203, &[]), 4);
    swept(&Kind::new(SMALL, 8).with_tiny_caches().over(61, &[]), 3);
    swept(&Kind::new(PARTS, 32).over(403, &[]), 3);
}

#[test]
fn over_several_images() {
    swept(&Kind::new(SMALL, 8).over(70, &[(PARTS, 150)]), 3);
    let three = [(PARTS, 400), ("compat=0.10,cluster_size=1k", 90)];
    swept(&Kind::new(PARTS, 32).over(150, &three), 2);
    let five = [
        ("cluster_size=64k", 130),
        ("cluster_size=512", 50),
        (PARTS, 300),
        (SMALL, 100),
    ];
    swept(&Kind::new(SMALL, 8).with_tiny_caches().over(200, &five), 2);
}

/// Nothing can say there that a cluster is zeroes: what is discarded stays as it is. Nor does the disk become longer.
#[test]
fn version_2_over_a_raw_file() {
    let kind = || Kind::new("compat=0.10,cluster_size=4k", 8).longest(None);
    swept(&kind().over(61, &[]), 3);
    swept(&kind().over(203, &[(SMALL, 150)]), 2);
}

#[test]
fn compressed_clusters_over_others() {
    let kind = Kind::new(SMALL, 8).filled(Filled::Compressed);
    swept(&kind.over(203, &[(PARTS, 150)]), 3);
    let kind = Kind::new(PARTS, 32).filled(Filled::Compressed);
    swept(&kind.over(403, &[]), 2);
}

#[test]
fn what_is_discarded_keeps_its_cluster_over_others() {
    swept(&Kind::new(SMALL, 8).without_unref().over(203, &[]), 2);
    let parts = Kind::new(PARTS, 32).without_unref();
    swept(&parts.over(150, &[(SMALL, 403)]), 2);
}

/// What snapshots have is copied before it is written, and what nobody has comes from behind.
#[test]
fn internal_snapshots_over_others() {
    let kind = |options, cluster| Kind::new(options, cluster).filled(Filled::SnapshotsOver);
    swept(&kind(SMALL, 8).over(203, &[]), 2);
    swept(
        &kind(SMALL, 8).with_tiny_caches().over(61, &[(PARTS, 150)]),
        2,
    );
    swept(&kind(PARTS, 32).over(403, &[(SMALL, 100)]), 1);
    swept(&kind(SMALL, 8).without_unref().over(150, &[]), 1);
    swept(&kind(SMALL, 8).with_redo().over(203, &[]), 1);
    swept(&kind(SMALL, 8).over(203, &[(PARTS, 90)]).copying(), 1);
}

/// A read allocates, and may find no room for that: it has its data all the same.
#[test]
fn copied_on_read() {
    swept(&Kind::new(SMALL, 8).over(203, &[]).copying(), 2);
    swept(
        &Kind::new(SMALL, 8)
            .with_tiny_caches()
            .over(61, &[(PARTS, 150)])
            .copying(),
        1,
    );
    swept(
        &Kind::new(PARTS, 32).over(403, &[(SMALL, 300)]).copying(),
        1,
    );
    let old = Kind::new("compat=0.10,cluster_size=4k", 8).longest(None);
    swept(&old.over(203, &[]).copying(), 1);
    let kept = Kind::new(SMALL, 8).without_unref();
    swept(&kept.over(150, &[(SMALL, 403)]).copying(), 1);
    let logged = || Kind::new(SMALL, 8).with_redo();
    swept(&logged().over(203, &[]), 1);
    swept(&logged().over(203, &[(PARTS, 150)]).copying(), 1);
}

#[test]
fn copied_on_read_by_two_iothreads() {
    let mut hands = Hands::iothreads().unwrap();
    swept_by(&Kind::new(SMALL, 8).over(203, &[]).copying(), &mut hands, 2);
    swept_by(
        &Kind::new(PARTS, 32).over(403, &[]).copying(),
        &mut hands,
        1,
    );
}

#[test]
fn no_story_is_told_of_them() {
    told(&Kind::new(SMALL, 8).over(203, &[(PARTS, 90)]), false);
    told(&Kind::new(PARTS, 32).over(803, &[]), false);
    told(
        &Kind::new(SMALL, 8).over(203, &[(PARTS, 90)]).copying(),
        false,
    );
}
