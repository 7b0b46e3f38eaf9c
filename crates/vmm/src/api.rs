//! VMMs that are asked over HTTP: what they have in common. [`Dialect`] is what they have not.

use std::path::PathBuf;

use block::VmState;
use hyper::Method;

use crate::http::{self, HttpError, Reply};
use crate::machine::{Action, Answer, Failure};

/// What one kind of VMM calls things.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialect {
    /// The VMM's name.
    pub(crate) name: &'static str,
    /// The program, and its option for the path of the API socket.
    pub(crate) start: (&'static str, &'static str),
    /// The request for an action; none if there is no such thing.
    pub(crate) call: fn(Action) -> Option<Call>,
    /// The state of the VM, from the answer to [`Action::Query`].
    pub(crate) state: fn(&Reply) -> Result<VmState, String>,
    /// Why it refuses, from the body of its answer.
    pub(crate) fault: fn(&[u8]) -> String,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) target: &'static str,
    /// JSON; empty: none.
    pub(crate) body: &'static str,
}

impl Call {
    pub(crate) const fn new(method: Method, target: &'static str, body: &'static str) -> Self {
        Self {
            method,
            target,
            body,
        }
    }
}

/// A VMM behind an API socket.
#[derive(Debug)]
pub(crate) struct Api {
    path: PathBuf,
    dialect: Dialect,
}

impl Api {
    pub(crate) fn new(path: PathBuf, dialect: Dialect) -> Self {
        Self { path, dialect }
    }

    pub(crate) async fn perform(&self, action: Action) -> Result<Answer, Failure> {
        let (path, name) = (self.path.display(), self.dialect.name);
        let Some(call) = (self.dialect.call)(action) else {
            return Err(Failure::Refused(format!(
                "{name} at '{path}' has no {}; let the guest do it, or start the VM anew",
                verb(action)
            )));
        };
        let Call {
            method,
            target,
            body,
        } = call;
        let reply = http::request(&self.path, &method, target, body).await;
        let reply = reply.map_err(|error| {
            let (program, option) = self.dialect.start;
            Failure::Lost(match error {
                HttpError::Connect(e) => format!(
                    "Cannot connect to {name}'s API socket '{path}': {e}; start {program} with \
                     '{option} {path}'"
                ),
                HttpError::Broken(why) => format!(
                    "What listens at '{path}' gave no answer to '{method} {target}': {why}; set \
                     'path' to the API socket of {name}, and see whether it is still there"
                ),
            })
        })?;
        if action == Action::Query {
            let vm = (self.dialect.state)(&reply).map_err(|why| {
                Failure::Lost(format!(
                    "What listens at '{path}' does not answer '{method} {target}' as {name} does: \
                     {why}; set 'path' to its API socket"
                ))
            })?;
            return Ok(Answer {
                vm,
                process: reply.process,
                fresh: false,
            });
        }
        match reply.status {
            200..=299 => Ok(Answer::default()),
            status => Err(Failure::Refused(format!(
                "{name} at '{path}' refuses to {} the VM ('{method} {target}') with status \
                 {status}: {}",
                verb(action),
                (self.dialect.fault)(&reply.body)
            ))),
        }
    }

    pub(crate) fn too_slow(&self, action: Action, seconds: u64) -> String {
        format!(
            "{} at '{}' has not answered the request to {} the VM within {seconds} s; see what it \
             is busy with",
            self.dialect.name,
            self.path.display(),
            verb(action)
        )
    }
}

fn verb(action: Action) -> &'static str {
    match action {
        Action::Query => "describe",
        Action::Pause => "pause",
        Action::Resume => "resume",
        Action::Reset => "reset",
    }
}
