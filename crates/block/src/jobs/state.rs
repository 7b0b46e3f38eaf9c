//! The states of a job, in QEMU's order. Pure.

pub use crate::words::job::JobStatus as Status;

/// What may be asked of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Stop working.
    Cancel,
    /// Do nothing for a while.
    Pause,
    /// Go on.
    Resume,
    /// Come to the end: of a job that goes on until it is told.
    Complete,
    /// Let what was done take effect.
    Finalize,
    /// Be forgotten.
    Dismiss,
}

impl Verb {
    /// QEMU's name.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Cancel => "cancel",
            Verb::Pause => "pause",
            Verb::Resume => "resume",
            Verb::Complete => "complete",
            Verb::Finalize => "finalize",
            Verb::Dismiss => "dismiss",
        }
    }

    fn is_taken(self, status: Status) -> bool {
        match self {
            Verb::Cancel => matches!(
                status,
                Status::Created | Status::Running | Status::Waiting | Status::Pending
            ),
            Verb::Pause | Verb::Resume => matches!(status, Status::Created | Status::Running),
            // None of these goes on until it is told.
            Verb::Complete => false,
            Verb::Finalize => status == Status::Pending,
            Verb::Dismiss => status == Status::Concluded,
        }
    }
}

/// Why a job does not do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// Such a name is none.
    #[error("Invalid job ID '{0}'")]
    BadId(String),
    /// There is one of that name.
    #[error("Job ID '{0}' already in use")]
    Duplicate(String),
    /// Nobody dismisses them.
    #[error("There are {0} jobs already: dismiss those that have concluded")]
    TooMany(usize),
    /// There is none of that name.
    #[error("Job not found")]
    NotFound,
    /// Not where it is now.
    #[error("Job '{id}' in state '{status}' cannot accept command verb '{verb}'")]
    Verb {
        /// The job.
        id: String,
        /// Where it is.
        status: &'static str,
        /// What was asked.
        verb: &'static str,
    },
    /// It is paused.
    #[error("Job is already paused")]
    Paused,
    /// It is not paused.
    #[error("Can't resume a job that was not paused")]
    NotPaused,
}

/// A job, but for its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    status: Status,
    is_paused: bool,
    is_cancelled: bool,
    error: Option<String>,
}

impl Default for State {
    fn default() -> Self {
        State {
            status: Status::Created,
            is_paused: false,
            is_cancelled: false,
            error: None,
        }
    }
}

impl State {
    /// Where it is.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Why it has failed.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Whether nobody wants its work any more.
    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled
    }

    fn goes(&mut self, through: &[Status]) -> Vec<Status> {
        self.status = through.last().copied().unwrap_or(self.status);
        through.to_vec()
    }

    /// Its work begins; the states that it has gone through.
    pub fn begins(&mut self) -> Vec<Status> {
        self.goes(&[Status::Running])
    }

    /// Its work has ended; the states that it has gone through.
    pub fn ends(&mut self, result: Result<(), String>) -> Vec<Status> {
        self.error = match result {
            Err(error) => Some(error),
            Ok(()) if self.is_cancelled => Some("Operation canceled".to_owned()),
            Ok(()) => None,
        };
        match self.error {
            None => self.goes(&[Status::Waiting, Status::Pending, Status::Concluded]),
            Some(_) => self.goes(&[Status::Aborting, Status::Concluded]),
        }
    }

    /// Is asked for something; the states that it has gone through. `id`: for errors.
    ///
    /// A job pauses where its work can, which is nowhere in those there are: as in QEMU that is remembered
    /// and has no effect.
    ///
    /// # Errors
    /// If it cannot do that where it is now.
    pub fn asked(&mut self, id: &str, verb: Verb) -> Result<Vec<Status>, JobError> {
        if verb == Verb::Resume && !self.is_paused {
            return Err(JobError::NotPaused);
        }
        if !verb.is_taken(self.status) {
            return Err(JobError::Verb {
                id: id.to_owned(),
                status: self.status.name(),
                verb: verb.name(),
            });
        }
        match verb {
            Verb::Pause if self.is_paused => return Err(JobError::Paused),
            Verb::Pause | Verb::Resume => self.is_paused = verb == Verb::Pause,
            Verb::Cancel => self.is_cancelled = true,
            Verb::Dismiss => return Ok(self.goes(&[Status::Null])),
            Verb::Complete | Verb::Finalize => {}
        }
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Verb; 6] = [
        Verb::Cancel,
        Verb::Pause,
        Verb::Resume,
        Verb::Complete,
        Verb::Finalize,
        Verb::Dismiss,
    ];

    fn refusal(state: &mut State, verb: Verb) -> String {
        state.asked("j", verb).unwrap_err().to_string()
    }

    #[test]
    fn one_that_succeeds() {
        let mut state = State::default();
        assert_eq!(state.begins(), [Status::Running]);
        let end = [Status::Waiting, Status::Pending, Status::Concluded];
        assert_eq!(state.ends(Ok(())), end);
        assert_eq!(state.error(), None);
        for verb in ALL {
            let desc = match verb {
                Verb::Dismiss => continue,
                Verb::Resume => "Can't resume a job that was not paused".to_owned(),
                _ => format!(
                    "Job 'j' in state 'concluded' cannot accept command verb '{}'",
                    verb.name()
                ),
            };
            assert_eq!(refusal(&mut state, verb), desc);
        }
        assert_eq!(state.asked("j", Verb::Dismiss), Ok(vec![Status::Null]));
    }

    #[test]
    fn one_that_fails() {
        let mut state = State::default();
        state.begins();
        let end = [Status::Aborting, Status::Concluded];
        assert_eq!(state.ends(Err("no".to_owned())), end);
        assert_eq!(state.error(), Some("no"));
    }

    #[test]
    fn one_that_is_cancelled_while_it_is_paused() {
        let mut state = State::default();
        state.begins();
        for (verb, desc) in [
            (Verb::Pause, None),
            (Verb::Pause, Some("Job is already paused")),
            (Verb::Resume, None),
            (Verb::Resume, Some("Can't resume a job that was not paused")),
            (Verb::Pause, None),
            (
                Verb::Complete,
                Some("Job 'j' in state 'running' cannot accept command verb 'complete'"),
            ),
            (Verb::Cancel, None),
            (Verb::Cancel, None),
        ] {
            match desc {
                None => assert_eq!(state.asked("j", verb), Ok(Vec::new())),
                Some(desc) => assert_eq!(refusal(&mut state, verb), desc),
            }
            assert_eq!(state.status(), Status::Running);
        }
        assert!(state.is_cancelled());
        let end = [Status::Aborting, Status::Concluded];
        assert_eq!(state.ends(Ok(())), end);
        assert_eq!(state.error(), Some("Operation canceled"));
    }
}
