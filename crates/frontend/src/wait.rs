//! Waiting for completions on the call descriptors, without missing one.

use std::ops::Range;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::disk::Disk;
use crate::error::{FrontendError, Violation};
use crate::event::take_event;
use crate::request::{Completion, Request};

/// How long after a timeout a call may still arrive before it counts as missing.
const CALL_GRACE: Duration = Duration::from_millis(200);
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    Called,
    Closed,
    TimedOut,
}

impl Disk {
    /// Waits for a completion of a queue, at most `timeout`. `None` if none came.
    ///
    /// # Errors
    /// [`FrontendError::Closed`] if the back end is gone and the ring is empty.
    pub fn wait(
        &mut self,
        queue: u16,
        timeout: Duration,
    ) -> Result<Option<Completion>, FrontendError> {
        self.queue_mut(queue)?;
        let found = self.wait_on(queue..queue + 1, timeout)?;
        Ok(found.map(|(_, completion)| completion))
    }

    /// Waits for a completion of any queue, at most `timeout`. `None` if none came.
    ///
    /// # Errors
    /// [`FrontendError::Closed`] if the back end is gone and the rings are empty.
    pub fn wait_any(
        &mut self,
        timeout: Duration,
    ) -> Result<Option<(u16, Completion)>, FrontendError> {
        self.wait_on(0..self.state.options.queues, timeout)
    }

    /// Submits a request, kicks, and waits for its completion. Completions of other requests are
    /// kept for the next [`Disk::poll`].
    ///
    /// # Errors
    /// [`FrontendError::Submit`]; [`FrontendError::Timeout`] if it is not completed in time, it is then still
    /// outstanding; errors of the connection.
    pub fn execute(
        &mut self,
        queue: u16,
        request: Request<'_>,
        timeout: Duration,
    ) -> Result<Completion, FrontendError> {
        let token = self.submit(queue, request)?;
        self.kick(queue)?;
        let deadline = Instant::now() + timeout;
        let mut others = Vec::new();
        let result = loop {
            match self.wait(queue, deadline.saturating_duration_since(Instant::now())) {
                Ok(Some(completion)) if completion.token == token => break Ok(completion),
                Ok(Some(other)) => others.push(other),
                Ok(None) => {
                    break Err(FrontendError::Timeout {
                        during: "a request",
                        after: timeout,
                    });
                }
                Err(error) => break Err(error),
            }
        };
        let queue = self.queue_mut(queue)?;
        others.into_iter().for_each(|other| queue.stash(other));
        result
    }

    fn wait_on(
        &mut self,
        range: Range<u16>,
        timeout: Duration,
    ) -> Result<Option<(u16, Completion)>, FrontendError> {
        if let Some(found) = self.poll_range(range.clone()) {
            return Ok(Some(found));
        }
        self.want_calls(range.clone(), true);
        let result = self.sleep_on(range.clone(), timeout);
        self.want_calls(range, false);
        result
    }

    /// Calls are wanted on all queues of the range.
    fn sleep_on(
        &mut self,
        range: Range<u16>,
        timeout: Duration,
    ) -> Result<Option<(u16, Completion)>, FrontendError> {
        let deadline = Instant::now() + timeout;
        loop {
            // Only now can a used element not slip through: the wish for calls came first.
            if let Some(found) = self.poll_range(range.clone()) {
                return Ok(Some(found));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let woken = self.sleep(range.clone(), left)?;
            if woken == Woken::Closed {
                return match self.poll_range(range) {
                    Some(found) => Ok(Some(found)),
                    None => Err(FrontendError::Closed { during: "wait" }),
                };
            }
            if woken == Woken::TimedOut && left.is_zero() {
                let Some(found) = self.poll_range(range.clone()) else {
                    return Ok(None);
                };
                // Used, but not called. It may just have happened; later than this it is a fault.
                if !timeout.is_zero() && self.sleep(range, CALL_GRACE)? == Woken::TimedOut {
                    self.state
                        .violations
                        .push(Violation::CallMissing { queue: found.0 });
                }
                return Ok(Some(found));
            }
        }
    }

    fn poll_range(&mut self, range: Range<u16>) -> Option<(u16, Completion)> {
        range
            .into_iter()
            .find_map(|queue| Some((queue, self.poll(queue)?)))
    }

    fn want_calls(&mut self, range: Range<u16>, on: bool) {
        let range = usize::from(range.start)..usize::from(range.end);
        for queue in &mut self.state.queues[range] {
            if on {
                queue.ring.enable_calls()
            } else {
                queue.ring.disable_calls()
            }
        }
    }

    /// Sleeps until a call, the end of the connection, or `timeout`.
    fn sleep(&self, range: Range<u16>, timeout: Duration) -> Result<Woken, FrontendError> {
        let queues = &self.state.queues[usize::from(range.start)..usize::from(range.end)];
        let mut fds: Vec<_> = queues
            .iter()
            .map(|queue| PollFd::new(&queue.call, PollFlags::IN))
            .collect();
        let socket = self.connection.socket();
        fds.push(PollFd::from_borrowed_fd(socket, PollFlags::RDHUP));
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec {
            tv_sec: 3600,
            tv_nsec: 0,
        });
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(Woken::TimedOut),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Woken::Called),
            Err(errno) => return Err(FrontendError::io("poll")(errno)),
        }
        let mut woken = Woken::TimedOut;
        for (fd, queue) in fds.iter().zip(queues) {
            if !fd.revents().is_empty() {
                take_event(&queue.call)?;
                woken = Woken::Called;
            }
        }
        // A call goes first: what the back end completed before it died is still to be seen.
        Ok(if woken == Woken::Called {
            woken
        } else {
            Woken::Closed
        })
    }
}
