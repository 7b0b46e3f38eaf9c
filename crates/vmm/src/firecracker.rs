//! Firecracker, by its API.

use block::VmState;
use hyper::Method;
use serde::Deserialize;

use crate::api::{Call, Dialect};
use crate::http::{Reply, excerpt};
use crate::machine::Action;

/// Firecracker's.
pub(crate) const DIALECT: Dialect = Dialect {
    name: "Firecracker",
    start: ("firecracker", "--api-sock"),
    call,
    state,
    fault,
};

fn call(action: Action) -> Option<Call> {
    match action {
        Action::Query => Some(Call::new(Method::GET, "/", "")),
        Action::Pause => Some(Call::new(Method::PATCH, "/vm", r#"{"state": "Paused"}"#)),
        Action::Resume => Some(Call::new(Method::PATCH, "/vm", r#"{"state": "Resumed"}"#)),
        Action::Reset => None,
    }
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
