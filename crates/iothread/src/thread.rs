//! The owner of an iothread, and the handle by which others reach it.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use crate::{
    StartError,
    context::{self, Context},
    engine::{Engine, Unavailable},
    executor::{spawn_local, yield_now},
    last_words::AbortOnPanic,
    mailbox,
    poll::PollParams,
    pool::{Pool, Size},
    reactor::{RING_ENTRIES, Reactor},
    shared::{Shared, Stats},
};

/// What an iothread is made of. The default is QEMU's polling and pool, 256 entries, and io_uring where that
/// is to be had.
#[derive(Debug, Clone)]
pub struct Config {
    /// Names the thread (the kernel shows the first 15 bytes).
    pub name: String,
    /// How it does I/O; none: by io_uring, or without it if it is not to be had ([`Handle::fallback`]).
    pub engine: Option<Engine>,
    /// The longest time to poll before blocking, in ns; 0: never poll.
    pub poll_max_ns: u64,
    /// Factor by which the polling window grows; 0: 2.
    pub poll_grow: u32,
    /// Divisor by which the polling window shrinks; 0: down to nothing.
    pub poll_shrink: u32,
    /// Size of the submission queue; the kernel rounds it up to a power of two and clamps it to
    /// 1..=32768. Bounds the batch handed over at once, not the number of operations.
    pub ring_entries: u32,
    /// Workers that stay, once there are some: from the start with engine *threads*, else from the first
    /// operation that needs one. The last one always stays.
    pub thread_pool_min: u32,
    /// Most workers at any time; at least one, and no less than stay.
    pub thread_pool_max: u32,
    /// Most operations that are handed to the kernel at once while more are prepared; 0: as many as there
    /// are by then. It shapes what a ring does from its second batch of a round on.
    pub aio_max_batch: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: "iothread".to_owned(),
            engine: None,
            poll_max_ns: 32768,
            poll_grow: 0,
            poll_shrink: 0,
            ring_entries: RING_ENTRIES,
            thread_pool_min: 0,
            thread_pool_max: 64,
            aio_max_batch: 0,
        }
    }
}

impl Config {
    fn pool_size(&self) -> Size {
        pool_size(self.thread_pool_min, self.thread_pool_max)
    }
}

fn pool_size(min: u32, max: u32) -> Size {
    let number = |count| usize::try_from(count).unwrap_or(usize::MAX);
    let min = number(min);
    let max = number(max).max(min).max(1);
    Size { min, max }
}

/// The iothread is shut down: what was asked of it did not happen, or not to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the iothread is shut down")]
pub struct Closed;

/// Jobs begun per round.
const JOB_BATCH: u32 = 64;

type Job = Box<dyn FnOnce() + Send>;

/// Owns an iothread; dropping it shuts the thread down and waits for its end.
///
/// Shutting down is the last step, not a drain: operations in flight are cancelled and waited for
/// (storage that does not answer delays it, in a ring and in a worker), the tasks that are left are dropped on that thread, and
/// who waits for one of them gets [`Closed`]. Shut down by one of its own tasks, the thread ends
/// right after, and nobody waits.
pub struct IoThread {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts a thread, with its ring if it has one.
    ///
    /// # Errors
    ///
    /// [`StartError`] says what is missing and how to get it.
    pub fn spawn(config: Config) -> Result<IoThread, StartError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        if config.name.contains('\0') {
            return Err(StartError::Name(config.name));
        }
        let wake_fd = rustix::event::eventfd(
            0,
            rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK,
        )
        .map_err(|errno| StartError::from_setup(errno.into()))?;
        let shared = Arc::new(Shared::new(
            NEXT_ID.fetch_add(1, Ordering::Relaxed),
            config.name.clone(),
            wake_fd,
            PollParams {
                max_ns: config.poll_max_ns,
                grow: config.poll_grow,
                shrink: config.poll_shrink,
            },
        ));
        (shared.batch_max).store(config.aio_max_batch, Ordering::Relaxed);
        let (inbox, jobs) = mailbox::channel();
        let (started, start) = mpsc::channel();
        let for_thread = shared.clone();
        let thread = thread::Builder::new()
            .name(config.name.clone())
            .spawn(move || main(for_thread, &config, jobs, &started))
            .map_err(StartError::Thread)?;
        // The sender is gone only if the thread panicked, and then the process is gone as well.
        match start.recv() {
            Ok(Ok((engine, fallback))) => Ok(IoThread {
                handle: Handle {
                    shared,
                    inbox,
                    engine,
                    fallback,
                },
                thread: Some(thread),
            }),
            Ok(Err(error)) => {
                let _ = thread.join();
                Err(error)
            }
            Err(error) => Err(StartError::Other(std::io::Error::other(error))),
        }
    }

    /// The way to reach the thread.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Stops the thread and waits for its end; the same as dropping it.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.handle.shared.stop();
        if let Some(thread) = self.thread.take()
            && !self.handle.is_current()
        {
            // It cannot have panicked: that aborts the process.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for IoThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IoThread").field(&self.handle).finish()
    }
}

fn main(
    shared: Arc<Shared>,
    config: &Config,
    mut jobs: mailbox::Receiver<Job>,
    started: &mpsc::Sender<Result<(Engine, Option<Unavailable>), StartError>>,
) {
    let _abort = AbortOnPanic::new(&config.name);
    let entries = config.ring_entries.max(1);
    let (reactor, fallback) = match Reactor::new(config.engine, entries, shared.clone()) {
        Ok(made) => made,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let tid = rustix::thread::gettid().as_raw_nonzero().get();
    shared.tid.store(tid, Ordering::Relaxed);
    let engine = reactor.engine();
    let pool = Pool::new(config.pool_size(), shared.clone());
    if engine == Engine::Threads
        && let Err(error) = pool.start_now()
    {
        let _ = started.send(Err(StartError::Thread(error)));
        return;
    }
    let context = Context::new(shared, reactor, pool);
    let _entered = context.enter();
    spawn_local(context.pool.mind(crate::time::sleep)).detach();
    spawn_local(async move {
        let mut batch: u32 = 0;
        while let Some(job) = jobs.recv().await {
            job();
            // Whoever sends without end must not starve the rest.
            batch += 1;
            if batch == JOB_BATCH {
                batch = 0;
                yield_now().await;
            }
        }
    })
    .detach();
    let _ = started.send(Ok((engine, fallback)));
    context.run();
    context.tear_down();
}

/// Reaches an iothread from any thread.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    inbox: mailbox::Sender<Job>,
    engine: Engine,
    fallback: Option<Unavailable>,
}

impl Handle {
    /// The iothread's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// A number that no other iothread of this process ever has.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// How it does I/O.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Why it does without io_uring although nobody has asked for that.
    #[must_use]
    pub fn fallback(&self) -> Option<Unavailable> {
        self.fallback
    }

    /// Whether the calling thread is this iothread.
    #[must_use]
    pub fn is_current(&self) -> bool {
        context::try_with(|cx| Arc::ptr_eq(&cx.shared, &self.shared)).unwrap_or(false)
    }

    /// Calls `f` on the iothread and runs the future it makes there. Allocates: for the control
    /// path. Spawns of one thread begin in order.
    ///
    /// # Errors
    ///
    /// [`Closed`]; then `f` is dropped unused.
    pub fn spawn<F, Fut>(&self, f: F) -> Result<(), Closed>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let job: Job = Box::new(move || spawn_local(f()).detach());
        self.inbox.send(job).map_err(|_job| Closed)
    }

    /// Calls `f` on the iothread, runs the future it makes there, and yields its result, to any
    /// executor. It is sent at once; dropping the returned future stops nothing.
    ///
    /// # Errors
    ///
    /// [`Closed`] if the thread is shut down before there is a result.
    pub fn run<F, Fut, R>(
        &self,
        f: F,
    ) -> impl Future<Output = Result<R, Closed>> + Send + use<F, Fut, R>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        let (reply, mut result) = mailbox::channel();
        let sent = self.spawn(move || {
            let future = f();
            async move {
                // Nobody wants the result any more: fine.
                let _ = reply.send(future.await);
            }
        });
        async move {
            sent?;
            result.recv().await.ok_or(Closed)
        }
    }

    /// [`Handle::run`] for a plain thread, which waits.
    ///
    /// # Errors
    ///
    /// As [`Handle::run`].
    ///
    /// # Panics
    ///
    /// On this very iothread, which would wait for itself.
    pub fn run_blocking<F, Fut, R>(&self, f: F) -> Result<R, Closed>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        assert!(
            !self.is_current(),
            "run_blocking on iothread {} by itself would never return",
            self.name()
        );
        pollster::block_on(self.run(f))
    }

    /// The parameters of adaptive polling.
    #[must_use]
    pub fn poll_params(&self) -> PollParams {
        self.shared.poll_params()
    }

    /// Changes the parameters of adaptive polling, from the next wait on.
    pub fn set_poll_params(&self, params: PollParams) {
        self.shared.set_poll_params(params);
        // A thread that blocks goes by the new parameters when it next has something to do.
    }

    /// Changes the longest time to poll, in ns; 0: never poll.
    pub fn set_poll_max_ns(&self, max_ns: u64) {
        self.set_poll_params(PollParams {
            max_ns,
            ..self.poll_params()
        });
    }

    /// Changes how many operations are handed to the kernel at once ([`Config::aio_max_batch`]).
    pub fn set_aio_max_batch(&self, most: u32) {
        self.shared.batch_max.store(most, Ordering::Relaxed);
    }

    /// Changes how many workers stay, and how many there may be ([`Config::thread_pool_min`]), as soon as
    /// the thread has heard of it. Those that are too many end when they are idle.
    ///
    /// # Errors
    ///
    /// [`Closed`]
    pub fn set_pool_size(&self, min: u32, max: u32) -> Result<(), Closed> {
        let size = pool_size(min, max);
        self.spawn(move || async move { context::with(|cx| cx.pool.resize(size)) })
    }

    /// What the thread did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("name", &self.shared.name)
            .field("id", &self.shared.id)
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}
