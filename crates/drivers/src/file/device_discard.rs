//! Discards on block devices: the BLKDISCARD ioctl, on a thread of its own.
//!
//! fallocate(2), which io_uring has, cannot do it: punching a hole into a block device is a
//! write-zeroes to the kernel, and thin volumes (dm-thin), which want discards most, refuse that.
//! The ioctl blocks, so it must not be called on an iothread.

#![expect(unsafe_code, reason = "system calls that have no safe wrapper")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};

use parking_lot::{Mutex, MutexGuard};

const BLKDISCARD: libc::Ioctl = 0x1277;

/// One discard; shared by the task that waits and the thread that works.
#[derive(Debug, Default)]
struct Job {
    state: Mutex<Outcome>,
}

#[derive(Debug, Default)]
struct Outcome {
    result: Option<io::Result<()>>,
    waker: Option<Waker>,
}

impl Job {
    fn state(&self) -> MutexGuard<'_, Outcome> {
        // Whoever panicked, the state is complete.
        self.state.lock()
    }
}

type Task = (Range<u64>, Arc<Job>);

/// The thread, and the way to it.
#[derive(Debug)]
struct Worker {
    queue: Sender<Task>,
    thread: JoinHandle<()>,
}

/// The discards of one device. The thread starts with the first. Dropping this waits for its end:
/// the image is unlocked next, and a discard that is still under way would meet its next owner's data.
#[derive(Debug)]
pub struct DeviceDiscard {
    fd: Arc<OwnedFd>,
    worker: Mutex<Option<Worker>>,
}

impl DeviceDiscard {
    /// `fd`: a duplicate of the node's descriptor.
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd: Arc::new(fd),
            worker: Mutex::new(None),
        }
    }

    /// Discards a range in bytes, in whole logical blocks.
    pub async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        let job = Arc::new(Job::default());
        self.queue((range, Arc::clone(&job)))?;
        Waiting(&job).await
    }

    fn queue(&self, task: Task) -> io::Result<()> {
        let mut worker = self.worker.lock();
        let worker = match &mut *worker {
            Some(worker) => worker,
            none => none.insert(start(Arc::clone(&self.fd))?),
        };
        worker
            .queue
            .send(task)
            .map_err(|_| io::Error::other("the discard thread has ended"))
    }
}

impl Drop for DeviceDiscard {
    fn drop(&mut self) {
        let worker = self.worker.get_mut();
        if let Some(Worker { queue, thread }) = worker.take() {
            drop(queue);
            let _ = thread.join();
        }
    }
}

fn start(fd: Arc<OwnedFd>) -> io::Result<Worker> {
    let (queue, tasks): (_, Receiver<Task>) = channel();
    let thread = thread::Builder::new()
        .name("discard".to_owned())
        .spawn(move || {
            for (range, job) in tasks {
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
    Ok(Worker { queue, thread })
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
