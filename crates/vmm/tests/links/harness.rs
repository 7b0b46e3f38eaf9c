//! A daemon's control plane with a link, and how to wait for what it does.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use block::{
    Event, EventKind, LinkStatus, Observer, Registry, RunState, VmLink, VmPause, VmState, control,
};
use parking_lot::Mutex;
use standfast_vmm::{Link, LinkConfig, Peer};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<EventKind>>>);

impl Observer for Log {
    fn event(&self, event: &Event) -> bool {
        let mut log = self.0.lock();
        log.push(event.kind.clone());
        true
    }
}

/// Run control with a link and without storage.
pub struct Daemon {
    pub registry: Arc<Registry>,
    pub link: Arc<Link>,
    log: Log,
}

impl Daemon {
    pub async fn with(peer: Peer) -> Self {
        Self::taking_over(peer, None).await
    }

    /// `before`: the run state was stopped, and this is who had paused the VM.
    pub async fn taking_over(peer: Peer, before: Option<VmPause>) -> Self {
        Self::waiting(peer, before, || true).await
    }

    /// The VM is not resumed before `clients_are_back`.
    pub async fn waiting(
        peer: Peer,
        before: Option<VmPause>,
        clients_are_back: impl Fn() -> bool + Send + 'static,
    ) -> Self {
        let (control, task) = control();
        tokio::spawn(task.run());
        let log = Log::default();
        control.observe(Arc::new(log.clone())).await;
        let (registry, _) = Registry::new(control.clone());
        if let Some(vm_pause) = before {
            let saved = block::SavedState {
                run_state: RunState::IoError,
                vm_pause,
                ..block::SavedState::default()
            };
            registry.restore(saved).await;
        }
        let config = LinkConfig {
            id: "vm0".to_owned(),
            peer,
        };
        let link = Link::start_with_clients(config, control, before.is_some(), clients_are_back)
            .expect("link");
        registry.add_link(link.clone()).await.expect("first link");
        Self {
            registry,
            link,
            log,
        }
    }

    pub async fn stop(&self) {
        self.registry.control().stop().await.expect("stop");
    }

    pub async fn cont(&self, force: bool) {
        self.registry.control().cont(force).await.expect("cont");
    }

    pub fn run_state(&self) -> RunState {
        self.registry.control().read(|run| run.state())
    }

    pub fn saved_pause(&self) -> VmPause {
        self.registry.control().read(|run| run.vm_pause())
    }

    pub fn status(&self) -> LinkStatus {
        self.link.status()
    }

    /// Statuses of the events X_VMM_LINK so far.
    pub fn events(&self) -> Vec<LinkStatus> {
        let log = self.log.0.lock();
        log.iter()
            .filter_map(|kind| match kind {
                EventKind::VmLink { id, status, .. } => {
                    assert_eq!(id, "vm0");
                    Some((**status).clone())
                }
                _ => None,
            })
            .collect()
    }

    /// Waits until the link says so.
    pub async fn until(&self, what: &str, is: impl Fn(&LinkStatus) -> bool) -> LinkStatus {
        wait(what, || {
            let status = self.status();
            is(&status).then_some(status)
        })
        .await
    }

    pub async fn until_vm(&self, vm: VmState, by: VmPause) {
        let what = format!("{vm:?} by {by:?}");
        self.until(&what, |s| {
            s.vm == vm && s.paused_by == by && s.pending.is_none()
        })
        .await;
    }

    /// Waits for an error with this text.
    pub async fn until_error(&self, text: &str) -> LinkStatus {
        self.until(text, |s| s.error.as_ref().is_some_and(|e| e.contains(text)))
            .await
    }
}

/// Waits for what must come.
pub async fn wait<T>(what: &str, mut come: impl FnMut() -> Option<T>) -> T {
    for _ in 0..4000 {
        if let Some(came) = come() {
            return came;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("did not come within 20 s: {what}");
}

/// A directory and the path of a socket in it.
pub fn socket() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("vmm.sock");
    (dir, path)
}

/// A task that ends with the test.
pub struct Task(tokio::task::JoinHandle<()>);

impl Task {
    pub fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
