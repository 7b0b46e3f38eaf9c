//! Writes run control's state to its file whenever it changes, on a thread of its own.
//!
//! The control task only says that something has changed: it never waits for the file system, and
//! no event is delayed. Changes that come while one is being written become one write.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::registry::Registry;
use crate::state_file::StateFile;

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

#[derive(Debug, Default)]
struct Shared {
    wanted: Mutex<Wanted>,
    condvar: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, set: impl FnOnce(&mut Wanted)) {
        set(&mut self.lock());
        self.condvar.notify_all();
    }

    /// Waits for a change or the end, or until it is time to try again; true at the end, and the last
    /// who waits for what is written now.
    fn wait(&self, failing: bool) -> (bool, u64) {
        let limit = if failing { RETRY } else { Duration::MAX };
        let idle = |wanted: &mut Wanted| !wanted.changed && !wanted.ended;
        let waited = (self.condvar).wait_timeout_while(self.lock(), limit, idle);
        let (mut wanted, _) = waited.unwrap_or_else(PoisonError::into_inner);
        wanted.changed = false;
        (wanted.ended, wanted.waiting)
    }

    /// Lets changes collect.
    fn collect(&self) {
        let going_on = |wanted: &mut Wanted| !wanted.ended;
        let waited = self
            .condvar
            .wait_timeout_while(self.lock(), COLLECT, going_on);
        drop(waited);
    }
}

/// Tells the thread that there is something to be saved. Cheap, and waits for nothing.
#[derive(Clone, Debug)]
pub struct Changes(Arc<Shared>);

impl Changes {
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
        let waited = (shared.condvar).wait_timeout_while(shared.lock(), limit, open);
        let (wanted, _) = waited.unwrap_or_else(PoisonError::into_inner);
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

/// The thread. Dropping this saves for the last time, counters included, which blocks for one write;
/// what changes afterwards is not saved.
#[derive(Debug)]
pub struct Saver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Saver {
    /// Saves the state now and from now on.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub async fn start(file: StateFile, registry: &Arc<Registry>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = {
            let (shared, registry) = (Arc::clone(&shared), Arc::clone(registry));
            std::thread::Builder::new()
                .name("state".to_owned())
                .spawn(move || save(&shared, file, &registry))?
        };
        let changes = Changes(Arc::clone(&shared));
        changes.changed();
        // A daemon that ends already has nothing more to tell.
        registry
            .control()
            .call(move |_, wiring| wiring.save_by(changes))
            .await;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.shared.set(|wanted| wanted.ended = true);
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, there would be nothing to save either.
            let _ = thread.join();
        }
    }
}

fn save(shared: &Shared, mut file: StateFile, registry: &Registry) {
    let mut failing = false;
    loop {
        let (ended, waiting) = shared.wait(failing);
        let state = registry.save();
        let written = file.write(&state);
        shared.set(|wanted| {
            wanted.tried = waiting;
            if written.is_ok() {
                wanted.written = waiting;
            }
            wanted.over = ended;
        });
        match written {
            Ok(()) if std::mem::take(&mut failing) => {
                tracing::info!(
                    "the state file '{}' is up to date again",
                    file.path().display()
                );
            }
            Ok(()) => {}
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        "cannot write the state file '{}': {error}; a restart would find an older \
                         state",
                        file.path().display()
                    );
                }
            }
        }
        if ended {
            return;
        }
        shared.collect();
    }
}
