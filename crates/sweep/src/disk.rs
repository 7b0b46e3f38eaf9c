//! What may be on the disk after a cut: pure, from the log of the storage.
//!
//! All that has ended before a flush began which succeeded is there. Of everything else each sector of each
//! operation may be there or not, whatever the order, and so may each change of the length.

use std::collections::BTreeMap;
use std::ops::Range;

use testkit::Rng;

use crate::event::{Effect, Event, Kind, Length, Outcome};
use crate::sector::{SECTOR, bytes_of, index};

/// What is not durable yet of one operation.
#[derive(Debug)]
struct Item {
    number: u64,
    effect: Option<Effect>,
    /// Which sectors of the effect can still be found.
    alive: Vec<bool>,
    length: Option<Length>,
    begun: usize,
    applied: Option<usize>,
    ended: Option<usize>,
    /// A flush has failed, and the system has forgotten it: no later one covers it.
    forgotten: bool,
}

impl Item {
    fn order(&self) -> (usize, u64) {
        (self.applied.unwrap_or(usize::MAX), self.number)
    }

    /// Whether it lies in what a flush is of. A length is that of what reaches to the end.
    fn is_in(&self, bytes: &Range<u64>) -> bool {
        match (&self.effect, self.length) {
            (Some(effect), _) => bytes.contains(&bytes_of(effect.first)),
            (None, _) => bytes.start > 0 || bytes.end == u64::MAX,
        }
    }

    /// Whether it was over before `later` began, so that it cannot come after it.
    fn is_before(&self, later: &Self) -> bool {
        self.ended.is_some_and(|ended| ended <= later.begun)
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Disk {
    durable: Vec<u8>,
    /// When what is durable in a sector became visible: what came before it does not come back.
    since: BTreeMap<u64, (usize, u64)>,
    items: Vec<Item>,
    /// When they have begun, and of which bytes they are.
    flushes: BTreeMap<u64, (usize, Range<u64>)>,
    fua: Vec<u64>,
    forgets: bool,
}

/// What of the items survives.
#[derive(Clone, Copy, Debug)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// All.
    Everything,
    /// Each sector by chance, so many of a hundred.
    Sectors(u64),
    /// Each operation as a whole by chance, so many of a hundred.
    Operations(u64),
    /// Operations by chance, and sectors of these.
    Both,
    /// Only this one, counted in their order.
    Only(usize),
    /// All but this one.
    AllBut(usize),
    /// The first ones.
    First(usize),
    /// All after the first ones.
    After(usize),
}

/// Which subset survives a cut, and in which order.
#[derive(Clone, Copy, Debug)]
pub struct Survivors {
    /// Which.
    pub keep: Keep,
    /// In any order, and not in that in which they became visible.
    pub shuffled: bool,
    /// Of all that is by chance.
    pub seed: u64,
}

impl Survivors {
    /// The `nth` of those that are tried at one place: none and all come first.
    pub fn choose(nth: u64, items: usize, rng: &mut Rng) -> Self {
        let keep = match (nth, rng.below(8)) {
            (0, _) => Keep::Nothing,
            (1, _) => Keep::Everything,
            (_, 0) => Keep::Sectors(50),
            (_, 1) => Keep::Sectors([10, 90][index(rng.below(2))]),
            (_, 2) => Keep::Operations(50),
            (_, 3) => Keep::Both,
            (_, 4) => Keep::Only(index(rng.below(items as u64))),
            (_, 5) => Keep::AllBut(index(rng.below(items as u64))),
            (_, 6) => Keep::First(index(rng.below(items as u64))),
            _ => Keep::After(index(rng.below(items as u64))),
        };
        Self {
            keep,
            shuffled: rng.below(4) == 0,
            seed: rng.next_u64(),
        }
    }
}

impl Disk {
    /// A disk on which `durable` is; `forgets`: what a failed flush was to write is covered by no later one.
    pub fn new(durable: Vec<u8>, forgets: bool) -> Self {
        Self {
            durable,
            since: BTreeMap::new(),
            items: Vec::new(),
            flushes: BTreeMap::new(),
            fua: Vec::new(),
            forgets,
        }
    }

    /// How many operations are not durable.
    pub fn unflushed(&self) -> usize {
        self.items.len()
    }

    /// The event at `time` has happened.
    pub fn apply(&mut self, time: usize, event: &Event) {
        match event {
            Event::Begun { number, operation } => {
                if operation.kind == Kind::Flush {
                    self.flushes.insert(*number, (time, operation.flushed()));
                }
                if operation.fua {
                    self.fua.push(*number);
                }
                if operation.effect.is_some() || operation.length.is_some() {
                    let sectors = operation.effect.as_ref().map_or(0, |effect| effect.sectors);
                    self.items.push(Item {
                        number: *number,
                        effect: operation.effect.clone(),
                        alive: vec![true; sectors],
                        length: operation.length,
                        begun: time,
                        applied: None,
                        ended: None,
                        forgotten: false,
                    });
                }
            }
            Event::Applied { number } => {
                if let Some(item) = self.item(*number) {
                    item.applied = Some(time);
                }
            }
            Event::Ended { number, outcome } => self.ended(time, *number, outcome),
            Event::Guest(_) => {}
        }
    }

    fn ended(&mut self, time: usize, number: u64, outcome: &Outcome) {
        if let Some((begun, bytes)) = self.flushes.remove(&number) {
            match outcome {
                Outcome::Done => self.cover(|item| {
                    !item.forgotten
                        && item.is_in(&bytes)
                        && item.ended.is_some_and(|ended| ended <= begun)
                }),
                Outcome::Failed { latched: false, .. } if self.forgets => self.forget(&bytes),
                Outcome::Failed { .. } => {}
            }
            return;
        }
        let Some(item) = self.item(number) else {
            return;
        };
        item.ended = Some(time);
        item.applied.get_or_insert(time);
        if let Outcome::Failed {
            reached, length, ..
        } = outcome
        {
            for (number, alive) in item.alive.iter_mut().enumerate() {
                *alive &= reached.get(number).copied().unwrap_or(false);
            }
            item.length = *length;
        } else if self.fua.contains(&number) {
            self.cover(|item| item.number == number);
        }
    }

    /// What was to be written is given up; a length is kept elsewhere, and not.
    fn forget(&mut self, bytes: &Range<u64>) {
        let mut lengths = Vec::new();
        let ended = |item: &&mut Item| item.ended.is_some() && item.is_in(bytes);
        for item in self.items.iter_mut().filter(ended) {
            if item.effect.is_none() {
                continue;
            }
            item.forgotten = true;
            if let Some(length) = item.length.take() {
                lengths.push(Item {
                    effect: None,
                    alive: Vec::new(),
                    length: Some(length),
                    forgotten: false,
                    ..*item
                });
            }
        }
        self.items.extend(lengths);
    }

    fn item(&mut self, number: u64) -> Option<&mut Item> {
        self.items.iter_mut().find(|item| item.number == number)
    }

    /// Those are durable now.
    fn cover(&mut self, which: impl Fn(&Item) -> bool) {
        let (mut covered, mut left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.items).into_iter().partition(which);
        covered.sort_by_key(Item::order);
        for item in &covered {
            if let Some(length) = item.length {
                let length = length.after(self.durable.len() as u64);
                self.durable.resize(index(length), 0);
                for other in &mut left {
                    if other.order() < item.order() && other.is_before(item) {
                        other.length = None;
                    }
                }
            }
            let Some(effect) = &item.effect else { continue };
            // With content that is durable the length that it needs is, too: the one that the file has by then.
            let end = bytes_of(effect.first + effect.sectors as u64);
            if effect.content.is_some() && (self.durable.len() as u64) < end {
                left.sort_by_key(Item::order);
                let before = left.iter_mut().filter(|other| other.is_before(item));
                let mut length = self.durable.len() as u64;
                for change in before.filter_map(|other| other.length.take()) {
                    length = change.after(length);
                }
                self.durable.resize(index(length.max(end)), 0);
            }
            for (number, _) in item.alive.iter().enumerate().filter(|(_, alive)| **alive) {
                let sector = effect.first + number as u64;
                if self
                    .since
                    .get(&sector)
                    .is_some_and(|since| *since > item.order())
                {
                    continue;
                }
                self.since.insert(sector, item.order());
                put(&mut self.durable, effect, number);
                for other in &mut left {
                    let is_before = other.order() < item.order() && other.is_before(item);
                    if is_before
                        && let Some(its) = other.effect.as_ref()
                        && let Some(at) = sector.checked_sub(its.first)
                        && let Some(alive) = other.alive.get_mut(index(at))
                    {
                        *alive = false;
                    }
                }
            }
        }
        self.items = left;
    }

    /// What is found after a cut now.
    pub fn cut(&self, survivors: Survivors) -> Vec<u8> {
        let mut rng = Rng::new(survivors.seed);
        let mut order: Vec<&Item> = self.items.iter().collect();
        order.sort_by_key(|item| item.order());
        let places: Vec<usize> = (0..order.len()).collect();
        let mut numbered: Vec<_> = places.into_iter().zip(order).collect();
        if survivors.shuffled {
            for last in (1..numbered.len()).rev() {
                numbered.swap(last, index(rng.below(last as u64 + 1)));
            }
        }
        let mut image = self.durable.clone();
        let mut length = image.len() as u64;
        for (place, item) in numbered {
            let percent = match survivors.keep {
                Keep::Nothing => 0,
                Keep::Everything => 100,
                Keep::Sectors(percent) => percent,
                Keep::Operations(percent) if rng.below(100) < percent => 100,
                Keep::Operations(_) => 0,
                Keep::Both => [0, 50, 100][index(rng.below(3))],
                Keep::Only(one) => 100 * u64::from(place == one),
                Keep::AllBut(one) => 100 * u64::from(place != one),
                Keep::First(count) => 100 * u64::from(place < count),
                Keep::After(count) => 100 * u64::from(place >= count),
            };
            if let Some(change) = item.length
                && rng.below(100) < percent
            {
                length = change.after(length);
            }
            let Some(effect) = &item.effect else { continue };
            for (number, _) in item.alive.iter().enumerate().filter(|(_, alive)| **alive) {
                if rng.below(100) < percent {
                    let end = index(bytes_of(effect.first + number as u64 + 1));
                    if image.len() < end && effect.content.is_some() {
                        image.resize(end, 0);
                    }
                    put(&mut image, effect, number);
                }
            }
        }
        image.resize(index(length), 0);
        image
    }
}

/// The sector at `number` of `effect` reaches `image`, as far as that reaches.
pub fn put(image: &mut [u8], effect: &Effect, number: usize) {
    let at = index(bytes_of(effect.first + number as u64));
    if let Some(place) = image.get_mut(at..at.saturating_add(SECTOR)) {
        match effect.sector(number) {
            Some(content) => place.copy_from_slice(content),
            None => place.fill(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Operation;

    struct Written(Disk, usize);

    impl Written {
        fn event(&mut self, event: &Event) {
            self.0.apply(self.1, event);
            self.1 += 1;
        }

        fn begin(&mut self, number: u64, byte: u8, first: u64, sectors: usize) {
            let content = vec![byte; sectors * SECTOR];
            let length = Length::AtLeast(bytes_of(first + sectors as u64));
            self.event(&Event::Begun {
                number,
                operation: Operation {
                    kind: Kind::Write,
                    offset: bytes_of(first),
                    bytes: bytes_of(sectors as u64),
                    fua: false,
                    effect: Some(Effect {
                        first,
                        sectors,
                        content: Some(content.into()),
                    }),
                    length: Some(length),
                },
            });
        }

        fn flush(&mut self, number: u64) {
            self.event(&Event::Begun {
                number,
                operation: Operation {
                    kind: Kind::Flush,
                    offset: 0,
                    bytes: 0,
                    fua: false,
                    effect: None,
                    length: None,
                },
            });
        }

        fn end(&mut self, number: u64) {
            self.event(&Event::Ended {
                number,
                outcome: Outcome::Done,
            });
        }

        fn fail(&mut self, number: u64, reached: &[bool]) {
            self.event(&Event::Ended {
                number,
                outcome: Outcome::Failed {
                    errno: libc::EIO,
                    reached: reached.to_vec(),
                    length: None,
                    latched: false,
                },
            });
        }

        /// What may be found in `sector`, in order.
        fn found(&self, sector: usize) -> Vec<Option<u8>> {
            let mut rng = Rng::new(1);
            let mut found: Vec<_> = (0..200)
                .map(|nth| {
                    let survivors = Survivors::choose(nth, self.0.unflushed(), &mut rng);
                    self.0.cut(survivors).get(sector * SECTOR).copied()
                })
                .collect();
            found.sort_unstable();
            found.dedup();
            found
        }
    }

    fn disk(forgets: bool) -> Written {
        Written(Disk::new(vec![0; 2 * SECTOR], forgets), 0)
    }

    #[test]
    fn a_flush_covers_what_had_ended_before_it_began() {
        let mut disk = disk(false);
        disk.begin(0, 1, 0, 1);
        disk.end(0);
        disk.begin(1, 2, 1, 1);
        disk.flush(2);
        disk.end(1);
        assert_eq!(disk.found(0), [Some(0), Some(1)]);
        disk.end(2);
        assert_eq!(disk.found(0), [Some(1)]);
        assert_eq!(disk.found(1), [Some(0), Some(2)], "it had not ended");
        disk.begin(3, 3, 0, 1);
        disk.end(3);
        disk.begin(4, 4, 0, 1);
        assert_eq!(disk.found(0), [Some(1), Some(3), Some(4)]);
        disk.flush(5);
        disk.end(5);
        assert_eq!(disk.found(0), [Some(3), Some(4)]);
    }

    #[test]
    fn a_length_can_be_lost_like_content() {
        let mut disk = disk(false);
        disk.begin(0, 1, 2, 2);
        disk.end(0);
        assert_eq!(disk.found(3), [None, Some(0), Some(1)]);
        disk.flush(1);
        disk.end(1);
        assert_eq!(disk.found(3), [Some(1)]);
    }

    #[test]
    fn what_a_failed_flush_forgets_is_never_covered() {
        for forgets in [false, true] {
            let mut disk = disk(forgets);
            disk.begin(0, 1, 0, 1);
            disk.end(0);
            disk.flush(1);
            disk.fail(1, &[]);
            disk.flush(2);
            disk.end(2);
            let before: &[_] = if forgets {
                &[Some(0), Some(1)]
            } else {
                &[Some(1)]
            };
            assert_eq!(disk.found(0), before);
            disk.begin(3, 2, 0, 1);
            disk.end(3);
            disk.flush(4);
            disk.end(4);
            assert_eq!(disk.found(0), [Some(2)], "written anew it is");
        }
    }

    #[test]
    fn a_failed_write_reaches_some_of_its_sectors() {
        let mut disk = disk(false);
        disk.begin(0, 1, 0, 2);
        assert_eq!(disk.found(1), [Some(0), Some(1)], "in flight");
        disk.fail(0, &[true, false]);
        assert_eq!(disk.found(0), [Some(0), Some(1)]);
        assert_eq!(disk.found(1), [Some(0)]);
    }
}
