//! A throttle group: one budget for all its members, on whichever iothreads they are.
//!
//! Whose turn it is, is decided under one lock, which nobody keeps for longer than a look at the buckets. Who
//! has to wait stands in a line for its kind. One on each thread minds the time (`minders`): it alone has a
//! timer; when that has run out it looks who may go, and wakes those. All others sleep until they are told.
//! A thread that is stuck keeps nobody on another one: what its requests are allowed meanwhile is what they
//! would have had, and is theirs when it goes on.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use iothread::time::{Sleep, sleep_until};
use parking_lot::Mutex;

use super::bucket::{Budget, Kind};
use super::limits::ThrottleLimits;
use super::line::{Line, Member, Waiting};
use super::minders::Minders;

/// The furthest that anybody minds the time.
const FAR: Duration = Duration::from_secs(3600);

/// See the [module](self).
#[derive(Debug)]
pub struct ThrottleGroup {
    name: Arc<str>,
    /// Whether there are limits for reads, and for writes: most requests of a group without need no lock.
    limited: [AtomicBool; 2],
    last_member: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    budget: Budget,
    /// Those who wait to read, and to write.
    lines: [Line; 2],
    minders: Minders<ThreadId>,
    /// When somebody may go; none: nobody waits.
    until: Option<Instant>,
    /// Those who wait, and those who may go and do not know it yet.
    waiting: BTreeMap<u64, Entry>,
    last_waiting: u64,
    /// Who goes first where both may.
    turn: Kind,
}

/// One that waits.
#[derive(Debug)]
struct Entry {
    member: Member,
    thread: ThreadId,
    kind: Kind,
    bytes: u64,
    /// It may go, and what it takes has been taken.
    goes: bool,
    waker: Option<Waker>,
}

/// Who is to be woken when the lock is free again.
type Wakers = Vec<Waker>;

fn index(kind: Kind) -> usize {
    match kind {
        Kind::Read => 0,
        Kind::Write => 1,
    }
}

fn wake(wakers: Wakers) {
    wakers.into_iter().for_each(Waker::wake);
}

impl ThrottleGroup {
    /// A group; nothing was done yet.
    ///
    /// # Errors
    /// What of `limits` makes no sense, in QEMU's words.
    pub fn new(name: &str, limits: ThrottleLimits) -> Result<Arc<Self>, String> {
        limits.check()?;
        let group = Self {
            name: name.into(),
            limited: Default::default(),
            last_member: AtomicU64::new(0),
            state: Mutex::new(State {
                budget: Budget::new(limits, Instant::now()),
                lines: Default::default(),
                minders: Minders::default(),
                until: None,
                waiting: BTreeMap::new(),
                last_waiting: 0,
                turn: Kind::Read,
            }),
        };
        group.note_limits(&group.state.lock().budget);
        Ok(Arc::new(group))
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What it allows.
    pub fn limits(&self) -> ThrottleLimits {
        *self.state.lock().budget.limits()
    }

    /// Allows this from now on, as if nothing had been done yet. Who waits goes as soon as these limits let
    /// him.
    ///
    /// # Errors
    /// What of `limits` makes no sense, in QEMU's words; nothing has changed then.
    pub fn set_limits(&self, limits: ThrottleLimits) -> Result<(), String> {
        limits.check()?;
        let now = Instant::now();
        let mut state = self.state.lock();
        state.budget = Budget::new(limits, now);
        self.note_limits(&state.budget);
        let wakers = state.let_go(now);
        drop(state);
        wake(wakers);
        Ok(())
    }

    /// One more member.
    pub(super) fn join(&self) -> Member {
        Member(self.last_member.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Whether there are limits for this kind. Whoever has just set them is not waited for.
    #[inline]
    pub(super) fn is_limited(&self, kind: Kind) -> bool {
        self.limited[index(kind)].load(Ordering::Relaxed)
    }

    /// A request of `member` wants to begin, on this thread, and stays there. None: it may, and has taken what
    /// it needs.
    pub(super) fn enter(&self, member: Member, kind: Kind, bytes: u64) -> Option<Turn<'_>> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.until.is_none() && state.budget.wait(kind, now).is_none() {
            state.budget.take(kind, bytes);
            return None;
        }
        state.last_waiting += 1;
        let number = state.last_waiting;
        let entry = Entry {
            member,
            thread: thread::current().id(),
            kind,
            bytes,
            goes: false,
            waker: None,
        };
        state.minders.push(entry.thread, Waiting(number));
        state.waiting.insert(number, entry);
        state.lines[index(kind)].push(member, Waiting(number));
        let wakers = state.let_go(now);
        drop(state);
        wake(wakers);
        Some(Turn {
            group: self,
            number,
            timer: None,
        })
    }

    fn note_limits(&self, budget: &Budget) {
        for kind in [Kind::Read, Kind::Write] {
            self.limited[index(kind)].store(budget.is_limited(kind), Ordering::Relaxed);
        }
    }
}

impl State {
    /// Lets all go that may, and has the time minded for the others.
    fn let_go(&mut self, now: Instant) -> Wakers {
        let mut wakers = Wakers::new();
        while self.let_one_go(now, &mut wakers) {}
        let [reads, writes] = [Kind::Read, Kind::Write].map(|kind| {
            let wait = match self.lines[index(kind)].is_empty() {
                true => return None,
                false => self.budget.wait(kind, now).unwrap_or_default(),
            };
            // What does not fit the clock is looked at again.
            Some(now.checked_add(wait).unwrap_or(now + FAR))
        });
        self.until = match (reads, writes) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let Self {
            minders, waiting, ..
        } = self;
        if let Some(until) = self.until {
            minders.mind(until, |Waiting(number)| {
                let entry = waiting.get_mut(&number);
                wakers.extend(entry.and_then(|entry| entry.waker.take()));
            });
        }
        wakers
    }

    fn let_one_go(&mut self, now: Instant, wakers: &mut Wakers) -> bool {
        for kind in [self.turn, other(self.turn)] {
            if self.lines[index(kind)].is_empty() || self.budget.wait(kind, now).is_some() {
                continue;
            }
            let first = self.lines[index(kind)].pop();
            if let Some(first) = first
                && let Some(entry) = self.waiting.get_mut(&first.0)
            {
                entry.goes = true;
                self.minders.remove(entry.thread, first);
                self.budget.take(kind, entry.bytes);
                wakers.extend(entry.waker.take());
            }
            self.turn = other(kind);
            return true;
        }
        false
    }

    /// Somebody does not wait any more. `back`: what has been taken for him was not needed.
    fn leave(&mut self, number: u64, back: bool) -> Wakers {
        let Some(entry) = self.waiting.remove(&number) else {
            return Wakers::new();
        };
        match (entry.goes, back) {
            (true, true) => self.budget.give_back(entry.kind, entry.bytes),
            (true, false) => return Wakers::new(),
            (false, _) => {
                self.lines[index(entry.kind)].remove(entry.member, Waiting(number));
                self.minders.remove(entry.thread, Waiting(number));
            }
        }
        self.let_go(Instant::now())
    }
}

fn other(kind: Kind) -> Kind {
    match kind {
        Kind::Read => Kind::Write,
        Kind::Write => Kind::Read,
    }
}

/// The wait of one request for its turn; dropped before that it leaves the line, and what has been taken for it
/// is given back.
#[must_use = "futures do nothing unless polled"]
pub(super) struct Turn<'a> {
    group: &'a ThrottleGroup,
    number: u64,
    timer: Option<Sleep>,
}

/// What one is to do who asks whether it is his turn.
enum Answer {
    Go,
    Mind(Instant),
    Sleep,
}

impl Turn<'_> {
    fn ask(&self, waker: &Waker) -> Answer {
        let mut state = self.group.state.lock();
        let State {
            waiting,
            minders,
            until,
            ..
        } = &mut *state;
        let Some(entry) = waiting.get_mut(&self.number) else {
            return Answer::Go;
        };
        if entry.goes {
            state.leave(self.number, false);
            return Answer::Go;
        }
        if !entry
            .waker
            .as_ref()
            .is_some_and(|known| known.will_wake(waker))
        {
            entry.waker = Some(waker.clone());
        }
        match *until {
            Some(until) if minders.minds(entry.thread, Waiting(self.number), until) => {
                Answer::Mind(until)
            }
            _ => Answer::Sleep,
        }
    }

    /// The time has come that was minded.
    fn let_go(&self) {
        let mut state = self.group.state.lock();
        let wakers = state.let_go(Instant::now());
        drop(state);
        wake(wakers);
    }
}

impl Future for Turn<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let until = match self.ask(cx.waker()) {
                Answer::Go => return Poll::Ready(()),
                Answer::Sleep => return Poll::Pending,
                Answer::Mind(until) => until,
            };
            if (self.timer.as_ref()).is_none_or(|timer| timer.deadline() != until) {
                self.timer = Some(sleep_until(until));
            }
            if let Some(timer) = &mut self.timer
                && Pin::new(timer).poll(cx).is_pending()
            {
                return Poll::Pending;
            }
            self.timer = None;
            self.let_go();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.group.state.lock();
        let wakers = state.leave(self.number, true);
        drop(state);
        wake(wakers);
    }
}

impl fmt::Debug for Turn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn")
            .field("group", &self.group.name)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}
