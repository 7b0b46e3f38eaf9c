//! What becomes of L2 entries when their clusters are written, zeroed or discarded. Pure.

use std::ops::Range;

use super::tables::{Freed, Why};
use crate::format::l2::EntryRules;
use crate::format::{Cluster, Geometry, HostOffset, geometry::SUBCLUSTERS};

/// All subclusters.
const ALL: u32 = u32::MAX;

/// Where the bytes of a write to a cluster go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the cluster that it has, without any change of the entry, if they lie in these subclusters.
    InPlace {
        /// Where the cluster is.
        host: HostOffset,
        /// The subclusters that are stored.
        allocated: u32,
    },
    /// To the cluster that is kept for it: what is not stored yet becomes so.
    Kept {
        /// Where the cluster is.
        host: HostOffset,
    },
    /// To a new cluster.
    New {
        /// All of the cluster is stored anew, with what it has been.
        whole: bool,
    },
}

impl Target {
    /// That of a cluster.
    pub fn of(cluster: &Cluster) -> Self {
        match *cluster {
            Cluster::Unallocated
            | Cluster::Zero {
                preallocated: None, ..
            }
            | Cluster::Zero { copied: false, .. } => Self::New { whole: true },
            Cluster::Zero {
                preallocated: Some(host),
                copied: true,
            } => Self::Kept { host },
            Cluster::Data { host, copied: true } => Self::InPlace {
                host,
                allocated: ALL,
            },
            Cluster::Data { copied: false, .. } | Cluster::Compressed(_) => {
                Self::New { whole: true }
            }
            Cluster::Subclusters { host: None, .. } => Self::New { whole: false },
            Cluster::Subclusters {
                host: Some(host),
                copied: true,
                allocated,
                ..
            } => Self::InPlace { host, allocated },
            Cluster::Subclusters { copied: false, .. } => Self::New { whole: true },
        }
    }
}

/// The entry of a cluster of which the subclusters `stored` have been stored at `host` (all, in an image without them).
pub fn written(before: &Cluster, rules: &EntryRules, host: HostOffset, stored: u32) -> Cluster {
    if !rules.geometry.extended_l2() {
        return Cluster::Data { host, copied: true };
    }
    let (allocated, zero) = match *before {
        Cluster::Subclusters {
            allocated, zero, ..
        } => (allocated, zero),
        _ => (0, 0),
    };
    Cluster::Subclusters {
        host: Some(host),
        copied: true,
        allocated: allocated | stored,
        zero: zero & !stored,
    }
}

/// How what is not to be read any more is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clear {
    /// It reads as zeroes, and keeps its cluster if it has one.
    Keep,
    /// It reads as zeroes, and has no cluster.
    Free,
    /// It is as if it had never been written.
    Forget,
}

/// The entry of a cluster of which the subclusters `mask` (all, in an image without them) are cleared; none: it needs no
/// change.
///
/// In version 2 nothing can be zero that has a cluster: [`Clear::Keep`] is not asked for there; nor is [`Clear::Free`] if
/// `behind` is set: something may be behind the cluster, which shows where nothing is. A compressed cluster is cleared whole.
pub fn cleared(
    before: &Cluster,
    rules: &EntryRules,
    clear: Clear,
    behind: bool,
    mask: u32,
) -> Option<Cluster> {
    let nothing = match clear {
        Clear::Forget => Cluster::Unallocated,
        _ if rules.version < 3 => Cluster::Unallocated,
        _ => Cluster::Zero {
            preallocated: None,
            copied: false,
        },
    };
    let keep = clear == Clear::Keep;
    match *before {
        Cluster::Unallocated => (behind && clear != Clear::Forget).then_some(nothing),
        Cluster::Zero {
            preallocated: None, ..
        } => (behind && clear == Clear::Forget).then_some(nothing),
        Cluster::Zero {
            preallocated: Some(_),
            ..
        } => (!keep).then_some(nothing),
        Cluster::Data { host, copied: true } if keep => Some(Cluster::Zero {
            preallocated: Some(host),
            copied: true,
        }),
        Cluster::Data { .. } => Some(nothing),
        Cluster::Compressed(_) if rules.geometry.extended_l2() => Some(Cluster::Subclusters {
            host: None,
            copied: false,
            allocated: 0,
            zero: if clear == Clear::Forget { 0 } else { ALL },
        }),
        Cluster::Compressed(_) => Some(nothing),
        Cluster::Subclusters {
            host,
            copied,
            allocated,
            zero,
        } => {
            let left = allocated & !mask;
            let zero = match clear {
                Clear::Forget => zero & !mask,
                // What is behind the others may show.
                _ if behind => zero | mask,
                _ => zero | mask & allocated,
            };
            // A cluster that is shared is not kept for later writes.
            let kept = host.filter(|_| left != 0 || (keep && copied));
            let after = Cluster::Subclusters {
                host: kept,
                copied: copied && kept.is_some(),
                allocated: left,
                zero,
            };
            (after != *before).then_some(after)
        }
    }
}

/// What is not used any more when an entry becomes another one.
pub fn unused(before: &Cluster, after: &Cluster, rules: &EntryRules, why: Why) -> Vec<Freed> {
    let geometry = &rules.geometry;
    match before {
        Cluster::Compressed(data) => Freed::compressed(data, geometry, why).collect(),
        _ => {
            let host = host_of(before).filter(|host| host_of(after) != Some(*host));
            let freed = host.map(|host| Freed {
                cluster: geometry.cluster_of(host),
                why,
            });
            freed.into_iter().collect()
        }
    }
}

/// The cluster from which nothing is read any more when an entry becomes another one, though something was.
pub fn emptied(before: &Cluster, after: &Cluster) -> Option<HostOffset> {
    let is_stored = |cluster: &Cluster| match *cluster {
        Cluster::Data { .. } => true,
        Cluster::Subclusters { allocated, .. } => allocated != 0,
        _ => false,
    };
    host_of(before).filter(|_| is_stored(before) && !is_stored(after))
}

/// The clusters of the file that an entry points to.
pub fn clusters_of(cluster: &Cluster, geometry: &Geometry) -> Option<Range<u64>> {
    let (first, last) = match cluster {
        Cluster::Compressed(data) => (data.offset, HostOffset(data.end() - 1)),
        other => {
            let host = host_of(other)?;
            (host, host)
        }
    };
    Some(geometry.cluster_of(first).0..geometry.cluster_of(last).0 + 1)
}

/// The cluster that is kept for an entry, or stores it.
pub fn host_of(cluster: &Cluster) -> Option<HostOffset> {
    match *cluster {
        Cluster::Unallocated | Cluster::Compressed(_) => None,
        Cluster::Zero { preallocated, .. } => preallocated,
        Cluster::Data { host, .. } => Some(host),
        Cluster::Subclusters { host, .. } => host,
    }
}

/// The subclusters in which the bytes from `start` to `end` of a cluster lie (all, in an image without them).
pub fn subclusters_of(rules: &EntryRules, start: u64, end: u64) -> u32 {
    if !rules.geometry.extended_l2() {
        return ALL;
    }
    let size = rules.geometry.subcluster_size();
    let (first, last) = (start / size, end.div_ceil(size));
    let below = |count: u64| match count {
        count if count >= u64::from(SUBCLUSTERS) => ALL,
        count => (1u32 << count) - 1,
    };
    below(last) & !below(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{CompressedCluster, HostCluster};

    const HOST: HostOffset = HostOffset(5 << 16);
    const DATA: Cluster = Cluster::Data {
        host: HOST,
        copied: true,
    };
    const ZERO: Cluster = Cluster::Zero {
        preallocated: None,
        copied: false,
    };
    const KEPT: Cluster = Cluster::Zero {
        preallocated: Some(HOST),
        copied: true,
    };
    const PACKED: Cluster = Cluster::Compressed(CompressedCluster {
        offset: HostOffset((7 << 16) - 100),
        bytes: 612,
    });

    fn rules(version: u32, extended: bool) -> EntryRules {
        EntryRules {
            geometry: Geometry::new(16, 4, extended).expect("the usual one"),
            version,
            external_data: false,
        }
    }

    fn parts(host: Option<HostOffset>, allocated: u32, zero: u32) -> Cluster {
        Cluster::Subclusters {
            host,
            copied: host.is_some(),
            allocated,
            zero,
        }
    }

    #[test]
    fn what_is_cleared() {
        use Clear::{Forget, Free, Keep};
        let nothing = Cluster::Unallocated;
        for (version, before, clear, after) in [
            (3, DATA, Keep, Some(KEPT)),
            (3, DATA, Free, Some(ZERO)),
            (3, DATA, Forget, Some(nothing)),
            (2, DATA, Free, Some(nothing)),
            (3, KEPT, Keep, None),
            (3, KEPT, Free, Some(ZERO)),
            (3, PACKED, Keep, Some(ZERO)),
            (2, PACKED, Keep, Some(nothing)),
            (3, ZERO, Free, None),
            (3, nothing, Keep, None),
        ] {
            let rules = rules(version, false);
            assert_eq!(
                cleared(&before, &rules, clear, false, ALL),
                after,
                "{before:?} {clear:?}"
            );
        }
        let shared = Cluster::Data {
            host: HOST,
            copied: false,
        };
        let rules = rules(3, false);
        assert_eq!(
            cleared(&shared, &rules, Keep, false, ALL),
            Some(ZERO),
            "it is another's, too"
        );
        // What is behind the image would show.
        for (before, clear, after) in [
            (nothing, Keep, Some(ZERO)),
            (nothing, Free, Some(ZERO)),
            (nothing, Forget, None),
            (ZERO, Keep, None),
            (ZERO, Forget, Some(nothing)),
        ] {
            let cleared = cleared(&before, &rules, clear, true, ALL);
            assert_eq!(cleared, after, "{before:?} {clear:?}");
        }
    }

    #[test]
    fn parts_of_a_cluster_are_cleared_and_the_last_one_frees_it() {
        use Clear::{Forget, Free, Keep};
        let rules = rules(3, true);
        let over = |before, clear, mask| cleared(&before, &rules, clear, true, mask);
        assert_eq!(over(parts(None, 0, 0), Keep, 6), Some(parts(None, 0, 6)));
        assert_eq!(
            over(parts(Some(HOST), 2, 0), Free, 6),
            Some(parts(None, 0, 6))
        );
        let cleared = |before, clear, mask| cleared(&before, &rules, clear, false, mask);
        let half = parts(Some(HOST), 0xff, 0x100);
        assert_eq!(
            cleared(half, Free, 0x0f),
            Some(parts(Some(HOST), 0xf0, 0x10f))
        );
        assert_eq!(cleared(half, Free, 0xff), Some(parts(None, 0, 0x1ff)));
        assert_eq!(cleared(half, Keep, 0xff), Some(parts(Some(HOST), 0, 0x1ff)));
        assert_eq!(cleared(half, Forget, ALL), Some(parts(None, 0, 0)));
        assert_eq!(
            cleared(half, Keep, 0xff00),
            None,
            "they read as zeroes already"
        );
        assert_eq!(cleared(PACKED, Free, ALL), Some(parts(None, 0, ALL)));
    }

    #[test]
    fn what_is_written_is_stored() {
        let whole = rules(3, false);
        assert_eq!(written(&KEPT, &whole, HOST, ALL), DATA);
        let extended = rules(3, true);
        let before = parts(Some(HOST), 1, 6);
        assert_eq!(
            written(&before, &extended, HOST, 2),
            parts(Some(HOST), 3, 4)
        );
        assert_eq!(
            written(&PACKED, &extended, HOST, ALL),
            parts(Some(HOST), ALL, 0)
        );
        assert_eq!(subclusters_of(&extended, 0, 1 << 16), ALL);
        assert_eq!(subclusters_of(&extended, 2048, 6144), 6);
        assert_eq!(subclusters_of(&extended, 2049, 2050), 2);
        assert_eq!(subclusters_of(&whole, 2049, 2050), ALL);
    }

    #[test]
    fn what_is_not_used_any_more() {
        let rules = rules(3, false);
        let clusters = |before: &Cluster, after: &Cluster| -> Vec<u64> {
            let all = unused(before, after, &rules, Why::Other);
            all.iter().map(|freed| freed.cluster.0).collect()
        };
        assert_eq!(clusters(&DATA, &ZERO), [5]);
        assert_eq!(clusters(&DATA, &KEPT), [0; 0], "it is kept");
        assert_eq!(clusters(&PACKED, &DATA), [6, 7], "in both of them");
        assert_eq!(clusters_of(&PACKED, &rules.geometry), Some(6..8));
        assert_eq!(clusters_of(&KEPT, &rules.geometry), Some(5..6));
        assert_eq!(clusters(&Cluster::Unallocated, &DATA), [0; 0]);
        let freed = Freed {
            cluster: HostCluster(5),
            why: Why::Request,
        };
        assert_eq!(unused(&KEPT, &ZERO, &rules, Why::Request), [freed]);
    }
}
