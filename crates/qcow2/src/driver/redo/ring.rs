//! Where the records are: a head that says whose they are, and a ring of slots, in bytes that outlive the process. Pure.
//!
//! Records have running numbers. Those count that are not *void*: the head has the number of the first one, and the others follow as
//! long as each is whole and has the next number. A writer that is killed in the middle of one had told nobody.

use block::Image;

use super::record::{self, Record};

/// How long it is in bytes, head and all.
pub const BYTES: usize = 1 << 20;
/// Where the slots begin.
const SLOTS_AT: usize = 4096;
/// Where the number of the first one is that is not void.
const START_AT: usize = 2048;
/// Where it is said whether what can be read of the tables may be nowhere but in memory.
const DOUBT_AT: usize = START_AT + 8;
/// How many slots there are.
pub const SLOTS: usize = (BYTES - SLOTS_AT) / record::BYTES;
/// The number of the first record: slots that were never written have none.
const FIRST: u64 = 1;
/// The last number of the first one that counts.
const LAST: u64 = u64::MAX >> 1;

const MAGIC: &[u8; 8] = b"SFREDO\0\x01";

/// Whose the records are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// What the header of the image says, too.
    pub tag: u32,
    /// Clusters of the image, as a power of two of bytes.
    pub cluster_bits: u32,
    /// Its L2 entries have subclusters.
    pub extended: bool,
    /// The boot of the machine in which they were written.
    pub boot_id: String,
    /// The file that it is in.
    pub image: Image,
}

impl Head {
    /// Its bytes; none: they would be too many.
    fn encode(&self) -> Option<Vec<u8>> {
        let mut all = MAGIC.to_vec();
        all.extend(self.tag.to_le_bytes());
        all.extend(self.cluster_bits.to_le_bytes());
        all.extend(u32::from(self.extended).to_le_bytes());
        for text in [self.boot_id.as_bytes(), &self.image.to_label()] {
            let length = u32::try_from(text.len()).ok()?;
            all.extend(length.to_le_bytes());
            all.extend(text);
        }
        all.extend(crc32c::crc32c(&all).to_le_bytes());
        (all.len() <= START_AT).then_some(all)
    }

    /// What is at the beginning of `bytes`. Total.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut at = 0;
        let mut take = |count: usize| {
            let taken = bytes.get(at..)?.get(..count)?;
            at += count;
            Some(taken)
        };
        if take(MAGIC.len())? != MAGIC {
            return None;
        }
        fn number(bytes: &[u8]) -> Option<u32> {
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        }
        let tag = number(take(4)?)?;
        let cluster_bits = number(take(4)?)?;
        let extended = number(take(4)?)? != 0;
        let boot_bytes = usize::try_from(number(take(4)?)?).ok()?;
        let boot_id = std::str::from_utf8(take(boot_bytes)?).ok()?.to_owned();
        let label_bytes = usize::try_from(number(take(4)?)?).ok()?;
        let image = Image::from_label(take(label_bytes)?)?;
        let sum = number(take(4)?)?;
        let summed = bytes.get(..at.checked_sub(4)?)?;
        (sum == crc32c::crc32c(summed)).then_some(Self {
            tag,
            cluster_bits,
            extended,
            boot_id,
            image,
        })
    }
}

/// Records in bytes that outlive the process.
#[derive(Debug)]
pub struct Ring<M> {
    bytes: M,
    tag: u32,
    /// The first one that is not void.
    start: u64,
    /// The next one that will be.
    next: u64,
}

fn slot(number: u64) -> usize {
    let slot = usize::try_from(number % SLOTS as u64).unwrap_or(0);
    SLOTS_AT + slot * record::BYTES
}

impl<M: AsRef<[u8]> + AsMut<[u8]>> Ring<M> {
    /// An empty one in bytes that are zeroes. None: they are not 1 MiB, or the head is too long.
    pub fn new(mut bytes: M, head: &Head) -> Option<Self> {
        let encoded = head.encode()?;
        if bytes.as_ref().len() != BYTES {
            return None;
        }
        bytes
            .as_mut()
            .get_mut(..encoded.len())?
            .copy_from_slice(&encoded);
        let mut this = Self {
            bytes,
            tag: head.tag,
            start: FIRST,
            next: FIRST,
        };
        this.void_before(FIRST);
        Some(this)
    }

    /// The one that is in these bytes, as it was left. Total: any bytes are a ring, or none.
    pub fn open(bytes: M) -> Option<(Head, Self)> {
        if bytes.as_ref().len() != BYTES {
            return None;
        }
        let head = Head::decode(bytes.as_ref())?;
        let start = bytes.as_ref().get(START_AT..)?.first_chunk()?;
        // So many nobody writes.
        let start = u64::from_le_bytes(*start);
        let start = Some(start).filter(|start| *start <= LAST)?;
        let mut this = Self {
            bytes,
            tag: head.tag,
            start,
            next: start,
        };
        while this.room() > 0 && this.get(this.next).is_some() {
            this.next += 1;
        }
        Some((head, this))
    }

    fn get(&self, number: u64) -> Option<Record> {
        let bytes = self.bytes.as_ref().get(slot(number)..)?.first_chunk()?;
        Record::decode(bytes, number, self.tag)
    }

    /// The records that are not void, in the order in which they were written.
    pub fn live(&self) -> Vec<Record> {
        (self.start..self.next)
            .map_while(|number| self.get(number))
            .collect()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.start == self.next
    }

    /// How many more there can be.
    pub fn room(&self) -> usize {
        let live = usize::try_from(self.next - self.start).unwrap_or(SLOTS);
        SLOTS.saturating_sub(live)
    }

    /// The number of the next one.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Writes one more. False: there is no room.
    pub fn push(&mut self, record: &Record) -> bool {
        if self.room() == 0 {
            return false;
        }
        let bytes = record.encode(self.next, self.tag);
        let at = slot(self.next);
        let Some(place) = self.bytes.as_mut().get_mut(at..at + record::BYTES) else {
            return false;
        };
        place.copy_from_slice(&bytes);
        self.next += 1;
        true
    }

    /// Those before `number` do not count any more.
    pub fn void_before(&mut self, number: u64) {
        self.start = number.clamp(self.start, self.next);
        let start = self.start.to_le_bytes();
        if let Some(place) = self.bytes.as_mut().get_mut(START_AT..START_AT + 8) {
            // Eight bytes at a multiple of eight: one store.
            place.copy_from_slice(&start);
        }
    }

    /// Whether a flush has failed, and nothing has been written again since: what can be read of the image then need not be on
    /// disk, and a later flush need not bring it there.
    pub fn is_doubtful(&self) -> bool {
        let word = self.bytes.as_ref().get(DOUBT_AT..DOUBT_AT + 8);
        word.is_none_or(|word| word.iter().any(|byte| *byte != 0))
    }

    /// Says so.
    pub fn set_doubtful(&mut self, doubtful: bool) {
        let word = u64::from(doubtful).to_le_bytes();
        if let Some(place) = self.bytes.as_mut().get_mut(DOUBT_AT..DOUBT_AT + 8) {
            place.copy_from_slice(&word);
        }
    }

    /// Where it is.
    pub const fn storage(&self) -> &M {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Change, Which};
    use super::*;
    use crate::format::L2Entry;
    use proptest::prelude::*;

    fn head() -> Head {
        Head {
            tag: 0x1234_5678,
            cluster_bits: 16,
            extended: true,
            boot_id: "this boot".to_owned(),
            image: Image::new("/a/disk", "1:2:3"),
        }
    }

    fn record(at: u64) -> Record {
        Record::of(&Change {
            which: Which::L2,
            at,
            before: L2Entry::default(),
            after: L2Entry {
                descriptor: at << 16,
                bitmap: 0,
            },
        })
    }

    fn reopened(ring: &Ring<Vec<u8>>) -> Ring<Vec<u8>> {
        let (is, ring) = Ring::open(ring.storage().clone()).unwrap();
        assert_eq!(is, head());
        ring
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whoever opens it at any moment finds what is not void; more than once around.
        #[test]
        fn what_is_not_void_is_found(steps in prop::collection::vec((0..3000usize, 0..3000u64), 1..30)) {
            let mut ring = Ring::new(vec![0; BYTES], &head()).unwrap();
            let mut model = std::collections::VecDeque::new();
            let mut at = 0;
            for (pushed, void) in steps {
                for _ in 0..pushed {
                    at += 1;
                    prop_assert_eq!(ring.push(&record(at)), model.len() < SLOTS);
                    if model.len() < SLOTS {
                        model.push_back(record(at));
                    }
                }
                prop_assert_eq!(ring.room(), SLOTS - model.len());
                prop_assert!(reopened(&ring).live().iter().eq(&model));
                let left = ring.next() - (model.len() as u64).saturating_sub(void);
                ring.void_before(left);
                model.drain(..model.len().min(usize::try_from(void).unwrap()));
                prop_assert!(reopened(&ring).live().iter().eq(&model));
                prop_assert_eq!(ring.is_empty(), model.is_empty());
            }
        }

        #[test]
        fn any_bytes_are_a_ring_or_none(at in 0..6000usize, bytes in prop::collection::vec(any::<u8>(), 1..300)) {
            let mut ring = Ring::new(vec![0; BYTES], &head()).unwrap();
            for at in 0..20 {
                ring.push(&record(at));
            }
            let mut content = ring.storage().clone();
            content[at..at + bytes.len()].copy_from_slice(&bytes);
            if let Some((_, ring)) = Ring::open(content) {
                let expected: Vec<_> = (0..20).map(record).collect();
                prop_assert!(expected.windows(ring.live().len().max(1)).any(|some| ring.live().is_empty() || some == ring.live()));
            }
        }
    }

    /// A record of a round of the ring before has its place, and not its number.
    #[test]
    fn the_last_one_was_cut_off() {
        let mut ring = Ring::new(vec![0; BYTES], &head()).unwrap();
        for at in 0..SLOTS as u64 {
            assert!(ring.push(&record(at)));
        }
        assert!(!ring.push(&record(0)), "it is full");
        ring.void_before(ring.next());
        for at in [7, 8, 9] {
            ring.push(&record(at));
        }
        let mut content = ring.storage().clone();
        content[slot(ring.next() - 1) + 60] ^= 1;
        let (_, mut cut) = Ring::open(content).unwrap();
        assert_eq!(cut.live(), [record(7), record(8)]);
        assert!(cut.push(&record(10)));
        assert_eq!(reopened(&cut).live(), [record(7), record(8), record(10)]);
    }

    #[test]
    fn what_is_too_long_is_none() {
        assert!(Ring::new(vec![0; BYTES - 1], &head()).is_none());
        let boot_id = "x".repeat(2100);
        let long = Head { boot_id, ..head() };
        assert!(Ring::new(vec![0; BYTES], &long).is_none());
        assert!(Ring::open(vec![0; BYTES]).is_none());
    }
}
