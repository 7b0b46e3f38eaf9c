//! What the tests of links to VMMs share: a daemon linked to the QEMU whose disks it serves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::guest::Builder;
use testkit::{Guest, LogEntry};

use super::guest::{GUEST_PATIENCE, reach};
use super::{PATIENCE, Server, Setup};

/// The id of the link.
pub const LINK: &str = "vm0";

/// Who says `cont`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumer {
    /// Whoever is on our monitor.
    Daemon,
    /// Whoever is on QEMU's.
    Qemu,
}

impl Setup {
    /// QEMU's monitor for the link. QEMU serves one client at a time on a monitor.
    pub fn link_socket(&self) -> PathBuf {
        self.path("link.sock")
    }

    /// A link to a QEMU that [`link_monitor`] prepares.
    #[must_use]
    pub fn link(self) -> Self {
        let path = self.link_socket();
        self.option(
            "--object",
            json!({ "qom-type": "vmm-qemu", "id": LINK, "path": path }),
        )
    }
}

/// QEMU gets a monitor of its own for the link.
pub fn link_monitor(guest: Builder, socket: &Path) -> Builder {
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    guest.qemu_arg("-qmp").qemu_arg(monitor)
}

/// What QEMU itself says of its VM: the run state.
pub fn qemu_state(guest: &mut Guest) -> Result<String> {
    let status = guest.qmp().execute("query-status", Value::Null)?;
    ensure!(
        status["running"] == json!(status["status"] == "running"),
        "{status}"
    );
    Ok(status["status"].as_str().unwrap_or_default().to_owned())
}

impl Server {
    /// How the link is.
    pub fn x_vmm(&mut self) -> Result<Value> {
        let status = self.qmp.execute("query-status", Value::Null)?;
        Ok(status["x-vmm"].clone())
    }

    /// Waits until the members of `expected` are those of the link; null: not there.
    pub fn wait_link(&mut self, expected: &Value) -> Result<()> {
        let mut last = Value::Null;
        let members = expected.as_object().into_iter().flatten();
        let reached = reach("the link", PATIENCE, || {
            last = self.x_vmm()?;
            Ok(members.clone().all(|(name, value)| last[name] == *value))
        });
        reached.map_err(|error| error.context(format!("{expected}, but {last}")))
    }

    /// The link is connected, the VM runs and nothing is left to do.
    pub fn wait_link_running(&mut self) -> Result<()> {
        self.wait_link(
            &json!({ "id": LINK, "type": "vmm-qemu", "state": "connected", "vm": "running",
                "pending": null, "paused-by": "nobody", "error": null }),
        )
    }

    /// The next error: it is held, and QEMU is paused by the link. Returns how many requests are held.
    pub fn wait_paused_by_error(&mut self, guest: &mut Guest, id: &str) -> Result<usize> {
        let event = self.qmp.wait_event("BLOCK_IO_ERROR", GUEST_PATIENCE)?;
        ensure!(
            event.data["action"] == "stop" && event.data["device"] == id,
            "{event:?}"
        );
        self.qmp.wait_event("STOP", PATIENCE)?;
        guest.qmp().wait_event("STOP", PATIENCE)?;
        ensure!(qemu_state(guest)? == "paused");
        self.wait_link(
            &json!({ "state": "connected", "vm": "paused", "pending": null, "paused-by": "link" }),
        )?;
        ensure!(self.run_state()? == "io-error");
        let held = self.held(id)?.len();
        ensure!(held > 0, "nothing is held");
        Ok(held)
    }

    /// `cont`, on either monitor: both resume.
    pub fn cont_by(&mut self, guest: &mut Guest, resumer: Resumer) -> Result<()> {
        match resumer {
            Resumer::Daemon => {
                self.qmp.execute("cont", Value::Null)?;
            }
            Resumer::Qemu => {
                // Said elsewhere, it counts here.
                let said = LogEntry::Command("cont".to_owned());
                self.qmp.log_mut().push(said);
                guest.qmp().execute("cont", Value::Null)?;
            }
        }
        self.qmp.wait_event("RESUME", PATIENCE)?;
        guest.qmp().wait_event("RESUME", PATIENCE)?;
        // Failures of requests that were in flight at the first one are told of as well.
        self.qmp.take_events(Duration::ZERO)?;
        self.wait_link_running()?;
        ensure!(qemu_state(guest)? == "running" && self.run_state()? == "running");
        Ok(())
    }
}
