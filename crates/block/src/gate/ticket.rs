//! What the gate and those who ask it say to each other.

use std::mem::ManuallyDrop;
use std::ops::Deref;

use crate::gate::line::SlotId;
use crate::words::error::Cause;
use crate::words::error_policy::Action;
use crate::words::request::Request;

use super::watch::Started;

/// Permission to execute a request, and the duty to tell the gate how it ended.
///
/// Dropping it would lose the request: [`super::Gate::finish`] consumes it. What is lost all the same
/// is found again by [`super::Lost`].
#[must_use]
#[derive(Debug)]
pub struct Ticket(Started);

impl Ticket {
    pub(super) fn new(started: Started) -> Self {
        Self(started)
    }

    /// The duty is done.
    pub(super) fn give_up(self) -> impl Deref<Target = Self> {
        ManuallyDrop::new(self)
    }

    pub(super) fn started(&self) -> &Started {
        &self.0
    }

    pub(super) fn set_parked(&mut self, parked: bool) {
        self.0.parked = parked;
    }

    /// The request to execute.
    pub fn request(&self) -> &Request {
        &self.0.request
    }

    /// Its arrival number.
    pub fn order(&self) -> u64 {
        self.0.order
    }

    /// Whether it is parked in the driver ([`super::Gate::parks`]).
    #[inline]
    pub fn is_parked(&self) -> bool {
        self.0.parked
    }

    /// Its place in the gate's table: only one that has been held before has one.
    pub fn slot(&self) -> Option<SlotId> {
        self.0.slot
    }
}

impl Drop for Ticket {
    #[cold]
    fn drop(&mut self) {
        // While a panic unwinds, a second one would hide the first.
        let found = super::watch::report(self.0);
        debug_assert!(
            found || std::thread::panicking(),
            "request {:?} was dropped, its client waits",
            self.0.request
        );
    }
}

/// What becomes of a request that was admitted.
#[derive(Debug)]
pub enum Admission {
    /// Execute it now.
    Start(Ticket),
    /// It waits; [`super::Gate::next_ready`] yields it when its turn comes.
    Parked,
}

/// How an executed request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it should.
    Ok,
    /// The storage failed it: policy decides.
    Error(Cause),
    /// The client asked for what cannot be done (out of range, memory gone): always reported.
    GuestFault,
    /// It was not executed: the client is changing its memory, and what the request needs may come
    /// back.
    MemoryMoves,
    /// It was not executed: the driver had it parked, and it may not start now.
    TakenBack,
}

impl Outcome {
    /// What the client sees if nobody intervenes.
    pub(crate) const fn result(self) -> Result<(), ClientError> {
        match self {
            Self::Ok => Ok(()),
            Self::Error(cause) => Err(ClientError::Io(cause)),
            Self::GuestFault | Self::MemoryMoves | Self::TakenBack => Err(ClientError::Guest),
        }
    }
}

/// What to do about a request that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Complete it to the client: with success, or with an error.
    Complete {
        /// The result the client sees.
        result: Result<(), ClientError>,
        /// The action of the policy, if it failed in storage: an event tells of it.
        reported: Option<(Action, Cause)>,
        /// The place it has left, if it has been held before: run control knows it as held and has
        /// to be told that it is not any more.
        was_held: Option<SlotId>,
    },
    /// It waits at its old place: until the client's memory has settled
    /// ([`super::Gate::memory_settled`]), or until it may start.
    PutBack,
    /// Tell run control; the client learns nothing.
    Held {
        /// The place it has now.
        slot: SlotId,
        /// Number of the failure within backend and iothread.
        seq: u64,
        /// Why it failed.
        cause: Cause,
    },
    /// The device was reset meanwhile: the client must learn nothing, ever.
    Dropped,
}

/// The error that a client sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// Storage failed.
    Io(Cause),
    /// The client's own fault.
    Guest,
}

/// A request that has left the gate without having been executed to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The place it has left.
    pub slot: SlotId,
    /// Its arrival number.
    pub order: u64,
    /// The request.
    pub request: Request,
    /// Whether run control knows it as held.
    pub was_held: bool,
}

/// A held request, as [`super::Gate::held`] shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldRequest {
    /// The request.
    pub request: Request,
    /// Number of its latest failure.
    pub seq: u64,
    /// Its arrival number.
    pub order: u64,
}
