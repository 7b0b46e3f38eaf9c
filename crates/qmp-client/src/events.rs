//! The events of a connection that wait to be taken.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::error::ClientError;
use crate::limits::EVENTS_BYTES_MAX;
use crate::message::Event;

/// Why a connection has ended; set before anybody is told that it has.
#[derive(Clone, Debug, Default)]
pub(crate) struct End(Arc<OnceLock<ClientError>>);

impl End {
    /// The first one counts.
    pub(crate) fn set(&self, error: ClientError) {
        let _ = self.0.set(error);
    }

    /// Whoever has dropped the driver has closed the connection.
    pub(crate) fn error(&self) -> ClientError {
        self.0.get().cloned().unwrap_or(ClientError::Closed)
    }
}

/// All events of a connection, in their order. Dropping it is to say that nobody wants them.
#[derive(Debug)]
pub struct Events {
    events: mpsc::UnboundedReceiver<(Event, usize)>,
    /// Bytes of what waits.
    waiting: Arc<AtomicUsize>,
    end: End,
}

/// Where the driver puts them.
#[derive(Debug)]
pub(crate) struct Outlet {
    events: mpsc::UnboundedSender<(Event, usize)>,
    waiting: Arc<AtomicUsize>,
}

/// Both ends of a queue.
pub(crate) fn queue(end: End) -> (Outlet, Events) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let outlet = Outlet {
        events: sender,
        waiting: Arc::clone(&waiting),
    };
    let events = Events {
        events: receiver,
        waiting,
        end,
    };
    (outlet, events)
}

impl Outlet {
    /// Puts an event behind the others.
    ///
    /// # Errors
    /// If there is no room for it.
    pub(crate) fn put(&self, event: Event) -> Result<(), ClientError> {
        let bytes = event.bytes();
        if self.waiting.load(Ordering::Relaxed) + bytes > EVENTS_BYTES_MAX {
            return Err(ClientError::EventsNotTaken);
        }
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        if self.events.send((event, bytes)).is_err() {
            // Nobody wants it.
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Returns when nobody wants events any more.
    pub(crate) async fn unwanted(&self) {
        self.events.closed().await;
    }
}

impl Events {
    /// The next event; waits for it. Loses nothing if it is dropped.
    ///
    /// # Errors
    /// The end of the connection, after the last event.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        let next = self.events.recv().await;
        next.map_or_else(|| Err(self.end.error()), |next| Ok(self.taken(next)))
    }

    /// The next event, if one has come. What came before an answer that was seen has come.
    ///
    /// # Errors
    /// The end of the connection, after the last event.
    pub fn try_next(&mut self) -> Result<Option<Event>, ClientError> {
        match self.events.try_recv() {
            Ok(next) => Ok(Some(self.taken(next))),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(self.end.error()),
        }
    }

    fn taken(&self, (event, bytes): (Event, usize)) -> Event {
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        event
    }
}
