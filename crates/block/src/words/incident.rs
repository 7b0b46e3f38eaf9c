//! What is remembered of a backend's errors: the first and the last one, what is held, and the incident
//! that all of it belongs to.

use std::sync::Arc;
use std::time::SystemTime;

use crate::words::error::Cause;
use crate::words::ids::BackendId;
use crate::words::request::Request;

/// The first or last error of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorRecord {
    /// Why.
    pub cause: Cause,
    /// The node that failed, if it said so: the backend's own, or one below.
    pub node: Option<Arc<str>>,
    /// Which request.
    pub request: Request,
    /// When.
    pub at: SystemTime,
}

/// A held request, as queries show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRecord {
    /// The request.
    pub request: Request,
    /// Why, the last time it failed; none if it was handed back after a restart and has not failed
    /// since.
    pub cause: Option<Cause>,
    /// The node that failed then, if it said so.
    pub node: Option<Arc<str>>,
    /// When it failed first, or was handed back.
    pub since: SystemTime,
    /// How often it has failed in this process.
    pub attempts: u64,
}

/// From a backend's first *stop* error until all it held has been completed or dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// Its number, from 1.
    pub number: u64,
    /// When it began.
    pub since: SystemTime,
    /// Why; none if a daemon began it that did not save that.
    pub cause: Option<Cause>,
    /// The node that failed first, if it said so.
    pub node: Option<Arc<str>>,
}

/// How a request that was held has ended, and its incident, if it was the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HoldEnd {
    /// It was tried again, and did what it should.
    Completed,
    /// It was tried again and failed, and was not held again: policy does not say *stop* any more, or it
    /// was the guest's own fault.
    Reported,
    /// The client has no record of it: a ring was started without, or nothing of what a former daemon
    /// held was handed back.
    NoRecord,
    /// The operator has accepted that a flush has lost something.
    LossAccepted,
    /// A client has attached with a fresh life of the device.
    Attached,
    /// The client has reset its device.
    Reset,
    /// The client has given up its device.
    Abandoned,
    /// The device is gone.
    Detached,
    /// The part of the backend that held it has ended.
    PartRemoved,
    /// The backend is gone.
    BackendRemoved,
    /// A former daemon held it, and `cont` waits no longer for its client.
    NotAwaited,
    /// A former daemon held it, and its export has not come back for so long that it is not waited for any
    /// more.
    Unclaimed,
}

/// An incident that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedIncident {
    /// Whose; none if a former daemon began it and the backend has not come back.
    pub backend: Option<BackendId>,
    /// The export's id.
    pub device: Arc<str>,
    /// What it was.
    pub incident: Incident,
    /// What became of the last that was held.
    pub end: HoldEnd,
}
