//! The kinds of VMM, as the task of a link sees them.

use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::api::Api;
use crate::command::Commands;
use crate::machine::{Action, Answer, Failure, Traits};
use crate::qemu::Qemu;
use crate::report::Report;
use crate::time_limit::TIME_LIMIT;
use crate::{Peer, cloud_hypervisor, firecracker};

/// A VMM.
#[derive(Debug)]
pub(crate) enum Vmm {
    /// It tells by itself what becomes of the VM.
    Qemu(Qemu),
    /// It only answers.
    Mute(Mute),
}

/// VMMs that only answer.
#[derive(Debug)]
pub(crate) enum Mute {
    Api(Api),
    Command(Commands),
}

impl Vmm {
    pub(crate) fn new(peer: &Peer) -> Self {
        Self::Mute(match peer {
            Peer::Qemu { path } => return Self::Qemu(Qemu::new(path.clone())),
            Peer::CloudHypervisor { path } => {
                Mute::Api(Api::new(path.clone(), cloud_hypervisor::DIALECT))
            }
            Peer::Firecracker { path } => Mute::Api(Api::new(path.clone(), firecracker::DIALECT)),
            Peer::Command {
                pause,
                resume,
                state,
            } => Mute::Command(Commands {
                pause: pause.clone(),
                resume: resume.clone(),
                state: state.clone(),
            }),
        })
    }

    pub(crate) fn traits(&self) -> Traits {
        match self {
            Self::Qemu(_) => Traits::default(),
            Self::Mute(Mute::Command(Commands { state: None, .. })) => Traits {
                blind: true,
                polled: false,
            },
            Self::Mute(_) => Traits {
                blind: false,
                polled: true,
            },
        }
    }

    /// Does what comes from `actions`, one after the other, and reports to `reports`. Ends when the
    /// actions do.
    pub(crate) async fn serve(
        self,
        mut actions: mpsc::Receiver<Action>,
        reports: mpsc::Sender<Report>,
    ) {
        let mut mute = match self {
            Self::Qemu(qemu) => return qemu.serve(actions, reports).await,
            Self::Mute(mute) => mute,
        };
        while let Some(action) = actions.recv().await {
            let result = mute.perform(action).await;
            if reports.send(Report::Done(result)).await.is_err() {
                return;
            }
        }
    }
}

impl Mute {
    async fn perform(&mut self, action: Action) -> Result<Answer, Failure> {
        match self {
            Self::Api(api) => timeout(TIME_LIMIT, api.perform(action))
                .await
                .unwrap_or_else(|_| {
                    let seconds = TIME_LIMIT.as_secs();
                    Err(Failure::Lost(api.too_slow(action, seconds)))
                }),
            // It has the limit itself: what is killed is reaped, too.
            Self::Command(commands) => commands.perform(action).await,
        }
    }
}
