//! Workers: places where the future of a driver is polled until it has ended.
//!
//! A worker is a task that is used again and again, so that a request costs no allocation. There are
//! as many as there have ever been requests in flight at once. A request whose driver knows the
//! result at once borrows a worker's buffer list and never runs in its task.

use std::cell::{Cell, OnceCell, Ref, RefCell, RefMut};
use std::fmt;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::control::run_control::BusyRequest;
use crate::driver::buffers::Buffers;
use crate::driver::future::IoFuture;
use crate::driver::io::Io;
use crate::driver::node::Node;
use crate::driver::park;
use crate::gate::Ticket;
use crate::words::error::Result;
use crate::words::request::Request;

/// A request that a driver has not answered at once.
struct Running {
    /// With the time when it was started. None before [`Worker::keep`] and once it has ended.
    ticket: Option<(Ticket, Instant)>,
    /// It has waited for something else than what parks a request: it is in flight until it ends.
    begun: bool,
    /// When the driver went on with it, if it had parked it.
    went_on: Option<Instant>,
    /// Borrows from the node and the buffer list of its worker.
    future: IoFuture<'static>,
}

/// What became of a request that was polled.
pub enum Polled {
    /// It has ended: its ticket and when it was started. The worker is idle.
    Ended(Ticket, Instant, Result<()>),
    /// It is in flight, or nothing runs here.
    Pending,
    /// It is parked in the driver, or it is not any more: its ticket has to be told.
    Changed,
}

/// See the [module](self).
pub struct Worker {
    /// First, so that it is dropped before what it borrows from.
    running: RefCell<Option<Running>>,
    iov: RefCell<Vec<libc::iovec>>,
    node: Arc<Node>,
    /// In the list of the busy ones, or of those whose request is parked.
    place: usize,
    retired: Cell<bool>,
    /// Wakes the task.
    waker: OnceCell<Waker>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("idle", &self.is_idle())
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// An idle one, which stays where it is and has this `place` in the lists of the busy and the parked ones.
    pub fn new(node: Arc<Node>, place: usize) -> Rc<Self> {
        Rc::new(Self {
            running: RefCell::new(None),
            iov: RefCell::default(),
            node,
            place,
            retired: Cell::new(false),
            waker: OnceCell::new(),
        })
    }

    /// Where its requests go.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// It is idle and gets nothing more to do: its task ends.
    pub fn retire(&self) {
        self.retired.set(true);
        self.wake();
    }

    /// Whether its task is to end.
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// Says how its task is woken; once.
    pub fn set_waker(&self, waker: Waker) {
        let first = self.waker.set(waker).is_ok();
        debug_assert!(first, "a worker has one task");
    }

    /// Wakes its task.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// Whether it runs no request.
    pub fn is_idle(&self) -> bool {
        self.running.borrow().is_none()
    }

    /// Its place in the list of the busy ones.
    pub fn place(&self) -> usize {
        self.place
    }

    /// The request that runs here.
    pub fn busy(&self) -> Option<BusyRequest> {
        let running = self.running.borrow();
        let running = running.as_ref()?;
        let (ticket, started) = running.ticket.as_ref()?;
        Some(BusyRequest {
            request: *ticket.request(),
            order: ticket.order(),
            started: running.went_on.unwrap_or(*started),
        })
    }

    /// The buffer list for the next request of an idle worker.
    pub fn buffers(&self) -> RefMut<'_, Vec<libc::iovec>> {
        debug_assert!(self.is_idle());
        self.iov.borrow_mut()
    }

    /// Gives `request` to the driver, with the buffer list of this worker, which is idle. Ready if
    /// the driver answers at once; else the worker wants its ticket ([`Self::keep`]).
    pub fn submit(&self, request: &Request, fua: bool, losses_accepted: u32) -> Poll<Result<()>> {
        let iov = self.iov.borrow();
        let bytes = usize::try_from(request.bytes).unwrap_or(usize::MAX);
        let buffers = match &**iov {
            [] => Buffers::EMPTY,
            // Only what moves bytes has segments, and then as many bytes as it moves.
            // SAFETY: the export has mapped them until it is told that this has ended
            // (`Client::map`); they are the client's, so nobody here has references into them.
            segments => unsafe { Buffers::from_iovecs(segments, bytes) },
        };
        let io = Io {
            op: request.op,
            offset: request.offset,
            bytes: request.bytes,
            buffers,
            fua,
            losses_accepted,
        };
        let mut future = self.node.start(io);
        if let Some(result) = future.take_ready() {
            // It has nothing left that would have to be dropped, and every request would pay for the
            // question.
            let _nothing = ManuallyDrop::new(future);
            return Poll::Ready(result);
        }
        // SAFETY: it borrows from the node, which this worker keeps, and from the buffer list, which
        // nobody touches while `running` is there; both outlive it (see the order of the fields).
        let future = unsafe { std::mem::transmute::<IoFuture<'_>, IoFuture<'static>>(future) };
        let before = self.running.borrow_mut().replace(Running {
            ticket: None,
            begun: false,
            went_on: None,
            future,
        });
        debug_assert!(before.is_none());
        Poll::Pending
    }

    /// Keeps the ticket of the request that runs here, and when it was `started`, until it has
    /// ended. It has to be polled then.
    pub fn keep(&self, ticket: Ticket, started: Instant) {
        if let Some(running) = &mut *self.running.borrow_mut() {
            running.ticket = Some((ticket, started));
        }
    }

    /// Polls the request that runs here, on behalf of the worker's task.
    pub fn poll(&self) -> Polled {
        let mut running = self.running.borrow_mut();
        let (Some(request), Some(waker)) = (&mut *running, self.waker.get()) else {
            return Polled::Pending;
        };
        // SAFETY: a worker stays in its `Rc`, and the future is dropped where it is, below.
        let future = unsafe { Pin::new_unchecked(&mut request.future) };
        let Poll::Ready(result) = future.poll(&mut Context::from_waker(waker)) else {
            let parks = !request.begun && park::is_waiting(waker);
            request.begun = !parks;
            let parked = (request.ticket.as_ref()).is_some_and(|(ticket, _)| ticket.is_parked());
            return match parks == parked {
                true => Polled::Pending,
                false => Polled::Changed,
            };
        };
        let ticket = request.ticket.take();
        *running = None;
        match ticket {
            Some((ticket, started)) => Polled::Ended(ticket, started, result),
            None => Polled::Pending,
        }
    }

    /// The ticket of the request that runs here, to be told that it is parked or goes on, and since when
    /// it has gone on.
    pub fn with_ticket(&self, f: impl FnOnce(&mut Ticket, &mut Option<Instant>)) {
        if let Some(Running {
            ticket: Some((ticket, _)),
            went_on,
            ..
        }) = &mut *self.running.borrow_mut()
        {
            f(ticket, went_on);
        }
    }

    /// Takes the request back from the driver: its future is dropped, where it is. The worker is idle.
    pub fn take_back(&self) -> Option<Ticket> {
        let mut running = self.running.borrow_mut();
        let ticket = (running.as_mut()).and_then(|running| running.ticket.take());
        park::take_back(|| *running = None);
        ticket.map(|(ticket, _)| ticket)
    }

    /// The buffer list of the request that has just ended here.
    pub fn ended_buffers(&self) -> Ref<'_, Vec<libc::iovec>> {
        self.iov.borrow()
    }
}
