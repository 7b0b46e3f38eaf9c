//! Links to a QMP server that behaves as QEMU does, and as it should not.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block::{LinkState, RunState, VmLink, VmPause, VmPending, VmState};
use futures_util::future::join_all;
use parking_lot::{Mutex, MutexGuard};
use standfast_vmm::Peer;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::harness::{Daemon, Task, socket, wait};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#;

/// How the server misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Right,
    /// It accepts and says nothing: another client has the monitor.
    Busy,
    /// It does what it is told, and does not answer.
    Silent,
    /// It begins with this.
    Begins(&'static str),
    /// To every command after the first it answers this.
    Answers(&'static str),
    /// It closes instead of answering `stop`, which it has carried out.
    ClosesAtStop,
    /// It refuses `stop` and `cont`.
    Refuses,
    /// Before its answer to `stop` it says that the VM was resumed.
    ResumedAtOnce,
    /// An endless line.
    Endless,
}

struct Vm {
    status: &'static str,
    mode: Mode,
    commands: Vec<String>,
    client: Option<mpsc::UnboundedSender<String>>,
}

impl Vm {
    fn running(&self) -> bool {
        self.status == "running"
    }

    fn event(&self, name: &str) {
        let event = format!(
            r#"{{"timestamp": {{"seconds": 1, "microseconds": 2}}, "event": "{name}", "data": {{"x": 1}}}}"#
        );
        if let Some(client) = &self.client {
            let _ = client.send(event);
        }
    }

    /// Somebody else does it, or the link.
    fn stop(&mut self) {
        if self.running() {
            self.status = "paused";
            self.event("STOP");
        }
    }

    fn cont(&mut self) {
        if !self.running() {
            self.status = "running";
            self.event("RESUME");
        }
    }
}

struct Qemu {
    vm: Arc<Mutex<Vm>>,
    task: Task,
}

impl Qemu {
    fn start(path: &Path, status: &'static str) -> Self {
        let vm = Arc::new(Mutex::new(Vm {
            status,
            mode: Mode::Right,
            commands: Vec::new(),
            client: None,
        }));
        let listener = UnixListener::bind(path).expect("listen");
        let shared = Arc::clone(&vm);
        let task = Task::spawn(async move {
            // One client at a time, as QEMU has it.
            while let Ok((stream, _)) = listener.accept().await {
                let _ = serve(stream, &shared).await;
                lock(&shared).client = None;
            }
        });
        Self { vm, task }
    }

    fn vm(&self) -> MutexGuard<'_, Vm> {
        lock(&self.vm)
    }

    fn asked(&self, command: &str) -> usize {
        self.vm().commands.iter().filter(|c| *c == command).count()
    }
}

fn lock(vm: &Mutex<Vm>) -> MutexGuard<'_, Vm> {
    vm.lock()
}

async fn say(to: &mut OwnedWriteHalf, line: &str) -> std::io::Result<()> {
    // In pieces, which the client must put together.
    let line = format!("{line}\r\n");
    let (first, second) = line.split_at(line.len() / 3);
    to.write_all(first.as_bytes()).await?;
    tokio::task::yield_now().await;
    to.write_all(second.as_bytes()).await
}

async fn serve(stream: UnixStream, vm: &Mutex<Vm>) -> std::io::Result<()> {
    let (from, mut to) = stream.into_split();
    let mut lines = BufReader::new(from).lines();
    let mode = lock(vm).mode;
    match mode {
        Mode::Busy => {
            while lines.next_line().await?.is_some() {}
            return Ok(());
        }
        Mode::Begins(what) => return say(&mut to, what).await,
        Mode::Endless => {
            to.write_all(b"{\"QMP\": \"").await?;
            loop {
                to.write_all(&[b'x'; 4096]).await?;
            }
        }
        _ => {}
    }
    say(&mut to, GREETING).await?;
    let (client, mut said) = mpsc::unbounded_channel::<String>();
    let mut negotiated = false;
    loop {
        let line = tokio::select! {
            // What was said before goes out before.
            biased;
            Some(event) = said.recv() => {
                say(&mut to, &event).await?;
                continue;
            }
            line = lines.next_line() => line?,
        };
        let Some(line) = line else { return Ok(()) };
        let command: qapi::Value = serde_json::from_str(&line)?;
        let name = command["execute"].as_str().unwrap_or_default().to_owned();
        let id = &command["id"];
        assert_eq!(name == "qmp_capabilities", !negotiated, "{line}");
        negotiated = true;
        let (close, answer) = {
            let mut vm = lock(vm);
            vm.client = Some(client.clone());
            vm.commands.push(name.clone());
            let refused = vm.mode == Mode::Refuses && matches!(name.as_str(), "stop" | "cont");
            match name.as_str() {
                "stop" if !refused => vm.stop(),
                "cont" if !refused => vm.cont(),
                "system_reset" => vm.event("RESET"),
                _ => {}
            }
            if vm.mode == Mode::ResumedAtOnce && name == "stop" {
                vm.mode = Mode::Right;
                vm.cont();
            }
            let result = match name.as_str() {
                _ if refused => {
                    r#""error": {"class": "GenericError", "desc": "Not while migrating"}"#
                        .to_owned()
                }
                "query-status" => format!(
                    r#""return": {{"running": {}, "singlestep": false, "status": "{}"}}"#,
                    vm.running(),
                    vm.status
                ),
                _ => r#""return": {}"#.to_owned(),
            };
            let answer = match vm.mode {
                Mode::Answers(what) if name != "qmp_capabilities" => Some(what.to_owned()),
                Mode::Silent => None,
                _ => Some(format!(r#"{{{result}, "id": {id}}}"#)),
            };
            (vm.mode == Mode::ClosesAtStop && name == "stop", answer)
        };
        while let Ok(event) = said.try_recv() {
            say(&mut to, &event).await?;
        }
        if close {
            return Ok(());
        }
        if let Some(answer) = answer {
            say(&mut to, &answer).await?;
        }
    }
}

async fn started(status: &'static str) -> (tempfile::TempDir, Qemu, Daemon) {
    let (dir, path) = socket();
    let qemu = Qemu::start(&path, status);
    let daemon = Daemon::with(Peer::Qemu { path }).await;
    (dir, qemu, daemon)
}

#[tokio::test]
async fn pause_and_resume() {
    let (_dir, qemu, daemon) = started("running").await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    daemon.stop().await;
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
    assert_eq!(qemu.vm().status, "paused");
    daemon.cont(false).await;
    assert_eq!(daemon.status().pending, Some(VmPending::Resume));
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    assert_eq!(qemu.vm().status, "running");
    assert_eq!(daemon.events().len(), 1);
    assert_eq!(daemon.link.reset().await, Ok(()));
    assert_eq!(qemu.asked("system_reset"), 1);
}

#[tokio::test]
async fn events_are_heard() {
    let (_dir, qemu, daemon) = started("running").await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    qemu.vm().stop();
    daemon.until_vm(VmState::Paused, VmPause::Other).await;
    assert_eq!(daemon.run_state(), RunState::Running, "no stop for us");
    daemon.stop().await;
    daemon.cont(false).await;
    daemon.stop().await;
    daemon.until_vm(VmState::Paused, VmPause::Other).await;
    assert_eq!(qemu.asked("stop") + qemu.asked("cont"), 0);
    qemu.vm().cont();
    wait("cont", || {
        (daemon.run_state() == RunState::Running).then_some(())
    })
    .await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    assert_eq!(qemu.asked("stop") + qemu.asked("cont"), 0);
    // The link's own pause, ended by somebody else.
    daemon.stop().await;
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
    qemu.vm().cont();
    wait("cont", || {
        (daemon.run_state() == RunState::Running).then_some(())
    })
    .await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    assert_eq!(qemu.asked("cont"), 0);
}

#[tokio::test]
async fn a_resume_before_the_pause_was_answered() {
    let (_dir, qemu, daemon) = started("running").await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    qemu.vm().mode = Mode::ResumedAtOnce;
    daemon.stop().await;
    wait("cont", || {
        (daemon.run_state() == RunState::Running).then_some(())
    })
    .await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    assert_eq!(qemu.asked("stop"), 1);
}

/// Whatever QEMU calls it: what does not run is paused, and not by us.
#[tokio::test]
async fn other_statuses() {
    for status in [
        "prelaunch",
        "inmigrate",
        "io-error",
        "shutdown",
        "suspended",
    ] {
        let (_dir, qemu, daemon) = started(status).await;
        daemon.until_vm(VmState::Paused, VmPause::Other).await;
        daemon.stop().await;
        daemon.cont(false).await;
        daemon.until_vm(VmState::Paused, VmPause::Other).await;
        assert_eq!(qemu.asked("stop") + qemu.asked("cont"), 0, "{status}");
    }
}

/// QEMU was started anew with `-S`, and waits for its manager.
#[tokio::test]
async fn a_vm_that_has_not_run_is_nobodys_but_its_managers() {
    let (_dir, path) = socket();
    let qemu = Qemu::start(&path, "prelaunch");
    let daemon = Daemon::taking_over(Peer::Qemu { path }, Some(VmPause::Link)).await;
    daemon.until_vm(VmState::Paused, VmPause::Other).await;
    daemon.cont(false).await;
    daemon.until_vm(VmState::Paused, VmPause::Other).await;
    assert_eq!(qemu.asked("cont"), 0);
}

/// After a restart the VM waits for its disks; an order that comes meanwhile counts.
#[tokio::test]
async fn a_vm_waits_for_its_disks() {
    let (_dir, path) = socket();
    let qemu = Qemu::start(&path, "paused");
    let back = Arc::new(AtomicBool::new(false));
    let are_back = Arc::clone(&back);
    let are_back = move || are_back.load(Ordering::Relaxed);
    let daemon = Daemon::waiting(Peer::Qemu { path }, Some(VmPause::Link), are_back).await;
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
    daemon.cont(false).await;
    // The reset waits for nobody, and so does the next order.
    assert_eq!(daemon.link.reset().await, Ok(()));
    assert_eq!(daemon.status().pending, Some(VmPending::Resume));
    daemon.stop().await;
    assert_eq!(daemon.status().pending, None);
    back.store(true, Ordering::Relaxed);
    assert_eq!(daemon.link.reset().await, Ok(()));
    assert_eq!(qemu.asked("cont"), 0);
    daemon.cont(false).await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    assert_eq!(qemu.asked("stop"), 0);
}

/// A reset leaves a paused VM in `prelaunch`: it is still the link's.
#[tokio::test]
async fn a_reset_of_a_paused_vm() {
    let (_dir, qemu, daemon) = started("running").await;
    daemon.stop().await;
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
    qemu.vm().status = "prelaunch";
    assert_eq!(daemon.link.reset().await, Ok(()));
    daemon.cont(false).await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
}

#[tokio::test]
async fn refusals() {
    let (_dir, qemu, daemon) = started("running").await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    qemu.vm().mode = Mode::Refuses;
    daemon.stop().await;
    let status = daemon
        .until_error("refuses 'stop': Not while migrating")
        .await;
    assert_eq!(status.state, LinkState::Connected);
    wait("retries", || (qemu.asked("stop") >= 3).then_some(())).await;
    assert_eq!(daemon.events().len(), 2);
    qemu.vm().mode = Mode::Right;
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
    assert_eq!(daemon.status().error, None);
}

/// `stop` was carried out, but its answer is lost: it is the link's pause all the same.
#[tokio::test]
async fn a_lost_answer() {
    let (_dir, qemu, daemon) = started("running").await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    qemu.vm().mode = Mode::ClosesAtStop;
    daemon.stop().await;
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
    qemu.vm().mode = Mode::Right;
    daemon.cont(false).await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
}

#[tokio::test]
async fn qemu_comes_goes_and_comes_back() {
    let (_dir, path) = socket();
    let daemon = Daemon::with(Peer::Qemu { path: path.clone() }).await;
    let down = daemon.until_error("Cannot connect").await;
    assert!(down.error.is_some_and(|text| text.contains("-qmp unix:")));
    daemon.stop().await;
    let qemu = Qemu::start(&path, "running");
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
    drop(qemu);
    std::fs::remove_file(&path).expect("socket");
    daemon.until("down", |s| s.state == LinkState::Down).await;
    // It exits while its storage is held; the next one runs, so somebody wants it to.
    let _qemu = Qemu::start(&path, "running");
    wait("cont", || {
        (daemon.run_state() == RunState::Running).then_some(())
    })
    .await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    let states: Vec<_> = daemon.events().iter().map(|status| status.state).collect();
    let first = states
        .iter()
        .position(|&state| state == LinkState::Connected);
    assert!(
        states[0] == LinkState::Down && first.is_some(),
        "{states:?}"
    );
}

async fn babbles(mode: Mode, text: &str) {
    let (_dir, path) = socket();
    let qemu = Qemu::start(&path, "running");
    qemu.vm().mode = mode;
    let daemon = Daemon::with(Peer::Qemu { path: path.clone() }).await;
    let down = daemon.until_error(text).await;
    assert_eq!(down.state, LinkState::Down, "{mode:?}");
    let said = down.error.unwrap_or_default();
    assert!(said.contains(&path.display().to_string()), "{said}");
    daemon.stop().await;
    qemu.vm().mode = Mode::Right;
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
}

#[tokio::test]
async fn garbage() {
    let cases = [
        (
            Mode::Begins("HTTP/1.1 400 Bad Request"),
            "does not speak QMP",
        ),
        (Mode::Begins("{\"return\": {}}"), "no greeting"),
        (Mode::Begins("{\"QMP\": 5}"), "a greeting cannot be read"),
        (Mode::Begins("[]"), "no JSON object"),
        (Mode::Begins("\u{1}\u{2}"), "does not speak QMP"),
        (Mode::Endless, "does not speak QMP"),
        (Mode::Answers("{\"return\": {}, \"id\": 77}"), "another id"),
        (Mode::Answers("{\"return\": {}}"), "another id"),
        (Mode::Answers("{\"event\": 5}"), "an event has no name"),
        (
            Mode::Answers("{\"id\": 2}"),
            "neither an answer nor an event",
        ),
        (Mode::Answers(GREETING), "a second greeting"),
        (
            Mode::Answers("{\"return\": {\"running\": 1}, \"id\": 2}"),
            "lacks 'running'",
        ),
    ];
    join_all(cases.map(|(mode, text)| babbles(mode, text))).await;
}

async fn too_slow(mode: Mode, text: &str) {
    let (_dir, path) = socket();
    let qemu = Qemu::start(&path, "running");
    qemu.vm().mode = mode;
    let daemon = Daemon::with(Peer::Qemu { path }).await;
    let down = daemon.until_error(text).await;
    assert_eq!(down.state, LinkState::Down);
    daemon.stop().await;
    qemu.vm().mode = Mode::Right;
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
    drop(qemu.task);
}

#[tokio::test]
async fn a_monitor_that_another_client_has() {
    too_slow(Mode::Busy, "a QMP socket of its own").await;
}

#[tokio::test]
async fn a_monitor_that_does_not_answer() {
    too_slow(Mode::Silent, "has not answered 'qmp_capabilities'").await;
}

#[tokio::test]
async fn a_link_can_be_removed_while_it_is_down() {
    let path = PathBuf::from("/nonexistent/qmp.sock");
    let daemon = Daemon::with(Peer::Qemu { path }).await;
    daemon.stop().await;
    daemon.until("down", |s| s.state == LinkState::Down).await;
    assert!(matches!(daemon.registry.remove_link("vm0").await, Ok(true)));
    assert!(daemon.registry.link().is_none());
    let refused = daemon.link.reset().await;
    assert!(refused.is_err());
}
