//! Who minds the time for a line: one of those who wait on each thread. A thread may be stuck, in storage or
//! wherever else, and its timers with it; nobody on another one waits for that. Pure: the time is told.
//!
//! The last who has come is chosen, as he stays longest, and he minds the time until he goes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::line::Waiting;

/// What two looks at the same buckets may differ by.
const SLACK: Duration = Duration::from_micros(1);

/// See the [module](self). `T` names a thread.
#[derive(Debug)]
pub struct Minders<T> {
    /// Those on which somebody waits.
    threads: Vec<Thread<T>>,
}

#[derive(Debug)]
struct Thread<T> {
    thread: T,
    /// Later ones have greater numbers.
    waiting: VecDeque<Waiting>,
    minder: Option<Minder>,
}

#[derive(Debug)]
struct Minder {
    waiting: Waiting,
    /// He looks then, for all he knows.
    until: Instant,
}

impl<T> Default for Minders<T> {
    fn default() -> Self {
        Self {
            threads: Vec::new(),
        }
    }
}

impl<T: Copy + PartialEq> Minders<T> {
    /// One more waits, on `thread`.
    pub fn push(&mut self, thread: T, waiting: Waiting) {
        match self.threads.iter_mut().find(|known| known.thread == thread) {
            Some(known) => known.waiting.push_back(waiting),
            None => self.threads.push(Thread {
                thread,
                waiting: [waiting].into(),
                minder: None,
            }),
        }
    }

    /// One waits no more.
    pub fn remove(&mut self, thread: T, waiting: Waiting) {
        let known = self.threads.iter().position(|known| known.thread == thread);
        let Some(at) = known else {
            return;
        };
        let known = &mut self.threads[at];
        if let Ok(place) = known.waiting.binary_search(&waiting) {
            known.waiting.remove(place);
        }
        known.minder.take_if(|minder| minder.waiting == waiting);
        if known.waiting.is_empty() {
            self.threads.swap_remove(at);
        }
    }

    /// Somebody may go `until` then. `tell` is called with those who do not know that they are to look by then.
    pub fn mind(&mut self, until: Instant, mut tell: impl FnMut(Waiting)) {
        for known in &mut self.threads {
            // One who looks too early looks again, so that only what comes sooner is news.
            let knows = |minder: &Minder| minder.until <= until + SLACK;
            if known.minder.as_ref().is_some_and(knows) {
                continue;
            }
            let minder = known.minder.as_ref().map(|minder| minder.waiting);
            if let Some(waiting) = minder.or_else(|| known.waiting.back().copied()) {
                known.minder = Some(Minder { waiting, until });
                tell(waiting);
            }
        }
    }

    /// Whether this one minds the time on `thread`. He does it `until` then, from now on.
    pub fn minds(&mut self, thread: T, waiting: Waiting, until: Instant) -> bool {
        let minders = self.threads.iter_mut().filter_map(|known| {
            let minder = known.minder.as_mut()?;
            (known.thread == thread && minder.waiting == waiting).then_some(minder)
        });
        minders.map(|minder| minder.until = until).count() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(minders: &mut Minders<char>, until: Instant) -> Vec<u64> {
        let mut told = Vec::new();
        minders.mind(until, |Waiting(number)| told.push(number));
        told
    }

    #[test]
    fn each_thread_has_one_who_minds_the_time() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut minders = Minders::default();
        for (thread, number) in [('a', 1), ('a', 2), ('b', 3), ('a', 4)] {
            minders.push(thread, Waiting(number));
        }
        assert_eq!(told(&mut minders, at(5)), [4, 3]);
        // They know it, and look too early at worst.
        minders.push('b', Waiting(5));
        assert_eq!(told(&mut minders, at(5)), [0; 0]);
        assert_eq!(told(&mut minders, at(9)), [0; 0]);
        assert!(minders.minds('a', Waiting(4), at(9)));
        assert!(!minders.minds('b', Waiting(5), at(9)));
        // Only one of them has looked, and knows it.
        assert_eq!(told(&mut minders, at(7)), [4]);
        assert_eq!(told(&mut minders, at(3)), [4, 3]);
        minders.remove('a', Waiting(2));
        assert_eq!(told(&mut minders, at(3)), [0; 0]);
        minders.remove('a', Waiting(4));
        minders.remove('b', Waiting(3));
        assert_eq!(told(&mut minders, at(8)), [1, 5]);
        minders.remove('a', Waiting(1));
        assert!(!minders.minds('a', Waiting(1), at(8)));
        assert_eq!(told(&mut minders, at(1)), [5]);
    }
}
