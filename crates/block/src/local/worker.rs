//! Workers: places where the future of a driver is polled until it has ended.
//!
//! A worker is a task that is used again and again, so that a request costs no allocation. There are
//! as many as there have ever been requests in flight at once. A request whose driver knows the
//! result at once borrows a worker's buffer list and never runs in its task.

use std::cell::{OnceCell, Ref, RefCell, RefMut};
use std::fmt;
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
use crate::gate::Ticket;
use crate::words::error::Result;
use crate::words::request::Request;

/// A request that a driver has not answered at once.
struct Running {
    /// With the time when it was started. None before [`Worker::keep`] and once it has ended.
    ticket: Option<(Ticket, Instant)>,
    /// Borrows from the node and the buffer list of its worker.
    future: IoFuture<'static>,
}

/// See the [module](self).
pub struct Worker {
    /// First, so that it is dropped before what it borrows from.
    running: RefCell<Option<Running>>,
    iov: RefCell<Vec<libc::iovec>>,
    node: Arc<Node>,
    /// In the list of the busy ones.
    place: usize,
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
    /// An idle one, which stays where it is and has this `place` in the list of the busy ones.
    pub fn new(node: Arc<Node>, place: usize) -> Rc<Self> {
        Rc::new(Self {
            running: RefCell::new(None),
            iov: RefCell::default(),
            node,
            place,
            waker: OnceCell::new(),
        })
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
        let (ticket, started) = running.as_ref()?.ticket.as_ref()?;
        Some(BusyRequest {
            request: *ticket.request(),
            order: ticket.order(),
            started: *started,
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
        let mut future = self.node.driver().submit(io);
        if let Some(result) = future.take_ready() {
            return Poll::Ready(result);
        }
        // SAFETY: it borrows from the node, which this worker keeps, and from the buffer list, which
        // nobody touches while `running` is there; both outlive it (see the order of the fields).
        let future = unsafe { std::mem::transmute::<IoFuture<'_>, IoFuture<'static>>(future) };
        let before = self.running.borrow_mut().replace(Running {
            ticket: None,
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

    /// Polls the request that runs here, on behalf of the worker's task. Ready with its result, the
    /// ticket and when it was started; the worker is idle then.
    pub fn poll(&self) -> Poll<(Ticket, Instant, Result<()>)> {
        let mut running = self.running.borrow_mut();
        let (Some(request), Some(waker)) = (&mut *running, self.waker.get()) else {
            return Poll::Pending;
        };
        // SAFETY: a worker stays in its `Rc`, and the future is dropped where it is, below.
        let future = unsafe { Pin::new_unchecked(&mut request.future) };
        let Poll::Ready(result) = future.poll(&mut Context::from_waker(waker)) else {
            return Poll::Pending;
        };
        let ticket = request.ticket.take();
        *running = None;
        match ticket {
            Some((ticket, started)) => Poll::Ready((ticket, started, result)),
            None => Poll::Pending,
        }
    }

    /// The buffer list of the request that has just ended here.
    pub fn ended_buffers(&self) -> Ref<'_, Vec<libc::iovec>> {
        self.iov.borrow()
    }
}
