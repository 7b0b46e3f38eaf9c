//! What several integration tests need.
#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each test binary uses a part"
)]
#![allow(missing_docs, reason = "not an interface")]

use std::{os::fd::OwnedFd, sync::mpsc, time::Duration};

use standfast_iothread::{Config, Engine, IoThread};

/// A hang is a failure, not a test that runs for ever.
pub const HANG: Duration = Duration::from_secs(60);

/// Makes a module of each of these functions, which has the function as a test on each engine.
macro_rules! on_both_engines {
    ($($test:ident),+ $(,)?) => {
        $(mod $test {
            use standfast_iothread::Engine;

            #[test]
            fn io_uring() {
                super::$test(Engine::IoUring);
            }

            #[test]
            fn threads() {
                super::$test(Engine::Threads);
            }
        })+
    };
}
pub(crate) use on_both_engines;

pub fn config(engine: Engine) -> Config {
    Config {
        name: "test".to_owned(),
        engine: Some(engine),
        ring_entries: 64,
        ..Config::default()
    }
}

pub fn start_with(config: Config) -> IoThread {
    IoThread::spawn(config).expect("io_uring is available on the test machine")
}

pub fn start(engine: Engine, poll_max_ns: u64, ring_entries: u32) -> IoThread {
    start_with(Config {
        poll_max_ns,
        ring_entries,
        ..config(engine)
    })
}

pub fn default_iothread(engine: Engine) -> IoThread {
    start_with(config(engine))
}

/// Runs `f` on a thread of its own and fails if it takes too long.
pub fn within_time<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, result) = mpsc::channel();
    let thread = std::thread::spawn(move || done.send(f()));
    match result.recv_timeout(HANG) {
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => unreachable!("the result is sent before the thread ends"),
        },
        result => result.expect("it hangs"),
    }
}

pub fn run<Fut, R>(iothread: &IoThread, f: impl FnOnce() -> Fut + Send + 'static) -> R
where
    Fut: Future<Output = R> + 'static,
    R: Send + 'static,
{
    let handle = iothread.handle();
    within_time(move || handle.run_blocking(f)).expect("the iothread runs")
}

pub async fn poll_once<F: Future + ?Sized>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match future.as_mut().poll(cx) {
            std::task::Poll::Ready(result) => Some(result),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

/// How long the shortest of many sleeps was.
pub async fn shortest_sleep(sleep: Duration) -> Duration {
    let mut shortest = Duration::MAX;
    for _ in 0..200 {
        let began = std::time::Instant::now();
        standfast_iothread::time::sleep(sleep).await;
        shortest = shortest.min(began.elapsed());
    }
    shortest
}

pub fn iovec(buffer: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    }
}

pub fn eventfd(nonblock: bool) -> OwnedFd {
    let mut flags = rustix::event::EventfdFlags::CLOEXEC;
    flags.set(rustix::event::EventfdFlags::NONBLOCK, nonblock);
    rustix::event::eventfd(0, flags).expect("an eventfd")
}

pub fn signal(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).expect("the counter is not full");
}
