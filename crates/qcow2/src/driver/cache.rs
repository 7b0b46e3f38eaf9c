//! What is remembered of L2 tables: slices of them, in a number of places that never grows. Where a slice may be follows
//! from what it maps: a disk whose slices have room all are remembered all. Whoever finds what he
//! looks for takes no lock and waits for nobody; whoever does not reads it, and puts it in place of what nobody
//! has looked for lately. Two that miss the same slice both read it. What is put there is put under the lock of the tables, so that a
//! slice is in one place at most.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arc_swap::{ArcSwapOption, Guard};

use super::options::L2CacheSize;
use crate::format::HostOffset;

/// Where a slice may be: one of so many places.
const WAYS: usize = 4;

/// Of a place where nothing is: no slice begins there, since none is that long.
const NOWHERE: u64 = u64::MAX;

/// Of a slice at whose entries nobody has looked.
const UNSEEN: u64 = u64::MAX;

/// A slice that is not remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// Where the table begins.
    pub table: HostOffset,
    /// Where the slice begins.
    pub slice: HostOffset,
    /// Which of the slices of the disk it is: one for so many entries, from its beginning on.
    pub number: u64,
}

/// A part of an L2 table.
pub struct Slice {
    /// Where it begins in the file.
    pub offset: HostOffset,
    /// Which of the slices of the disk it is.
    number: u64,
    /// Its bytes.
    pub bytes: Box<[u8]>,
    /// Somebody has looked for it since it was read, or last passed over. So what is read once does not drive out
    /// what is looked for again and again.
    wanted: AtomicBool,
    /// None of its entries points to one of the tables that there were when so many had been made.
    sound: AtomicU64,
}

impl Slice {
    /// One that was just read.
    pub fn new(place: Miss, bytes: Box<[u8]>) -> Arc<Self> {
        Arc::new(Self {
            offset: place.slice,
            number: place.number,
            bytes,
            wanted: AtomicBool::new(false),
            sound: AtomicU64::new(UNSEEN),
        })
    }

    /// What it has become.
    pub fn changed(&self, bytes: Box<[u8]>) -> Arc<Self> {
        let sound = self.sound.load(Ordering::Relaxed);
        Arc::new(Self {
            offset: self.offset,
            number: self.number,
            bytes,
            wanted: AtomicBool::new(false),
            sound: AtomicU64::new(sound),
        })
    }

    /// Whether somebody has looked that none of its entries points to a table, since tables had been made so often.
    #[inline]
    pub fn is_sound(&self, made: u64) -> bool {
        self.sound.load(Ordering::Relaxed) == made
    }

    /// None does.
    pub fn set_sound(&self, made: u64) {
        self.sound.store(made, Ordering::Relaxed);
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({})", self.offset)
    }
}

#[derive(Debug)]
struct Place {
    /// Where the slice begins that is here; only looked at, what counts is the slice.
    offset: AtomicU64,
    slice: ArcSwapOption<Slice>,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            offset: AtomicU64::new(NOWHERE),
            slice: ArcSwapOption::empty(),
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct L2Cache {
    /// Sets of `ways` places each.
    places: Box<[Place]>,
    ways: usize,
    sets: u64,
    slice_bits: u32,
    counts: Counts,
}

/// What is counted, apart from what is only looked at.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counts {
    /// Where the next one looks for a victim.
    hand: AtomicUsize,
    /// How many places have a slice.
    filled: AtomicUsize,
    /// How often a slice was looked for in vain.
    misses: AtomicU64,
}

impl L2Cache {
    /// An empty one.
    pub fn new(size: L2CacheSize) -> Self {
        let ways = size.slices.clamp(1, WAYS);
        let sets = (size.slices / ways).max(1);
        let places = (0..sets * ways).map(|_| Place::default()).collect();
        Self {
            places,
            ways,
            sets: sets as u64,
            slice_bits: size.slice.ilog2(),
            counts: Counts::default(),
        }
    }

    /// Bytes of slices that it has.
    pub fn used(&self) -> usize {
        self.counts.filled.load(Ordering::Relaxed) << self.slice_bits
    }

    /// Bytes of slices that it has room for.
    pub fn size(&self) -> usize {
        self.places.len() << self.slice_bits
    }

    /// How often one had to be read.
    pub fn misses(&self) -> u64 {
        self.counts.misses.load(Ordering::Relaxed)
    }

    /// One has to be read.
    pub fn missed(&self) {
        self.counts.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets what nobody has looked for since the last time.
    pub fn clean(&self) {
        for place in &self.places {
            let guard = place.slice.load();
            let Some(slice) = &*guard else {
                continue;
            };
            if slice.wanted.swap(false, Ordering::Relaxed) {
                continue;
            }
            let before = place.slice.compare_and_swap(&*guard, None);
            if !before
                .as_ref()
                .is_some_and(|before| Arc::ptr_eq(before, slice))
            {
                // Another one has come meanwhile.
                continue;
            }
            self.counts.filled.fetch_sub(1, Ordering::Relaxed);
            let (from, to) = (slice.offset.0, NOWHERE);
            // One that has come since may be hidden by this: it is read again then.
            let order = Ordering::Relaxed;
            let _ = place.offset.compare_exchange(from, to, order, order);
        }
    }

    /// Bytes of a slice, as a power of two.
    #[inline]
    pub fn slice_bits(&self) -> u32 {
        self.slice_bits
    }

    /// Bytes of a slice.
    pub fn slice_bytes(&self) -> usize {
        1 << self.slice_bits
    }

    /// The places of the slice of the disk with that number.
    #[inline]
    fn set(&self, number: u64) -> &[Place] {
        // Mostly there is room for all, and nothing to divide.
        let set = match number < self.sets {
            true => number,
            false => number % self.sets,
        };
        // Below the number of sets.
        let first = usize::try_from(set).unwrap_or(0) * self.ways;
        self.places.get(first..first + self.ways).unwrap_or(&[])
    }

    /// The slice at that place, if it is remembered.
    #[inline]
    pub fn find(&self, place: Miss) -> Option<Found> {
        let offset = place.slice;
        for place in self.set(place.number) {
            if place.offset.load(Ordering::Relaxed) != offset.0 {
                continue;
            }
            let guard = place.slice.load();
            if let Some(slice) = guard.as_ref().filter(|slice| slice.offset == offset) {
                // A plain look first: mostly nothing is written to what others look at.
                if !slice.wanted.load(Ordering::Relaxed) {
                    slice.wanted.store(true, Ordering::Relaxed);
                }
                return Some(Found(guard));
            }
        }
        None
    }

    /// Remembers it, in place of what was remembered of it. One calls it at a time.
    pub fn put(&self, slice: Arc<Slice>) {
        let set = self.set(slice.number);
        let of = |offset: u64| {
            let mut places = set.iter();
            places.find(|place| place.offset.load(Ordering::Relaxed) == offset)
        };
        let free = of(slice.offset.0).or_else(|| of(NOWHERE));
        let Some(place) = free.or_else(|| self.victim(set)) else {
            return;
        };
        let offset = slice.offset.0;
        if place.slice.swap(Some(slice)).is_none() {
            self.counts.filled.fetch_add(1, Ordering::Relaxed);
        }
        place.offset.store(offset, Ordering::Relaxed);
    }

    /// Does not remember it any more. As [`Self::put`].
    pub fn forget(&self, place: Miss) {
        let offset = place.slice;
        for place in self.set(place.number) {
            if place.offset.load(Ordering::Relaxed) == offset.0 {
                place.offset.store(NOWHERE, Ordering::Relaxed);
                if place.slice.swap(None).is_some() {
                    self.counts.filled.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// How many slices it has room for.
    pub fn slices(&self) -> usize {
        self.places.len()
    }

    fn victim<'a>(&self, set: &'a [Place]) -> Option<&'a Place> {
        // Twice around: the second time nobody is wanted, unless others look meanwhile.
        for _ in 0..2 * set.len() {
            let at = self.counts.hand.fetch_add(1, Ordering::Relaxed) % set.len();
            let place = set.get(at)?;
            let guard = place.slice.load();
            let wanted = guard.as_ref().map(|slice| &slice.wanted);
            if !wanted.is_some_and(|wanted| wanted.swap(false, Ordering::Relaxed)) {
                return Some(place);
            }
        }
        set.first()
    }
}

/// A slice that was found; it stays as long as this does.
pub struct Found(Guard<Option<Arc<Slice>>>);

impl Found {
    /// [`Slice::is_sound`].
    #[inline]
    pub fn is_sound(&self, made: u64) -> bool {
        self.0.as_ref().is_some_and(|slice| slice.is_sound(made))
    }

    /// It.
    pub fn slice(&self) -> Option<Arc<Slice>> {
        self.0.clone()
    }

    /// Its bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |slice| &slice.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(number: u64) -> Arc<Slice> {
        let filling = number.to_le_bytes().repeat(64);
        Slice::new(at(number), filling.into())
    }

    fn at(number: u64) -> Miss {
        Miss {
            table: HostOffset(0),
            slice: HostOffset(number * 512),
            number,
        }
    }

    fn cache(slices: usize) -> L2Cache {
        L2Cache::new(L2CacheSize { slice: 512, slices })
    }

    #[test]
    fn it_is_as_large_as_it_was_made() {
        for slices in [1, 2, 3, 4, 5, 64, 1000] {
            let cache = cache(slices);
            assert!(cache.places.len() <= slices && cache.places.len() * 2 > slices);
            // What has room all is there all, however it lies in the file.
            let all = cache.places.len() as u64;
            (0..all).for_each(|number| cache.put(slice(number)));
            assert!((0..all).all(|number| cache.find(at(number)).is_some()));
            (0..10_000).for_each(|number| cache.put(slice(number)));
            let known = (0..10_000).filter(|number| cache.find(at(*number)).is_some());
            assert_eq!(known.count(), cache.places.len());
            // The last one is there, and it is what it was.
            let last = cache.find(at(9999)).expect("just put");
            assert_eq!(last.bytes(), 9999u64.to_le_bytes().repeat(64));
        }
    }

    #[test]
    fn what_is_looked_for_stays() {
        let cache = cache(8);
        cache.put(slice(7));
        for number in 1000..2000 {
            assert!(cache.find(at(7)).is_some(), "{number}");
            cache.put(slice(number));
        }
    }

    #[test]
    fn what_nobody_looks_for_is_forgotten_the_second_time() {
        let cache = cache(8);
        (0..20).for_each(|number| cache.put(slice(number)));
        assert_eq!((cache.used(), cache.size()), (8 * 512, 8 * 512));
        let known = |number: &u64| cache.find(at(*number)).is_some();
        // All are wanted now.
        let before: Vec<_> = (0..20).filter(known).collect();
        cache.clean();
        assert_eq!(cache.used(), 8 * 512);
        let wanted = [before[1], before[4]];
        assert!(wanted.iter().all(known));
        cache.clean();
        assert_eq!(cache.used(), 2 * 512);
        assert_eq!((0..20).filter(known).collect::<Vec<_>>(), wanted);
        (0..20).for_each(|number| cache.put(slice(number)));
        assert_eq!(cache.used(), 8 * 512);
        cache.clean();
        cache.clean();
        assert_eq!(cache.used(), 0);
    }

    #[test]
    fn others_may_look_while_it_changes() {
        let cache = cache(4);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..20_000).for_each(|number| cache.put(slice(number % 32))));
            }
            scope.spawn(|| (0..5_000).for_each(|_| cache.clean()));
            for number in 0..40_000u64 {
                let number = number % 32;
                if let Some(found) = cache.find(at(number)) {
                    assert_eq!(found.bytes(), number.to_le_bytes().repeat(64));
                }
            }
        });
        assert!(cache.used() <= cache.size());
        cache.clean();
        cache.clean();
        assert_eq!(cache.used(), 0, "what is counted is there");
    }
}
