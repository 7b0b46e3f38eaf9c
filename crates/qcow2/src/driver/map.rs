//! From guest bytes to what they are, by the entries of one slice of an L2 table. Pure.

use crate::format::l1::{COPIED, OFFSET_MASK};
use crate::format::l2::{EntryRules, subcluster, subclusters_alike};
use crate::format::{
    Cluster, CompressedCluster, EntryError, Geometry, GuestOffset, HostOffset, L2Entry,
    SubclusterKind, bytes,
};

/// What some guest bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What is behind the image shows, or zeroes.
    Unallocated,
    /// Zeroes; and where there is room for something else.
    Zero(Option<HostOffset>),
    /// Stored, from here on.
    Data(HostOffset),
    /// A part of a compressed cluster.
    Compressed {
        /// Where that is.
        data: CompressedCluster,
        /// Where the part begins in it.
        within: u64,
    },
}

/// A run of guest bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// What they are.
    pub kind: Kind,
    /// How many, at least one.
    pub bytes: u64,
}

impl Mapped {
    /// Makes it longer by `next`, which follows it; false if that is something else.
    pub fn join(&mut self, next: &Self) -> bool {
        let behind = |host: HostOffset| HostOffset(host.0.saturating_add(self.bytes));
        let alike = match (self.kind, next.kind) {
            (Kind::Unallocated, Kind::Unallocated) | (Kind::Zero(None), Kind::Zero(None)) => true,
            (Kind::Zero(Some(here)), Kind::Zero(Some(there)))
            | (Kind::Data(here), Kind::Data(there)) => behind(here) == there,
            _ => false,
        };
        if alike {
            self.bytes += next.bytes;
        }
        alike
    }
}

/// What a slice has to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Which bytes of the guest they are.
    pub guest: GuestOffset,
    /// The entry, as an index into the slice.
    pub entry: usize,
    /// Where the bytes begin in its cluster.
    pub within: u64,
    /// How many bytes somebody wants to know of, at least one.
    pub wanted: u64,
}

/// Where the cluster of an entry is stored, and whether it may be written there, if the entry is a standard one that says
/// that and nothing else: the usual one. As [`L2Entry::decode`] has it, in one look.
#[inline]
pub fn plain(slice: &[u8], entry: usize, geometry: &Geometry) -> Option<(HostOffset, bool)> {
    if geometry.extended_l2() {
        return None;
    }
    let descriptor = bytes::be64(slice, entry.checked_mul(8)?)?;
    let host = descriptor & !COPIED;
    let is_cluster = host & !(OFFSET_MASK & !(geometry.cluster_size() - 1)) == 0;
    (is_cluster && host != 0).then_some((HostOffset(host), descriptor & COPIED != 0))
}

/// The run that begins there, of one kind, as far as it is wanted and the slice goes.
///
/// # Errors
/// What cannot be in the first entry. A later one that cannot be ends the run.
pub fn run(slice: &[u8], rules: &EntryRules, question: Question) -> Result<Mapped, EntryError> {
    let Question {
        guest,
        mut entry,
        mut within,
        wanted,
    } = question;
    let size = rules.geometry.cluster_size();
    if within + wanted <= size
        && !rules.external_data
        && let Some((host, _)) = plain(slice, entry, &rules.geometry)
    {
        return Ok(Mapped {
            kind: Kind::Data(HostOffset(host.0 + within)),
            bytes: wanted,
        });
    }
    let mut all: Option<Mapped> = None;
    while let Some(found) = L2Entry::read(slice, entry, &rules.geometry) {
        let next = match (found.decode(rules), &all) {
            (Ok(cluster), _) => inside(&cluster, rules, within),
            (Err(error), None) => return Err(error),
            (Err(_), Some(_)) => break,
        };
        let joined = match &mut all {
            None => {
                all = Some(next);
                true
            }
            Some(all) => all.join(&next),
        };
        if !joined {
            break;
        }
        within += next.bytes;
        if within >= size {
            (entry, within) = (entry + 1, 0);
        }
        if all.is_some_and(|all| all.bytes >= wanted) {
            break;
        }
    }
    if rules.external_data
        && let Some(Kind::Data(host) | Kind::Zero(Some(host))) = all.map(|all| all.kind)
        && host.0 != guest.0
    {
        return Err(EntryError::NotInPlace(host));
    }
    let mut all = all.unwrap_or(Mapped {
        // Only of an entry beyond the slice, for which nobody asks.
        kind: Kind::Unallocated,
        bytes: wanted,
    });
    all.bytes = all.bytes.min(wanted);
    Ok(all)
}

/// The run that begins at `within` of a cluster, and ends with it at the latest.
fn inside(cluster: &Cluster, rules: &EntryRules, within: u64) -> Mapped {
    let size = rules.geometry.cluster_size();
    let at = |host: HostOffset| HostOffset(host.0 + within);
    let bytes = size - within;
    let kind = match *cluster {
        Cluster::Unallocated => Kind::Unallocated,
        Cluster::Zero { preallocated, .. } => Kind::Zero(preallocated.map(at)),
        Cluster::Data { host, .. } => Kind::Data(at(host)),
        Cluster::Compressed(data) => Kind::Compressed { data, within },
        Cluster::Subclusters {
            host,
            allocated,
            zero,
            ..
        } => {
            let part = rules.geometry.subcluster_size();
            // At most 31.
            let first = u32::try_from(within / part).unwrap_or(0);
            let alike = u64::from(subclusters_alike(allocated, zero, first));
            let kind = match (subcluster(allocated, zero, first), host) {
                (SubclusterKind::Zero, host) => Kind::Zero(host.map(at)),
                (SubclusterKind::Data, Some(host)) => Kind::Data(at(host)),
                // What is allocated has a cluster: that was checked.
                (SubclusterKind::Unallocated | SubclusterKind::Data, _) => Kind::Unallocated,
            };
            let end = (u64::from(first) + alike) * part;
            return Mapped {
                kind,
                bytes: end - within,
            };
        }
    };
    Mapped { kind, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Geometry;

    fn rules(extended: bool) -> EntryRules {
        EntryRules {
            geometry: Geometry::new(16, 4, extended).expect("the usual one"),
            version: 3,
            external_data: false,
        }
    }

    fn slice(rules: &EntryRules, clusters: &[Cluster]) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        for (index, cluster) in clusters.iter().enumerate() {
            let entry = L2Entry::encode(cluster, &rules.geometry).expect("it has room");
            assert!(entry.write(&mut bytes, index, &rules.geometry));
        }
        bytes
    }

    fn ask(slice: &[u8], rules: &EntryRules, at: u64, wanted: u64) -> (Kind, u64) {
        let question = Question {
            guest: GuestOffset(at),
            entry: usize::try_from(at >> 16).expect("small"),
            within: at & 0xffff,
            wanted,
        };
        let found = run(slice, rules, question).expect("sound");
        (found.kind, found.bytes)
    }

    #[test]
    fn neighbours_are_one_run_if_they_are_alike() {
        let data = |number: u64| Cluster::Data {
            host: HostOffset(number << 16),
            copied: true,
        };
        let zero = |number: Option<u64>| Cluster::Zero {
            preallocated: number.map(|number| HostOffset(number << 16)),
            copied: number.is_some(),
        };
        let rules = rules(false);
        let all = [
            data(5),
            data(6),
            data(8),
            zero(None),
            zero(None),
            zero(Some(9)),
            zero(Some(10)),
            Cluster::Unallocated,
        ];
        let slice = slice(&rules, &all);
        let ask = |at, wanted| ask(&slice, &rules, at, wanted);
        let host = |at: u64| HostOffset(at);
        assert_eq!(ask(0, 1 << 30), (Kind::Data(host(0x5_0000)), 0x2_0000));
        assert_eq!(ask(0x1_0200, 4096), (Kind::Data(host(0x6_0200)), 4096));
        assert_eq!(ask(0x1_ff00, 1 << 20), (Kind::Data(host(0x6_ff00)), 0x100));
        assert_eq!(
            ask(0x2_0000, 1 << 20),
            (Kind::Data(host(0x8_0000)), 0x1_0000)
        );
        assert_eq!(ask(0x3_0001, 1 << 20), (Kind::Zero(None), 0x1_ffff));
        assert_eq!(
            ask(0x5_0000, 1 << 20),
            (Kind::Zero(Some(host(0x9_0000))), 0x2_0000)
        );
        // To the end of the slice: 512 entries.
        assert_eq!(ask(0x7_0000, 1 << 40), (Kind::Unallocated, 505 << 16));
    }

    /// What is found in one look is what is found by looking at all.
    #[test]
    fn a_plain_entry_says_what_it_says_decoded() {
        let rules = rules(false);
        let bits = [0, 1, 9, 15, 16, 30, 55, 56, 62, 63];
        for number in 0..1_u64 << bits.len() {
            let set = bits.iter().enumerate();
            let set = set.filter(|(at, _)| number >> at & 1 == 1);
            let descriptor = set.fold(0, |all, (_, bit)| all | 1_u64 << bit);
            let slice = descriptor.to_be_bytes();
            let entry = L2Entry {
                descriptor,
                bitmap: 0,
            };
            let decoded = match entry.decode(&rules) {
                Ok(Cluster::Data { host, copied }) => Some((host, copied)),
                _ => None,
            };
            let plain = plain(&slice, 0, &rules.geometry);
            assert_eq!(plain, decoded, "{descriptor:#x}");
        }
    }

    #[test]
    fn subclusters_are_runs_of_their_own() {
        let rules = rules(true);
        let first = Cluster::Subclusters {
            host: Some(HostOffset(0x5_0000)),
            copied: true,
            allocated: 0xc000_0003,
            zero: 0x0000_000c,
        };
        let second = Cluster::Subclusters {
            host: Some(HostOffset(0x6_0000)),
            copied: true,
            allocated: 1,
            zero: 0,
        };
        let slice = slice(&rules, &[first, second]);
        let ask = |at, wanted| ask(&slice, &rules, at, wanted);
        let host = |at: u64| HostOffset(at);
        assert_eq!(ask(0x100, 1 << 20), (Kind::Data(host(0x5_0100)), 0xf00));
        assert_eq!(
            ask(0x1000, 1 << 20),
            (Kind::Zero(Some(host(0x5_1000))), 0x1000)
        );
        assert_eq!(ask(0x2000, 1 << 20), (Kind::Unallocated, 26 * 0x800));
        // Across the end of a cluster.
        assert_eq!(ask(0xf000, 1 << 20), (Kind::Data(host(0x5_f000)), 0x1800));
        assert_eq!(ask(0x1_0800, 0x800), (Kind::Unallocated, 0x800));
    }

    #[test]
    fn what_cannot_be_ends_a_run_and_is_an_error_when_it_is_met() {
        let rules = rules(false);
        let mut slice = slice(&rules, &[Cluster::Unallocated]);
        slice[15] = 2;
        assert_eq!(
            ask(&slice, &rules, 0, 1 << 20),
            (Kind::Unallocated, 0x1_0000)
        );
        let question = Question {
            guest: GuestOffset(0),
            entry: 1,
            within: 0,
            wanted: 1,
        };
        assert_eq!(run(&slice, &rules, question), Err(EntryError::Reserved(2)));
    }
}
