//! The storage below an image: memory that is a [`Driver`], numbers its operations, lets one of them fail, and
//! ends them in whatever order it is told.
//!
//! It does no real I/O. What a cut leaves of it is not decided here but afterwards, from the log
//! ([`crate::disk`]); here is what reads see.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use block::{
    BlockError, Buffers, Capabilities, Driver, FlushLatch, Grow, Io, IoFuture, Limits, Loss, Node,
    NodeInfo, Resize,
};
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
}

impl Settings {
    /// All ends at once and well.
    pub const PLAIN: Self = Self {
        flush_failure: FlushFailure::Keeps,
        discarded: Discarded::Zeroes,
        at_once: 100,
        early: 0,
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
    logs: bool,
    dead: bool,
    log: Vec<Event>,
    fault: Option<Fault>,
    /// The kind of the operation that failed first.
    hit: Option<Kind>,
    latched: Option<Loss>,
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
            logs: true,
            dead: false,
            log: Vec::new(),
            fault: None,
            hit: None,
            latched: None,
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
        let waiting: Vec<u64> = waiting
            .filter(|(_, one)| one.outcome.is_none())
            .map(|(&number, _)| number)
            .collect();
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
        self.0.lock().latched.is_some()
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
        let latch = self.latched.filter(|loss| loss.counts_for(losses_accepted));
        let durable = operation.kind == Kind::Flush || operation.fua;
        let latch = latch.filter(|_| durable);
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
                    self.latched = Some(Loss::new(errno));
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

    /// The operation that a request is.
    fn operation(&mut self, io: &Io<'_>) -> Operation {
        let kind = match io.op {
            block::Operation::Read => Kind::Read,
            block::Operation::Write => Kind::Write,
            block::Operation::WriteZeroes { .. } => Kind::Zeroes,
            block::Operation::Discard => Kind::Discard,
            block::Operation::Flush => Kind::Flush,
        };
        let (begin, end) = (index(io.offset), index(io.offset + io.bytes));
        let from = begin / SECTOR * SECTOR;
        let until = end.next_multiple_of(SECTOR);
        let mut length =
            (io.op.modifies() && kind != Kind::Discard).then_some(Length::AtLeast(until as u64));
        // What does not fill its sectors is written with what is around it, as a file system does it.
        let mut content = vec![0; until - from];
        if let Some(before) = self
            .page
            .get(from.min(self.page.len())..until.min(self.page.len()))
        {
            content[..before.len()].copy_from_slice(before);
        }
        let inside = begin - from..end - from;
        let content: Option<Arc<[u8]>> = match kind {
            Kind::Write => {
                io.buffers.copy_to(&mut content[inside]);
                Some(content.into())
            }
            Kind::Zeroes if inside == (0..content.len()) => None,
            Kind::Zeroes => {
                content[inside].fill(0);
                Some(content.into())
            }
            Kind::Discard => match self.settings.discarded {
                Discarded::Zeroes => None,
                Discarded::Kept => Some(content.into()),
                Discarded::Garbage => {
                    let word = self.rng.next_u64().to_le_bytes();
                    let garbage = content.iter_mut().zip(word.into_iter().cycle());
                    garbage.for_each(|(byte, any)| *byte = any | 1);
                    Some(content.into())
                }
            },
            Kind::Read | Kind::Flush | Kind::Length => None,
        };
        let mut effect = io.op.modifies().then(|| Effect {
            first: (from / SECTOR) as u64,
            sectors: (until - from) / SECTOR,
            content,
        });
        let kept = kind == Kind::Discard && self.settings.discarded == Discarded::Kept;
        if io.bytes == 0 || kept {
            (effect, length) = (None, None);
        }
        Operation {
            kind,
            offset: io.offset,
            bytes: io.bytes,
            fua: io.fua && io.op.modifies(),
            effect,
            length,
        }
    }
}

/// The future of an operation: it is over when the storage was told to end it. If it is dropped before, it ends
/// then, as the kernel would be waited for.
struct Wait<'a> {
    storage: &'a Storage,
    number: u64,
    buffers: Buffers<'a>,
}

impl Wait<'_> {
    fn take(&self, state: &mut State) -> Option<Result<(), BlockError>> {
        let outcome = state.in_flight.get(&self.number)?.outcome?;
        let one = state.in_flight.remove(&self.number)?;
        if outcome.is_ok() && one.operation.kind == Kind::Read {
            self.buffers.copy_from(&one.found);
        }
        Some(outcome.map_err(|errno| {
            let error = BlockError::new(errno, "the storage under test fails");
            error.at(&"storage".into(), one.operation.offset, one.operation.bytes)
        }))
    }
}

impl Future for Wait<'_> {
    type Output = block::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<block::Result<()>> {
        let mut state = self.storage.0.lock();
        if let Some(outcome) = self.take(&mut state) {
            return Poll::Ready(outcome);
        }
        if let Some(one) = state.in_flight.get_mut(&self.number) {
            one.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut state = self.storage.0.lock();
        if state
            .in_flight
            .get(&self.number)
            .is_some_and(|one| one.outcome.is_none())
        {
            state.end(self.number);
        }
        state.in_flight.remove(&self.number);
    }
}

impl Driver for Storage {
    fn name(&self) -> &'static str {
        "sweep-storage"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo {
            filename: "sweep".to_owned(),
            ..NodeInfo::default()
        }
    }

    fn length(&self) -> u64 {
        self.0.lock().page.len() as u64
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 512,
            memory_alignment: 1,
            ..Limits::default()
        }
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let mut state = self.0.lock();
        let operation = state.operation(&io);
        let number = state.begin(operation, io.losses_accepted);
        let at_once = state.at_once || {
            let percent = state.settings.at_once;
            state.rng.below(100) < percent
        };
        let wait = Wait {
            storage: self,
            number,
            buffers: io.buffers,
        };
        if at_once {
            state.end(number);
            let outcome = wait.take(&mut state);
            drop(state);
            return IoFuture::ready(outcome.unwrap_or(Ok(())));
        }
        IoFuture::new(wait)
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            flush_latch: Some(self),
            resize: Some(self),
            grow: Some(self),
            ..Capabilities::default()
        }
    }
}

impl Grow for Storage {
    fn submit_beyond<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        self.submit(io)
    }
}

impl Resize for Storage {
    fn resized_length(&self, length: u64) -> block::Result<u64> {
        Ok(length.next_multiple_of(SECTOR as u64))
    }

    /// Called drained, by whoever cannot wait for the schedule: it ends at once.
    fn resize(&self, length: u64) -> block::Result<()> {
        let length = self.resized_length(length)?;
        let mut state = self.0.lock();
        let before = state.page.len() as u64;
        let shrinks = (before > length).then(|| Effect {
            first: length / SECTOR as u64,
            sectors: index(before - length) / SECTOR,
            content: None,
        });
        let operation = Operation {
            kind: Kind::Length,
            offset: 0,
            bytes: length,
            fua: false,
            effect: shrinks,
            length: Some(Length::Exactly(length)),
        };
        let number = state.begin(operation, 0);
        let fails = state.in_flight.get(&number).and_then(|one| one.fails);
        if fails.is_some()
            && let Some(one) = state.in_flight.get_mut(&number)
        {
            // A truncation is done, or it is not.
            one.operation.effect = None;
        }
        state.end(number);
        state.in_flight.remove(&number);
        fails.map_or(Ok(()), |errno| Err(BlockError::from_errno(errno)))
    }
}

impl FlushLatch for Storage {
    fn latched(&self) -> Option<Loss> {
        self.0.lock().latched
    }

    fn latch(&self, loss: Loss) {
        self.0.lock().latched = Some(loss);
    }

    fn accept_loss(&self, upto: u32) -> bool {
        let mut state = self.0.lock();
        let gone = state.latched.take_if(|loss| !loss.counts_for(upto));
        gone.is_some()
    }
}
