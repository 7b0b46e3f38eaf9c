//! What is remembered of a backend's errors: the first and the last one, what is held, and the incident
//! that all of it belongs to.

use std::time::SystemTime;

use crate::words::error::Cause;
use crate::words::request::Request;

/// The first or last error of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorRecord {
    /// Why.
    pub cause: Cause,
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
}
