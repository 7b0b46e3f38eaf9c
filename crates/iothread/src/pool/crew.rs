//! The workers of a pool: called when there is something to do, more of them as long as all are busy, and
//! gone when they were idle for long.

use std::{
    future::poll_fn,
    io,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    thread::{self, Thread, ThreadId},
    time::{Duration, Instant},
};

use atomic_waker::AtomicWaker;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{job::Job, lines::Lines};
use crate::{lane::Share, last_words::AbortOnPanic, shared::Shared};

/// How many threads a pool has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// So many stay, idle or not; and the last one, as there may be no other when it is needed.
    pub(crate) min: usize,
    /// At least one, and `min`.
    pub(crate) max: usize,
}

/// How long a worker waits for work before it ends. QEMU's, too.
const IDLE: Duration = Duration::from_secs(10);

/// How long after a thread could not be had it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Workers make nothing but system calls.
const STACK_BYTES: usize = 256 << 10;

/// So many workers are on their way at a time, called by one that has come: all that are needed come soon,
/// and their iothread calls only the first. If calls return fast, few are called.
const COMING: usize = 2;

/// Workers to be woken, once the lock is released.
type Called = [Option<Thread>; COMING];

/// What the workers and their iothread share.
pub(super) struct Crew {
    shared: Arc<Shared>,
    state: Mutex<State>,
    /// For who waits for a job to end, or for all.
    ended: Condvar,
    /// For the task of [`Crew::mind`].
    short: AtomicWaker,
}

struct State {
    size: Size,
    lines: Lines<Arc<Job>>,
    /// Those that sleep; the last to fall asleep is the first to be called, so that those that are not
    /// needed sleep for long.
    idle: Vec<Thread>,
    /// Workers that were called, or started, or have ended a job, and have not looked for work yet.
    coming: usize,
    /// All there are.
    threads: usize,
    /// A thread could not be had, and is not tried again yet.
    short: bool,
    /// The log has been told of that.
    told: bool,
    closing: bool,
}

impl State {
    fn remove_idle(&mut self, worker: ThreadId) -> bool {
        let at = self.idle.iter().position(|idle| idle.id() == worker);
        at.map(|at| self.idle.remove(at)).is_some()
    }

    /// Whether there are more than there may be, so that one has to go.
    fn too_many(&self) -> bool {
        self.threads > self.size.max
    }

    /// Whether a worker more would find something to do.
    fn needs_one(&self) -> bool {
        self.lines.waiting() > self.coming && self.lines.may_start()
    }
}

impl Crew {
    pub(super) fn new(size: Size, shared: Arc<Shared>) -> Arc<Crew> {
        Arc::new(Crew {
            shared,
            state: Mutex::new(State {
                size,
                lines: Lines::new(size.max),
                idle: Vec::new(),
                coming: 0,
                threads: 0,
                short: false,
                told: false,
                closing: false,
            }),
            ended: Condvar::new(),
            short: AtomicWaker::new(),
        })
    }

    /// Puts a job in its line. It waits as long as no worker is to be had: it is no error of the storage.
    pub(super) fn push(self: &Arc<Self>, job: &Arc<Job>, share: Share) {
        let mut state = self.state.lock();
        state.lines.push(job.lane, share, Arc::clone(job));
        let called = self.call(&mut state, 1);
        drop(state);
        wake(&called);
    }

    /// Starts the threads that stay. Those that cannot be had are tried again later.
    pub(super) fn start_min(self: &Arc<Self>) {
        self.fill(&mut self.state.lock());
    }

    /// Starts the first thread, without which the pool is of no use.
    pub(super) fn start_first(self: &Arc<Self>) -> io::Result<()> {
        let mut state = self.state.lock();
        match state.threads {
            0 => self.try_start(&mut state),
            _ => Ok(()),
        }
    }

    /// There may be more threads, or fewer, from now on. Those that are too many go when they are idle; of
    /// those that stay the missing ones are started if `used`.
    pub(super) fn resize(self: &Arc<Self>, size: Size, used: bool) {
        let mut state = self.state.lock();
        state.size = size;
        state.lines.resize(size.max);
        if used {
            self.fill(&mut state);
        }
        let called = self.call(&mut state, 1);
        for worker in &state.idle {
            worker.unpark();
        }
        drop(state);
        wake(&called);
    }

    fn fill(self: &Arc<Self>, state: &mut State) {
        while state.threads < state.size.min && !state.short {
            self.start(state);
        }
    }

    /// Tries threads again that could not be had: those that are there may all be in calls that hang. A task
    /// of the iothread's, without end, which can `sleep`.
    pub(super) async fn mind<S: Future<Output = ()>>(self: Arc<Self>, sleep: fn(Duration) -> S) {
        loop {
            poll_fn(|cx| {
                self.short.register(cx.waker());
                match self.state.lock().short {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })
            .await;
            sleep(RETRY).await;
            let mut state = self.state.lock();
            state.short = false;
            self.fill(&mut state);
            let called = self.call(&mut state, 1);
            drop(state);
            wake(&called);
        }
    }

    /// Sees to it that up to `coming` workers are on their way if there is something to do. Whoever comes
    /// calls the next ones.
    fn call(self: &Arc<Self>, state: &mut State, coming: usize) -> Called {
        let mut called = Called::default();
        for place in called.iter_mut().take(coming) {
            if state.coming >= coming || !state.needs_one() {
                break;
            }
            *place = state.idle.pop();
            if place.is_some() {
                state.coming += 1;
            } else {
                if state.coming == 0 && state.threads < state.size.max && !state.short {
                    self.start(state);
                }
                break;
            }
        }
        called
    }

    /// Starts one more thread. If it cannot be had, those that are there do the work, and it is tried again.
    fn start(self: &Arc<Self>, state: &mut State) {
        let Err(error) = self.try_start(state) else {
            return;
        };
        if !std::mem::replace(&mut state.told, true) {
            tracing::warn!(
                "iothread '{}': cannot start a worker: {error}; its I/O goes by the {} that it has, and waits \
                 for more, which are tried every second: raise the limit of tasks (TasksMax=, ulimit -u)",
                self.shared.name,
                state.threads,
            );
        }
        state.short = true;
        self.short.wake();
    }

    fn try_start(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let crew = Arc::clone(self);
        thread::Builder::new()
            .name("worker".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || crew.work())?;
        state.threads += 1;
        state.coming += 1;
        self.count(state);
        Ok(())
    }

    fn count(&self, state: &State) {
        let workers = u32::try_from(state.threads).unwrap_or(u32::MAX);
        self.shared.workers.store(workers, Ordering::Relaxed);
    }

    /// The life of a worker.
    fn work(self: Arc<Self>) {
        let _abort = AbortOnPanic::new(&self.shared.name);
        let mut state = self.state.lock();
        state.coming -= 1;
        let mut coming = COMING;
        loop {
            if let Some((lane, job)) = state.lines.take() {
                let called = self.call(&mut state, coming);
                coming = 1;
                let result = MutexGuard::unlocked(&mut state, || {
                    wake(&called);
                    job.run()
                });
                // First, so that the next job of this lane finds its place free, and this worker, which is at
                // hand: another one would be woken in vain.
                state.lines.ended(lane);
                state.coming += 1;
                MutexGuard::unlocked(&mut state, move || job.end(result));
                state.coming -= 1;
                self.ended.notify_all();
            } else if state.closing || state.too_many() || !self.sleep(&mut state) {
                break;
            } else {
                coming = COMING;
            }
        }
        state.threads -= 1;
        self.count(&state);
        self.ended.notify_all();
    }

    /// Waits until it is called; false if nobody has called for long, and the worker is not needed.
    fn sleep(&self, state: &mut MutexGuard<'_, State>) -> bool {
        let this = thread::current();
        let end = Instant::now() + IDLE;
        state.idle.push(this.clone());
        loop {
            let left = end.saturating_duration_since(Instant::now());
            MutexGuard::unlocked(state, || thread::park_timeout(left));
            let called = !state.idle.iter().any(|idle| idle.id() == this.id());
            if called {
                state.coming -= 1;
                return true;
            }
            let (stay, idle) = (state.size.min.max(1), Instant::now() >= end);
            if state.closing || state.too_many() || (idle && state.threads > stay) {
                state.remove_idle(this.id());
                return false;
            }
            if left.is_zero() {
                // One of those that stay.
                MutexGuard::unlocked(state, thread::park);
            }
        }
    }

    /// Ends a job: takes it back if no worker has it, else waits until the worker's call has returned.
    pub(super) fn cancel(&self, job: &Arc<Job>) {
        let mut state = self.state.lock();
        let is_it = |other: &Arc<Job>| Arc::ptr_eq(other, job);
        // The caller has it too: it is not dropped under the lock.
        if state.lines.take_back(job.lane, is_it).is_some() {
            return;
        }
        while job.result().is_none() {
            self.ended.wait(&mut state);
        }
    }

    /// Ends all jobs that no worker has.
    pub(super) fn cancel_waiting(&self) {
        let jobs = self.state.lock().lines.take_all_back();
        for job in jobs {
            job.end(-libc::ECANCELED);
        }
    }

    /// Waits until all jobs have ended, and all workers.
    pub(super) fn close(&self) {
        self.cancel_waiting();
        let mut state = self.state.lock();
        state.closing = true;
        for worker in &state.idle {
            worker.unpark();
        }
        while state.threads > 0 {
            self.ended.wait(&mut state);
        }
    }
}

fn wake(called: &Called) {
    for worker in called.iter().flatten() {
        worker.unpark();
    }
}
