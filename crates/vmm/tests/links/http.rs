//! Links to Cloud Hypervisor and Firecracker.

use std::path::PathBuf;

use block::{LinkState, RunState, VmLink, VmPause, VmPending, VmState};
use futures_util::future::join_all;
use standfast_vmm::Peer;

use crate::api::{Flavor, Mode, Server};
use crate::harness::{Daemon, socket, wait};

const FLAVORS: [Flavor; 2] = [Flavor::CloudHypervisor, Flavor::Firecracker];

fn peer(flavor: Flavor, path: PathBuf) -> Peer {
    match flavor {
        Flavor::CloudHypervisor => Peer::CloudHypervisor { path },
        Flavor::Firecracker => Peer::Firecracker { path },
    }
}

#[tokio::test]
async fn pause_and_resume() {
    for flavor in FLAVORS {
        let (_dir, path) = socket();
        let server = Server::start(&path, flavor, "Running");
        let daemon = Daemon::with(peer(flavor, path)).await;
        daemon.until_vm(VmState::Running, VmPause::Nobody).await;
        daemon.stop().await;
        daemon.until_vm(VmState::Paused, VmPause::Link).await;
        assert_eq!(server.vm().state, "Paused");
        wait("saved", || {
            (daemon.saved_pause() == VmPause::Link).then_some(())
        })
        .await;
        assert!(daemon.registry.remove_link("vm0").await.is_err(), "in use");
        daemon.cont(false).await;
        assert_eq!(daemon.status().pending, Some(VmPending::Resume));
        daemon.until_vm(VmState::Running, VmPause::Nobody).await;
        assert_eq!(server.vm().state, "Running");
        assert_eq!(daemon.events().len(), 1, "{:?}", daemon.events());
        assert!(matches!(daemon.registry.remove_link("vm0").await, Ok(true)));
    }
}

#[tokio::test]
async fn a_vm_that_is_not_booted_is_left_alone() {
    for (flavor, states) in [
        (
            Flavor::CloudHypervisor,
            &["none", "Created", "Shutdown"][..],
        ),
        (Flavor::Firecracker, &["Not started"]),
    ] {
        for state in states {
            let (_dir, path) = socket();
            let server = Server::start(&path, flavor, state);
            let daemon = Daemon::with(peer(flavor, path)).await;
            daemon.stop().await;
            daemon.until_vm(VmState::Absent, VmPause::Nobody).await;
            // It appears while the order stands.
            server.vm().state = "Running";
            daemon.until_vm(VmState::Paused, VmPause::Link).await;
            assert_eq!(daemon.status().error, None);
            assert_eq!(daemon.run_state(), RunState::Paused);
        }
    }
}

#[tokio::test]
async fn an_administrators_pause_is_respected() {
    for flavor in FLAVORS {
        let (_dir, path) = socket();
        let server = Server::start(&path, flavor, "Paused");
        let daemon = Daemon::with(peer(flavor, path)).await;
        daemon.until_vm(VmState::Paused, VmPause::Other).await;
        assert_eq!(daemon.run_state(), RunState::Running);
        daemon.stop().await;
        daemon.cont(false).await;
        daemon.until_vm(VmState::Paused, VmPause::Other).await;
        // It never pauses what is paused, and resumes it only by force.
        assert_eq!(server.asked("ause"), 0);
        assert_eq!(server.asked("esume"), 0);
        daemon.cont(true).await;
        daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    }
}

#[tokio::test]
async fn a_foreign_resume_is_a_cont() {
    for flavor in FLAVORS {
        let (_dir, path) = socket();
        let server = Server::start(&path, flavor, "Running");
        let daemon = Daemon::with(peer(flavor, path)).await;
        daemon.stop().await;
        daemon.until_vm(VmState::Paused, VmPause::Link).await;
        server.vm().state = "Running";
        wait("cont", || {
            (daemon.run_state() == RunState::Running).then_some(())
        })
        .await;
        daemon.until_vm(VmState::Running, VmPause::Nobody).await;
        assert_eq!(server.asked("esume"), 0);
    }
}

async fn refused(flavor: Flavor, status: u16) {
    let (_dir, path) = socket();
    let server = Server::start(&path, flavor, "Running");
    let daemon = Daemon::with(peer(flavor, path.clone())).await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    server.vm().mode = Mode::Refuse(status);
    daemon.stop().await;
    let status = daemon.until_error("The VM could not do it").await;
    assert_eq!(status.state, LinkState::Connected);
    assert_eq!(status.pending, Some(VmPending::Pause));
    let text = status.error.unwrap_or_default();
    assert!(text.contains(&path.display().to_string()), "{text}");
    wait("retries", || (server.asked("ause") >= 3).then_some(())).await;
    assert_eq!(daemon.events().len(), 2, "{:?}", daemon.events());
    server.vm().mode = Mode::Right;
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
    assert_eq!(daemon.status().error, None);
    wait("event", || (daemon.events().len() == 3).then_some(())).await;
}

#[tokio::test]
async fn refusals_are_told_once_and_tried_again() {
    let cases = FLAVORS.map(|flavor| [404, 405, 500, 302].map(|status| refused(flavor, status)));
    join_all(cases.into_iter().flatten()).await;
}

#[tokio::test]
async fn a_refusal_because_somebody_else_was_first() {
    for flavor in FLAVORS {
        let (_dir, path) = socket();
        let server = Server::start(&path, flavor, "Running");
        let daemon = Daemon::with(peer(flavor, path)).await;
        daemon.until_vm(VmState::Running, VmPause::Nobody).await;
        server.vm().mode = Mode::Overtaken;
        daemon.stop().await;
        daemon.until_vm(VmState::Paused, VmPause::Other).await;
        daemon.until("no error", |s| s.error.is_none()).await;
    }
}

async fn broken(flavor: Flavor, mode: Mode) {
    let (_dir, path) = socket();
    let server = Server::start(&path, flavor, "Running");
    let daemon = Daemon::with(peer(flavor, path.clone())).await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    server.vm().mode = mode;
    let down = daemon.until("down", |s| s.state == LinkState::Down).await;
    let text = down.error.unwrap_or_default();
    assert!(
        text.contains(&path.display().to_string()),
        "{mode:?}: {text}"
    );
    daemon.stop().await;
    assert_eq!(daemon.status().pending, Some(VmPending::Pause), "{mode:?}");
    server.vm().mode = Mode::Right;
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
    assert_eq!(daemon.status().state, LinkState::Connected);
}

#[tokio::test]
async fn broken_answers_take_the_link_down_and_the_state_is_asked_afterwards() {
    let modes = [
        Mode::Half,
        Mode::Close,
        Mode::Garbage,
        Mode::Huge,
        Mode::Nonsense,
    ];
    let cases = FLAVORS.map(|flavor| modes.map(|mode| broken(flavor, mode)));
    join_all(cases.into_iter().flatten()).await;
}

/// The pause is done, but its answer breaks off: it is the link's pause all the same.
#[tokio::test]
async fn a_lost_answer_to_a_pause_that_was_done() {
    for flavor in FLAVORS {
        let (_dir, path) = socket();
        let server = Server::start(&path, flavor, "Running");
        let daemon = Daemon::with(peer(flavor, path)).await;
        daemon.until_vm(VmState::Running, VmPause::Nobody).await;
        daemon.stop().await;
        // From the question before the pause on.
        wait("question or pause", || {
            let mut vm = server.vm();
            if vm.requests.iter().any(|r| r.contains("ause")) {
                return Some(());
            }
            if vm.requests.len() > 1 {
                vm.mode = Mode::Close;
            }
            None
        })
        .await;
        server.vm().mode = Mode::Right;
        daemon.until_vm(VmState::Paused, VmPause::Link).await;
        daemon.cont(false).await;
        daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    }
}

#[tokio::test]
async fn a_silent_vmm_is_given_up_after_the_time_limit() {
    let (_dir, path) = socket();
    let server = Server::start(&path, Flavor::CloudHypervisor, "Running");
    let daemon = Daemon::with(peer(Flavor::CloudHypervisor, path)).await;
    daemon.until_vm(VmState::Running, VmPause::Nobody).await;
    server.vm().mode = Mode::Silent;
    daemon.stop().await;
    let down = daemon.until_error("within 5 s").await;
    assert_eq!(down.state, LinkState::Down);
    assert_eq!(down.pending, Some(VmPending::Pause));
    let refused = daemon.link.reset().await;
    assert!(refused.is_err_and(|why| why.contains("within 5 s")));
    server.vm().mode = Mode::Right;
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
}

#[tokio::test]
async fn reset() {
    let (_dir, path) = socket();
    let server = Server::start(&path, Flavor::CloudHypervisor, "Running");
    let daemon = Daemon::with(peer(Flavor::CloudHypervisor, path)).await;
    assert_eq!(daemon.link.reset().await, Ok(()));
    assert_eq!(server.asked("vm.reboot"), 1);
    server.vm().state = "Created";
    let refused = daemon.link.reset().await;
    assert!(refused.is_err_and(|why| why.contains("vm.reboot") && why.contains("405")));

    let (_dir, path) = socket();
    let _server = Server::start(&path, Flavor::Firecracker, "Running");
    let daemon = Daemon::with(peer(Flavor::Firecracker, path)).await;
    let refused = daemon.link.reset().await;
    assert!(refused.is_err_and(|why| why.contains("no reset")));
}

/// A former daemon's link has paused the VM: this one's `cont` resumes it.
#[tokio::test]
async fn a_pause_is_inherited() {
    for (before, after) in [
        (VmPause::Link, VmPause::Link),
        (VmPause::Nobody, VmPause::Link),
        (VmPause::Other, VmPause::Other),
    ] {
        let (_dir, path) = socket();
        let server = Server::start(&path, Flavor::CloudHypervisor, "Paused");
        let peer = peer(Flavor::CloudHypervisor, path);
        let daemon = Daemon::taking_over(peer, Some(before)).await;
        daemon.until_vm(VmState::Paused, after).await;
        assert_eq!(server.asked("vm.resume"), 0);
        daemon.cont(false).await;
        if after == VmPause::Link {
            daemon.until_vm(VmState::Running, VmPause::Nobody).await;
        } else {
            daemon.until_vm(VmState::Paused, VmPause::Other).await;
            assert_eq!(server.vm().state, "Paused");
        }
    }
}

#[tokio::test]
async fn an_inherited_stop_pauses_a_vm_that_runs() {
    let (_dir, path) = socket();
    let server = Server::start(&path, Flavor::Firecracker, "Running");
    let peer = peer(Flavor::Firecracker, path);
    let daemon = Daemon::taking_over(peer, Some(VmPause::Link)).await;
    daemon.until_vm(VmState::Paused, VmPause::Link).await;
    assert_eq!(server.vm().state, "Paused");
    assert_eq!(daemon.run_state(), RunState::IoError);
}
