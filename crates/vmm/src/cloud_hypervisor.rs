//! Cloud Hypervisor, by its REST API.

use block::VmState;
use hyper::Method;
use serde::Deserialize;

use crate::api::{Call, Dialect};
use crate::http::{Reply, excerpt};
use crate::machine::Action;

/// Cloud Hypervisor's.
pub(crate) const DIALECT: Dialect = Dialect {
    name: "Cloud Hypervisor",
    start: ("cloud-hypervisor", "--api-socket"),
    call,
    state,
    fault: excerpt,
};

fn call(action: Action) -> Option<Call> {
    Some(match action {
        Action::Query => Call::new(Method::GET, "/api/v1/vm.info", ""),
        Action::Pause => Call::new(Method::PUT, "/api/v1/vm.pause", ""),
        Action::Resume => Call::new(Method::PUT, "/api/v1/vm.resume", ""),
        Action::Reset => Call::new(Method::PUT, "/api/v1/vm.reboot", ""),
    })
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
