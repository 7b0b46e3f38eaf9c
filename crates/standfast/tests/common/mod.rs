//! What the tests of `standfast watch` share: watchers as processes, and machines that are scripts.
#![allow(dead_code, reason = "each test target uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "tests"
)]

pub mod report;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::Daemon;
use testkit::place::{PATIENCE, Place, stdout};

/// What a process has used of processors so far, and how much memory it has now, in bytes.
pub fn usage(pid: u32) -> (Duration, u64) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let stat = read("stat");
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    // Hundredths of a second, in user and in kernel.
    let ticks: u64 = fields[11..13]
        .iter()
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum();
    let status = read("status");
    let memory = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kib: u64 = memory.trim().trim_end_matches(" kB").parse().unwrap();
    (Duration::from_millis(ticks * 10), kib << 10)
}

/// Runs the tool.
pub fn standfast(args: &[&str]) -> Output {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_standfast"));
    tool.args(args).output().unwrap()
}

/// A configuration in a place of its own.
pub struct Setup {
    pub place: Place,
}

impl Setup {
    /// `sections` comes behind what is the place's own.
    pub fn new(sections: &str) -> Self {
        let setup = Self {
            place: Place::new(),
        };
        setup.write(sections);
        setup
    }

    /// Another configuration.
    pub fn write(&self, sections: &str) {
        let text = format!(
            "runtime-directory = \"{}\"\njournal = \"{}\"\n{}",
            self.place.name("run"),
            self.journal(),
            sections.replace("@PLACE@", &self.place.path().display().to_string())
        );
        std::fs::write(self.place.file("watch.toml"), text).unwrap();
    }

    pub fn config(&self) -> String {
        self.place.name("watch.toml")
    }

    pub fn journal(&self) -> String {
        self.place.name("journal/journal")
    }

    /// A program of the place.
    pub fn script(&self, name: &str, text: &str) {
        let path = self.place.file(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Starts the watcher, and waits until it sees so many machines.
    pub fn watch(&self, machines: usize) -> Daemon {
        let watcher = self.start(&[]);
        self.wait_status("the machines", |status| {
            let seen = status["machines"].as_array().into_iter().flatten();
            seen.filter(|machine| machine["why"].is_null()).count() >= machines
        });
        watcher
    }

    pub fn start(&self, args: &[&str]) -> Daemon {
        let watcher = Daemon::builder(env!("CARGO_BIN_EXE_standfast"));
        let watcher = watcher
            .args(["watch", "--config", &self.config()])
            .args(args);
        watcher.start().unwrap()
    }

    /// What the watcher says; null: it says nothing.
    pub fn status(&self) -> Value {
        let output = standfast(&[
            "watch",
            "status",
            &self.place.name("run/control.sock"),
            "--json",
        ]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    pub fn wait_status(&self, what: &str, mut is: impl FnMut(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE * 3;
        loop {
            let status = self.status();
            if is(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{what}: {status}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The incidents of the journal.
    pub fn history(&self) -> Vec<Value> {
        let output = standfast(&["history", "--json", &self.journal()]);
        let text = stdout(&output);
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// All records of the journal.
    pub fn records(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.journal()).unwrap_or_default();
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| line["data"].clone()).collect()
    }

    pub fn count(&self, event: &str) -> usize {
        self.records()
            .iter()
            .filter(|record| record["event"] == event)
            .count()
    }
}

/// How a machine that is a script is.
pub struct State {
    pub status: &'static str,
    /// Its link to a VMM, if it has one.
    pub link: Value,
    pub block: Value,
    pub stats: Value,
    /// What is sent when the next client has negotiated.
    pub events: Vec<Value>,
    /// What it was told, and when.
    pub heard: Vec<(String, Instant)>,
    /// The arguments of each `block-set-write-threshold`.
    pub thresholds: Vec<Value>,
    pub clients: Vec<UnixStream>,
    /// Whether it answers.
    pub answers: bool,
}

/// A machine that is a script.
#[derive(Clone)]
pub struct Script {
    pub state: Arc<Mutex<State>>,
    pub socket: PathBuf,
}

/// A disk of it, with its image at `file`.
pub fn disk(file: &Path, size: i64) -> Value {
    json!([{"device": "vda", "qdev": "vda", "io-status": "ok", "type": "unknown", "inserted": {
        "node-name": "disk0", "drv": "file", "file": file,
        "image": {"virtual-size": size, "filename": file, "format": "file"}}}])
}

pub fn error(action: &str) -> Value {
    json!({"event": "BLOCK_IO_ERROR", "timestamp": {"seconds": 1, "microseconds": 1}, "data": {
        "device": "vda", "node-name": "disk0", "operation": "write", "action": action,
        "nospace": true, "reason": "No space left on device"}})
}

/// A node has grown beyond its threshold.
pub fn threshold(node: &str, threshold: u64, exceeded: u64) -> Value {
    json!({"event": "BLOCK_WRITE_THRESHOLD", "timestamp": {"seconds": 1, "microseconds": 1},
        "data": {"node-name": node, "amount-exceeded": exceeded, "write-threshold": threshold}})
}

pub fn event(name: &str) -> Value {
    json!({"event": name, "timestamp": {"seconds": 1, "microseconds": 1}})
}

impl Script {
    pub fn start(socket: PathBuf, block: Value) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let state = State {
            status: "running",
            link: Value::Null,
            block,
            stats: json!([]),
            events: Vec::new(),
            heard: Vec::new(),
            thresholds: Vec::new(),
            clients: Vec::new(),
            answers: true,
        };
        let script = Self {
            state: Arc::new(Mutex::new(state)),
            socket,
        };
        let server = script.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = server.clone();
                std::thread::spawn(move || server.serve(client));
            }
        });
        script
    }

    fn serve(&self, mut client: UnixStream) {
        let version = json!({"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""});
        let greeting = json!({"QMP": {"version": version, "capabilities": []}});
        if writeln!(client, "{greeting}").is_err() {
            return;
        }
        self.state
            .lock()
            .unwrap()
            .clients
            .push(client.try_clone().unwrap());
        for line in BufReader::new(client.try_clone().unwrap())
            .lines()
            .map_while(Result::ok)
        {
            let command: Value = serde_json::from_str(&line).unwrap();
            let name = command["execute"].as_str().unwrap().to_owned();
            let mut state = self.state.lock().unwrap();
            state.heard.push((name.clone(), Instant::now()));
            if !state.answers {
                continue;
            }
            let mut messages = Vec::new();
            let result = match name.as_str() {
                "query-status" => {
                    let mut status =
                        json!({"status": state.status, "running": state.status == "running"});
                    if !state.link.is_null() {
                        status["x-vmm"] = state.link.clone();
                    }
                    status
                }
                "query-block" => state.block.clone(),
                "block-set-write-threshold" => {
                    let arguments = command["arguments"].clone();
                    state.thresholds.push(arguments);
                    json!({})
                }
                "query-blockstats" => state.stats.clone(),
                "cont" => {
                    if state.status != "running" {
                        state.status = "running";
                        messages.push(event("RESUME"));
                    }
                    json!({})
                }
                _ => json!({}),
            };
            messages.push(json!({"return": result, "id": command["id"]}));
            if name == "qmp_capabilities" {
                messages.append(&mut state.events);
            }
            drop(state);
            let text: String = messages
                .iter()
                .map(|message| format!("{message}\n"))
                .collect();
            if client.write_all(text.as_bytes()).is_err() {
                return;
            }
        }
    }

    /// Sends bytes to all clients, as they are.
    pub fn send(&self, bytes: &[u8]) {
        for client in &mut self.state.lock().unwrap().clients {
            // Clients come and go.
            let _ = client.write_all(bytes);
        }
    }

    /// Fails for want of space: the event, and STOP that much later.
    pub fn fail(&self, stop_after: Duration) -> Instant {
        self.send(format!("{}\n", error("stop")).as_bytes());
        let failed = Instant::now();
        std::thread::sleep(stop_after);
        self.state.lock().unwrap().status = "io-error";
        self.send(format!("{}\n", event("STOP")).as_bytes());
        failed
    }

    /// Stops for want of space, as [`Self::fail`] with a STOP at once.
    pub fn stop(&self) {
        self.fail(Duration::ZERO);
    }

    /// When each `cont` came.
    pub fn conts(&self) -> Vec<Instant> {
        let state = self.state.lock().unwrap();
        let conts = state.heard.iter().filter(|(name, _)| name == "cont");
        conts.map(|(_, at)| *at).collect()
    }
}
