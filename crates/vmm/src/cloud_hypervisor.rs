//! Cloud Hypervisor, by its REST API.

use std::path::PathBuf;

use block::VmState;
use hyper::Method;
use serde::Deserialize;

use crate::http::{self, HttpError, Reply, excerpt};
use crate::machine::{Action, Answer, Failure};

/// A Cloud Hypervisor.
#[derive(Debug)]
pub(crate) struct CloudHypervisor {
    path: PathBuf,
}

/// The part of `VmInfo` that matters.
#[derive(Deserialize)]
struct VmInfo {
    state: String,
}

/// The state of the VM, from the answer to `vm.info`.
fn state(reply: &Reply) -> Result<VmState, String> {
    // Releases differ in the status for a VM that was not created; the text they share.
    let text = String::from_utf8_lossy(&reply.body);
    if reply.status == 404
        || (reply.status == 500 && (text.contains("not created") || text.contains("VmNotCreated")))
    {
        return Ok(VmState::Absent);
    }
    if reply.status != 200 {
        return Err(format!("status {}: {}", reply.status, excerpt(&reply.body)));
    }
    let info: VmInfo =
        serde_json::from_slice(&reply.body).map_err(|e| format!("no VmInfo: {e}"))?;
    match info.state.as_str() {
        "Running" => Ok(VmState::Running),
        // Stopped by a debugger: whoever set the breakpoint resumes it.
        "Paused" | "BreakPoint" => Ok(VmState::Paused),
        "Created" | "Shutdown" => Ok(VmState::Absent),
        other => Err(format!("unknown VM state '{}'", excerpt(other.as_bytes()))),
    }
}

impl CloudHypervisor {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn endpoint(action: Action) -> (Method, &'static str) {
        match action {
            Action::Query => (Method::GET, "vm.info"),
            Action::Pause => (Method::PUT, "vm.pause"),
            Action::Resume => (Method::PUT, "vm.resume"),
            Action::Reset => (Method::PUT, "vm.reboot"),
        }
    }

    pub(crate) async fn perform(&mut self, action: Action) -> Result<Answer, Failure> {
        let path = self.path.display();
        let (method, endpoint) = Self::endpoint(action);
        let target = format!("/api/v1/{endpoint}");
        let reply = http::request(&self.path, method, &target, "").await;
        let reply = reply.map_err(|e| {
            Failure::Lost(match e {
                HttpError::Connect(e) => format!(
                    "Cannot connect to Cloud Hypervisor's API socket '{path}': {e}; start \
                     cloud-hypervisor with '--api-socket {path}'"
                ),
                HttpError::Broken(why) => format!(
                    "What listens at '{path}' gave no answer to {endpoint}: {why}; set 'path' to \
                     the API socket of Cloud Hypervisor, and see whether it is still there"
                ),
            })
        })?;
        if action == Action::Query {
            let vm = state(&reply).map_err(|why| {
                Failure::Lost(format!(
                    "What listens at '{path}' does not answer vm.info as Cloud Hypervisor does: \
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
                "Cloud Hypervisor at '{path}' refuses {endpoint} with status {status}: {}",
                excerpt(&reply.body)
            ))),
        }
    }

    pub(crate) fn too_slow(&self, action: Action, seconds: u64) -> String {
        let (_, endpoint) = Self::endpoint(action);
        format!(
            "Cloud Hypervisor at '{}' has not answered {endpoint} within {seconds} s; see what it \
             is busy with",
            self.path.display()
        )
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
        let info = |state| reply(200, &format!(r#"{{"config": {{}}, "state": "{state}"}}"#));
        for (said, is) in [
            ("Running", VmState::Running),
            ("Paused", VmState::Paused),
            ("BreakPoint", VmState::Paused),
            ("Created", VmState::Absent),
            ("Shutdown", VmState::Absent),
        ] {
            assert_eq!(state(&info(said)), Ok(is), "{said}");
        }
        let absent = [
            reply(404, ""),
            reply(
                500,
                r#"["Error from API","The VM info is not available","VM is not created"]"#,
            ),
            reply(500, "InternalServerError: ApiError(VmInfo(VmNotCreated))"),
        ];
        for reply in absent {
            assert_eq!(state(&reply), Ok(VmState::Absent), "{reply:?}");
        }
        let wrong = [
            info("running"),
            reply(200, "[]"),
            reply(200, ""),
            reply(200, r#"{"state": 5}"#),
            reply(500, "the VMM thread is gone"),
            reply(405, ""),
        ];
        for reply in wrong {
            assert!(state(&reply).is_err(), "{reply:?}");
        }
    }
}
