//! The part of an export that lives on an iothread, and the way to it from other threads.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use block::{Backend, Client, Fault, LocalBackend, Request, Unmapped};
use iothread::mailbox::{self, Receiver, Sender};

use crate::options::Options;
use crate::queue::{Context, Queue};
use crate::request::{Rules, STATUS_IOERR, STATUS_OK};
use crate::trouble::Trouble;

/// The queues of an export on one iothread.
pub(crate) struct Device {
    context: Rc<Context>,
    queues: Vec<Rc<Queue>>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("device", &self.context.device)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl Device {
    async fn open(
        options: &Options,
        backend: &Arc<Backend>,
        trouble: Arc<Trouble>,
    ) -> Option<Rc<Self>> {
        let context = Rc::new(Context {
            device: Arc::clone(backend.device()),
            rules: Rules {
                writable: options.writable,
                block_bytes: options.logical_block_size,
            },
            id_string: options.id_string(),
            trouble,
            writeback: Cell::new(!options.writethrough),
            local: RefCell::new(None),
        });
        let queues = 0..options.num_queues;
        let size_max = options.queue_size_max;
        let device = Rc::new(Self {
            queues: queues
                .map(|index| Queue::new(index, size_max, Rc::clone(&context)))
                .collect(),
            context,
        });
        let client = Rc::clone(&device) as Rc<dyn Client>;
        let slots = u32::from(options.num_queues) * u32::from(size_max);
        let local = LocalBackend::open(backend, client, options.num_queues, slots).await?;
        for queue in 0..options.num_queues {
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

    /// A queue; none if there is no such.
    pub fn queue(&self, index: u16) -> Option<&Rc<Queue>> {
        self.queues.get(usize::from(index))
    }

    pub fn queues(&self) -> &[Rc<Queue>] {
        &self.queues
    }

    pub fn set_writeback(&self, writeback: bool) {
        self.context.writeback.set(writeback);
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
        self.of(request).ok_or(Unmapped)?.map(request, iov)
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

/// Reaches a [`Device`] from any thread. Jobs run one after the other.
#[derive(Clone, Debug)]
pub(crate) struct DeviceHandle {
    jobs: Sender<Job>,
}

impl DeviceHandle {
    /// Makes the device on `iothread`.
    pub async fn open(
        iothread: &iothread::Handle,
        options: &Options,
        backend: &Arc<Backend>,
        trouble: Arc<Trouble>,
    ) -> Result<Self, Closed> {
        let (options, backend) = (options.clone(), Arc::clone(backend));
        let opened = iothread.run(move || async move {
            let device = Device::open(&options, &backend, trouble).await?;
            let (jobs, receiver) = mailbox::channel();
            iothread::spawn_local(device.serve(receiver)).detach();
            Some(jobs)
        });
        match opened.await {
            Ok(Some(jobs)) => Ok(Self { jobs }),
            Ok(None) | Err(iothread::Closed) => Err(Closed),
        }
    }

    /// Runs `f` on the iothread.
    ///
    /// # Errors
    /// [`Closed`] if it was not run, or not to its end.
    pub async fn run<F, Fut, R>(&self, f: F) -> Result<R, Closed>
    where
        F: FnOnce(Rc<Device>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        let (reply, mut answer) = mailbox::channel();
        let job: Job = Box::new(move |device| {
            let result = f(device);
            Box::pin(async move {
                // Whoever has stopped waiting needs no answer.
                let _ = reply.send(result.await);
            })
        });
        self.jobs.send(job).map_err(|_| Closed)?;
        answer.recv().await.ok_or(Closed)
    }

    /// [`DeviceHandle::run`] for a plain thread. `f` may wait for what ends by itself only.
    pub fn call<F, Fut, R>(&self, f: F) -> Result<R, Closed>
    where
        F: FnOnce(Rc<Device>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        block::block_on(self.run(f))
    }
}
