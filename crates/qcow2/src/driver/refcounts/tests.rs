use super::*;

const CLUSTER: usize = 512;

/// Clusters of 512 bytes and counts of 64 bits: 64 in a block, as many blocks in a cluster of the table.
fn geometry() -> Geometry {
    Geometry::new(9, 6, false).expect("one that may be")
}

/// One block, at cluster 1, which counts `used` clusters from the first on; the table is cluster 2.
fn counts(used: u64) -> Refcounts {
    let mut table = vec![0; CLUSTER];
    table[..8].copy_from_slice(&(CLUSTER as u64).to_be_bytes());
    let at = HostOffset(2 * CLUSTER as u64);
    let mut counts = Refcounts::new(geometry(), at, &table, 2);
    let mut block = vec![0; CLUSTER];
    for cluster in 0..used {
        refcount::set(&mut block, usize::try_from(cluster).expect("small"), 6, 1);
    }
    counts.loaded(0, block.into(), 0);
    counts
}

fn search(counts: &mut Refcounts, clusters: u64, whole: bool) -> Search {
    counts.search(&mut Wanted::new(clusters, whole))
}

fn take(counts: &mut Refcounts, run: Range<u64>) {
    let mut wanted = Wanted::new(run.end - run.start, false);
    assert_eq!(counts.search(&mut wanted), Search::Found(run.clone()));
    counts.take(&run, &wanted);
}

#[test]
fn the_first_that_is_free_and_not_held() {
    let mut counts = counts(5);
    take(&mut counts, 5..8);
    assert_eq!(counts.lower(HostCluster(3)), Some(0));
    // It may still be read.
    assert_eq!(search(&mut counts, 1, false), Search::Found(8..9));
    counts.release(HostCluster(3));
    assert_eq!(
        search(&mut counts, 4, false),
        Search::Found(3..4),
        "as many as there are"
    );
    assert_eq!(
        search(&mut counts, 4, true),
        Search::Found(8..12),
        "one after the other"
    );
    let mut wanted = Wanted::new(4, true);
    assert_eq!(counts.search(&mut wanted), Search::Found(8..12));
    counts.take(&(8..12), &wanted);
    counts.give_back(&(9..10));
    assert_eq!(search(&mut counts, 1, true), Search::Found(3..4));
    assert_eq!(counts.count(HostCluster(9)), Some(0));
    assert_eq!(counts.lower(HostCluster(9)), None, "nobody has it");
}

#[test]
fn a_new_block_counts_itself_and_is_written_before_the_table() {
    let mut counts = counts(63);
    assert_eq!(search(&mut counts, 4, false), Search::Found(63..64));
    take(&mut counts, 63..64);
    assert!(counts.is_table_clean() && !counts.has_block(1));
    assert_eq!(search(&mut counts, 4, false), Search::Make(1, 64));
    counts.make_block(1, 64);
    assert_eq!(search(&mut counts, 4, false), Search::Found(65..69));
    assert_eq!(counts.count(HostCluster(64)), Some(1));
    let dirty = counts.dirty_blocks();
    let places: Vec<_> = dirty.iter().map(|block| block.piece.offset.0).collect();
    assert_eq!(places, [512, 64 * 512]);
    let (entries, pieces) = counts.new_entries();
    assert_eq!((entries.as_slice(), pieces.len()), (&[1][..], 1));
    assert_eq!(pieces[0].offset, HostOffset(1024));
    assert_eq!(pieces[0].bytes[8..16], (64u64 * 512).to_be_bytes());
    counts.entries_written(&entries);
    assert!(counts.is_table_clean() && counts.is_dirty());
    // What has been changed since is dirty still.
    take(&mut counts, 65..66);
    dirty.iter().for_each(|block| counts.written(block));
    let left: Vec<_> = counts
        .dirty_blocks()
        .iter()
        .map(|block| block.index)
        .collect();
    assert_eq!(left, [1]);
}

#[test]
fn a_longer_table_counts_itself() {
    let mut counts = counts(64);
    for index in 1..64usize {
        let first = index as u64 * 64;
        assert_eq!(search(&mut counts, 1, false), Search::Make(index, first));
        counts.make_block(index, first);
        take(&mut counts, first + 1..first + 2);
        let rest = first + 2..first + 64;
        take(&mut counts, rest);
    }
    assert_eq!(search(&mut counts, 1, false), Search::Full);
    let growth = counts.growth().expect("there is room for a longer one");
    let geometry = geometry();
    let clusters = growth.clusters(&geometry);
    assert_eq!(
        clusters,
        4096..4096 + 3,
        "a block and two clusters of the table"
    );
    assert_eq!(growth.table_at(&geometry), HostOffset(4097 * 512));
    assert_eq!(growth.bytes(&geometry).bytes.len(), 3 * CLUSTER);
    counts.grown(growth);
    for cluster in clusters {
        assert_eq!(counts.count(HostCluster(cluster)), Some(1), "{cluster}");
    }
    assert_eq!(search(&mut counts, 2, false), Search::Found(4099..4101));
    assert_eq!(counts.table_clusters(), 4097..4099);
}

#[test]
fn what_is_clean_makes_room_and_what_is_dirty_stays() {
    let mut counts = counts(3);
    take(&mut counts, 3..4);
    for index in 5..9 {
        counts.table[index] = 512 * 100;
        let evicted = counts.evicted();
        assert!(counts.loaded(index, vec![0; CLUSTER].into(), evicted));
    }
    assert!(counts.blocks.contains_key(&0), "it is not on disk");
    assert_eq!(counts.blocks.len(), 2);
    assert!(counts.has_room());
    counts.set(8 * 64, 1);
    assert!(!counts.has_room(), "none of them can leave");
    let dirty = counts.dirty_blocks();
    counts.set(3, 0);
    dirty.iter().for_each(|block| counts.written(block));
    assert!(counts.has_room(), "one of them is on disk as it is");
    let evicted = counts.evicted();
    assert!(counts.loaded(5, vec![0; CLUSTER].into(), evicted));
    assert!(counts.loaded(6, vec![0; CLUSTER].into(), counts.evicted()));
    assert!(counts.blocks.contains_key(&0), "it has been changed since");
    let room = 2 * CLUSTER as u64;
    let cache = counts.cache_use();
    assert_eq!((cache.size, cache.used), (room, room));
    assert_eq!(cache.misses, 7);
    assert_eq!(
        counts.count(HostCluster(5 * 64)),
        None,
        "it has to be read again"
    );
}

/// The search for free clusters began anew after each block that was read, so that more full blocks than are kept in
/// memory were read in turn for ever: with clusters of 64 KiB from 8 GiB on.
#[test]
fn more_full_blocks_than_are_kept() {
    for whole in [false, true] {
        let mut counts = counts(64);
        for index in 1..9 {
            counts.table[index] = 512 * 100;
        }
        let mut wanted = Wanted::new(2, whole);
        let mut read = Vec::new();
        let found = loop {
            match counts.search(&mut wanted) {
                Search::Load(index) => {
                    read.push(index);
                    assert!(read.len() < 20, "for ever: {read:?}");
                    let mut block = vec![0xff; CLUSTER];
                    if index == 5 {
                        // One alone.
                        block[80..88].fill(0);
                    }
                    if index == 7 {
                        block[16..40].fill(0);
                    }
                    let evicted = counts.evicted();
                    assert!(counts.loaded(index, block.into(), evicted));
                }
                found => break found,
            }
        };
        let (last, place) = if whole {
            (7, 7 * 64 + 2..7 * 64 + 4)
        } else {
            (5, 330..331)
        };
        assert_eq!(found, Search::Found(place.clone()));
        assert_eq!(read, (1..=last).collect::<Vec<_>>());
        counts.take(&place, &wanted);
        let next = counts.search(&mut Wanted::new(1, false));
        assert!(
            matches!(
                (whole, next),
                (true, Search::Load(5)) | (false, Search::Load(6))
            ),
            "the one that was passed over is not forgotten"
        );
    }
}

/// A block was made in the first of its clusters, so that no run was longer than what a block counts.
#[test]
fn a_run_is_longer_than_a_block_counts() {
    let mut counts = counts(10);
    let mut wanted = Wanted::new(150, true);
    let mut made = Vec::new();
    let found = loop {
        match counts.search(&mut wanted) {
            Search::Make(index, cluster) => {
                counts.make_block(index, cluster);
                made.push((index, cluster));
            }
            found => break found,
        }
    };
    assert_eq!(made, [(1, 10), (2, 11)]);
    assert_eq!(found, Search::Found(12..162));
    counts.take(&(12..162), &wanted);
    assert_eq!(counts.count(HostCluster(161)), Some(1));
}

/// What was read before others had changed the block, written it and let it go took the place of what they had written.
#[test]
fn what_was_read_too_early_is_read_again() {
    let mut counts = counts(64);
    for index in 1..9 {
        counts.table[index] = 512 * 100;
    }
    let early = counts.evicted();
    for index in [1, 2, 3] {
        let evicted = counts.evicted();
        assert!(counts.loaded(index, vec![0xff; CLUSTER].into(), evicted));
    }
    assert!(!counts.blocks.contains_key(&1));
    assert!(!counts.loaded(1, vec![0; CLUSTER].into(), early));
    assert!(
        counts.loaded(3, vec![0; CLUSTER].into(), early),
        "it is there"
    );
    assert_eq!(counts.count(HostCluster(3 * 64)), Some(u64::MAX));
}

/// Each of the blocks that was read took the place of another one that counts the same run, for ever.
#[test]
fn a_run_that_more_blocks_count_than_are_kept() {
    let mut counts = counts(64);
    for index in 1..9 {
        counts.table[index] = 512 * 100;
    }
    let mut wanted = Wanted::new(4 * 64, true);
    let mut reads = 0;
    let found = loop {
        match counts.search(&mut wanted) {
            Search::Load(index) => {
                reads += 1;
                assert!(reads < 40, "for ever");
                // One cluster in the first of them is used.
                let mut block = vec![0; CLUSTER];
                if index == 1 {
                    block[0..8].fill(1);
                }
                let evicted = counts.evicted();
                assert!(counts.loaded(index, block.into(), evicted));
            }
            found => break found,
        }
    };
    let run = 65..65 + 4 * 64;
    assert_eq!(found, Search::Found(run.clone()));
    counts.take(&run, &wanted);
    assert!(!counts.has_room(), "five blocks are dirty");
    assert_eq!(search(&mut counts, 1, false), Search::Found(321..322));
    let dirty = counts.dirty_blocks();
    assert_eq!(dirty.len(), 5);
    dirty.iter().for_each(|block| counts.written(block));
    let evicted = counts.evicted();
    assert!(counts.loaded(7, vec![0; CLUSTER].into(), evicted));
    assert_eq!(counts.blocks.len(), 2);
}

/// A block that was written and had left memory counted what was given back for ever.
#[test]
fn what_is_given_back_when_its_block_has_left() {
    let mut counts = counts(3);
    take(&mut counts, 3..5);
    let dirty = counts.dirty_blocks();
    dirty.iter().for_each(|block| counts.written(block));
    assert!(counts.give_back(&(4..5)).is_empty(), "it is there");
    let dirty = counts.dirty_blocks();
    dirty.iter().for_each(|block| counts.written(block));
    for index in [5, 6] {
        counts.table[index] = 512 * 100;
        let evicted = counts.evicted();
        assert!(counts.loaded(index, vec![0; CLUSTER].into(), evicted));
    }
    assert_eq!(counts.give_back(&(3..4)), [3]);
}

/// Whoever found the table full looked from the beginning again, and again, and the iothread did nothing else any more.
#[test]
fn a_table_that_is_full_is_searched_twice() {
    let mut counts = counts(64);
    for index in 1..64 {
        counts.table[index] = 512 * 100;
        let full = vec![0xff; CLUSTER];
        counts.blocks_now = 100;
        let evicted = counts.evicted();
        assert!(counts.loaded(index, full.into(), evicted));
    }
    counts.blocks_max = 100;
    for skipped in [false, true] {
        let mut wanted = Wanted::new(1, false);
        wanted.skipped = skipped;
        let mut searches = 1;
        while counts.search(&mut wanted) == Search::Full && wanted.again() {
            searches += 1;
            assert!(searches < 9, "for ever");
        }
        assert!(searches < 3, "{searches}");
    }
}
