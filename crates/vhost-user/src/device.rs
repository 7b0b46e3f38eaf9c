//! The parts of an export that live on iothreads, one on each, and the way to them from other
//! threads. Queue `i` is in part `i` modulo the number of parts, and never leaves it.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use iothread::mailbox::{self, Receiver, Sender};

use crate::class::{Closed, Part, Shape};
use crate::queue::{Context, HangUp, Queue};
use crate::trouble::Trouble;

/// Which of the parts of a device it is.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Its number.
    index: u16,
    /// How many there are; 1 or more.
    count: u16,
}

impl Place {
    /// The queues of this part, of `queues` in all.
    fn queues(self, queues: u16) -> impl Iterator<Item = u16> {
        (self.index..queues).step_by(usize::from(self.count))
    }
}

/// The queues of an export on one iothread.
pub(crate) struct Device<P: Part> {
    context: Rc<Context<P>>,
    queues: Vec<Rc<Queue<P>>>,
    /// The queues of the export by their numbers, as far as they are here.
    by_index: Vec<Option<Rc<Queue<P>>>>,
}

impl<P: Part> fmt::Debug for Device<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("device", &self.context.id)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl<P: Part> Device<P> {
    async fn open(
        place: Place,
        shape: &Shape,
        config: P::Config,
        trouble: Arc<Trouble>,
        hang_up: HangUp,
    ) -> Option<Rc<Self>> {
        let context = Rc::new(Context {
            id: shape.id.clone(),
            config,
            trouble,
            hang_up,
            part: RefCell::new(None),
        });
        let queues: Vec<_> = (place.queues(shape.queues))
            .map(|index| Queue::new(index, Rc::clone(&context)))
            .collect();
        let mut by_index = vec![None; usize::from(shape.queues)];
        for (index, queue) in place.queues(shape.queues).zip(&queues) {
            by_index[usize::from(index)] = Some(Rc::clone(queue));
        }
        let part = P::open(&context.config, by_index.clone()).await?;
        *context.part.borrow_mut() = Some(part);
        Some(Rc::new(Self {
            context,
            queues,
            by_index,
        }))
    }

    async fn serve(self: Rc<Self>, mut jobs: Receiver<Job<P>>) {
        while let Some(job) = jobs.recv().await {
            job(Rc::clone(&self)).await;
        }
    }

    /// A queue of this part, by its number in the export; none if it is not here.
    pub fn queue(&self, index: u16) -> Option<&Rc<Queue<P>>> {
        self.by_index.get(usize::from(index))?.as_ref()
    }

    /// The queues of this part.
    pub fn queues(&self) -> &[Rc<Queue<P>>] {
        &self.queues
    }

    /// What the class has here; none after [`Self::close`].
    pub fn part(&self) -> Option<P> {
        self.context.part.borrow().clone()
    }

    /// The memory table has changed: what could not be reached before is tried again.
    pub fn memory_settled(&self) {
        if let Some(part) = self.part() {
            part.memory_settled();
        }
    }

    /// Ends what the class has here. All rings are stopped.
    pub async fn close(&self) {
        let part = self.context.part.borrow_mut().take();
        if let Some(part) = part {
            part.close().await;
        }
    }
}

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;
type Job<P> = Box<dyn FnOnce(Rc<Device<P>>) -> LocalFuture + Send>;

/// Reaches the parts of a device from any thread. The jobs of one part run one after the other.
pub struct DeviceHandle<P: Part> {
    parts: Arc<[Sender<Job<P>>]>,
}

impl<P: Part> Clone for DeviceHandle<P> {
    fn clone(&self) -> Self {
        let parts = Arc::clone(&self.parts);
        Self { parts }
    }
}

impl<P: Part> fmt::Debug for DeviceHandle<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceHandle")
            .field("parts", &self.parts.len())
            .finish_non_exhaustive()
    }
}

impl<P: Part> DeviceHandle<P> {
    /// Makes one part on each of `iothreads`, as far as there are queues for them. There is at
    /// least one iothread.
    pub(crate) async fn open(
        iothreads: &[iothread::Handle],
        shape: &Shape,
        config: &P::Config,
        trouble: &Arc<Trouble>,
        hang_up: &HangUp,
    ) -> Result<Self, Closed> {
        let count = u16::try_from(iothreads.len()).unwrap_or(u16::MAX);
        let count = count.min(shape.queues);
        let mut open = Vec::with_capacity(usize::from(count));
        for (index, iothread) in (0..count).zip(iothreads) {
            let place = Place { index, count };
            let (shape, config) = (shape.clone(), config.clone());
            let (trouble, hang_up) = (Arc::clone(trouble), Arc::clone(hang_up));
            let opened = iothread.run(move || async move {
                let device = Device::open(place, &shape, config, trouble, hang_up).await?;
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
    pub(crate) async fn run_all<F, Fut>(&self, f: F) -> Result<(), Closed>
    where
        F: Fn(Rc<Device<P>>) -> Fut + Clone + Send + 'static,
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
    pub(crate) fn call_all<F, Fut>(&self, f: F) -> Result<(), Closed>
    where
        F: Fn(Rc<Device<P>>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        pollster::block_on(self.run_all(f))
    }

    /// Runs `f` for what the class has on each iothread.
    ///
    /// # Errors
    /// [`Closed`] if it was not run everywhere.
    pub fn on_parts(&self, f: impl Fn(&P) + Clone + Send + 'static) -> Result<(), Closed> {
        self.call_all(move |device| {
            if let Some(part) = device.part() {
                f(&part);
            }
            std::future::ready(())
        })
    }

    /// Runs `f` for one queue, which exists, on its iothread. Waits for it: `f` may wait for what
    /// ends by itself only.
    ///
    /// # Errors
    /// [`Closed`] if it was not run, or not to its end.
    pub(crate) fn call_queue<F, Fut, R>(&self, index: u16, f: F) -> Result<R, Closed>
    where
        F: FnOnce(Rc<Queue<P>>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        let (reply, mut answer) = mailbox::channel();
        let jobs = &self.parts[usize::from(index) % self.parts.len()];
        send(jobs, reply, move |device| {
            let done = device.queue(index).map(|queue| f(Rc::clone(queue)));
            async move { Some(done?.await) }
        })?;
        pollster::block_on(answer.recv()).flatten().ok_or(Closed)
    }
}

fn send<P, F, Fut, R>(jobs: &Sender<Job<P>>, reply: Sender<R>, f: F) -> Result<(), Closed>
where
    P: Part,
    F: FnOnce(Rc<Device<P>>) -> Fut + Send + 'static,
    Fut: Future<Output = R> + 'static,
    R: Send + 'static,
{
    let job: Job<P> = Box::new(move |device| {
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
                let parts = (0..count).map(|index| Place { index, count });
                let mut all: Vec<_> = parts.flat_map(|place| place.queues(queues)).collect();
                all.sort_unstable();
                assert_eq!(all, (0..queues).collect::<Vec<_>>());
            }
        }
    }
}
