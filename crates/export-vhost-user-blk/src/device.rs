//! The parts of an export that live on iothreads, one on each, and the way to them from other
//! threads. Queue `i` is in part `i` modulo the number of parts, and never leaves it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use block::{Backend, Client, Fault, LocalBackend, Request, Unmapped};
use iothread::mailbox::{self, Receiver, Sender};

use crate::options::Options;
use crate::queue::{Context, HangUp, Queue};
use crate::request::{Rules, STATUS_IOERR, STATUS_OK};
use crate::trouble::Trouble;

/// Which part of a device it is.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Its number.
    index: u16,
    /// How many there are; 1 or more.
    count: u16,
}

impl Part {
    /// The queues of this part, of `queues` in all.
    fn queues(self, queues: u16) -> impl Iterator<Item = u16> {
        (self.index..queues).step_by(usize::from(self.count))
    }
}

/// The queues of an export on one iothread.
pub(crate) struct Device {
    context: Rc<Context>,
    queues: Vec<Rc<Queue>>,
    /// The queues of the export by their numbers, as far as they are here.
    by_index: Vec<Option<Rc<Queue>>>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("device", self.context.backend.device())
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl Device {
    async fn open(
        part: Part,
        options: &Options,
        backend: &Arc<Backend>,
        trouble: Arc<Trouble>,
        hang_up: HangUp,
    ) -> Option<Rc<Self>> {
        let context = Rc::new(Context {
            backend: Arc::clone(backend),
            rules: Rules {
                writable: options.writable,
                block_bytes: options.logical_block_size,
            },
            id_string: options.id_string(),
            trouble,
            hang_up,
            writeback: Cell::new(!options.writethrough),
            local: RefCell::new(None),
        });
        let queues: Vec<_> = (part.queues(options.num_queues))
            .map(|index| Queue::new(index, Rc::clone(&context)))
            .collect();
        let mut by_index = vec![None; usize::from(options.num_queues)];
        for (index, queue) in part.queues(options.num_queues).zip(&queues) {
            by_index[usize::from(index)] = Some(Rc::clone(queue));
        }
        let device = Rc::new(Self {
            context,
            queues,
            by_index,
        });
        let client = Rc::clone(&device) as Rc<dyn Client>;
        let local = LocalBackend::open(backend, client, options.num_queues).await?;
        for queue in part.queues(options.num_queues) {
            // Started by their rings.
            local.stop_queue(queue).await;
        }
        *device.context.local.borrow_mut() = Some(local);
        Some(device)
    }

    async fn serve(self: Rc<Self>, mut jobs: Receiver<Job>) {
        while let Some(job) = jobs.recv().await {
            job(Rc::clone(&self)).await;
        }
    }

    /// A queue of this part, by its number in the export; none if it is not here.
    pub fn queue(&self, index: u16) -> Option<&Rc<Queue>> {
        self.by_index.get(usize::from(index))?.as_ref()
    }

    /// The queues of this part.
    pub fn queues(&self) -> &[Rc<Queue>] {
        &self.queues
    }

    pub fn set_writeback(&self, writeback: bool) {
        self.context.writeback.set(writeback);
    }

    /// The memory table has changed: what could not be reached before is tried again.
    pub fn memory_settled(&self) {
        let local = self.context.local.borrow().clone();
        if let Some(local) = local {
            local.memory_settled();
        }
    }

    /// Ends the block layer's part. All rings are stopped.
    pub async fn close(&self) {
        let local = self.context.local.borrow_mut().take();
        if let Some(local) = local {
            local.close().await;
        }
    }

    fn of(&self, request: &Request) -> Option<&Rc<Queue>> {
        self.queue(request.tag.queue)
    }
}

impl Client for Device {
    fn map(&self, request: &Request, iov: &mut Vec<libc::iovec>) -> Result<(), Unmapped> {
        self.of(request).ok_or(Unmapped::Gone)?.map(request, iov)
    }

    fn has_lost(&self, request: &Request, iov: &[libc::iovec]) -> bool {
        let queue = self.of(request);
        queue.is_none_or(|queue| queue.has_lost(request, iov))
    }

    fn unmap(&self, request: &Request) {
        if let Some(queue) = self.of(request) {
            queue.unmap(request.tag.head);
        }
    }

    fn fua(&self, request: &Request) -> bool {
        request.op.modifies() && !self.context.writeback.get()
    }

    fn complete(&self, request: &Request, result: Result<(), Fault>) {
        let status = match result {
            Ok(()) => STATUS_OK,
            Err(Fault::Io(_) | Fault::Guest) => STATUS_IOERR,
        };
        if let Some(queue) = self.of(request) {
            queue.complete(request.tag.head, status);
        }
    }

    fn dropped(&self, request: &Request) {
        if let Some(queue) = self.of(request) {
            queue.forget(request.tag.head);
        }
    }

    fn resume(&self) {
        for queue in &self.queues {
            queue.process();
        }
    }
}

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;
type Job = Box<dyn FnOnce(Rc<Device>) -> LocalFuture + Send>;

/// The iothread is gone, or the export has been closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the export is closed")]
pub struct Closed;

/// Reaches the parts of a device from any thread. The jobs of one part run one after the other.
#[derive(Clone, Debug)]
pub(crate) struct DeviceHandle {
    parts: Arc<[Sender<Job>]>,
}

impl DeviceHandle {
    /// Makes one part on each of `iothreads`, as far as there are queues for them. There is at
    /// least one iothread.
    pub async fn open(
        iothreads: &[iothread::Handle],
        options: &Options,
        backend: &Arc<Backend>,
        trouble: &Arc<Trouble>,
        hang_up: &HangUp,
    ) -> Result<Self, Closed> {
        let count = u16::try_from(iothreads.len()).unwrap_or(u16::MAX);
        let count = count.min(options.num_queues);
        let mut open = Vec::with_capacity(usize::from(count));
        for (index, iothread) in (0..count).zip(iothreads) {
            let part = Part { index, count };
            let (options, backend) = (options.clone(), Arc::clone(backend));
            let (trouble, hang_up) = (Arc::clone(trouble), Arc::clone(hang_up));
            let opened = iothread.run(move || async move {
                let device = Device::open(part, &options, &backend, trouble, hang_up).await?;
                let (jobs, receiver) = mailbox::channel();
                iothread::spawn_local(device.serve(receiver)).detach();
                Some(jobs)
            });
            // If it fails, the daemon ends, and with it the parts that are open.
            open.push(opened.await.ok().flatten().ok_or(Closed)?);
        }
        Ok(Self { parts: open.into() })
    }

    /// Runs `f` for every part, each on its own iothread and all at the same time, to the end.
    ///
    /// # Errors
    /// [`Closed`] if a part did not run it, or not to its end.
    pub async fn run_all<F, Fut>(&self, f: F) -> Result<(), Closed>
    where
        F: Fn(Rc<Device>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let (reply, mut answers) = mailbox::channel();
        for jobs in &*self.parts {
            send(jobs, reply.clone(), f.clone())?;
        }
        drop(reply);
        let mut left = self.parts.len();
        while answers.recv().await.is_some() {
            left -= 1;
        }
        if left == 0 { Ok(()) } else { Err(Closed) }
    }

    /// [`DeviceHandle::run_all`] for a plain thread. `f` may wait for what ends by itself only.
    pub fn call_all<F, Fut>(&self, f: F) -> Result<(), Closed>
    where
        F: Fn(Rc<Device>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        block::block_on(self.run_all(f))
    }

    /// Runs `f` for one queue, which exists, on its iothread. Waits for it: `f` may wait for what
    /// ends by itself only.
    ///
    /// # Errors
    /// [`Closed`] if it was not run, or not to its end.
    pub fn call_queue<F, Fut, R>(&self, index: u16, f: F) -> Result<R, Closed>
    where
        F: FnOnce(Rc<Queue>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        let (reply, mut answer) = mailbox::channel();
        let jobs = &self.parts[usize::from(index) % self.parts.len()];
        send(jobs, reply, move |device| {
            let done = device.queue(index).map(|queue| f(Rc::clone(queue)));
            async move { Some(done?.await) }
        })?;
        block::block_on(answer.recv()).flatten().ok_or(Closed)
    }
}

fn send<F, Fut, R>(jobs: &Sender<Job>, reply: Sender<R>, f: F) -> Result<(), Closed>
where
    F: FnOnce(Rc<Device>) -> Fut + Send + 'static,
    Fut: Future<Output = R> + 'static,
    R: Send + 'static,
{
    let job: Job = Box::new(move |device| {
        let result = f(device);
        Box::pin(async move {
            // Whoever has stopped waiting needs no answer.
            let _ = reply.send(result.await);
        })
    });
    jobs.send(job).map_err(|_| Closed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_is_in_one_part() {
        for queues in 1..=9 {
            for count in 1..=queues {
                let parts = (0..count).map(|index| Part { index, count });
                let mut all: Vec<_> = parts.flat_map(|part| part.queues(queues)).collect();
                all.sort_unstable();
                assert_eq!(all, (0..queues).collect::<Vec<_>>());
            }
        }
    }
}
