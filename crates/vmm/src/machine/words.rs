//! What the machine of a link is told, and what it says.

use block::{LinkStatus, VmPause, VmState};

/// A request to the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// How is the VM?
    Query,
    /// Pause it.
    Pause,
    /// Resume it.
    Resume,
    /// Press its reset button.
    Reset,
}

/// What a VMM answered to a request that it carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// To [`Action::Query`]: the state of the VM.
    pub vm: VmState,
    /// The process that answered. Another one is another life of the VM.
    pub process: Option<i32>,
    /// The VM has not run in this life: whoever starts it will resume it.
    pub fresh: bool,
}

/// Why a request was not carried out. The texts name the peer and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The VMM has answered that it does not do it.
    Refused(String),
    /// Nobody knows whether it was carried out: no connection, no answer, or garbage.
    Lost(String),
}

/// What has to be told to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The VM was resumed by somebody else: `cont`. [`Machine::cont_done`](super::Machine::cont_done) says what came of it.
    Cont,
    /// Who has paused the VM, to be saved.
    Note(VmPause),
    /// The link was lost or found, or what it shall do has failed.
    Announce(LinkStatus),
    /// What came of [`Machine::reset`](super::Machine::reset).
    Reset(Result<(), String>),
}

/// What kind of peer it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// It cannot be asked: what we did last is believed.
    pub blind: bool,
    /// It tells nothing by itself and is asked regularly.
    pub polled: bool,
}
