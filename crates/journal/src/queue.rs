//! Between those who append and the thread that writes: what waits, and what found no room.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::{Condvar, Mutex};

use crate::entry::{Text, now};
use crate::error::{FlushError, JournalError};

/// What an entry takes beside its text, in bytes.
const ITEM_BYTES: usize = size_of::<Item>();

/// Nobody waits longer.
const LIMIT_MAX: Duration = Duration::from_secs(86_400);

/// An entry on its way.
#[derive(Debug)]
pub struct Item {
    pub time: Timestamp,
    pub text: Text,
}

impl Item {
    /// What it takes, in bytes.
    pub fn bytes(&self) -> usize {
        ITEM_BYTES
            + match &self.text {
                Text::Data(json) => json.len(),
                Text::Dropped(_) => 0,
            }
    }
}

type Answer = Result<(), Arc<JournalError>>;

/// Somebody who waits until all before it is on the disk.
#[derive(Debug)]
pub struct Flush {
    /// It is about so many of all entries that were ever put in.
    upto: u64,
    answer: Mutex<Option<Answer>>,
}

/// Numbers for whoever watches.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub written: u64,
    pub dropped: u64,
    pub waiting_bytes: usize,
    pub failing: Option<Arc<JournalError>>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Item>,
    /// Dropped entries that no entry of the journal tells of yet.
    to_tell: u64,
    /// Entries that were ever put in.
    put: u64,
    flushes: Vec<Arc<Flush>>,
    ended: bool,
    gone: bool,
    counts: Counts,
}

impl State {
    fn put(&mut self, text: Text) {
        let item = Item { time: now(), text };
        self.counts.waiting_bytes += item.bytes();
        self.put += 1;
        self.waiting.push_back(item);
    }

    fn tell_dropped(&mut self) {
        match std::mem::take(&mut self.to_tell) {
            0 => {}
            count => self.put(Text::Dropped(count)),
        }
    }
}

/// The queue. Its lock is never held while anything is waited for.
#[derive(Debug)]
pub struct Queue {
    bytes_max: usize,
    state: Mutex<State>,
    /// There is something to do.
    work: Condvar,
    /// Flushes were answered, or the writer has gone.
    answered: Condvar,
}

impl Queue {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            state: Mutex::default(),
            work: Condvar::new(),
            answered: Condvar::new(),
        }
    }

    /// Puts an entry in, if there is room.
    pub fn append(&self, json: Vec<u8>) {
        let json = json.into_boxed_slice();
        let mut state = self.state.lock();
        let bytes = ITEM_BYTES + json.len();
        if state.ended || state.counts.waiting_bytes + bytes > self.bytes_max {
            state.drop_one();
            return;
        }
        state.tell_dropped();
        state.put(Text::Data(json));
        drop(state);
        self.work.notify_one();
    }

    /// Counts an entry that cannot be kept whatever room there is.
    pub fn drop_one(&self) {
        self.state.lock().drop_one();
        self.work.notify_one();
    }

    pub fn counts(&self) -> Counts {
        self.state.lock().counts.clone()
    }

    /// Waits until all that was put in is on the disk, at most for `limit`; none: longer than that.
    pub fn flush(&self, limit: Duration) -> Option<Result<(), FlushError>> {
        let until = Instant::now() + limit.min(LIMIT_MAX);
        let mut state = self.state.lock();
        state.tell_dropped();
        let flush = Arc::new(Flush {
            upto: state.put,
            answer: Mutex::new(None),
        });
        // Those who have given up are nobody's any more.
        state.flushes.retain(|flush| Arc::strong_count(flush) > 1);
        state.flushes.push(Arc::clone(&flush));
        self.work.notify_one();
        loop {
            if let Some(answer) = flush.answer.lock().take() {
                return Some(answer.map_err(FlushError::Failed));
            }
            if self.answered.wait_until(&mut state, until).timed_out() {
                let answer = flush.answer.lock().take();
                return answer.map(|answer| answer.map_err(FlushError::Failed));
            }
        }
    }

    /// The end: nothing more is put in. Waits until the writer has gone; false: not within `limit`.
    pub fn end(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.state.lock();
        state.ended = true;
        self.work.notify_one();
        while !state.gone {
            if self.answered.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.gone
    }

    // What follows is the writer's.

    /// Waits for work, and moves what waits to `pending`, up to about `bytes_max`; while the storage
    /// fails, which it is tried again after `retry`, only flushes and the end count as work. Returns
    /// whether this is the end.
    pub fn wait(
        &self,
        pending: &mut VecDeque<Item>,
        bytes_max: usize,
        retry: Option<Duration>,
    ) -> bool {
        let until = retry.map(|retry| Instant::now() + retry);
        let mut state = self.state.lock();
        loop {
            let any = !state.waiting.is_empty() || state.to_tell > 0;
            if state.ended || !state.flushes.is_empty() || (retry.is_none() && any) {
                break;
            }
            match until {
                None => self.work.wait(&mut state),
                Some(until) => {
                    if self.work.wait_until(&mut state, until).timed_out() {
                        break;
                    }
                }
            }
        }
        let mut bytes: usize = pending.iter().map(Item::bytes).sum();
        if state.waiting.is_empty() && pending.is_empty() {
            state.tell_dropped();
        }
        while bytes < bytes_max
            && let Some(item) = state.waiting.pop_front()
        {
            bytes += item.bytes();
            pending.push_back(item);
        }
        state.ended
    }

    /// So many entries, of so many bytes here, are in the file; or no more, because it fails.
    pub fn written(&self, entries: u64, bytes: usize, failing: Option<&Arc<JournalError>>) {
        let mut state = self.state.lock();
        state.counts.written += entries;
        state.counts.waiting_bytes -= bytes;
        state.counts.failing = failing.cloned();
    }

    /// The flushes that can be answered now: all of whose entries are written, or all if it fails.
    pub fn due_flushes(&self, fails: bool) -> Vec<Arc<Flush>> {
        let mut state = self.state.lock();
        let written = state.counts.written;
        let due = |flush: &mut Arc<Flush>| fails || flush.upto <= written;
        state.flushes.extract_if(.., due).collect()
    }

    /// Answers them.
    pub fn answer(&self, flushes: Vec<Arc<Flush>>, answer: &Answer) {
        let _state = self.state.lock();
        for flush in flushes {
            *flush.answer.lock() = Some(answer.clone());
        }
        self.answered.notify_all();
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.waiting.is_empty() && state.to_tell == 0
    }

    /// The writer ends, and nobody waits for it any more.
    pub fn gone(&self) {
        self.state.lock().gone = true;
        self.answered.notify_all();
    }
}

impl State {
    fn drop_one(&mut self) {
        self.to_tell += 1;
        self.counts.dropped += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(queue: &Queue) -> Vec<String> {
        let mut pending = VecDeque::new();
        queue.wait(&mut pending, usize::MAX, Some(Duration::ZERO));
        let bytes = pending.iter().map(Item::bytes).sum();
        queue.written(pending.len() as u64, bytes, None);
        let text = |item: Item| match item.text {
            Text::Data(json) => String::from_utf8(json.into_vec()).unwrap(),
            Text::Dropped(count) => format!("dropped {count}"),
        };
        pending.into_iter().map(text).collect()
    }

    #[test]
    fn what_finds_no_room_is_told_in_its_place() {
        let queue = Queue::new(2 * (ITEM_BYTES + 10));
        for text in ["aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc", "d"] {
            queue.append(text.into());
        }
        assert_eq!(queue.counts().dropped, 2);
        assert_eq!(taken(&queue), ["aaaaaaaaaa", "bbbbbbbbbb"]);
        queue.append("e".into());
        queue.drop_one();
        assert_eq!(taken(&queue), ["dropped 2", "e"]);
        assert_eq!(taken(&queue), ["dropped 1"]);
        assert!(taken(&queue).is_empty() && queue.is_empty());
        let counts = queue.counts();
        assert_eq!(
            (counts.written, counts.dropped, counts.waiting_bytes),
            (5, 3, 0)
        );
    }

    #[test]
    fn what_waits_is_bounded() {
        let queue = Queue::new(1 << 20);
        for _ in 0..1_000_000 {
            queue.append(Vec::new());
        }
        let counts = queue.counts();
        assert!(counts.waiting_bytes <= 1 << 20 && counts.dropped > 900_000);
    }

    #[test]
    fn flushes_that_were_given_up_are_forgotten() {
        let queue = Queue::new(1 << 20);
        for _ in 0..100 {
            assert!(queue.flush(Duration::ZERO).is_none());
        }
        assert_eq!(queue.state.lock().flushes.len(), 1);
    }
}
