//! An *iothread*: one OS thread with one io_uring, a small `!Send` executor, mailboxes, timers and
//! adaptive polling.
//!
//! A request of the data plane spends its whole life on one iothread. In the steady state nothing
//! on that path takes a lock or allocates: operations ([`ops`]) live in a slab, wakes from the own
//! thread go to a local run queue, wakes from other threads to an intrusive list, and an eventfd is
//! written only when the thread may be asleep.
//!
//! # Engines
//!
//! Where there is no io_uring an iothread waits in an epoll, and a pool of workers makes the calls: engine
//! *threads*. All else is the same. An iothread with an io_uring has such a pool too, from the first
//! operation on whose [`ops::Lane`] goes by workers. A worker that hangs in a call keeps nobody from being
//! served ([`ops::Lane`] says how they are shared out); it is waited for where a ring would wait for the
//! kernel.
//!
//! # One round
//!
//! 1. Run the tasks that were runnable when the round began (at most a fixed number of them).
//! 2. Run the hooks queued with [`defer`]: one used-index update and one call per batch.
//! 3. Hand new operations to the kernel, take completions, fire timers.
//! 4. If nothing is runnable: poll for a while (`poll-max-ns`), then enable notifications, look
//!    once more, and block in one system call.
//!
//! # Panics on an iothread
//!
//! A panic in a task, a hook or a poller aborts the process, loudly. Half a data plane is worse
//! than none: requests of the dead half would hang for ever while the rest looks healthy.
//!
//! # Under `cfg(loom)`
//!
//! Only [`mailbox`] is built; see `tests/loom_mailbox.rs`.

pub mod mailbox;
mod stack;
mod sync;

#[cfg(not(loom))]
mod api;
#[cfg(not(loom))]
mod call;
#[cfg(not(loom))]
mod context;
#[cfg(not(loom))]
mod deferred;
#[cfg(not(loom))]
mod engine;
#[cfg(not(loom))]
mod event_loop;
#[cfg(not(loom))]
mod executor;
#[cfg(not(loom))]
mod lane;
#[cfg(not(loom))]
mod last_words;
#[cfg(not(loom))]
pub mod ops;
#[cfg(not(loom))]
mod poll;
#[cfg(not(loom))]
mod pool;
#[cfg(not(loom))]
mod reactor;
#[cfg(not(loom))]
mod shared;
#[cfg(not(loom))]
mod start_error;
#[cfg(not(loom))]
mod task;
#[cfg(not(loom))]
mod thread;
#[cfg(not(loom))]
pub mod time;
#[cfg(not(loom))]
mod timers;

#[cfg(not(loom))]
pub use crate::{
    api::{PollerGuard, add_poller, defer},
    deferred::Deferred,
    engine::{Engine, Unavailable},
    executor::{LocalTask, spawn_local, spawn_with_waker, yield_now},
    last_words::set_last_words,
    poll::{PollParams, Poller},
    reactor::probe,
    shared::Stats,
    start_error::StartError,
    thread::{Closed, Config, Handle, IoThread},
};
