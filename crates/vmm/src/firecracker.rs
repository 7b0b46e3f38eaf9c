//! Firecracker, by its API.

use std::path::PathBuf;

use block::VmState;
use hyper::Method;
use serde::Deserialize;

use crate::http::{self, HttpError, Reply, excerpt};
use crate::machine::{Action, Answer, Failure};

/// A Firecracker.
#[derive(Debug)]
pub(crate) struct Firecracker {
    path: PathBuf,
}

/// The part of `InstanceInfo` that matters.
#[derive(Deserialize)]
struct InstanceInfo {
    state: String,
}

/// What Firecracker says when it refuses.
#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

fn fault(body: &[u8]) -> String {
    match serde_json::from_slice::<Fault>(body) {
        Ok(fault) => excerpt(fault.fault_message.as_bytes()),
        Err(_) => excerpt(body),
    }
}

/// The state of the VM, from the answer to `GET /`.
fn state(reply: &Reply) -> Result<VmState, String> {
    if reply.status != 200 {
        return Err(format!("status {}: {}", reply.status, fault(&reply.body)));
    }
    let info: InstanceInfo =
        serde_json::from_slice(&reply.body).map_err(|e| format!("no InstanceInfo: {e}"))?;
    match info.state.as_str() {
        "Running" => Ok(VmState::Running),
        "Paused" => Ok(VmState::Paused),
        "Not started" => Ok(VmState::Absent),
        other => Err(format!("unknown VM state '{}'", excerpt(other.as_bytes()))),
    }
}

impl Firecracker {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) async fn perform(&mut self, action: Action) -> Result<Answer, Failure> {
        let path = self.path.display();
        let (method, target, body) = match action {
            Action::Query => (Method::GET, "/", ""),
            Action::Pause => (Method::PATCH, "/vm", r#"{"state": "Paused"}"#),
            Action::Resume => (Method::PATCH, "/vm", r#"{"state": "Resumed"}"#),
            Action::Reset => {
                return Err(Failure::Refused(format!(
                    "Firecracker at '{path}' has no reset; let the guest reboot, or start \
                     Firecracker anew"
                )));
            }
        };
        let reply = http::request(&self.path, method, target, body).await;
        let reply = reply.map_err(|e| {
            Failure::Lost(match e {
                HttpError::Connect(e) => format!(
                    "Cannot connect to Firecracker's API socket '{path}': {e}; start firecracker \
                     with '--api-sock {path}'"
                ),
                HttpError::Broken(why) => format!(
                    "What listens at '{path}' gave no answer: {why}; set 'path' to the API socket \
                     of Firecracker, and see whether it is still there"
                ),
            })
        })?;
        if action == Action::Query {
            let vm = state(&reply).map_err(|why| {
                Failure::Lost(format!(
                    "What listens at '{path}' does not answer 'GET /' as Firecracker does: {why}; \
                     set 'path' to its API socket"
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
                "Firecracker at '{path}' refuses to {} the VM with status {status}: {}",
                verb(action),
                fault(&reply.body)
            ))),
        }
    }

    pub(crate) fn too_slow(&self, action: Action, seconds: u64) -> String {
        format!(
            "Firecracker at '{}' has not answered the request to {} the VM within {seconds} s; see \
             what it is busy with",
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

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: &str) -> Reply {
        Reply {
            status,
            body: body.as_bytes().to_vec(),
            process: None,
        }
    }

    #[test]
    fn states() {
        let info = |state| reply(200, &format!(r#"{{"id": "vm", "state": "{state}"}}"#));
        assert_eq!(state(&info("Running")), Ok(VmState::Running));
        assert_eq!(state(&info("Paused")), Ok(VmState::Paused));
        assert_eq!(state(&info("Not started")), Ok(VmState::Absent));
        for wrong in [
            info("Resumed"),
            reply(200, "{}"),
            reply(204, ""),
            reply(400, ""),
        ] {
            assert!(state(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn faults() {
        assert_eq!(fault(br#"{"fault_message": "no\nway"}"#), "no way");
        assert_eq!(fault(b"<html>"), "<html>");
    }
}
