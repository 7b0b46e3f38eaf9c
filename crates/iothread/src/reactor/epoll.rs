//! Engine *threads*, the part that waits: an epoll for descriptors. The calls are made by workers (`pool`).

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    ptr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, epoll},
    io::Errno,
};
use slab::Slab;

use super::bell::Bell;
use crate::{
    call::{Call, poll_bits},
    last_words,
    shared::{Shared, count},
};

/// Data of the wake eventfd.
const WAKE: u64 = u64::MAX;

/// Events taken per call.
const EVENTS: usize = 64;

/// A busy or polling thread looks at its descriptors once in so many times: each look is a system call,
/// and what it really waits for then (workers, mailboxes, pollers) comes without one.
const TURNS_PER_LOOK: u32 = 8;

/// What is waited for.
struct Watch {
    /// A copy of the descriptor, so that one may be watched several times; none if there is no need to
    /// wait, or nothing to wait for.
    fd: Option<OwnedFd>,
    /// Tells this watch from one that had its place before.
    generation: u32,
    interest: Interest,
}

enum Interest {
    Once(Waker),
    Done(i32),
    Multishot(Multishot),
    /// The room in a counter that is full.
    Room(Rc<Bell>),
}

/// A poll that reports again and again.
#[derive(Default)]
struct Multishot {
    /// Events since the owner last asked.
    events: u32,
    error: Option<i32>,
    ended: bool,
    waker: Option<Waker>,
}

/// What became of a notification.
enum Rung {
    Done,
    Full,
}

pub(crate) struct Epoll {
    fd: OwnedFd,
    watches: RefCell<Slab<Watch>>,
    generation: Cell<u32>,
    /// Polls that somebody waits for.
    waiting: Cell<usize>,
    /// What the last call has brought and nobody has looked at.
    events: RefCell<Vec<epoll::Event>>,
    turns: Cell<u32>,
    /// `epoll_pwait2` is not to be had: waits are of whole milliseconds.
    coarse: Cell<bool>,
    shared: Arc<Shared>,
}

/// Nothing of it is inlined where the ring's code is: that costs the ring a per cent.
impl Epoll {
    pub(super) fn new(shared: Arc<Shared>) -> io::Result<Epoll> {
        let fd = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // Edge-triggered: nobody reads it.
        epoll::add(
            &fd,
            &shared.wake_fd,
            epoll::EventData::new_u64(WAKE),
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )?;
        Ok(Epoll {
            fd,
            watches: RefCell::default(),
            generation: Cell::new(0),
            waiting: Cell::new(0),
            events: RefCell::new(Vec::with_capacity(EVENTS)),
            turns: Cell::new(0),
            coarse: Cell::new(false),
            shared,
        })
    }

    /// Starts a poll on behalf of `waker`.
    ///
    /// # Safety
    ///
    /// The descriptor that `call` names is open.
    #[inline(never)]
    pub(super) unsafe fn start(&self, call: &Call, waker: Waker) -> usize {
        let Call::Poll { fd, events } = *call else {
            unreachable!("the other calls are made by workers")
        };
        // SAFETY: the caller's promise.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        self.waiting.set(self.waiting.get() + 1);
        self.watch(fd, events, true, Interest::Once(waker))
    }

    /// Starts a poll on `fd` that reports until it is cancelled.
    #[inline(never)]
    pub(super) fn start_multishot(&self, fd: BorrowedFd<'_>, events: u32) -> usize {
        self.watch(fd, events, false, Interest::Multishot(Multishot::default()))
    }

    /// Watches `fd`. What cannot be watched has its result at once.
    fn watch(&self, fd: BorrowedFd<'_>, events: u32, once: bool, interest: Interest) -> usize {
        let generation = self.generation.get().wrapping_add(1);
        self.generation.set(generation);
        let key = self.watches.borrow_mut().insert(Watch {
            fd: None,
            generation,
            interest,
        });
        let added = rustix::io::fcntl_dupfd_cloexec(fd, 0).and_then(|own| {
            let mut flags = epoll::EventFlags::from_bits_retain(events) | epoll::EventFlags::ET;
            flags.set(epoll::EventFlags::ONESHOT, once);
            let data = epoll::EventData::new_u64(data(key, generation));
            epoll::add(&self.fd, &own, data, flags).map(|()| own)
        });
        match added {
            Ok(own) => self.watches.borrow_mut()[key].fd = Some(own),
            Err(errno) => {
                let always = u32::from((libc::POLLIN | libc::POLLOUT).cast_unsigned());
                let result = match errno {
                    // A file that is always ready, and so is not to be waited for; what else is asked
                    // for never comes, which is an error with a ring, too.
                    Errno::PERM if always & events != 0 => (always & events).cast_signed(),
                    Errno::PERM => -libc::EINVAL,
                    errno => -errno.raw_os_error(),
                };
                self.report(key, result, true);
            }
        }
        key
    }

    /// Number of operations that somebody waits for.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// The result of a poll, if it has one; else `cx` is woken when it has.
    #[inline(never)]
    pub(super) fn poll(&self, key: usize, cx: &Context<'_>) -> Poll<i32> {
        let mut watches = self.watches.borrow_mut();
        let old = match &mut watches[key].interest {
            Interest::Done(result) => {
                let result = *result;
                watches.remove(key);
                return Poll::Ready(result);
            }
            Interest::Once(waker) if !waker.will_wake(cx.waker()) => {
                Some(std::mem::replace(waker, cx.waker().clone()))
            }
            Interest::Once(_) | Interest::Multishot(_) | Interest::Room(_) => None,
        };
        drop(watches);
        drop(old);
        Poll::Pending
    }

    /// The events since the last call, or the end.
    #[inline(never)]
    pub(super) fn poll_multishot(
        &self,
        key: usize,
        cx: &Context<'_>,
    ) -> Poll<Option<io::Result<u32>>> {
        let mut watches = self.watches.borrow_mut();
        let Interest::Multishot(multishot) = &mut watches[key].interest else {
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
            watches.remove(key);
            return Poll::Ready(None);
        }
        let old = match &multishot.waker {
            Some(waker) if waker.will_wake(cx.waker()) => None,
            _ => multishot.waker.replace(cx.waker().clone()),
        };
        drop(watches);
        drop(old);
        Poll::Pending
    }

    /// Ends a poll.
    #[inline(never)]
    pub(super) fn cancel(&self, key: usize) {
        let watch = self.watches.borrow_mut().remove(key);
        if matches!(watch.interest, Interest::Once(_)) {
            self.waiting.set(self.waiting.get() - 1);
        }
        self.unwatch(watch.fd.as_ref());
    }

    /// The copy alone would go on being watched: the file stays open.
    fn unwatch(&self, fd: Option<&OwnedFd>) {
        if let Some(fd) = fd {
            // It is there; if it were not, there would be nothing to do.
            let _ = epoll::delete(&self.fd, fd);
        }
    }

    /// Adds one to an eventfd, now, unless its counter is full.
    #[inline(never)]
    pub(super) fn notify(&self, bell: &Rc<Bell>) {
        match self.ring(bell) {
            Rung::Done => {}
            Rung::Full => {
                let room = Interest::Room(Rc::clone(bell));
                let key = self.watch(bell.fd(), poll_bits(libc::POLLOUT), true, room);
                // Unless it has failed at once.
                if self.watches.borrow().contains(key) {
                    bell.under_way.set(Some(key));
                }
            }
        }
    }

    /// Writes to an eventfd, which may be a blocking one: only if it has room, so that this thread does not
    /// wait for it. Whoever else has the descriptor reads it; one that fills it at this very moment, on
    /// purpose, would stop this thread, where a ring would not care.
    fn ring(&self, bell: &Bell) -> Rung {
        let fd = bell.fd();
        let mut fds = [PollFd::new(&fd, PollFlags::OUT)];
        let now = Timespec::default();
        let ready = rustix::event::poll(&mut fds, Some(&now));
        if ready.is_err() || !fds[0].revents().contains(PollFlags::OUT) {
            let flags = rustix::fs::fcntl_getfl(bell.fd());
            let drops = flags.is_ok_and(|flags| flags.contains(rustix::fs::OFlags::NONBLOCK));
            // The counter is full, so the event is signalled already. As with a ring, only a descriptor
            // that blocks is told again once there is room.
            return if drops { Rung::Done } else { Rung::Full };
        }
        match rustix::io::write(bell.fd(), &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => {
                tracing::debug!(iothread = self.shared.name, %error, "an eventfd cannot be signalled");
            }
        }
        Rung::Done
    }

    /// Ends the notification that is under way.
    #[inline(never)]
    pub(super) fn end_notification(&self, bell: &Bell) {
        if let Some(key) = bell.under_way.take() {
            self.cancel(key);
        }
    }

    /// Takes what there is, now and then.
    #[inline(never)]
    pub(super) fn turn(&self) {
        let turns = self.turns.get() + 1;
        if turns < TURNS_PER_LOOK {
            self.turns.set(turns);
            return;
        }
        self.wait(Some(Duration::ZERO));
        self.reap();
    }

    /// Waits for something, at most for `timeout`. It may return early.
    #[inline(never)]
    pub(super) fn wait(&self, timeout: Option<Duration>) {
        self.turns.set(0);
        count(&self.shared.counters.enters);
        let mut events = self.events.borrow_mut();
        events.clear();
        let result = match timeout {
            Some(timeout) if !timeout.is_zero() && !self.coarse.get() => {
                self.wait_exactly(&mut events, timeout)
            }
            timeout => {
                let timeout = timeout.map(whole_ms);
                let events = rustix::buffer::spare_capacity(&mut events);
                epoll::wait(&self.fd, events, timeout.as_ref()).map(drop)
            }
        };
        match result {
            Ok(_) | Err(Errno::INTR) => {}
            // Hidden by a seccomp filter: only `epoll_pwait` is left, which counts milliseconds.
            Err(Errno::NOSYS | Errno::PERM) if !self.coarse.replace(true) => {}
            Err(error) => {
                // The thread would never wait again.
                last_words::abort(&format!(
                    "iothread {}: epoll_wait failed: {error}; aborting",
                    self.shared.name
                ));
            }
        }
    }

    /// Waits with `epoll_pwait2`. Rustix would take the older call for all that its milliseconds can tell.
    fn wait_exactly(
        &self,
        events: &mut Vec<epoll::Event>,
        timeout: Duration,
    ) -> rustix::io::Result<()> {
        let timeout = Timespec::try_from(timeout).unwrap_or_else(|_| Timespec {
            tv_sec: i64::from(i32::MAX),
            tv_nsec: 0,
        });
        let free = events.spare_capacity_mut();
        let count = libc::c_int::try_from(free.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: an `Event` is laid out as the kernel's `epoll_event`, of which it writes at most `count`; a
        // `Timespec` is its `__kernel_timespec`. There is no signal mask.
        let taken = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                free.as_mut_ptr(),
                count,
                &raw const timeout,
                ptr::null::<libc::sigset_t>(),
                size_of::<u64>(),
            )
        };
        let Ok(taken) = usize::try_from(taken) else {
            let error = io::Error::last_os_error();
            return Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL));
        };
        // SAFETY: so many the kernel has written.
        unsafe { events.set_len(taken) };
        Ok(())
    }

    /// Takes what the last wait has brought and wakes who waits for it.
    #[inline(never)]
    pub(super) fn reap(&self) {
        loop {
            // The borrow ends before anybody is woken.
            let event = self.events.borrow_mut().pop();
            let Some(event) = event else { return };
            let data = event.data.u64();
            let Some((key, generation)) = parts(data) else {
                continue;
            };
            let watches = self.watches.borrow();
            let Some(watch) = watches.get(key) else {
                continue;
            };
            if watch.generation != generation {
                continue;
            }
            let once = !matches!(watch.interest, Interest::Multishot(_));
            drop(watches);
            let flags = event.flags;
            self.report(key, flags.bits().cast_signed(), once);
        }
    }

    /// A poll has brought events, or has failed; it has `ended` if there is no more to come.
    fn report(&self, key: usize, result: i32, ended: bool) {
        let mut watches = self.watches.borrow_mut();
        let watch = &mut watches[key];
        let fd = if ended { watch.fd.take() } else { None };
        // The old contents, dropped or woken outside the borrow.
        let mut room = None;
        let waker = match &mut watch.interest {
            Interest::Once(_) => {
                match std::mem::replace(&mut watch.interest, Interest::Done(result)) {
                    Interest::Once(waker) => {
                        self.waiting.set(self.waiting.get() - 1);
                        Some(waker)
                    }
                    _ => None,
                }
            }
            Interest::Multishot(multishot) => {
                match u32::try_from(result) {
                    Ok(events) => multishot.events |= events,
                    Err(_) => multishot.error = Some(-result),
                }
                multishot.ended = ended;
                multishot.waker.take()
            }
            Interest::Room(_) => {
                room = Some(watches.remove(key));
                None
            }
            Interest::Done(_) => None,
        };
        drop(watches);
        self.unwatch(fd.as_ref());
        if let Some(Watch {
            interest: Interest::Room(bell),
            ..
        }) = room
        {
            self.has_room(&bell, result);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A counter that was full is not any more, or cannot be waited for.
    fn has_room(&self, bell: &Rc<Bell>, result: i32) {
        bell.under_way.set(None);
        let again = bell.again.take();
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            tracing::debug!(iothread = self.shared.name, %error, "an eventfd cannot be waited for");
            return;
        }
        if result & i32::from(libc::POLLOUT) == 0 {
            // More than full, which only the kernel can make it; it is signalled.
            return;
        }
        self.notify(bell);
        if again {
            if bell.under_way.get().is_some() {
                bell.again.set(true);
            } else {
                self.notify(bell);
            }
        }
    }
}

/// What the older call can tell: whole milliseconds, never early, and less than 25 days. A return before the
/// time is harmless: timers look at the clock again.
fn whole_ms(timeout: Duration) -> Timespec {
    let ms = timeout.as_nanos().div_ceil(1_000_000);
    let ms = i64::from(i32::try_from(ms).unwrap_or(i32::MAX));
    Timespec {
        tv_sec: ms / 1000,
        tv_nsec: (ms % 1000) * 1_000_000,
    }
}

/// Of a watch, as epoll keeps it.
fn data(key: usize, generation: u32) -> u64 {
    // No process has so many descriptors that a key would not fit.
    (u64::from(generation) << 32) | (key as u64 & u64::from(u32::MAX))
}

/// The key and the generation; none of the wake eventfd.
fn parts(data: u64) -> Option<(usize, u32)> {
    if data == WAKE {
        return None;
    }
    let key = usize::try_from(data & u64::from(u32::MAX)).ok()?;
    let generation = u32::try_from(data >> 32).ok()?;
    Some((key, generation))
}
