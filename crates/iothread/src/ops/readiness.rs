//! Descriptors that are waited for over and over.

use std::{
    fmt,
    future::poll_fn,
    io,
    marker::PhantomData,
    os::fd::{AsFd, OwnedFd},
    task::{Context, Poll, ready},
};

use super::end_in_flight;
use crate::{call::poll_bits, context};

/// Reports when a descriptor becomes ready, through one poll that stays in the ring, or in the epoll.
///
/// It reports *changes*, like an edge-triggered epoll, and readiness at its start: take everything
/// there is before waiting again.
pub struct Readiness<T: AsFd> {
    fd: T,
    events: u32,
    key: Option<usize>,
    /// The poll belongs to this thread.
    local: PhantomData<*const ()>,
}

impl<T: AsFd> Readiness<T> {
    /// Watches `fd` for `events` (`POLLIN`...), beginning with the first wait.
    pub fn new(fd: T, events: libc::c_short) -> Readiness<T> {
        Readiness {
            fd,
            events: poll_bits(events),
            key: None,
            local: PhantomData,
        }
    }

    /// The watched descriptor. What it refers to must not be replaced.
    pub fn get_ref(&self) -> &T {
        &self.fd
    }

    /// Waits for events and yields them. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// What the kernel says about polling this descriptor; the next wait tries again.
    ///
    /// # Panics
    ///
    /// When polled outside an iothread.
    pub async fn ready(&mut self) -> io::Result<u32> {
        poll_fn(|cx| self.poll_ready(cx)).await
    }

    /// [`Readiness::ready`] for hand-written futures; keeps the waker of the latest call only.
    ///
    /// # Errors
    ///
    /// As [`Readiness::ready`].
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<u32>> {
        context::with(|thread| {
            loop {
                let key = *self.key.get_or_insert_with(|| {
                    thread.reactor.start_multishot(self.fd.as_fd(), self.events)
                });
                match ready!(thread.reactor.poll_multishot(key, cx)) {
                    Some(result) => return Poll::Ready(result),
                    // The kernel ends such polls now and then, for example when completions
                    // overflow; a new one reports what is ready.
                    None => self.key = None,
                }
            }
        })
    }
}

impl<T: AsFd> Drop for Readiness<T> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            end_in_flight(|thread| thread.reactor.cancel(key));
        }
    }
}

impl<T: AsFd> fmt::Debug for Readiness<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness")
            .field("fd", &self.fd.as_fd())
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

/// An eventfd that this thread consumes: a kick. Works with and without `O_NONBLOCK`.
#[derive(Debug)]
pub struct EventFd<T: AsFd = OwnedFd> {
    readiness: Readiness<T>,
}

impl<T: AsFd> EventFd<T> {
    /// Takes an eventfd that nobody else reads.
    pub fn new(fd: T) -> EventFd<T> {
        EventFd {
            readiness: Readiness::new(fd, libc::POLLIN),
        }
    }

    /// The eventfd.
    pub fn get_ref(&self) -> &T {
        self.readiness.get_ref()
    }

    /// Waits until the counter is not 0, and yields and clears it. Dropping the future loses
    /// nothing.
    ///
    /// # Errors
    ///
    /// What `poll(2)` and `read(2)` say about the descriptor, EINVAL if it is no eventfd.
    ///
    /// # Panics
    ///
    /// When polled outside an iothread.
    pub async fn wait(&mut self) -> io::Result<u64> {
        loop {
            self.readiness.ready().await?;
            let mut counter = [0; 8];
            match rustix::io::read(self.readiness.get_ref(), &mut counter) {
                Ok(8) => return Ok(u64::from_ne_bytes(counter)),
                Ok(_) => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
                // Reported again after it had been read.
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
