//! The kinds of VMM, as the task of a link sees them.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::Peer;
use crate::machine::{Action, Traits};
use crate::qemu::Qemu;
use crate::task::Report;

/// Time limit of one request to a VMM, all that belongs to it included.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(5);

/// A VMM.
#[derive(Debug)]
pub(crate) enum Vmm {
    Qemu(Qemu),
}

impl Vmm {
    /// None: links to VMMs of this kind cannot be made yet.
    pub(crate) fn new(peer: &Peer) -> Option<Self> {
        match peer {
            Peer::Qemu { path } => Some(Self::Qemu(Qemu::new(path.clone()))),
            Peer::CloudHypervisor { .. } | Peer::Firecracker { .. } | Peer::Command { .. } => None,
        }
    }

    pub(crate) fn traits(&self) -> Traits {
        match self {
            Self::Qemu(_) => Traits::default(),
        }
    }

    /// Does what comes from `actions`, one after the other, and reports to `reports`. Ends when the
    /// actions do.
    pub(crate) async fn serve(
        self,
        actions: mpsc::Receiver<Action>,
        reports: mpsc::Sender<Report>,
    ) {
        match self {
            Self::Qemu(qemu) => qemu.serve(actions, reports).await,
        }
    }
}
