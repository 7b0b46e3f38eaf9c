//! Eventfds that somebody else waits for.

use std::{fmt, os::fd::OwnedFd, rc::Rc, time::Duration};

use crate::{context, reactor::Bell, time, yield_now};

/// How long a notification may be under way before its counter is taken for full.
const FULL_AFTER: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// An eventfd to be signalled, from one iothread.
///
/// At most one notification is under way at any time, however many are asked for: a descriptor whose
/// other end is never read costs nothing more than that. It need not be non-blocking, and signalling
/// never blocks. **Dropping** it ends what is under way.
pub struct Notifier {
    bell: Rc<Bell>,
}

impl Notifier {
    /// Takes an eventfd. Anything else may be written to out of order, or never.
    pub fn new(fd: OwnedFd) -> Notifier {
        let bell = Rc::new(Bell::new(fd));
        Notifier { bell }
    }

    /// Adds one to the counter: fire and forget. A ring takes it to the kernel with the other operations of
    /// this round; without one it is done at once. If a notification is under way already, there is one more after it, however often this
    /// is called.
    ///
    /// # Panics
    ///
    /// Outside an iothread.
    pub fn notify(&self) {
        if self.bell.under_way.get().is_some() {
            self.bell.again.set(true);
        } else {
            context::with(|thread| thread.reactor.notify(&self.bell));
        }
    }

    /// Waits until nothing is under way: nothing is written after this without another
    /// [`Notifier::notify`]. A counter that is full, and so signalled, is not waited for.
    pub async fn settle(&self) {
        for _ in 0..2 {
            if self.is_idle() {
                return;
            }
            yield_now().await;
        }
        let mut waited = Duration::ZERO;
        while !self.is_idle() && waited < FULL_AFTER {
            time::sleep(LOOK_EVERY).await;
            waited += LOOK_EVERY;
        }
        self.end();
    }

    fn is_idle(&self) -> bool {
        self.bell.under_way.get().is_none()
    }

    fn end(&self) {
        self.bell.again.set(false);
        // Without a context the thread's end has ended it already.
        context::try_with(|thread| thread.reactor.end_notification(&self.bell));
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        if !self.is_idle() {
            self.end();
        }
    }
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier")
            .field("fd", &self.bell.fd())
            .field("idle", &self.is_idle())
            .finish_non_exhaustive()
    }
}
