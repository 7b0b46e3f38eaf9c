//! The parts of a backend and the connections that they belong to, as far as other threads reach them.
//!
//! A part is in here from its opening until nothing of it is in flight any more. So whoever drains or
//! removes the backend waits also for what a connection that has ended has left in flight.

use std::collections::BTreeSet;

use iothread::mailbox::Sender;
use parking_lot::{Mutex, MutexGuard};

use crate::control::run_control::{BusyPart, LocalMessage};
use crate::words::ids::{ConnectionId, LocalId};
use crate::words::request::Request;

#[derive(Debug)]
struct Part {
    id: LocalId,
    connection: ConnectionId,
    sender: Sender<LocalMessage>,
}

impl Part {
    fn tell(&self, message: LocalMessage) {
        // One whose iothread has ended waits for nothing and has nothing in flight.
        let _ = self.sender.send(message);
    }
}

#[derive(Debug, Default)]
struct State {
    parts: Vec<Part>,
    /// The connections that may open parts.
    open: BTreeSet<ConnectionId>,
    last: u64,
    /// How many drains are under way: each part has been told of all of them, or has begun with them.
    drains: u32,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Parts(Mutex<State>);

impl Parts {
    /// A connection begins.
    pub fn connect(&self) -> ConnectionId {
        let mut state = self.lock();
        state.last += 1;
        let id = ConnectionId(state.last);
        state.open.insert(id);
        id
    }

    /// Tells the parts of a connection to end, and lets it open no more. Each drops `done` when run
    /// control knows of its end.
    pub fn disconnect(&self, connection: ConnectionId, done: &Sender<()>) {
        let mut state = self.lock();
        state.open.remove(&connection);
        let of = |part: &&Part| part.connection == connection;
        for part in state.parts.iter().filter(of) {
            part.tell(LocalMessage::End { done: done.clone() });
        }
    }

    /// Number of connections that have not ended.
    pub fn connections(&self) -> usize {
        self.lock().open.len()
    }

    /// A part opens. With how many drains it begins; none: its connection has ended.
    pub fn add(
        &self,
        connection: ConnectionId,
        id: LocalId,
        sender: Sender<LocalMessage>,
    ) -> Option<u32> {
        let mut state = self.lock();
        if !state.open.contains(&connection) {
            return None;
        }
        state.parts.push(Part {
            id,
            connection,
            sender,
        });
        Some(state.drains)
    }

    /// A part has ended, and nothing of it is in flight.
    pub fn remove(&self, id: LocalId) {
        self.lock().parts.retain(|part| part.id != id);
    }

    /// What has waited in these parts behind something in another one may go on.
    pub fn recheck(&self, parts: &[LocalId]) {
        for part in &self.lock().parts {
            if parts.contains(&part.id) {
                part.tell(LocalMessage::Recheck);
            }
        }
    }

    /// A drain begins. Each part tells `done` what it has waiting, and drops it when it is drained.
    pub fn drain_begin(&self, done: &Sender<Request>) {
        let mut state = self.lock();
        state.drains += 1;
        for part in &state.parts {
            part.tell(LocalMessage::DrainBegin { done: done.clone() });
        }
    }

    /// It ends.
    pub fn drain_end(&self) {
        let mut state = self.lock();
        debug_assert!(state.drains > 0, "no drain is under way");
        state.drains = state.drains.saturating_sub(1);
        for part in &state.parts {
            part.tell(LocalMessage::DrainEnd);
        }
    }

    /// Tells each part that other nodes are below the root. Each drops `done` when it has seen to that.
    pub fn graph_changed(&self, done: &Sender<()>) {
        for part in &self.lock().parts {
            part.tell(LocalMessage::GraphChanged { done: done.clone() });
        }
    }

    /// Asks each part for the `most` requests that it has had in flight for longest.
    pub fn ask_busy(&self, most: usize, reply: &Sender<BusyPart>) {
        for part in &self.lock().parts {
            let reply = reply.clone();
            part.tell(LocalMessage::Busy { most, reply });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}
