//! The storage below an image: memory that is a [`Driver`](block::Driver), numbers its operations, lets one of them fail, and
//! ends them in whatever order it is told.
//!
//! It does no real I/O. What a cut leaves of it is not decided here but afterwards, from the log
//! ([`crate::disk`]); here is what reads see, and in [`driver`](self) what requests become.

mod driver;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;

use block::{Loss, Node};
use parking_lot::Mutex;
use testkit::Rng;

use crate::disk::put;
use crate::event::{Effect, Event, Kind, Length, Operation, Outcome};
use crate::sector::{SECTOR, bytes_of, index, is_zero};

/// What becomes of unflushed data when a flush fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushFailure {
    /// They are kept, and the next flush covers them (a device, `O_DIRECT`).
    Keeps,
    /// They are forgotten, as Linux does it with its page cache; the failure is latched as the `file` driver does
    /// it: flushes fail until the loss is accepted.
    Forgets,
}

/// What reads find where something has been discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discarded {
    /// Zeroes.
    Zeroes,
    /// What was there.
    Kept,
    /// Anything.
    Garbage,
}

/// How the storage is.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// When a flush fails.
    pub flush_failure: FlushFailure,
    /// When something is discarded.
    pub discarded: Discarded,
    /// So many operations of a hundred end when they are submitted.
    pub at_once: u64,
    /// So many of those that do not are visible from the beginning, and not from the end.
    pub early: u64,
    /// One operation of so many takes so long that most others are over before it has ended; 0: none.
    pub slow: u64,
}

impl Settings {
    /// All ends at once and well.
    pub const PLAIN: Self = Self {
        flush_failure: FlushFailure::Keeps,
        discarded: Discarded::Zeroes,
        at_once: 100,
        early: 0,
        slow: 0,
    };
}

/// The operation that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its number.
    pub at: u64,
    /// ENOSPC or EIO.
    pub errno: i32,
    /// All that are like it and come later fail, too, until [`Storage::heal`]: with ENOSPC those that need room,
    /// with EIO all reads, or all that modifies.
    pub for_good: bool,
}

struct InFlight {
    operation: Operation,
    fails: Option<i32>,
    latched: bool,
    early: bool,
    outcome: Option<Result<(), i32>>,
    found: Vec<u8>,
    waker: Option<Waker>,
}

struct State {
    settings: Settings,
    rng: Rng,
    page: Vec<u8>,
    /// Sectors that have room.
    has_room: Vec<bool>,
    next: u64,
    in_flight: BTreeMap<u64, InFlight>,
    at_once: bool,
    /// It grows as a file does: by zeroes, as the driver may rely on. In truth it always does.
    is_file: bool,
    logs: bool,
    dead: bool,
    log: Vec<Event>,
    fault: Option<Fault>,
    /// The kind of the operation that failed first.
    hit: Option<Kind>,
    /// Flushes that have failed, and of which bytes they were.
    latched: Vec<(Loss, Range<u64>)>,
}

/// See the [module](self). Clones are the same storage.
#[derive(Clone)]
pub struct Storage(Arc<Mutex<State>>);

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").finish_non_exhaustive()
    }
}

impl Storage {
    /// Storage on which `image` is, durable, and nothing else.
    pub fn new(mut image: Vec<u8>, settings: Settings, seed: u64) -> Self {
        image.resize(image.len().next_multiple_of(SECTOR), 0);
        let has_room = image.chunks(SECTOR).map(|sector| !is_zero(sector));
        let state = State {
            settings,
            rng: Rng::new(seed),
            has_room: has_room.collect(),
            page: image,
            next: 0,
            in_flight: BTreeMap::new(),
            at_once: settings.at_once >= 100,
            is_file: !seed.is_multiple_of(4),
            logs: true,
            dead: false,
            log: Vec::new(),
            fault: None,
            hit: None,
            latched: Vec::new(),
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Storage for a look at `image`: all ends at once, and nothing is logged.
    pub fn to_look_at(image: Vec<u8>) -> Self {
        let this = Self::new(image, Settings::PLAIN, 0);
        this.0.lock().logs = false;
        this
    }

    /// A node on it.
    pub fn node(&self) -> Arc<Node> {
        Node::new("storage", Box::new(self.clone()))
    }

    /// What reads see.
    pub fn image(&self) -> Vec<u8> {
        self.0.lock().page.clone()
    }

    /// How many operations there have been.
    pub fn operations(&self) -> u64 {
        self.0.lock().next
    }

    /// How many wait for their end.
    pub fn in_flight(&self) -> usize {
        let state = self.0.lock();
        let waiting = state.in_flight.values();
        waiting.filter(|one| one.outcome.is_none()).count()
    }

    /// From now on operations end when they are submitted, or not all any more.
    pub fn at_once(&self, at_once: bool) {
        let mut state = self.0.lock();
        state.at_once = at_once || state.settings.at_once >= 100;
    }

    /// Ends one of those in flight. False: there is none.
    pub fn end_one(&self, rng: &mut Rng) -> bool {
        let mut state = self.0.lock();
        let waiting = state.in_flight.iter();
        let mut waiting: Vec<u64> = waiting
            .filter(|(_, one)| one.outcome.is_none())
            .map(|(&number, _)| number)
            .collect();
        let slow = state.settings.slow;
        let is_slow = |number: &u64| slow > 0 && number.is_multiple_of(slow);
        if waiting.iter().all(is_slow) {
            // What has to begin before it ends may do so.
            if rng.below(8) > 0 {
                return false;
            }
        } else {
            waiting.retain(|number| !is_slow(number));
        }
        let Some(&number) = waiting.get(index(rng.below(waiting.len() as u64))) else {
            return false;
        };
        let waker = state.end(number);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Lets an operation fail.
    pub fn fail(&self, fault: Option<Fault>) {
        self.0.lock().fault = fault;
    }

    /// Whether the operation that is to fail has failed.
    pub fn has_failed(&self) -> bool {
        self.0.lock().hit.is_some()
    }

    /// Whether a failed flush is latched.
    pub fn is_latched(&self) -> bool {
        !self.0.lock().latched.is_empty()
    }

    /// Nothing fails any more; but what is latched stays so.
    pub fn heal(&self) {
        self.0.lock().fault = None;
    }

    /// The power is cut: nothing that happens from now on reaches anything.
    pub fn die(&self) {
        self.0.lock().dead = true;
    }

    /// Adds to the log.
    pub fn log(&self, event: Event) {
        self.0.lock().push(event);
    }

    /// The log until now, for a look.
    pub fn with_log<R>(&self, look: impl FnOnce(&[Event]) -> R) -> R {
        look(&self.0.lock().log)
    }

    /// The log, which is empty then.
    pub fn take_log(&self) -> Vec<Event> {
        std::mem::take(&mut self.0.lock().log)
    }
}

impl State {
    fn push(&mut self, event: Event) {
        if self.logs && !self.dead {
            self.log.push(event);
        }
    }

    fn begin(&mut self, mut operation: Operation, losses_accepted: u32) -> u64 {
        let number = self.next;
        self.next += 1;
        if operation
            .length
            .is_some_and(|change| change.after(self.page.len() as u64) == self.page.len() as u64)
        {
            operation.length = None;
        }
        let meets = |(_, bytes): &&(Loss, Range<u64>)| match operation.kind {
            Kind::Flush => bytes.start == operation.flushed().start,
            _ => operation.fua && bytes.contains(&operation.offset),
        };
        let mut latched = self.latched.iter().filter(meets).map(|(loss, _)| *loss);
        let latch = latched.find(|loss| loss.counts_for(losses_accepted));
        let fails = match latch {
            Some(loss) => Some(loss.errno),
            None => self.fails(number, &operation),
        };
        let early = fails.is_none()
            && operation.length.is_none()
            && self.rng.below(100) < self.settings.early;
        self.push(Event::Begun {
            number,
            operation: operation.clone(),
        });
        let one = InFlight {
            operation,
            fails,
            latched: latch.is_some(),
            early,
            outcome: None,
            found: Vec::new(),
            waker: None,
        };
        self.in_flight.insert(number, one);
        if early {
            self.apply(number, None);
        }
        number
    }

    fn fails(&mut self, number: u64, operation: &Operation) -> Option<i32> {
        if self.dead {
            return Some(libc::EIO);
        }
        let fault = self.fault?;
        let errno = match operation.kind {
            Kind::Read => libc::EIO,
            _ => fault.errno,
        };
        if number == fault.at {
            self.hit = Some(operation.kind);
            return Some(errno);
        }
        let first = self.hit.filter(|_| fault.for_good)?;
        let again = match (fault.errno, first, operation.kind) {
            (libc::ENOSPC, Kind::Read, _) | (_, Kind::Read, Kind::Read) => {
                operation.kind == Kind::Read
            }
            (_, Kind::Read, _) | (_, _, Kind::Read) => false,
            (libc::ENOSPC, _, kind) => {
                kind == first && kind == Kind::Flush || self.needs_room(operation)
            }
            (_, _, _) => true,
        };
        again.then_some(errno)
    }

    fn needs_room(&self, operation: &Operation) -> bool {
        if operation.length.is_some() {
            return true;
        }
        let Some(Effect {
            first,
            sectors,
            content: Some(_),
        }) = operation.effect
        else {
            return false;
        };
        let mut all = (first..).take(sectors);
        all.any(|sector| !self.has_room.get(index(sector)).copied().unwrap_or(false))
    }

    /// The operation becomes visible: all of it, or what of it is `reached`.
    fn apply(&mut self, number: u64, reached: Option<&[bool]>) {
        let Some(one) = self.in_flight.get(&number) else {
            return;
        };
        let operation = one.operation.clone();
        if operation.effect.is_none() && operation.length.is_none() {
            return;
        }
        if reached.is_none()
            && let Some(length) = operation.length
        {
            self.resize(length);
        }
        if let Some(effect) = operation.effect {
            let gives_back = operation.kind == Kind::Discard;
            for sector in 0..effect.sectors {
                if reached.is_none_or(|reached| reached.get(sector).copied().unwrap_or(false)) {
                    put(&mut self.page, &effect, sector);
                    let at = index(effect.first + sector as u64);
                    if let Some(room) = self.has_room.get_mut(at) {
                        *room = !gives_back && effect.content.is_some();
                    }
                }
            }
        }
        self.push(Event::Applied { number });
    }

    fn resize(&mut self, length: Length) {
        let length = index(length.after(self.page.len() as u64));
        self.page.resize(length, 0);
        self.has_room.resize(length / SECTOR, false);
    }

    /// The operation ends. Whom to wake.
    fn end(&mut self, number: u64) -> Option<Waker> {
        let one = self.in_flight.get(&number)?;
        let (fails, early, latched) = (one.fails, one.early, one.latched);
        let (kind, length) = (one.operation.kind, one.operation.length);
        let (offset, bytes) = (one.operation.offset, one.operation.bytes);
        let flushed = one.operation.flushed();
        let effect = one.operation.effect.clone();
        let outcome = match fails {
            None => {
                if !early {
                    self.apply(number, None);
                }
                Outcome::Done
            }
            Some(errno) => {
                let sectors = effect.as_ref().map_or(0, |effect| effect.sectors);
                let reached = self.reached(sectors);
                // A file is as long as what has reached it.
                let length = effect.filter(|_| length.is_some()).and_then(|effect| {
                    let last = reached.iter().rposition(|&reached| reached)?;
                    Some(Length::AtLeast(bytes_of(effect.first + last as u64 + 1)))
                });
                if let Some(length) = length {
                    self.resize(length);
                }
                self.apply(number, Some(&reached));
                if kind == Kind::Flush
                    && !latched
                    && self.settings.flush_failure == FlushFailure::Forgets
                {
                    self.latched.push((Loss::new(errno), flushed));
                }
                Outcome::Failed {
                    errno,
                    reached,
                    length,
                    latched,
                }
            }
        };
        self.push(Event::Ended { number, outcome });
        let found = match kind {
            Kind::Read => {
                let mut found = vec![0; index(bytes)];
                let inside = self.page.get(index(offset)..).unwrap_or(&[]);
                let inside = &inside[..inside.len().min(found.len())];
                found[..inside.len()].copy_from_slice(inside);
                found
            }
            _ => Vec::new(),
        };
        let one = self.in_flight.get_mut(&number)?;
        one.found = found;
        one.outcome = Some(fails.map_or(Ok(()), Err));
        one.waker.take()
    }

    /// Which sectors a failing operation reaches.
    fn reached(&mut self, sectors: usize) -> Vec<bool> {
        let percent = [0, 0, 50, 50, 90, 100][index(self.rng.below(6))];
        (0..sectors)
            .map(|_| self.rng.below(100) < percent)
            .collect()
    }
}
