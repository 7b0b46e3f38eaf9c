//! What goes between run control and the backends' parts on iothreads.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use iothread::mailbox::Sender;

use crate::words::error::Cause;
use crate::words::error_policy::{Action, Policy};
use crate::words::event::Event;
use crate::words::ids::{BackendId, LocalId};
use crate::words::incident::{EndedIncident, ErrorRecord, HoldEnd};
use crate::words::request::Request;
use crate::words::vm::VmOrder;

/// A request failed under action *stop* and is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Whose.
    pub backend: BackendId,
    /// Where.
    pub local: LocalId,
    /// The generation of the device it belongs to.
    pub generation: u64,
    /// Number of the failure within backend and iothread, from 1, without gaps.
    pub seq: u64,
    /// Arrival number of the request within backend and iothread.
    pub order: u64,
    /// The request.
    pub request: Request,
    /// Why.
    pub cause: Cause,
    /// The node that failed, if it said so.
    pub node: Option<Arc<str>>,
    /// When.
    pub at: SystemTime,
}

/// A request failed and policy reported or ignored it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Whose.
    pub backend: BackendId,
    /// The generation of the device it belongs to.
    pub generation: u64,
    /// The request.
    pub request: Request,
    /// What was done: report or ignore.
    pub action: Action,
    /// Why.
    pub cause: Cause,
    /// The node that failed, if it said so.
    pub node: Option<Arc<str>>,
    /// When.
    pub at: SystemTime,
}

impl From<&Failed> for ErrorRecord {
    fn from(failed: &Failed) -> Self {
        Self {
            cause: failed.cause,
            node: failed.node.clone(),
            request: failed.request,
            at: failed.at,
        }
    }
}

impl From<&Reported> for ErrorRecord {
    fn from(reported: &Reported) -> Self {
        Self {
            cause: reported.cause,
            node: reported.node.clone(),
            request: reported.request,
            at: reported.at,
        }
    }
}

/// A client has handed back a request that was in flight or held when a former daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Whose.
    pub backend: BackendId,
    /// Where.
    pub local: LocalId,
    /// The generation of the device it belongs to.
    pub generation: u64,
    /// Its arrival number.
    pub order: u64,
    /// The request.
    pub request: Request,
    /// When it was handed back.
    pub at: SystemTime,
}

/// A request that was held has been completed or dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Whose.
    pub backend: BackendId,
    /// Where.
    pub local: LocalId,
    /// The generation of the device it belongs to.
    pub generation: u64,
    /// Its arrival number.
    pub order: u64,
    /// How.
    pub end: HoldEnd,
}

/// What run control tells a backend's part on an iothread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateMessage {
    /// All backends freeze.
    Freeze {
        /// Its number.
        epoch: u64,
    },
    /// This backend freezes: it failed on another iothread.
    FreezeBackend {
        /// Its number.
        epoch: u64,
    },
    /// Of this backend nothing is held any more: it goes on where it froze because of that.
    ThawBackend {
        /// Its number.
        epoch: u64,
    },
    /// All backends go on; failures up to `upto` are retried.
    Release {
        /// Its number.
        epoch: u64,
        /// The last failure that run control has processed.
        upto: u64,
    },
    /// This backend goes on.
    ReleaseBackend {
        /// Its number.
        epoch: u64,
        /// The last failure that run control has processed.
        upto: u64,
    },
    /// The device was reset.
    Reset {
        /// The new generation.
        generation: u64,
    },
    /// A new error policy.
    SetPolicy(Policy),
    /// Complete held flushes with an error.
    FailHeldFlushes,
}

/// A request that is in flight: given to the driver, which has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyRequest {
    /// The request.
    pub request: Request,
    /// Its arrival number.
    pub order: u64,
    /// When it was given to the driver, the last time; late by a round of the iothread at most.
    pub started: Instant,
}

/// What a part has in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusyPart {
    /// Which part.
    pub local: LocalId,
    /// How many requests.
    pub in_flight: u32,
    /// Those that have been for longest, oldest first, as many as were asked for.
    pub oldest: Vec<BusyRequest>,
}

/// What a backend's part on an iothread receives.
#[derive(Debug)]
pub enum LocalMessage {
    /// From run control.
    Gate(GateMessage),
    /// Start nothing any more; `done` is dropped when nothing is in flight.
    DrainBegin {
        /// Gets the held or waiting request that ends last, if there is one; dropped when drained.
        done: Sender<Request>,
    },
    /// Ends one `DrainBegin`.
    DrainEnd,
    /// The connection that the part belongs to has ended.
    End {
        /// Dropped when run control knows that the part has.
        done: Sender<()>,
    },
    /// Other nodes are below the root.
    GraphChanged {
        /// Dropped when the part's iothread is attached to them.
        done: Sender<()>,
    },
    /// Say what is in flight; answered at once, whatever hangs.
    Busy {
        /// At most so many of the requests, the oldest ones.
        most: usize,
        /// Gets the answer; dropped if the part ends.
        reply: Sender<BusyPart>,
    },
    /// What was held on another iothread has ended: requests that waited behind it may start. Sent
    /// once until it is heard.
    Recheck,
}

/// What run control causes outside itself, in the order it is called.
pub trait Effects {
    /// An event for every observer.
    fn event(&mut self, event: Event);
    /// A message for one backend's part on one iothread; FIFO.
    fn post(&mut self, local: LocalId, message: GateMessage);
    /// An order to the link to the VMM, if there is one; FIFO.
    fn vm(&mut self, order: VmOrder);
    /// An incident has ended, for whoever keeps a history: once for each that has begun or was found
    /// in a saved state. No event tells of it.
    fn incident_ended(&mut self, _ended: &EndedIncident) {}
}
