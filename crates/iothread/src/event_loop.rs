//! The event loop: rounds, waiting, and the way out.

use std::time::{Duration, Instant};

use crate::{
    context::Context,
    poll::{IO_FACTOR, IO_POLLED_MAX, PollParams, Window},
    shared::count,
    stack::reverse,
    task::Runnable,
};

/// Tasks run per round, so that neither I/O nor the timers starve.
const ROUND_TASKS: usize = 256;

/// What polling has found.
enum Found {
    /// Something to do.
    Work,
    /// Only what other threads have woken: workers, for the most part.
    Remote,
    Nothing,
}

impl Context {
    /// Runs until the owner stops the thread.
    pub(crate) fn run(&self) {
        while !self.shared.stopping() {
            self.round();
            self.take_remote();
            if self.has_work() {
                self.reactor.turn();
                self.poll_if_suppressed();
                self.fire_timers();
            } else {
                self.wait();
            }
        }
    }

    fn round(&self) {
        count(&self.shared.counters.rounds);
        self.now.set(None);
        if self.pollers_removed.take() {
            self.pollers.borrow_mut().retain(Option::is_some);
        }
        let tasks = self.runnable.borrow().len().min(ROUND_TASKS);
        for _ in 0..tasks {
            // Bound to a variable of its own: the borrow must end before the task runs.
            let runnable = self.runnable.borrow_mut().pop_front();
            if let Some(runnable) = runnable {
                runnable.run();
            }
        }
        self.run_deferred();
    }

    fn run_deferred(&self) {
        if self.deferred.borrow().is_empty() {
            return;
        }
        let mut hooks = self.deferred.replace(self.deferred_spare.take());
        for hook in hooks.drain(..) {
            hook.run();
        }
        self.deferred_spare.set(hooks);
    }

    fn has_work(&self) -> bool {
        !self.runnable.borrow().is_empty() || !self.deferred.borrow().is_empty()
    }

    /// Moves tasks woken by other threads to the run queue; true if there were any.
    fn take_remote(&self) -> bool {
        let list = self.shared.remote.take();
        if list.is_null() {
            return false;
        }
        // SAFETY: `push_remote` pushed raw runnables, linked by their metadata, whose ownership
        // comes to us with the list. The borrowed metadata lives as long as the task, which the
        // list keeps alive.
        unsafe {
            let mut list = reverse(list, |node| {
                let runnable = std::mem::ManuallyDrop::new(Runnable::from_raw(node));
                let link: *const _ = &raw const runnable.metadata().next;
                &*link
            });
            while let Some(node) = std::ptr::NonNull::new(list) {
                let runnable = Runnable::from_raw(node);
                list = runnable
                    .metadata()
                    .next
                    .load(std::sync::atomic::Ordering::Relaxed);
                self.runnable.borrow_mut().push_back(runnable);
            }
        }
        true
    }

    fn fire_timers(&self) {
        if self.timers.borrow().next_deadline().is_none() {
            return;
        }
        let now = Instant::now();
        loop {
            let waker = self.timers.borrow_mut().fire(now);
            let Some(waker) = waker else { return };
            waker.wake();
        }
    }

    /// Nothing is runnable: polls, then blocks.
    ///
    /// Whether to poll or to block is decided here, once, and notifications follow that decision:
    /// deciding twice loses kicks.
    fn wait(&self) {
        let Some((window, params)) = self.window() else {
            self.now.set(None);
            self.block();
            return;
        };
        let started = Instant::now();
        self.now.set(Some(started));
        let beside_workers = std::ptr::eq(window, &raw const self.workers_window);
        let window_ns = window.next(params.max_ns);
        let counters = &self.shared.counters;
        (counters.poll_window_ns).store(window_ns, std::sync::atomic::Ordering::Relaxed);
        if window_ns > 0 {
            match self.poll_until(started, Duration::from_nanos(window_ns)) {
                Found::Nothing => {}
                Found::Remote if beside_workers => {
                    window.in_vain();
                    self.fire_timers();
                    return;
                }
                Found::Remote | Found::Work => {
                    count(&counters.polls_successful);
                    window.caught();
                    self.fire_timers();
                    return;
                }
            }
        }
        let blocked = self.block();
        let by_worker = beside_workers && !self.shared.remote.is_empty();
        if blocked && !by_worker {
            window.missed(window_ns, started.elapsed(), params);
        }
    }

    /// What this wait is for, and what it may cost; none if it is not to poll at all, and then nobody
    /// has to know how long it takes.
    fn window(&self) -> Option<(&Window, PollParams)> {
        let params = self.shared.poll_params();
        if params.max_ns == 0 {
            (self.shared.counters.poll_window_ns).store(0, std::sync::atomic::Ordering::Relaxed);
            return None;
        }
        match self.reactor.waiting() {
            0 if self.pool.waiting() == 0 => Some((&self.idle_window, params)),
            // For requests, not for the workers: to poll for those takes the CPU from them, and they may
            // hang, which must not make requests to other storage slower.
            0 => Some((&self.workers_window, params)),
            1..=IO_POLLED_MAX => {
                let max_ns = params.max_ns.saturating_mul(IO_FACTOR);
                Some((&self.io_window, PollParams { max_ns, ..params }))
            }
            _ => None,
        }
    }

    /// Polls for `window`, or until the next timer.
    fn poll_until(&self, started: Instant, window: Duration) -> Found {
        if !self.notify_suppressed.replace(true) {
            self.for_each_poller(|poller| poller.disable_notify());
        }
        let mut end = started + window;
        if let Some(deadline) = self.timers.borrow().next_deadline() {
            end = end.min(deadline);
        }
        loop {
            self.reactor.turn();
            let work = self.poll_pollers() || self.has_work();
            let remote = self.take_remote();
            if work || self.shared.stopping() {
                return Found::Work;
            }
            if remote {
                return Found::Remote;
            }
            let now = Instant::now();
            if now >= end {
                return Found::Nothing;
            }
            self.now.set(Some(now));
            std::hint::spin_loop();
        }
    }

    /// Blocks in one system call, unless there turns out to be something to do; true if it blocked.
    fn block(&self) -> bool {
        self.notify_suppressed.set(false);
        let mut pending = false;
        self.for_each_poller(|poller| pending |= poller.enable_notify());
        if pending {
            self.poll_pollers();
        }
        if pending || self.has_work() {
            self.reactor.turn();
            self.fire_timers();
            return false;
        }
        let deadline = self.timers.borrow().next_deadline();
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if self.shared.prepare_sleep() {
            self.shared.awake();
            return false;
        }
        count(&self.shared.counters.blocks);
        self.reactor.wait(timeout);
        self.now.set(None);
        self.shared.awake();
        self.reactor.reap();
        self.fire_timers();
        true
    }

    fn poll_pollers(&self) -> bool {
        let mut found = false;
        self.for_each_poller(|poller| found |= poller.poll());
        found
    }

    /// A busy thread that has told its pollers not to notify must ask them.
    fn poll_if_suppressed(&self) {
        if self.notify_suppressed.get() {
            self.poll_pollers();
        }
    }

    /// Calls `f` with every poller; pollers may come and go meanwhile.
    fn for_each_poller(&self, mut f: impl FnMut(&dyn crate::poll::Poller)) {
        let mut index = 0;
        loop {
            let poller = self.pollers.borrow().get(index).cloned();
            let Some(place) = poller else { return };
            if let Some(poller) = place {
                f(&*poller);
            }
            index += 1;
        }
    }

    /// Drops all tasks and ends all operations, on this thread.
    pub(crate) fn tear_down(&self) {
        // At one blow, so that the drops of the operations need not wait one after the other.
        self.reactor.cancel_all();
        self.pool.cancel_waiting();
        loop {
            // Waking makes every task runnable that is not already; runnables are then dropped
            // instead of run, and their futures with them. A task that another thread is waking at
            // this moment appears in the remote list soon, hence the loop.
            let wakers: Vec<_> = self
                .tasks
                .borrow()
                .iter()
                .map(|(_, waker)| waker.clone())
                .collect();
            if wakers.is_empty() {
                break;
            }
            wakers.into_iter().for_each(std::task::Waker::wake);
            self.take_remote();
            loop {
                let runnable = self.runnable.borrow_mut().pop_front();
                if runnable.is_none() {
                    break;
                }
                drop(runnable);
            }
            std::thread::yield_now();
        }
        let hooks = self.deferred.take();
        drop(hooks);
        let pollers = self.pollers.take();
        drop(pollers);
        // Operations that somebody stashed away outside of any task.
        self.reactor.cancel_all();
        self.reactor.reap_all();
        self.pool.close();
    }
}
