//! A set of granule numbers, small where it is uniform.

use std::ops::Range;

const WORDS: usize = 64;

/// Granules per chunk.
const CHUNK: u64 = 64 * WORDS as u64;

/// One chunk; mixed ones know how many granules they have.
#[derive(Clone, Debug, Default)]
enum Chunk {
    #[default]
    Empty,
    Full,
    Mixed(Box<[u64; WORDS]>, u64),
}

/// A set of numbers that are none too large: 16 bytes per 4096 of them, and 512 more where some but not all
/// of these are in the set.
#[derive(Clone, Debug, Default)]
pub struct Bitmap {
    chunks: Vec<Chunk>,
}

/// The parts of a range in each chunk: the chunk's index, and the numbers relative to it.
fn parts(range: Range<u64>) -> impl Iterator<Item = (usize, Range<u64>)> {
    let chunks = range.start / CHUNK..range.end.div_ceil(CHUNK);
    chunks.filter_map(move |chunk| {
        let base = chunk * CHUNK;
        let part = range.start.max(base) - base..range.end.min(base + CHUNK) - base;
        let index = usize::try_from(chunk).ok()?;
        (!part.is_empty()).then_some((index, part))
    })
}

/// The parts of a range inside a chunk in each word: its index, and the mask.
fn masks(part: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    (0u64..WORDS as u64).filter_map(move |word| {
        let base = word * 64;
        let start = part.start.max(base);
        let end = part.end.min(base + 64);
        if start >= end {
            return None;
        }
        let ones = u64::MAX >> (64 - (end - start));
        Some((usize::try_from(word).ok()?, ones << (start - base)))
    })
}

/// How many chunks it takes for numbers below `length`.
fn chunks(length: u64) -> usize {
    usize::try_from(length.div_ceil(CHUNK)).unwrap_or(usize::MAX)
}

impl Bitmap {
    /// Makes room for numbers below `length`; yields how many from there on were in the set, which
    /// they no longer are.
    pub fn resize(&mut self, length: u64) -> u64 {
        let room = self.chunks.len() as u64 * CHUNK;
        let dropped = self.clear(length..room.max(length));
        self.chunks.resize_with(chunks(length), Chunk::default);
        dropped
    }

    /// How many of the range are in the set.
    pub fn count(&self, range: Range<u64>) -> u64 {
        parts(range)
            .map(|(index, part)| match self.chunks.get(index) {
                None | Some(Chunk::Empty) => 0,
                Some(Chunk::Full) => part.end - part.start,
                Some(Chunk::Mixed(words, _)) => masks(part)
                    .map(|(word, mask)| u64::from((words[word] & mask).count_ones()))
                    .sum(),
            })
            .sum()
    }

    /// Puts the range into the set, and makes room for it if there is none; yields how many were not.
    pub fn set(&mut self, range: Range<u64>) -> u64 {
        let chunks = chunks(range.end);
        if chunks > self.chunks.len() {
            self.chunks.resize_with(chunks, Chunk::default);
        }
        self.change(range, true)
    }

    /// Takes the range out of the set; yields how many were in it.
    pub fn clear(&mut self, range: Range<u64>) -> u64 {
        self.change(range, false)
    }

    fn change(&mut self, range: Range<u64>, value: bool) -> u64 {
        let mut changed = 0;
        for (index, part) in parts(range) {
            let Some(chunk) = self.chunks.get_mut(index) else {
                break;
            };
            changed += chunk.change(part, value);
        }
        changed
    }

    /// Calls `f` with each longest run of numbers of the range that are (or are not) in the set.
    pub fn for_runs(&self, range: Range<u64>, value: bool, mut f: impl FnMut(Range<u64>)) {
        let mut run: Option<Range<u64>> = None;
        let mut add = |start: u64, end: u64| match &mut run {
            Some(run) if run.end == start => run.end = end,
            _ => {
                if let Some(done) = run.replace(start..end) {
                    f(done);
                }
            }
        };
        for (index, part) in parts(range) {
            let base = index as u64 * CHUNK;
            let uniform = match self.chunks.get(index) {
                None | Some(Chunk::Empty) => Some(false),
                Some(Chunk::Full) => Some(true),
                Some(Chunk::Mixed(words, _)) => {
                    for (word, mask) in masks(part.clone()) {
                        let mut bits = if value { words[word] } else { !words[word] } & mask;
                        while bits != 0 {
                            let start = u64::from(bits.trailing_zeros());
                            let length = u64::from((bits >> start).trailing_ones());
                            let at = base + word as u64 * 64 + start;
                            add(at, at + length);
                            bits &= !((u64::MAX >> (64 - length)) << start);
                        }
                    }
                    None
                }
            };
            if uniform == Some(value) {
                add(base + part.start, base + part.end);
            }
        }
        if let Some(done) = run {
            f(done);
        }
    }
}

impl Chunk {
    /// Yields how many changed.
    fn change(&mut self, part: Range<u64>, value: bool) -> u64 {
        let numbers = part.end - part.start;
        match (&*self, value) {
            (Self::Empty, false) | (Self::Full, true) => return 0,
            (Self::Empty, true) if numbers == CHUNK => {
                *self = Self::Full;
                return CHUNK;
            }
            (Self::Full, false) if numbers == CHUNK => {
                *self = Self::Empty;
                return CHUNK;
            }
            (Self::Empty, true) => *self = Self::Mixed(Box::new([0; WORDS]), 0),
            (Self::Full, false) => *self = Self::Mixed(Box::new([u64::MAX; WORDS]), CHUNK),
            (Self::Mixed(..), _) => {}
        }
        let Self::Mixed(words, count) = self else {
            return 0;
        };
        let mut changed = 0;
        for (word, mask) in masks(part) {
            let before = words[word];
            words[word] = if value { before | mask } else { before & !mask };
            changed += u64::from((before ^ words[word]).count_ones());
        }
        *count = if value {
            *count + changed
        } else {
            *count - changed
        };
        match *count {
            0 => *self = Self::Empty,
            CHUNK => *self = Self::Full,
            _ => {}
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LENGTH: u64 = 3 * CHUNK + 100;

    fn range() -> impl Strategy<Value = Range<u64>> {
        let bound = prop_oneof![
            0..=LENGTH,
            (0..=LENGTH / 64).prop_map(|word| word * 64),
            (0..=3u64).prop_map(|chunk| chunk * CHUNK),
            0..200u64,
        ];
        (bound.clone(), bound).prop_map(|(a, b)| a.min(b)..a.max(b))
    }

    fn indices(range: Range<u64>) -> Range<usize> {
        let index = |number| usize::try_from(number).expect("small");
        index(range.start)..index(range.end)
    }

    fn ones(model: &[bool]) -> u64 {
        model.iter().filter(|&&bit| bit).count() as u64
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn is_a_set(changes in prop::collection::vec((range(), any::<bool>()), 0..12), look in range(), length in 0..=LENGTH) {
            let mut bitmap = Bitmap::default();
            bitmap.resize(length);
            let mut model = vec![false; indices(0..LENGTH).end];
            for (range, value) in changes {
                let before = ones(&model);
                model[indices(range.clone())].fill(value);
                let changed = if value { bitmap.set(range) } else { bitmap.clear(range) };
                prop_assert_eq!(changed, before.abs_diff(ones(&model)));
            }
            prop_assert_eq!(bitmap.count(look.clone()), ones(&model[indices(look.clone())]));
            for value in [false, true] {
                let mut last_end = None;
                let mut seen = vec![!value; model.len()];
                bitmap.for_runs(look.clone(), value, |run| {
                    assert!(!run.is_empty() && last_end != Some(run.start), "longest runs");
                    last_end = Some(run.end);
                    seen[indices(run)].fill(value);
                });
                let range = indices(look.clone());
                prop_assert!(seen[range.clone()] == model[range.clone()]);
                seen[range].fill(!value);
                prop_assert!(seen.iter().all(|&bit| bit != value), "nothing outside the range");
            }
            let (kept, dropped) = model.split_at(indices(0..CHUNK + 10).end);
            prop_assert_eq!(bitmap.resize(CHUNK + 10), ones(dropped));
            bitmap.resize(LENGTH);
            prop_assert_eq!(bitmap.count(0..LENGTH), ones(kept));
        }
    }
}
