//! What the tests of links to VMMs share: a daemon linked to the QEMU whose disks it serves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::guest::{BOOT, Builder, DirectWriters, GUEST_PATIENCE, Job};
use testkit::{Guest, LogEntry, Tmpfs, VhostUserBlk, wait_until};

use super::{MIB, PATIENCE, Server, Setup, sparse};

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
        let reached = wait_until("the link", PATIENCE, || {
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

    /// Waits until the clients of a former daemon are back.
    pub fn wait_clients(&mut self) -> Result<()> {
        wait_until("the clients are back", PATIENCE, || {
            let exports = self.qmp.execute("query-block-exports", Value::Null)?;
            let exports = exports.as_array().into_iter().flatten();
            Ok(exports.clone().all(|export| export["x-client"] == true))
        })
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

/// A raw disk `vda` on a tmpfs of its own without any space, and the guest that writes to it.
pub struct FullDisk {
    pub server: Server,
    pub guest: Guest,
    tmpfs: Tmpfs,
    image: PathBuf,
}

const BALLAST: u64 = 4096;
const RAW_BYTES: u64 = 4 * MIB;

impl FullDisk {
    /// `monitor`: where QEMU serves QMP for whoever links to it.
    pub fn new(setup: Setup, monitor: &Path) -> Result<Self> {
        let tmpfs = Tmpfs::new(BALLAST)?;
        let image = tmpfs.path().join("raw.img");
        std::fs::write(
            tmpfs.path().join("ballast"),
            vec![1; usize::try_from(BALLAST)?],
        )?;
        sparse(&image, RAW_BYTES)?;
        let server = setup
            .blockdev(&json!({ "driver": "file", "node-name": "disk0", "filename": &image }))
            .export(
                "vda",
                "disk0",
                json!({ "werror": "stop", "rerror": "stop" }),
            )
            .start()?;
        let guest = Self::boot(&server, monitor)?;
        Ok(Self {
            server,
            guest,
            tmpfs,
            image,
        })
    }

    fn boot(server: &Server, monitor: &Path) -> Result<Guest> {
        let disk = VhostUserBlk::new(server.socket("vda")).reconnect(Duration::from_secs(1));
        let mut guest = link_monitor(Guest::builder().disk(disk), monitor).start()?;
        guest.wait_boot(BOOT)?;
        Ok(guest)
    }

    /// Another QEMU in place of one that has ended.
    pub fn boot_again(&mut self, monitor: &Path) -> Result<()> {
        self.guest = Self::boot(&self.server, monitor)?;
        Ok(())
    }

    /// There is room for everything.
    pub fn add_space(&self) -> Result<()> {
        self.tmpfs.resize(4 * RAW_BYTES)
    }

    /// All that was written is gone, and there is no space. Nothing may be in flight.
    pub fn take_space(&self) -> Result<()> {
        let file = std::fs::File::options().write(true).open(&self.image)?;
        file.set_len(0)?;
        file.set_len(RAW_BYTES)?;
        self.tmpfs.resize(BALLAST)
    }

    /// Writers to the disk, which run into the lack of space.
    pub fn write(&self, writers: &DirectWriters) -> Result<Job> {
        self.guest.spawn(&writers.script("vda"))
    }

    /// [`Server::wait_paused_by_error`].
    pub fn wait_paused_by_error(&mut self) -> Result<usize> {
        self.server.wait_paused_by_error(&mut self.guest, "vda")
    }

    /// [`Server::cont_by`].
    pub fn cont_by(&mut self, resumer: Resumer) -> Result<()> {
        self.server.cont_by(&mut self.guest, resumer)
    }

    /// The writers end, what they wrote is there, and the guest was shown no error.
    pub fn check(&mut self, writing: &Job, writers: &DirectWriters) -> Result<()> {
        let output = writing.wait(GUEST_PATIENCE)?;
        ensure!(output.status == 0, "{output:?}");
        self.guest.run_ok("sync", GUEST_PATIENCE)?;
        writers.check(&self.image)?;
        self.guest.check_no_io_errors()?;
        ensure!(self.server.held("vda")?.is_empty());
        ensure!(self.server.io_status("vda")? == "ok" && self.server.run_state()? == "running");
        Ok(())
    }

    /// An end in order of both.
    pub fn finish(self) -> Result<()> {
        ensure!(self.guest.power_off(GUEST_PATIENCE)?.success());
        self.server.finish()
    }
}
