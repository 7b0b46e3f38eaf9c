//! What the side of a link that speaks to a VMM tells the other one.

use crate::machine::{Answer, Failure};

/// What a VMM says.
#[derive(Debug)]
pub(crate) enum Report {
    /// By an event: how the VM is.
    Event(block::VmState),
    /// By an event: something happened that may have changed it.
    Changed,
    /// The connection went while nothing was asked.
    Lost(String),
    /// What came of the request.
    Done(Result<Answer, Failure>),
}
