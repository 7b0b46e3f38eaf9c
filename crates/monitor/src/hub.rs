//! All sessions, and the events they get.

use std::sync::Arc;

use block::{Event, Observer};
use parking_lot::{Mutex, MutexGuard};
use qapi::wire::{self, Layout};
use tokio::sync::watch;

use crate::convert;
use crate::outbox::Outbox;

/// The sessions of a monitor. It is the one observer that run control knows, so that sessions come
/// and go without leaving anything there.
///
/// Locks: run control's state, then `sessions`, then a session's queue; never the other way round.
#[derive(Debug)]
pub(crate) struct Hub {
    sessions: Mutex<Vec<Arc<Outbox>>>,
    closing: watch::Sender<bool>,
}

impl Hub {
    pub(crate) fn new() -> Self {
        Hub {
            sessions: Mutex::default(),
            closing: watch::Sender::new(false),
        }
    }

    fn sessions(&self) -> MutexGuard<'_, Vec<Arc<Outbox>>> {
        self.sessions.lock()
    }

    /// A session begins; it ends when the result is dropped. None: the monitor closes.
    pub(crate) fn enter(self: &Arc<Self>, outbox: &Arc<Outbox>) -> Option<Presence> {
        let mut sessions = self.sessions();
        if *self.closing.borrow() {
            return None;
        }
        sessions.push(Arc::clone(outbox));
        Some(Presence {
            hub: Arc::clone(self),
            outbox: Arc::clone(outbox),
        })
    }

    /// Waits until the monitor closes.
    pub(crate) async fn closing(&self) {
        // The sender is in self, so that an error cannot occur.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    /// Ends all sessions and lets none begin.
    pub(crate) fn close(&self) {
        let sessions = self.sessions();
        self.closing.send_replace(true);
        for session in sessions.iter() {
            session.finish();
        }
    }
}

impl Observer for Hub {
    fn event(&self, event: &Event) -> bool {
        let message = convert::event(event);
        let line = |layout| -> Arc<[u8]> { wire::to_line(&message, layout).into() };
        let (mut compact, mut pretty) = (None, None);
        for session in self
            .sessions()
            .iter()
            .filter(|session| session.is_subscribed())
        {
            let line = match session.layout() {
                Layout::Compact => compact.get_or_insert_with(|| line(Layout::Compact)),
                Layout::Pretty => pretty.get_or_insert_with(|| line(Layout::Pretty)),
            };
            session.push_line(Arc::clone(line));
        }
        true
    }
}

/// A session is among those of its monitor.
#[derive(Debug)]
pub(crate) struct Presence {
    hub: Arc<Hub>,
    outbox: Arc<Outbox>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.hub
            .sessions()
            .retain(|session| !Arc::ptr_eq(session, &self.outbox));
    }
}
