//! The word that something has changed and is to be saved, from whoever changes it to the thread that
//! saves it ([`crate::Saver`]); and the answer that it has been, for those who wait for that.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// How long to collect changes after a write, so that a storm of errors is no storm of writes.
const COLLECT: Duration = Duration::from_millis(20);
/// When to try again what could not be written: it may be the last change for a long time.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Wanted {
    changed: bool,
    ended: bool,
    /// Who waits for a write, numbered from 1.
    waiting: u64,
    /// The last of them whose write has been tried.
    tried: u64,
    /// The last of them whose write has succeeded.
    written: u64,
    /// Nothing will be written any more.
    over: bool,
}

/// What both sides share. The thread's side is here, the other one is [`Changes`].
#[derive(Debug, Default)]
pub(crate) struct Shared {
    wanted: Mutex<Wanted>,
    condvar: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock()
    }

    fn set(&self, set: impl FnOnce(&mut Wanted)) {
        set(&mut self.lock());
        self.condvar.notify_all();
    }

    /// Waits for a change or the end, or until it is time to try again; true at the end, and the last
    /// who waits for what is written now.
    pub(crate) fn wait(&self, failing: bool) -> (bool, u64) {
        let limit = if failing { RETRY } else { Duration::MAX };
        let idle = |wanted: &mut Wanted| !wanted.changed && !wanted.ended;
        let mut wanted = self.lock();
        self.condvar.wait_while_for(&mut wanted, idle, limit);
        wanted.changed = false;
        (wanted.ended, wanted.waiting)
    }

    /// Lets changes collect.
    pub(crate) fn collect(&self) {
        let going_on = |wanted: &mut Wanted| !wanted.ended;
        let mut wanted = self.lock();
        self.condvar.wait_while_for(&mut wanted, going_on, COLLECT);
    }

    /// A write was tried, for all up to the one `waiting`; `over`: it was the last one.
    pub(crate) fn tried(&self, waiting: u64, written: bool, over: bool) {
        self.set(|wanted| {
            wanted.tried = waiting;
            if written {
                wanted.written = waiting;
            }
            wanted.over = over;
        });
    }

    /// The thread shall save for the last time.
    pub(crate) fn end(&self) {
        self.set(|wanted| wanted.ended = true);
    }
}

/// Tells the thread that there is something to be saved. Cheap, and waits for nothing.
#[derive(Clone, Debug)]
pub struct Changes(Arc<Shared>);

impl Changes {
    /// Tells the thread that shares `shared`.
    pub(crate) fn to(shared: &Arc<Shared>) -> Self {
        Self(Arc::clone(shared))
    }

    /// Something has changed.
    pub fn changed(&self) {
        self.0.set(|wanted| wanted.changed = true);
    }

    /// Has everything saved that has changed so far, and waits for that at most `limit`. For threads
    /// that may block.
    pub fn save_within(&self, limit: Duration) -> Saved {
        let shared = &*self.0;
        let mine = {
            let mut wanted = shared.lock();
            wanted.changed = true;
            wanted.waiting += 1;
            wanted.waiting
        };
        shared.condvar.notify_all();
        let open = |wanted: &mut Wanted| wanted.tried < mine && !wanted.over;
        let mut wanted = shared.lock();
        shared.condvar.wait_while_for(&mut wanted, open, limit);
        match wanted.written >= mine {
            true => Saved::Yes,
            false => Saved::No,
        }
    }
}

/// Whether something is in the state file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// It is.
    Yes,
    /// It could not be written, or not yet.
    No,
    /// There is no state file.
    Nowhere,
}
