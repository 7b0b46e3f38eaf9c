//! Links by commands.

use std::path::Path;

use block::{LinkState, VmLink, VmPause, VmPending, VmState};
use standfast_vmm::{Link, LinkConfig, Peer, StartError};

use crate::harness::{Daemon, wait};

fn sh(script: impl AsRef<str>) -> Vec<String> {
    ["/bin/sh", "-c", script.as_ref()]
        .map(str::to_owned)
        .to_vec()
}

/// A VM that is a file.
fn commands(dir: &Path, state: bool) -> Peer {
    let file = dir.join("state").display().to_string();
    Peer::Command {
        pause: sh(format!("echo paused > {file}")),
        resume: sh(format!("echo running > {file}")),
        state: state.then(|| sh(format!("cat {file}"))),
    }
}

fn dir(state: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    write(dir.path(), state);
    dir
}

fn write(dir: &Path, state: &str) {
    std::fs::write(dir.join("state"), state).expect("state");
}

fn read(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("state")).expect("state")
}

#[tokio::test]
async fn pause_and_resume() {
    for state in [true, false] {
        let dir = dir("running\n");
        let daemon = Daemon::with(commands(dir.path(), state)).await;
        daemon.stop().await;
        daemon.until_vm(VmState::Paused, VmPause::Link).await;
        assert_eq!(read(dir.path()), "paused\n");
        daemon.cont(false).await;
        daemon.until_vm(VmState::Running, VmPause::Nobody).await;
        assert_eq!(read(dir.path()), "running\n");
        let refused = daemon.link.reset().await;
        assert!(refused.is_err_and(|why| why.contains("no command for a reset")));
    }
}

#[tokio::test]
async fn states_are_asked_where_there_is_a_command() {
    let dir = dir("absent\n");
    let daemon = Daemon::with(commands(dir.path(), true)).await;
    daemon.stop().await;
    daemon.until_vm(VmState::Absent, VmPause::Nobody).await;
    write(dir.path(), "running");
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
    write(dir.path(), "running");
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    write(dir.path(), "paused");
    daemon.until_vm(VmState::Paused, VmPause::Other).await;
    write(dir.path(), "x".repeat(100_000).as_str());
    let down = daemon.until_error("let it print").await;
    assert_eq!(down.state, LinkState::Down);
    assert!(down.error.is_some_and(|text| text.len() < 1000));
    write(dir.path(), "paused");
    daemon
        .until("up", |s| s.state == LinkState::Connected)
        .await;
    daemon.cont(true).await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
}

#[tokio::test]
async fn without_a_state_command_force_resumes_blindly() {
    let dir = dir("paused by somebody");
    let daemon = Daemon::with(commands(dir.path(), false)).await;
    daemon.cont(false).await;
    daemon.cont(true).await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    assert_eq!(read(dir.path()), "running\n");
}

#[tokio::test]
async fn without_a_state_command_a_saved_pause_is_believed() {
    let dir = dir("paused by the former daemon");
    let daemon = Daemon::taking_over(commands(dir.path(), false), Some(VmPause::Link)).await;
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
    daemon.cont(false).await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    assert_eq!(read(dir.path()), "running\n");
}

#[tokio::test]
async fn failures_say_what_the_command_printed() {
    let dir = dir("running");
    let good = dir.path().join("good").display().to_string();
    let peer = Peer::Command {
        pause: sh(format!(
            "test -e {good} || {{ echo no socket >&2; exit 3; }}"
        )),
        resume: sh("true"),
        state: None,
    };
    let daemon = Daemon::with(peer).await;
    daemon.stop().await;
    let status = daemon.until_error("no socket").await;
    assert_eq!(status.pending, Some(VmPending::Pause));
    assert!(
        status
            .error
            .is_some_and(|text| text.contains("exit status: 3"))
    );
    std::fs::write(good, "").expect("good");
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
    assert_eq!(daemon.status().error, None);
}

#[tokio::test]
async fn a_program_that_is_not_there() {
    let peer = Peer::Command {
        pause: vec!["/nonexistent/pause".to_owned()],
        resume: sh("true"),
        state: None,
    };
    let daemon = Daemon::with(peer).await;
    daemon.stop().await;
    let status = daemon.until_error("cannot be started").await;
    assert_eq!(status.state, LinkState::Down);
}

/// Whether a process lives, by its number; a zombie does, too.
fn lives(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_with_its_children() {
    let dir = dir("running");
    let pids = dir.path().join("pids");
    let peer = Peer::Command {
        // It prints without end, and so does a child of it.
        pause: sh(format!(
            "(while :; do echo child; sleep 0.01; done) & echo $$ $! > {0}.new; mv {0}.new {0}; \
             while :; do echo noise; sleep 0.01; done",
            pids.display()
        )),
        resume: sh("true"),
        state: None,
    };
    let daemon = Daemon::with(peer).await;
    daemon.stop().await;
    let first = wait("start", || std::fs::read_to_string(&pids).ok()).await;
    daemon.until_error("was killed").await;
    for pid in first.split_whitespace() {
        wait("end", || (!lives(pid)).then_some(())).await;
    }
    // The next attempt is ended with the link.
    std::fs::remove_file(&pids).expect("pids");
    let second = wait("start", || std::fs::read_to_string(&pids).ok()).await;
    daemon.link.close().await;
    for pid in second.split_whitespace() {
        wait("end", || (!lives(pid)).then_some(())).await;
    }
}

/// A command that leaves somebody behind who keeps its output open has ended all the same.
#[tokio::test]
async fn a_command_that_leaves_a_child_behind_is_not_waited_for() {
    let peer = Peer::Command {
        pause: sh("sleep 3 & exit 0"),
        resume: sh("true"),
        state: None,
    };
    let daemon = Daemon::with(peer).await;
    daemon.stop().await;
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
}

#[tokio::test]
async fn options_that_lead_to_nothing() {
    let (control, _task) = block::control();
    let start = |peer| {
        let id = "vm0".to_owned();
        Link::start(LinkConfig { id, peer }, control.clone(), false)
    };
    let commands = |pause: &[&str], state: Option<&[&str]>| {
        let list = |argv: &[&str]| argv.iter().map(|&a| a.to_owned()).collect::<Vec<_>>();
        Peer::Command {
            pause: list(pause),
            resume: list(&["true"]),
            state: state.map(list),
        }
    };
    for (peer, option) in [
        (commands(&[], None), "pause"),
        (commands(&["", "x"], None), "pause"),
        (commands(&["true"], Some(&[])), "state"),
    ] {
        match start(peer) {
            Err(StartError::NoProgram { option: named, .. }) => assert_eq!(named, option),
            other => panic!("{other:?}"),
        }
    }
    for path in [String::new(), format!("/{}", "x".repeat(107))] {
        let peer = Peer::Qemu { path: path.into() };
        assert!(matches!(start(peer), Err(StartError::Path { .. })));
    }
}
