//! Discards on block devices: the BLKDISCARD ioctl, on a thread of its own.
//!
//! fallocate(2), which io_uring has, cannot do it: punching a hole into a block device is a
//! write-zeroes to the kernel, and thin volumes (dm-thin), which want discards most, refuse that.
//! The ioctl blocks, so it must not be called on an iothread.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;

const BLKDISCARD: libc::Ioctl = 0x1277;

/// One discard; shared by the task that waits and the thread that works.
#[derive(Debug, Default)]
struct Job {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    result: Option<io::Result<()>>,
    waker: Option<Waker>,
}

impl Job {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked, the state is complete.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The discards of one device. The thread starts with the first and ends with the node, after the
/// discard that it is at; until then it keeps the descriptor and the image locks on it.
#[derive(Debug)]
pub struct DeviceDiscard {
    fd: Arc<OwnedFd>,
    queue: OnceLock<Sender<(Range<u64>, Arc<Job>)>>,
}

impl DeviceDiscard {
    /// `fd`: a duplicate of the node's descriptor.
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd: Arc::new(fd),
            queue: OnceLock::new(),
        }
    }

    /// Discards a range in bytes, in whole logical blocks.
    pub async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        let queue = match self.queue.get() {
            Some(queue) => queue,
            None => {
                let started = start(Arc::clone(&self.fd))?;
                // Of two iothreads that come here at once one starts a thread that ends right away.
                self.queue.get_or_init(|| started)
            }
        };
        let job = Arc::new(Job::default());
        if queue.send((range, Arc::clone(&job))).is_err() {
            return Err(io::Error::other("the discard thread has ended"));
        }
        Waiting(&job).await
    }
}

fn start(fd: Arc<OwnedFd>) -> io::Result<Sender<(Range<u64>, Arc<Job>)>> {
    let (queue, jobs): (_, Receiver<(Range<u64>, Arc<Job>)>) = channel();
    thread::Builder::new()
        .name("discard".to_owned())
        .spawn(move || {
            for (range, job) in jobs {
                let result = discard_now(&fd, &range);
                let mut state = job.state();
                state.result = Some(result);
                let waker = state.waker.take();
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        })?;
    Ok(queue)
}

fn discard_now(fd: &OwnedFd, range: &Range<u64>) -> io::Result<()> {
    let argument = [range.start, range.end - range.start];
    loop {
        // SAFETY: the ioctl reads two u64.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), BLKDISCARD, argument.as_ptr()) };
        if result != -1 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

struct Waiting<'a>(&'a Job);

impl Future for Waiting<'_> {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.state();
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
