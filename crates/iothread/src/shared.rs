//! The part of an iothread that other threads see.

use std::{
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
};

use crate::{poll::PollParams, stack::Stack};

/// The thread looks at `remote` by itself.
const AWAKE: u8 = 0;
/// The thread blocks, or is about to: who queues something must notify.
const ASLEEP: u8 = 1;

pub(crate) struct Shared {
    pub(crate) id: u64,
    pub(crate) name: String,
    /// The kernel's thread id; 0 until the thread runs.
    pub(crate) tid: AtomicI32,
    /// Tasks woken by other threads.
    pub(crate) remote: Stack<()>,
    sleep: AtomicU8,
    stop: AtomicBool,
    /// Watched by the iothread. Never read: every write is an event of its own.
    pub(crate) wake_fd: OwnedFd,
    poll_max_ns: AtomicU64,
    poll_grow: AtomicU32,
    poll_shrink: AtomicU32,
    /// Most operations handed over at once; 0: as the engine likes.
    pub(crate) batch_max: AtomicU32,
    pub(crate) counters: Counters,
    /// How many threads its pool has; written by them.
    pub(crate) workers: AtomicU32,
}

/// Written by the iothread only, read by anybody.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) poll_window_ns: AtomicU64,
    pub(crate) rounds: AtomicU64,
    pub(crate) enters: AtomicU64,
    pub(crate) polls_successful: AtomicU64,
    pub(crate) blocks: AtomicU64,
}

/// Adds one to a counter that only the calling thread writes.
pub(crate) fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// What an iothread did so far; each figure is read by itself, so they may be some rounds apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The kernel's id of the thread.
    pub thread_id: i32,
    /// The current polling window, in ns.
    pub poll_window_ns: u64,
    /// Rounds of the event loop.
    pub rounds: u64,
    /// `io_uring_enter` calls, or those of epoll.
    pub enters: u64,
    /// Waits that ended while polling.
    pub polls_successful: u64,
    /// Waits that blocked.
    pub blocks: u64,
    /// Threads that its pool of workers has.
    pub workers: u32,
}

impl Shared {
    pub(crate) fn new(id: u64, name: String, wake_fd: OwnedFd, params: PollParams) -> Shared {
        Shared {
            id,
            name,
            tid: AtomicI32::new(0),
            remote: Stack::new(),
            sleep: AtomicU8::new(AWAKE),
            stop: AtomicBool::new(false),
            wake_fd,
            poll_max_ns: AtomicU64::new(params.max_ns),
            poll_grow: AtomicU32::new(params.grow),
            poll_shrink: AtomicU32::new(params.shrink),
            batch_max: AtomicU32::new(0),
            counters: Counters::default(),
            workers: AtomicU32::new(0),
        }
    }

    /// Makes sure that the thread looks at what the caller has published.
    pub(crate) fn wake(&self) {
        // Pairs with the fence in `prepare_sleep`: either this thread sees ASLEEP, or the iothread
        // sees what was published.
        fence(Ordering::SeqCst);
        if self.sleep.load(Ordering::Relaxed) == ASLEEP
            && self.sleep.swap(AWAKE, Ordering::Relaxed) == ASLEEP
        {
            // Failing is harmless: EAGAIN means that the counter is full, so the event is there.
            let _ = rustix::io::write(&self.wake_fd, &1u64.to_ne_bytes());
        }
    }

    /// The iothread is going to block; true if it must not, because something came in.
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.sleep.store(ASLEEP, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.remote.is_empty() || self.stopping()
    }

    pub(crate) fn awake(&self) {
        self.sleep.store(AWAKE, Ordering::Relaxed);
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(crate) fn poll_params(&self) -> PollParams {
        PollParams {
            max_ns: self.poll_max_ns.load(Ordering::Relaxed),
            grow: self.poll_grow.load(Ordering::Relaxed),
            shrink: self.poll_shrink.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn set_poll_params(&self, params: PollParams) {
        self.poll_max_ns.store(params.max_ns, Ordering::Relaxed);
        self.poll_grow.store(params.grow, Ordering::Relaxed);
        self.poll_shrink.store(params.shrink, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> Stats {
        let counters = &self.counters;
        Stats {
            thread_id: self.tid.load(Ordering::Relaxed),
            poll_window_ns: counters.poll_window_ns.load(Ordering::Relaxed),
            rounds: counters.rounds.load(Ordering::Relaxed),
            enters: counters.enters.load(Ordering::Relaxed),
            polls_successful: counters.polls_successful.load(Ordering::Relaxed),
            blocks: counters.blocks.load(Ordering::Relaxed),
            workers: self.workers.load(Ordering::Relaxed),
        }
    }
}
