//! What nobody has looked for in a while is forgotten (`cache-clean-interval`): by one thread for all images, which is
//! there as long as there are any, and sleeps.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::cache::L2Cache;

/// How long the thread sleeps at most: a daemon without images has none.
const SLEEP_MAX: Duration = Duration::from_secs(600);

static WATCHED: Mutex<Watched> = Mutex::new(Watched {
    caches: Vec::new(),
    has_thread: false,
});
static MORE: Condvar = Condvar::new();

/// All caches that are to be cleaned.
#[derive(Debug)]
struct Watched {
    caches: Vec<Entry>,
    has_thread: bool,
}

#[derive(Debug)]
struct Entry {
    cache: Weak<L2Cache>,
    every: Duration,
    /// None: so far away that no clock says it.
    due: Option<Instant>,
}

/// From now on what nobody has looked for in `every` is forgotten, after twice that time at the latest; zero: never.
pub fn watch(cache: &Arc<L2Cache>, every: Duration) {
    if every.is_zero() {
        return;
    }
    let mut watched = WATCHED.lock();
    watched.add(cache, every, Instant::now());
    if watched.has_thread {
        MORE.notify_one();
        return;
    }
    let name = "qcow2-clean".to_owned();
    match thread::Builder::new().name(name).spawn(run) {
        Ok(_) => watched.has_thread = true,
        // What is remembered is bounded all the same.
        Err(error) => tracing::warn!("no thread for cache-clean-interval: {error}"),
    }
}

fn run() {
    let mut watched = WATCHED.lock();
    loop {
        let now = Instant::now();
        let due = watched.due(now);
        if !due.is_empty() {
            drop(watched);
            due.iter().for_each(|cache| cache.clean());
            // It may be the last one who has it: not under the lock.
            drop(due);
            watched = WATCHED.lock();
            continue;
        }
        let Some(sleep) = watched.sleep(now) else {
            watched.has_thread = false;
            return;
        };
        MORE.wait_for(&mut watched, sleep);
    }
}

impl Watched {
    fn add(&mut self, cache: &Arc<L2Cache>, every: Duration, now: Instant) {
        self.caches.retain(Entry::is_there);
        self.caches.push(Entry {
            cache: Arc::downgrade(cache),
            every,
            due: now.checked_add(every),
        });
    }

    /// Those whose time has come; it comes again.
    fn due(&mut self, now: Instant) -> Vec<Arc<L2Cache>> {
        let due = self.caches.iter_mut();
        let due = due.filter(|entry| entry.due.is_some_and(|due| due <= now));
        let due = due.filter_map(|entry| {
            entry.due = now.checked_add(entry.every);
            entry.cache.upgrade()
        });
        due.collect()
    }

    /// How long nothing is due; none: nothing is there any more.
    fn sleep(&mut self, now: Instant) -> Option<Duration> {
        self.caches.retain(Entry::is_there);
        if self.caches.is_empty() {
            return None;
        }
        let next = self.caches.iter().filter_map(|entry| entry.due).min();
        let left = next.map_or(SLEEP_MAX, |next| next.saturating_duration_since(now));
        Some(left.min(SLEEP_MAX))
    }
}

impl Entry {
    fn is_there(&self) -> bool {
        self.cache.strong_count() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::{Miss, Slice};
    use super::super::options::L2CacheSize;
    use super::*;
    use crate::format::HostOffset;

    fn cache() -> Arc<L2Cache> {
        let slices = 8;
        Arc::new(L2Cache::new(L2CacheSize { slice: 512, slices }))
    }

    #[test]
    fn each_is_due_in_its_own_time_as_long_as_it_is_there() {
        let mut watched = Watched {
            caches: Vec::new(),
            has_thread: false,
        };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (one, two, never) = (cache(), cache(), cache());
        watched.add(&one, Duration::from_secs(10), start);
        watched.add(&two, Duration::from_secs(25), start);
        watched.add(&never, Duration::MAX, start);
        let mut due = |seconds| {
            let due = watched.due(at(seconds));
            let is = |cache| due.iter().filter(|one| Arc::ptr_eq(one, cache)).count();
            let sleep = watched.sleep(at(seconds)).map(|sleep| sleep.as_secs());
            (is(&one), is(&two), is(&never), sleep)
        };
        assert_eq!(due(0), (0, 0, 0, Some(10)));
        assert_eq!(due(9), (0, 0, 0, Some(1)));
        assert_eq!(due(10), (1, 0, 0, Some(10)));
        assert_eq!(due(10), (0, 0, 0, Some(10)));
        // What was missed is not done twice.
        assert_eq!(due(50), (1, 1, 0, Some(10)));
        drop((one, two));
        assert_eq!(watched.sleep(at(51)), Some(SLEEP_MAX));
        drop(never);
        assert_eq!(watched.sleep(at(51)), None);
    }

    #[test]
    fn what_nobody_looks_for_goes() {
        let (cleaned, kept) = (cache(), cache());
        let place = Miss {
            table: HostOffset(0),
            slice: HostOffset(512),
            number: 1,
        };
        for cache in [&cleaned, &kept] {
            cache.put(Slice::new(place, vec![7; 512].into()));
        }
        watch(&cleaned, Duration::from_millis(10));
        watch(&kept, Duration::ZERO);
        let limit = Instant::now() + Duration::from_secs(60);
        while cleaned.used() > 0 {
            assert!(Instant::now() < limit, "it stays");
            thread::sleep(Duration::from_millis(5));
        }
        assert!(cleaned.find(place).is_none());
        assert_eq!(kept.used(), 512);
    }
}
