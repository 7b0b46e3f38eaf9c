//! Engine *io_uring*: the ring of one iothread, and the operations in it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, BorrowedFd},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use io_uring::{
    EnterFlags, IoUring, cqueue, opcode,
    register::Restriction,
    squeue,
    types::{CancelBuilder, Fd, FsyncFlags, SubmitArgs, Timespec},
};
use slab::Slab;

use super::bell::Bell;
use crate::{
    call::{Call, poll_bits},
    last_words,
    shared::{Shared, count},
};

/// User data of the poll on the wake eventfd.
const WAKE: u64 = u64::MAX;
/// User data of cancellations, whose own result does not matter.
const CANCEL: u64 = u64::MAX - 1;

/// Operations that go to the kernel without waiting for the end of the round.
///
/// Storage often ends many requests at once and is idle until it gets the next ones, while preparing
/// one of them takes a tenth of the time that it takes to serve it. One at a time would cost a system
/// call and a doorbell each.
const FIRST_BATCH: usize = 4;

/// What an eventfd is told.
static ONE: u64 = 1;

/// Who waits for an operation, or what it came to. The slab key is the operation's user data.
enum Submitted {
    Waiting(Waker),
    Done(i32),
    /// Nobody waits; the descriptor is kept open for the kernel.
    Notify(Rc<Bell>),
    Multishot(Multishot),
}

/// A poll that reports again and again.
#[derive(Default)]
struct Multishot {
    /// Events since the owner last asked.
    events: u32,
    error: Option<i32>,
    /// The kernel will not report any more.
    ended: bool,
    waker: Option<Waker>,
}

pub(crate) struct Uring {
    ring: RefCell<IoUring>,
    slots: RefCell<Slab<Submitted>>,
    /// Operations that did not fit the submission queue, oldest first.
    backlog: RefCell<VecDeque<squeue::Entry>>,
    /// Operations with a slot whose last completion has not been seen.
    in_flight: Cell<usize>,
    /// Of these, those that somebody waits for.
    waiting: Cell<usize>,
    /// So many queued operations go to the kernel before the end of the round.
    batch: Cell<usize>,
    shared: Arc<Shared>,
}

/// Makes a ring, of which the calling thread is the only user, and has it work once: a seccomp filter may
/// let one system call pass and not the other.
pub(super) fn make_ring(entries: u32) -> io::Result<IoUring> {
    let ring = IoUring::builder()
        .dontfork()
        .setup_clamp()
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_r_disabled()
        .setup_cqsize(entries.saturating_mul(4))
        .build(entries)?;
    // Seccomp cannot see operations that go through a ring, so the ring itself is limited to
    // what the data plane needs.
    let mut allowed = [
        opcode::Read::CODE,
        opcode::Readv::CODE,
        opcode::Write::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::PollAdd::CODE,
        opcode::AsyncCancel::CODE,
    ]
    .map(Restriction::sqe_op);
    let submitter = ring.submitter();
    submitter.register_restrictions(&mut allowed)?;
    submitter.register_enable_rings()?;
    // SAFETY: nothing is submitted, and no argument announced.
    unsafe { submitter.enter::<libc::sigset_t>(0, 0, EnterFlags::GETEVENTS.bits(), None)? };
    Ok(ring)
}

impl Uring {
    /// Takes a ring of the calling thread's.
    pub(super) fn new(ring: IoUring, shared: Arc<Shared>) -> Uring {
        let uring = Uring {
            ring: RefCell::new(ring),
            slots: RefCell::new(Slab::with_capacity(1024)),
            backlog: RefCell::default(),
            in_flight: Cell::new(0),
            waiting: Cell::new(0),
            batch: Cell::new(FIRST_BATCH),
            shared,
        };
        uring.watch_wake_fd();
        uring
    }

    fn watch_wake_fd(&self) {
        let fd = Fd(self.shared.wake_fd.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, poll_bits(libc::POLLIN))
            .multi(true)
            .build()
            .user_data(WAKE);
        // SAFETY: the entry has no buffers; `shared` keeps the descriptor open.
        unsafe { self.push(entry) };
    }

    /// Starts an operation on behalf of `waker`.
    ///
    /// # Safety
    ///
    /// What `call` names stays valid until [`Uring::poll`] or [`Uring::cancel`] has returned its
    /// result.
    pub(super) unsafe fn start(&self, call: &Call, waker: Waker) -> usize {
        self.waiting.set(self.waiting.get() + 1);
        // SAFETY: passed on to the caller.
        let key = unsafe { self.start_slot(entry(call), Submitted::Waiting(waker)) };
        self.feed();
        key
    }

    /// Hands over what is queued once it is a batch. The next one of this round is twice as large:
    /// storage that was idle gets work at once, and busy storage costs few system calls.
    fn feed(&self) {
        let mut ring = self.ring.borrow_mut();
        let queued = ring.submission().len();
        if queued < self.batch.get() {
            return;
        }
        self.batch
            .set(match self.shared.batch_max.load(Ordering::Relaxed) {
                0 => 2 * queued,
                most => (2 * queued).min(usize::try_from(most).unwrap_or(usize::MAX)),
            });
        count(&self.shared.counters.enters);
        // What fails here is tried again by the next enter, which also sorts out the errors.
        let _ = ring.submit();
    }

    /// Number of operations that somebody waits for: I/O, not notifications and kicks.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// The result of an operation, if it has one; else `cx` is woken when it has.
    pub(super) fn poll(&self, key: usize, cx: &Context<'_>) -> Poll<i32> {
        let mut slots = self.slots.borrow_mut();
        let old = match &mut slots[key] {
            Submitted::Done(result) => {
                let result = *result;
                slots.remove(key);
                return Poll::Ready(result);
            }
            Submitted::Waiting(waker) if !waker.will_wake(cx.waker()) => {
                Some(std::mem::replace(waker, cx.waker().clone()))
            }
            Submitted::Waiting(_) | Submitted::Notify(_) | Submitted::Multishot(_) => None,
        };
        drop(slots);
        drop(old);
        Poll::Pending
    }

    /// Ends an operation: cancels it and waits until the kernel has let go of its buffers.
    pub(super) fn cancel(&self, key: usize) {
        if self.cancelled_before_submission(key) {
            return;
        }
        self.cancel_until(key, || match &self.slots.borrow()[key] {
            Submitted::Done(_) => true,
            Submitted::Multishot(multishot) => multishot.ended,
            Submitted::Waiting(_) | Submitted::Notify(_) => false,
        });
        let slot = self.slots.borrow_mut().remove(key);
        drop(slot);
    }

    /// Has the kernel cancel an operation, and takes completions until it `has_ended`.
    fn cancel_until(&self, key: usize, has_ended: impl Fn() -> bool) {
        let mut asked = false;
        while !has_ended() {
            if asked {
                self.enter(1, None);
            } else {
                asked = true;
                let entry = opcode::AsyncCancel::new(user_data(key))
                    .build()
                    .user_data(CANCEL);
                // SAFETY: the entry has no buffers.
                unsafe { self.push(entry) };
                self.enter(0, None);
            }
            self.reap();
        }
    }

    /// Removes an operation that the kernel has not seen yet.
    fn cancelled_before_submission(&self, key: usize) -> bool {
        let mut backlog = self.backlog.borrow_mut();
        let entry = backlog
            .iter()
            .position(|entry| entry.get_user_data() == user_data(key));
        let Some(index) = entry else { return false };
        backlog.remove(index);
        drop(backlog);
        self.in_flight.set(self.in_flight.get() - 1);
        let slot = self.slots.borrow_mut().remove(key);
        if matches!(slot, Submitted::Waiting(_)) {
            self.waiting.set(self.waiting.get() - 1);
        }
        drop(slot);
        true
    }

    /// Starts a poll on `fd` that reports until it is cancelled. The owner keeps `fd` open.
    pub(super) fn start_multishot(&self, fd: BorrowedFd<'_>, events: u32) -> usize {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), events)
            .multi(true)
            .build();
        // SAFETY: the entry has no buffers.
        unsafe { self.start_slot(entry, Submitted::Multishot(Multishot::default())) }
    }

    /// The events since the last call. An end of the poll is reported as `None`, after the events
    /// that came before it; the slot is gone then.
    pub(super) fn poll_multishot(
        &self,
        key: usize,
        cx: &Context<'_>,
    ) -> Poll<Option<io::Result<u32>>> {
        let mut slots = self.slots.borrow_mut();
        let Submitted::Multishot(multishot) = &mut slots[key] else {
            unreachable!("the key of a multishot poll names one");
        };
        let events = std::mem::take(&mut multishot.events);
        if events != 0 {
            return Poll::Ready(Some(Ok(events)));
        }
        if let Some(errno) = multishot.error.take() {
            return Poll::Ready(Some(Err(io::Error::from_raw_os_error(errno))));
        }
        if multishot.ended {
            slots.remove(key);
            return Poll::Ready(None);
        }
        let old = match &multishot.waker {
            Some(waker) if waker.will_wake(cx.waker()) => None,
            _ => multishot.waker.replace(cx.waker().clone()),
        };
        drop(slots);
        drop(old);
        Poll::Pending
    }

    /// Adds one to an eventfd of which no notification is under way.
    pub(super) fn notify(&self, bell: &Rc<Bell>) {
        let raw = Fd(bell.fd().as_raw_fd());
        let entry = opcode::Write::new(raw, (&raw const ONE).cast(), 8).build();
        // SAFETY: ONE is static, and the slot keeps the descriptor open.
        let key = unsafe { self.start_slot(entry, Submitted::Notify(Rc::clone(bell))) };
        bell.under_way.set(Some(key));
    }

    /// Ends the notification that is under way: cancels it if it has not been done, because the
    /// counter is full, and waits until the kernel has let go of it.
    pub(super) fn end_notification(&self, bell: &Bell) {
        let Some(key) = bell.under_way.get() else {
            return;
        };
        if self.cancelled_before_submission(key) {
            bell.under_way.set(None);
            return;
        }
        self.cancel_until(key, || bell.under_way.get().is_none());
    }

    /// # Safety
    ///
    /// What the entry points to stays valid until the operation has ended.
    unsafe fn start_slot(&self, entry: squeue::Entry, slot: Submitted) -> usize {
        let key = self.slots.borrow_mut().insert(slot);
        self.in_flight.set(self.in_flight.get() + 1);
        // SAFETY: passed on to the caller.
        unsafe { self.push(entry.user_data(user_data(key))) };
        key
    }

    /// Queues an entry; a full queue only delays it.
    ///
    /// # Safety
    ///
    /// As for [`Uring::start_slot`].
    unsafe fn push(&self, entry: squeue::Entry) {
        let mut backlog = self.backlog.borrow_mut();
        if backlog.is_empty() {
            let mut ring = self.ring.borrow_mut();
            // SAFETY: passed on to the caller.
            if unsafe { ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // What fails here is tried again by the next enter, which also sorts out the errors.
            count(&self.shared.counters.enters);
            let _ = ring.submit();
            // SAFETY: passed on to the caller.
            if unsafe { ring.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        backlog.push_back(entry);
    }

    /// Moves the backlog into the submission queue as far as it fits; true if all of it did.
    fn refill(&self) -> bool {
        let mut backlog = self.backlog.borrow_mut();
        if backlog.is_empty() {
            return true;
        }
        let mut ring = self.ring.borrow_mut();
        let mut submission = ring.submission();
        while let Some(entry) = backlog.front() {
            // SAFETY: whoever pushed the entry first vouched for it until the operation has ended.
            if unsafe { submission.push(entry) }.is_err() {
                return false;
            }
            backlog.pop_front();
        }
        true
    }

    /// Hands what is queued to the kernel and takes completions, without waiting. Costs no system
    /// call if there is neither.
    pub(super) fn turn(&self) {
        let needed = {
            let mut ring = self.ring.borrow_mut();
            let submission = ring.submission();
            // With DEFER_TASKRUN completions appear only in an enter; TASKRUN says that there are
            // some to come.
            !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
        };
        if needed || !self.backlog.borrow().is_empty() {
            self.enter(0, None);
        }
        self.reap();
    }

    /// Hands what is queued to the kernel and waits for a completion, at most for `timeout`.
    pub(super) fn wait(&self, timeout: Option<Duration>) {
        self.enter(1, timeout);
    }

    /// One enter. It may return early, with less done than asked for: callers look again anyway.
    fn enter(&self, want: u32, timeout: Option<Duration>) {
        // A wait with operations left behind could last for ever.
        let want = if self.refill() { want } else { 0 };
        self.batch.set(FIRST_BATCH);
        count(&self.shared.counters.enters);
        let result = {
            let ring = self.ring.borrow();
            // SAFETY: single-threaded, and no other handle of the queue is alive: `ring` is only
            // borrowed mutably to make one.
            let queued = unsafe { ring.submission_shared() }.len();
            let queued = u32::try_from(queued).unwrap_or(u32::MAX);
            let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
            let timeout = timeout.map(Timespec::from);
            let mut args = SubmitArgs::new();
            if let Some(timeout) = &timeout {
                args = args.timespec(timeout);
            }
            // SAFETY: `args` is what EXT_ARG announces, and outlives the call.
            unsafe {
                ring.submitter()
                    .enter(queued, want, flags.bits(), Some(&args))
            }
        };
        let Err(error) = result else { return };
        match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR) => {}
            // Out of memory or room for completions: taking some helps, and time does.
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {
                if self.reap() == 0 {
                    std::thread::yield_now();
                }
            }
            _ => {
                // The ring itself is broken: nothing in flight would ever end.
                last_words::abort(&format!(
                    "iothread {}: io_uring_enter failed: {error}; aborting",
                    self.shared.name
                ));
            }
        }
    }

    /// Takes completions and wakes who waits for them; returns how many.
    pub(super) fn reap(&self) -> usize {
        let mut total = 0;
        loop {
            // The borrow ends before anybody is woken.
            let next = self.ring.borrow_mut().completion().next();
            let Some(cqe) = next else { return total };
            self.complete(cqe.user_data(), cqe.result(), cqueue::more(cqe.flags()));
            total += 1;
        }
    }

    fn complete(&self, user_data: u64, result: i32, more: bool) {
        match user_data {
            CANCEL => return,
            WAKE => {
                if !more {
                    self.watch_wake_fd();
                }
                return;
            }
            _ => {}
        }
        if !more {
            self.in_flight.set(self.in_flight.get() - 1);
        }
        let Ok(key) = usize::try_from(user_data) else {
            return;
        };
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(key) else {
            return;
        };
        // The old contents, dropped or woken outside the borrow.
        let mut notified = None;
        let waker = match slot {
            Submitted::Waiting(_) => match std::mem::replace(slot, Submitted::Done(result)) {
                Submitted::Waiting(waker) => {
                    self.waiting.set(self.waiting.get() - 1);
                    Some(waker)
                }
                _ => None,
            },
            Submitted::Notify(_) => {
                notified = Some(slots.remove(key));
                None
            }
            Submitted::Multishot(multishot) => {
                match u32::try_from(result) {
                    Ok(events) => multishot.events |= events,
                    Err(_) => multishot.error = Some(-result),
                }
                multishot.ended = !more;
                multishot.waker.take()
            }
            Submitted::Done(_) => None,
        };
        drop(slots);
        if let Some(Submitted::Notify(bell)) = notified {
            self.notified(&bell, result);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A notification has ended.
    fn notified(&self, bell: &Rc<Bell>, result: i32) {
        bell.under_way.set(None);
        let again = bell.again.take();
        match -result {
            // The counter is full, so the event is signalled already; or whoever has cancelled it
            // wants no more.
            libc::EAGAIN | libc::ECANCELED | libc::EINTR => {}
            errno if errno > 0 => {
                let error = io::Error::from_raw_os_error(errno);
                tracing::debug!(iothread = self.shared.name, %error, "an eventfd cannot be signalled");
            }
            _ if again => self.notify(bell),
            _ => {}
        }
    }

    /// Asks the kernel to cancel everything; does not wait.
    pub(super) fn cancel_all(&self) {
        if self.in_flight.get() == 0 {
            return;
        }
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any())
            .build()
            .user_data(CANCEL);
        // SAFETY: the entry has no buffers.
        unsafe { self.push(entry) };
        self.turn();
    }

    /// Waits until nothing is in flight.
    pub(super) fn reap_all(&self) {
        while self.in_flight.get() > 0 {
            self.enter(1, None);
            self.reap();
        }
    }
}

fn user_data(key: usize) -> u64 {
    key as u64
}

/// A call as the ring wants it.
fn entry(call: &Call) -> squeue::Entry {
    match *call {
        Call::Read {
            fd,
            base,
            len,
            offset,
        } => opcode::Read::new(Fd(fd), base, len).offset(offset).build(),
        Call::Write {
            fd,
            base,
            len,
            offset,
            rw_flags,
        } => opcode::Write::new(Fd(fd), base, len)
            .offset(offset)
            .rw_flags(rw_flags)
            .build(),
        Call::Readv {
            fd,
            iov,
            count,
            offset,
        } => opcode::Readv::new(Fd(fd), iov, count)
            .offset(offset)
            .build(),
        Call::Writev {
            fd,
            iov,
            count,
            offset,
            rw_flags,
        } => opcode::Writev::new(Fd(fd), iov, count)
            .offset(offset)
            .rw_flags(rw_flags)
            .build(),
        Call::Fsync { fd, datasync } => {
            let flags = match datasync {
                true => FsyncFlags::DATASYNC,
                false => FsyncFlags::empty(),
            };
            opcode::Fsync::new(Fd(fd)).flags(flags).build()
        }
        Call::Fallocate {
            fd,
            mode,
            offset,
            len,
        } => opcode::Fallocate::new(Fd(fd), len)
            .offset(offset)
            .mode(mode)
            .build(),
        Call::Poll { fd, events } => opcode::PollAdd::new(Fd(fd), events).build(),
    }
}
