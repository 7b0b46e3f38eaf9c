//! One record: a run of neighbouring entries of a table that have been changed alike. Pure.
//!
//! 64 bytes, little-endian:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | the number of the record |
//! | 8 | 8 | the first entry: a cluster of the guest, or an index into the L1 table |
//! | 16 | 16 | what it was: the entry, and the bitmap of an extended one |
//! | 32 | 16 | what it is, likewise |
//! | 48 | 4 | how many entries follow each other so |
//! | 52 | 4 | flags: bit 0, an entry of the L1 table; bits 1 and 2: what was, what is is each time a cluster further than the entry before |
//! | 56 | 4 | 0 |
//! | 60 | 4 | CRC-32C of what is before, begun with the tag of the image |

use crate::format::L2Entry;

/// How long a record is.
pub const BYTES: usize = 64;
/// Most entries of a record: more than a table has.
const COUNT_MAX: u32 = 1 << 20;

const SUMMED: usize = BYTES - 4;
const OF_L1: u32 = 1 << 0;
const BEFORE_STEPS: u32 = 1 << 1;
const AFTER_STEPS: u32 = 1 << 2;
const FLAGS: u32 = OF_L1 | BEFORE_STEPS | AFTER_STEPS;

/// Which table an entry is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    /// The L1 table: its entries are the descriptors of [`L2Entry`].
    L1,
    /// The L2 table of a cluster of the guest.
    L2,
}

/// What neighbouring entries are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Run {
    first: L2Entry,
    /// Each is a cluster further than the one before.
    steps: bool,
}

impl Run {
    fn at(&self, index: u32, cluster: u64) -> L2Entry {
        let further = match self.steps {
            true => u64::from(index).wrapping_mul(cluster),
            false => 0,
        };
        L2Entry {
            descriptor: self.first.descriptor.wrapping_add(further),
            ..self.first
        }
    }

    /// The same, if entry `index` is `next`.
    fn with(self, index: u32, next: L2Entry, cluster: u64) -> Option<Self> {
        let either = [false, true].map(|steps| Self { steps, ..self });
        let mut fits = either
            .into_iter()
            .filter(|run| index <= 1 || run.steps == self.steps);
        fits.find(|run| run.at(index, cluster) == next)
    }
}

/// The change of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Of which table.
    pub which: Which,
    /// The cluster of the guest, or the index into the L1 table.
    pub at: u64,
    /// What it was.
    pub before: L2Entry,
    /// What it is.
    pub after: L2Entry,
}

/// A run of neighbouring entries of a table that have been changed alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    which: Which,
    first: u64,
    before: Run,
    after: Run,
    count: u32,
}

impl Record {
    /// That of one change.
    pub const fn of(change: &Change) -> Self {
        const fn one(first: L2Entry) -> Run {
            Run {
                first,
                steps: false,
            }
        }
        Self {
            which: change.which,
            first: change.at,
            before: one(change.before),
            after: one(change.after),
            count: 1,
        }
    }

    /// Takes one more change, of the entry behind the last one, in an image with clusters of `cluster` bytes. False: it does not
    /// go on like that.
    pub fn join(&mut self, change: &Change, cluster: u64) -> bool {
        let is_next = self.which == change.which
            && self.first.checked_add(u64::from(self.count)) == Some(change.at)
            && self.count < COUNT_MAX;
        if !is_next {
            return false;
        }
        let before = self.before.with(self.count, change.before, cluster);
        let after = self.after.with(self.count, change.after, cluster);
        let (Some(before), Some(after)) = (before, after) else {
            return false;
        };
        (self.before, self.after) = (before, after);
        self.count += 1;
        true
    }

    /// All of its changes.
    pub fn changes(self, cluster: u64) -> impl Iterator<Item = Change> {
        (0..self.count).map(move |index| Change {
            which: self.which,
            at: self.first.wrapping_add(u64::from(index)),
            before: self.before.at(index, cluster),
            after: self.after.at(index, cluster),
        })
    }

    /// How many there are.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Its bytes, as record `number` of an image with this tag.
    pub fn encode(&self, number: u64, tag: u32) -> [u8; BYTES] {
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        let flags = flag(self.which == Which::L1, OF_L1)
            | flag(self.before.steps, BEFORE_STEPS)
            | flag(self.after.steps, AFTER_STEPS);
        let words = [
            number,
            self.first,
            self.before.first.descriptor,
            self.before.first.bitmap,
            self.after.first.descriptor,
            self.after.first.bitmap,
            u64::from(self.count) | u64::from(flags) << 32,
            0,
        ];
        let mut all = [0; BYTES];
        for (to, word) in all.as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        let (summed, sum) = all.split_at_mut(SUMMED);
        sum.copy_from_slice(&crc32c::crc32c_append(tag, summed).to_le_bytes());
        all
    }

    /// What it was made of; none: it is no record with that number, or not a whole one. Total.
    pub fn decode(bytes: &[u8; BYTES], number: u64, tag: u32) -> Option<Self> {
        let mut words = [0; BYTES / 8];
        for (to, from) in words.iter_mut().zip(bytes.as_chunks().0) {
            *to = u64::from_le_bytes(*from);
        }
        let [is, first, was, was_bits, now, now_bits, numbers, last] = words;
        let (summed, _) = bytes.split_at(SUMMED);
        let sum = u64::from(crc32c::crc32c_append(tag, summed)) << 32;
        if is != number || last != sum {
            return None;
        }
        let count = u32::try_from(numbers & u64::from(u32::MAX)).ok()?;
        let flags = u32::try_from(numbers >> 32).ok()?;
        let end = first.checked_add(u64::from(count));
        if flags & !FLAGS != 0 || count == 0 || count > COUNT_MAX || end.is_none() {
            return None;
        }
        let run = |descriptor, bitmap, steps: u32| Run {
            first: L2Entry { descriptor, bitmap },
            steps: flags & steps != 0,
        };
        Some(Self {
            which: if flags & OF_L1 != 0 {
                Which::L1
            } else {
                Which::L2
            },
            first,
            before: run(was, was_bits, BEFORE_STEPS),
            after: run(now, now_bits, AFTER_STEPS),
            count,
        })
    }
}

/// Records of changes that were made one after the other.
pub fn records(changes: impl IntoIterator<Item = Change>, cluster: u64) -> Vec<Record> {
    let mut all: Vec<Record> = Vec::new();
    for change in changes {
        let joined = all
            .last_mut()
            .is_some_and(|last| last.join(&change, cluster));
        if !joined {
            all.push(Record::of(&change));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLUSTER: u64 = 1 << 16;

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let entry = (0..4u64, 0..3u64).prop_map(|(descriptor, bitmap)| L2Entry {
            descriptor: descriptor * CLUSTER,
            bitmap,
        });
        let change = (0..2u8, entry.clone(), entry, 0..8u8, 0..3u64);
        prop::collection::vec(change, 0..40).prop_map(|all| {
            let mut at = 5;
            let mut last: Option<Change> = None;
            let mut changes = Vec::new();
            for (which, before, after, alike, skip) in all {
                at += 1 + skip / 2;
                let mut change = Change {
                    which: if which == 0 { Which::L1 } else { Which::L2 },
                    at,
                    before,
                    after,
                };
                // Most go on as the one before.
                if let Some(last) = last.filter(|_| alike > 1) {
                    change = Change { at, ..last };
                    if alike % 2 == 0 {
                        change.after.descriptor += CLUSTER;
                    }
                }
                last = Some(change);
                changes.push(change);
            }
            changes
        })
    }

    proptest! {
        #[test]
        fn runs_are_the_changes_they_were_made_of(changes in changes(), tag: u32, from: u32) {
            let records = records(changes.clone(), CLUSTER);
            let mut all = Vec::new();
            for (number, record) in (u64::from(from)..).zip(&records) {
                let bytes = record.encode(number, tag);
                let read = Record::decode(&bytes, number, tag).unwrap();
                prop_assert_eq!(*record, read);
                prop_assert!(Record::decode(&bytes, number + 1, tag).is_none());
                prop_assert!(Record::decode(&bytes, number, !tag).is_none());
                all.extend(read.changes(CLUSTER));
            }
            prop_assert_eq!(changes, all);
        }

        /// A writer that was killed in the middle of one.
        #[test]
        fn a_part_of_a_record_is_none(changes in changes(), written in 0..BYTES) {
            for record in records(changes, CLUSTER) {
                let mut bytes = record.encode(17, 3);
                let whole = bytes;
                bytes[written..].fill(0);
                prop_assert!(bytes == whole || Record::decode(&bytes, 17, 3).is_none());
            }
        }
    }

    #[test]
    fn neighbours_are_one_record() {
        let change = |at: u64| Change {
            which: Which::L2,
            at,
            before: L2Entry::default(),
            after: L2Entry {
                descriptor: (1 << 63) | (at * CLUSTER),
                bitmap: 0,
            },
        };
        assert_eq!(records((0..512).map(change), CLUSTER).len(), 1);
        assert_eq!(records([3, 4, 6].map(change), CLUSTER).len(), 2);
    }
}
