//! One run of the demo: a VM fills its disk, the storage under it runs full, space is added.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use qapi::types::{BlockInfo, StatusInfo};
use qapi::{Object, Value};
use serde_json::json;

use super::figures::Figures;
use super::guest::{Guest, REQUEST_BYTES, check_interrupt};
use super::narrator::{Narrator, Tone};
use super::pattern::BLOCK_BYTES;
use super::server::{EXPORT, NODE, Server};
use crate::tool::client::Client;
use crate::tool::events;
use crate::tool::size::human;

/// How long the VM is watched while it waits for space.
const WATCH: Duration = Duration::from_millis(500);

/// How long an event may take that is bound to come.
const EVENT_PATIENCE: Duration = Duration::from_secs(10);

/// How many events and held requests are shown.
const SHOWN: usize = 2;

/// The policy of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Werror {
    /// Hold what fails.
    Stop,
    /// Hand the error to the VM.
    Report,
}

/// What the disk is made of.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// Where files may be made.
    pub dir: &'a Path,
    /// Size of the disk, a multiple of the requests' length.
    pub disk_bytes: u64,
    /// What may be allocated at first.
    pub limit_bytes: u64,
    /// What the pattern is made from.
    pub seed: u64,
}

/// Plays it.
///
/// # Errors
/// If it cannot be played to its end. What went otherwise than it has to is a problem in the figures.
pub fn play(scene: Scene<'_>, werror: Werror, narrator: &Narrator) -> Result<Figures> {
    let name = match werror {
        Werror::Stop => "stop",
        Werror::Report => "report",
    };
    let (disk_bytes, limit_bytes) = (scene.disk_bytes, scene.limit_bytes);
    let server = Server::start(&scene.dir.join(name), disk_bytes, limit_bytes, name)?;
    narrator.step(&format!(
        "standfastd (pid {}) serves a disk of {} with werror={name}; its storage has room for {}.",
        server.pid(),
        human(disk_bytes),
        human(limit_bytes)
    ));
    let mut run = Run {
        qmp: server.monitor()?,
        guest: Guest::connect(&server.disk_socket(), disk_bytes, scene.seed)?,
        figures: Figures::default(),
        narrator,
        scene,
    };
    match werror {
        Werror::Stop => run.stand_fast()?,
        Werror::Report => run.hand_on()?,
    }
    let mut figures = run.figures;
    drop((run.guest, run.qmp));
    server.stop()?;
    figures.ok = figures.problems.is_empty();
    for problem in &figures.problems {
        narrator.detail(Tone::Bad, "wrong", problem);
    }
    Ok(figures)
}

struct Run<'a> {
    qmp: Client,
    guest: Guest,
    figures: Figures,
    narrator: &'a Narrator,
    scene: Scene<'a>,
}

impl Run<'_> {
    fn stand_fast(&mut self) -> Result<()> {
        let tell = self.narrator;
        tell.step("The VM writes over the whole disk:");
        let finished = self.write()?;
        ensure!(!finished, "the storage was to run full, and did not");
        tell.step("The storage is full. What the daemon tells its monitors:");
        self.wait_for("STOP")?;
        self.guest.settle()?;
        self.look("io-error", Some("nospace"))?;
        let held = self.held()?;
        self.figures.held = held.len() as u64;
        for request in held.iter().take(SHOWN) {
            let word = |member: &str| request[member].as_str().unwrap_or("?").to_owned();
            let text = format!(
                "{} of {} bytes at {}: {}",
                word("operation"),
                request["length"],
                request["offset"],
                word("reason")
            );
            tell.detail(Tone::Wire, "x-query-held", &text);
        }
        self.figures
            .expect(!held.is_empty(), || "no request is held".to_owned());
        tell.step("The VM waits. It sees no error:");
        let begin = Instant::now();
        let completed = self.guest.wait(WATCH)?;
        self.figures.completed_while_held = completed;
        self.figures
            .expect(completed == 0, || format!("{completed} requests went on"));
        let text = format!(
            "{} held, {} more wait behind, {} completed, {} errors",
            held.len(),
            self.guest.outstanding() - held.len().min(self.guest.outstanding()),
            completed,
            self.guest.errors
        );
        tell.detail(Tone::Good, "VM", &text);
        tell.step("The operator adds space and says 'cont':");
        self.add_space()?;
        self.qmp.execute("cont", Object::new())?;
        self.wait_for("RESUME")?;
        self.figures.waited_ms = u64::try_from(begin.elapsed().as_millis())?;
        tell.step("What was held is retried, and the VM writes on as if nothing had happened:");
        let finished = self.write()?;
        self.figures
            .expect(finished, || "the VM was stopped again".to_owned());
        if !finished {
            return Ok(());
        }
        self.finish(Some("ok"))?;
        let (errors, lost) = (self.figures.guest_errors, self.figures.bytes_lost);
        self.figures
            .expect(errors == 0, || format!("the VM saw {errors} I/O errors"));
        self.figures
            .expect(lost == 0, || format!("{lost} bytes are lost"));
        let held = self.held()?.len();
        self.figures
            .expect(held == 0, || format!("{held} requests are still held"));
        for event in ["STOP", "RESUME"] {
            let count = self.figures.counted(event);
            self.figures
                .expect(count == 1, || format!("{event} came {count} times"));
        }
        Ok(())
    }

    fn hand_on(&mut self) -> Result<()> {
        let tell = self.narrator;
        tell.step("The VM writes over the whole disk:");
        let finished = self.write()?;
        self.figures
            .expect(finished, || "the VM was stopped".to_owned());
        if !finished {
            return Ok(());
        }
        tell.step("The storage is full. Every write beyond that failed in the VM:");
        let text = format!(
            "{} of {} writes failed; a filesystem goes read-only now",
            self.guest.errors,
            self.guest.requests()
        );
        tell.detail(Tone::Bad, "VM", &text);
        self.wait_for("BLOCK_IO_ERROR")?;
        self.look("running", None)?;
        tell.step("The operator adds space and says 'cont'. Nobody has kept what failed:");
        self.add_space()?;
        self.qmp.execute("cont", Object::new())?;
        self.finish(None)?;
        let (errors, lost) = (self.figures.guest_errors, self.figures.bytes_lost);
        self.figures.expect(errors > 0, || {
            "the VM saw no I/O error: the comparison shows nothing".to_owned()
        });
        self.figures.expect(lost > 0, || {
            "no byte is lost: the comparison shows nothing".to_owned()
        });
        Ok(())
    }

    /// Writes until all is written or the VM is stopped. True: all is written.
    fn write(&mut self) -> Result<bool> {
        let bar = self.narrator.bar(self.scene.disk_bytes);
        let pause = self.narrator.paced().then_some(Duration::from_millis(2));
        let Self {
            qmp,
            guest,
            figures,
            ..
        } = self;
        let mut shown = Vec::new();
        let finished = guest.write(|guest| {
            bar.set_position(guest.written * REQUEST_BYTES as u64);
            if let Some(pause) = pause {
                std::thread::sleep(pause);
            }
            let mut stopped = false;
            while let Some(event) = qmp.poll_event()? {
                let name = event["event"].as_str().unwrap_or_default();
                stopped |= name == "STOP";
                figures.count(name);
                shown.push(event);
            }
            Ok(stopped)
        })?;
        bar.abandon();
        drop(bar);
        let written = human(self.guest.written * REQUEST_BYTES as u64);
        let all = human(self.scene.disk_bytes);
        if !self.narrator.draws() {
            let text = format!("{written} of {all} written");
            self.narrator.detail(Tone::Plain, "VM", &text);
        }
        self.show(&shown);
        Ok(finished)
    }

    /// Shows events; of many of the same name, the first ones.
    fn show(&self, shown: &[Value]) {
        let name = |event: &Value| event["event"].as_str().unwrap_or_default().to_owned();
        for (at, event) in shown.iter().enumerate() {
            let same = |other: &&Value| name(other) == name(event);
            let before = shown[..at].iter().filter(same).count();
            let text = match name(event).as_str() {
                "BLOCK_IO_ERROR" => {
                    let data = &event["data"];
                    let word = |member: &str| data[member].as_str().unwrap_or("?").to_owned();
                    format!(
                        "BLOCK_IO_ERROR {}: {}, action={}, {}",
                        word("device"),
                        word("operation"),
                        word("action"),
                        word("reason")
                    )
                }
                other => format!("{other} {}", events::data(event))
                    .trim_end()
                    .to_owned(),
            };
            if before < SHOWN {
                self.narrator.detail(Tone::Wire, "event", &text);
            } else if before == SHOWN {
                let more = shown.iter().filter(same).count() - SHOWN;
                let text = format!("and {more} more {}", name(event));
                self.narrator.detail(Tone::Wire, "", &text);
            }
        }
    }

    /// Waits for an event, unless it has come already.
    fn wait_for(&mut self, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + EVENT_PATIENCE;
        let mut shown = Vec::new();
        while self.figures.counted(wanted) == 0 {
            check_interrupt()?;
            match self.qmp.poll_event()? {
                Some(event) => {
                    self.figures
                        .count(event["event"].as_str().unwrap_or_default());
                    shown.push(event);
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
            ensure!(Instant::now() < deadline, "the event {wanted} did not come");
        }
        self.show(&shown);
        Ok(())
    }

    fn status(&mut self) -> Result<String> {
        let status: StatusInfo = self.qmp.query("query-status")?;
        Ok(status.status.name().to_owned())
    }

    fn io_status(&mut self) -> Result<Option<String>> {
        let disks: Vec<BlockInfo> = self.qmp.query("query-block")?;
        let disk = disks.iter().find(|disk| disk.device == EXPORT);
        let disk = disk.context("query-block does not know the disk")?;
        Ok(disk.io_status.map(|status| status.name().to_owned()))
    }

    fn held(&mut self) -> Result<Vec<Value>> {
        Ok(self.qmp.query("x-query-held")?)
    }

    /// Asks how things are without space.
    fn look(&mut self, status: &str, io_status: Option<&str>) -> Result<()> {
        let found = self.status()?;
        self.narrator.detail(Tone::Wire, "query-status", &found);
        self.figures.expect(found == status, || {
            format!("query-status says {found} instead of {status}")
        });
        self.figures.status_without_space = found;
        let found = self.io_status()?;
        let text = found.clone().unwrap_or_else(|| "none".to_owned());
        self.narrator
            .detail(Tone::Wire, "query-block", &format!("io-status {text}"));
        self.figures.expect(found.as_deref() == io_status, || {
            format!("query-block says io-status {text}")
        });
        self.figures.io_status_without_space = found;
        Ok(())
    }

    fn add_space(&mut self) -> Result<()> {
        // A file may take more than its length: room for what the file system adds.
        let limit = self.scene.disk_bytes * 2;
        let arguments = json!({"node-name": NODE, "limit": limit});
        let Value::Object(arguments) = arguments else {
            return Ok(());
        };
        self.qmp.execute("x-quota-set", arguments)?;
        let text = format!("x-quota-set {NODE}: room for {}", human(limit));
        self.narrator.detail(Tone::Plain, "operator", &text);
        Ok(())
    }

    /// Flushes, asks how things are, reads everything back.
    fn finish(&mut self, io_status: Option<&str>) -> Result<()> {
        let tell = self.narrator;
        let flushed = self.guest.flush()?;
        self.figures
            .expect(flushed, || "the last flush failed".to_owned());
        let status = self.status()?;
        self.figures.expect(status == "running", || {
            format!("query-status says {status} at the end")
        });
        self.figures.status_at_end = status;
        let found = self.io_status()?;
        self.figures.expect(found.as_deref() == io_status, || {
            format!("query-block says io-status {found:?} at the end")
        });
        self.figures.io_status_at_end = found;
        tell.step("Everything is read back and compared, byte for byte:");
        let bar = tell.bar(self.scene.disk_bytes);
        let verdict = self.guest.verify(|bytes| bar.set_position(bytes))?;
        bar.abandon();
        drop(bar);
        while let Some(event) = self.qmp.poll_event()? {
            self.figures
                .count(event["event"].as_str().unwrap_or_default());
        }
        self.figures.writes = self.guest.requests();
        self.figures.writes_done = self.guest.written;
        self.figures.guest_errors = self.guest.errors;
        self.figures.blocks_verified = verdict.blocks_verified;
        self.figures.bytes_lost = verdict.bytes_lost;
        let intact = human(verdict.blocks_verified * BLOCK_BYTES as u64);
        tell.detail(Tone::Good, "intact", &intact);
        match verdict.bytes_lost {
            0 => tell.detail(Tone::Good, "lost", "nothing"),
            lost => tell.detail(Tone::Bad, "lost", &human(lost)),
        }
        Ok(())
    }
}
