//! What the task of run control receives.

use std::fmt;

use crate::control::reports::Reports;
use crate::control::run_control::{Failed, Resolved, Restored, RunControl};
use crate::control::wiring::Wiring;

/// A command: it runs as one message of run control.
pub type Command = Box<dyn FnOnce(&mut RunControl, &mut Wiring) + Send>;

/// What is done on run control's thread, and not by it: nothing of it is locked meanwhile. It must not wait.
pub type Errand = Box<dyn FnOnce() + Send>;

/// What run control receives: failures from iothreads, commands from everywhere else.
pub enum Message {
    /// A request is held.
    Failed(Failed),
    /// Requests were reported or ignored.
    Reported(Reports),
    /// A request was handed back by a client of a former daemon.
    Restored(Restored),
    /// A request is no longer held.
    Resolved(Resolved),
    /// A command.
    Command(Command),
    /// Something else that is to be done.
    Errand(Errand),
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(failed) => failed.fmt(f),
            Self::Reported(reports) => reports.fmt(f),
            Self::Restored(restored) => restored.fmt(f),
            Self::Resolved(resolved) => resolved.fmt(f),
            Self::Command(_) => f.write_str("Command"),
            Self::Errand(_) => f.write_str("Errand"),
        }
    }
}
