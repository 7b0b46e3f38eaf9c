//! Run control: the run state, the I/O status of every backend, and what `stop` and `cont` do.
//!
//! Pure: takes one message at a time, applies it and says by [`Effects`] what has to be told to
//! whom, in that order. [`mod@crate::control::task`] runs it as a task; the model test runs it among
//! imagined iothreads.
//!
//! The order within a failure is what management software relies on: latch, event, then the run
//! state and `STOP`. Queries read this very state, between messages. Whoever saw the event and asks,
//! sees the status; `STOP` never precedes its cause.

mod backend;
pub mod clock;
mod devices;
mod held;
mod incidents;
mod message;
mod report_limit;
#[cfg(test)]
mod tests;
mod unclaimed;

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use crate::persist::saved::SavedState;
use crate::words::error_policy::Policy;
use crate::words::event::{Event, EventKind};
use crate::words::hold_scope::HoldScope;
use crate::words::ids::BackendId;
use crate::words::incident::HoldEnd;
use crate::words::run_state::RunState;
use crate::words::vm::{VmOrder, VmPause};
use crate::words::write_cache::WriteCache;

use self::clock::{Clock, Due, Timer};
use self::report_limit::Offered;
use self::unclaimed::Unclaimed;

pub use self::backend::{BackendConfig, BackendState};
pub use self::message::{
    BusyPart, BusyRequest, Effects, Failed, GateMessage, LocalMessage, Reported, Resolved, Restored,
};
pub use self::report_limit::REPORT_INTERVAL;
pub use self::unclaimed::{LeftOver, UNCLAIMED_MAX};

/// Why run control refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `cont` has an unmet precondition; nothing was changed.
    #[error("{0}")]
    Blocked(String),
    /// The daemon ends.
    #[error("The daemon is shutting down")]
    ShuttingDown,
    /// No such backend.
    #[error("Export '{0}' is not found")]
    NotFound(String),
    /// `x-block-export-cont` is for exports that freeze alone.
    #[error(
        "Export '{0}' has hold-scope=vm: its requests go on with 'cont', together with all others"
    )]
    ScopeIsVm(String),
}

/// The state machine.
#[derive(Debug, Default)]
pub struct RunControl {
    state: RunState,
    epoch: u64,
    last_id: u64,
    backends: BTreeMap<BackendId, BackendState>,
    /// The state when the daemon began to end, and what has failed since then.
    ended_in: RunState,
    unclaimed: Unclaimed,
    vm_pause: VmPause,
    /// The state has been other than running since a former daemon's time.
    inherited: bool,
    revision: u64,
    clock: Clock,
}

impl RunControl {
    /// Running, with no backend.
    pub fn new() -> Self {
        Self::default()
    }

    /// The run state.
    pub fn state(&self) -> RunState {
        self.state
    }

    /// Number of the latest freeze or release.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Changes whenever something does that is to be saved ([`Self::save`]).
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Something has changed that is to be saved, and that others know: what nodes have lost.
    pub fn touch(&mut self) {
        self.revision += 1;
    }

    /// Who has paused the VM, as its link noted, or the link of a former daemon.
    pub fn vm_pause(&self) -> VmPause {
        self.vm_pause
    }

    /// Whether a former daemon has left `running`, and nobody has come back to it since: if the VM
    /// is paused then, that daemon's link may have done it.
    pub fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// The link has found out who has paused the VM.
    pub fn note_vm_pause(&mut self, by: VmPause) {
        if self.vm_pause != by {
            self.vm_pause = by;
            self.revision += 1;
        }
    }

    /// What the next daemon has to know, of what run control knows.
    pub fn save(&self) -> SavedState {
        SavedState {
            run_state: match self.state {
                RunState::Shutdown => self.ended_in,
                other => other,
            },
            backends: self.backends.values().map(BackendState::save).collect(),
            unclaimed: self.unclaimed.all().to_vec(),
            losses: Vec::new(),
            vm_pause: self.vm_pause,
        }
    }

    /// Every backend, in the order of creation.
    pub fn backends(&self) -> impl Iterator<Item = (BackendId, &BackendState)> {
        self.backends.iter().map(|(&id, backend)| (id, backend))
    }

    /// One backend.
    pub fn backend(&self, id: BackendId) -> Option<&BackendState> {
        self.backends.get(&id)
    }

    /// The backend of an export.
    pub fn find(&self, device: &str) -> Option<BackendId> {
        self.backends
            .iter()
            .find(|(_, b)| &*b.config().device == device)
            .map(|(&id, _)| id)
    }

    /// Changes the error policy of a backend.
    pub fn set_policy(&mut self, backend: BackendId, policy: Policy, fx: &mut impl Effects) {
        if let Some(state) = self.backends.get_mut(&backend) {
            state.set_policy(policy, fx);
        }
    }

    /// The guest has been told, or has chosen, whether there is a write cache. No reset changes it.
    pub fn set_write_cache(&mut self, backend: BackendId, write_cache: WriteCache) {
        if let Some(state) = self.backends.get_mut(&backend)
            && state.set_write_cache(write_cache)
        {
            self.revision += 1;
        }
    }

    /// Completes the held flushes of a backend with an error.
    pub fn fail_held_flushes(&mut self, backend: BackendId, fx: &mut impl Effects) {
        if let Some(state) = self.backends.get(&backend) {
            state.post(GateMessage::FailHeldFlushes, fx);
        }
    }

    /// A request is held.
    pub fn failed(&mut self, failed: &Failed, fx: &mut impl Effects) {
        let Some(backend) = self.backends.get_mut(&failed.backend) else {
            return;
        };
        let Some(kind) = backend.failed(failed) else {
            return;
        };
        self.revision += 1;
        fx.event(Event {
            at: failed.at,
            kind,
        });
        match backend.config().scope {
            HoldScope::Request => {}
            HoldScope::Device => backend.freeze_others(failed.local, &mut self.epoch, fx),
            HoldScope::Vm => {
                if self.state == RunState::Running {
                    self.halt(RunState::IoError, fx);
                } else if (self.state, self.ended_in) == (RunState::Shutdown, RunState::Running) {
                    // It was in flight when the daemon began to end.
                    self.ended_in = RunState::IoError;
                }
            }
        }
    }

    /// A request was reported or ignored. The event comes now or, if there has been one a short time
    /// ago, with [`Self::wake`].
    pub fn reported(&mut self, reported: &Reported, now: Instant, fx: &mut impl Effects) {
        let Some(backend) = self.backends.get_mut(&reported.backend) else {
            return;
        };
        let Some(offered) = backend.reported(reported, now) else {
            return;
        };
        self.revision += 1;
        if offered == Offered::Now {
            backend.tell(reported, fx);
        }
        let due = backend.report_due();
        self.clock.set(reported.backend, Timer::Report, due);
    }

    /// `number` more failures of a backend were reported or ignored, of which nobody is told.
    pub fn left_out(&mut self, backend: BackendId, number: u64) {
        if let Some(backend) = self.backends.get(&backend) {
            backend.accounting().merged(number);
        }
    }

    /// When [`Self::wake`] is to be called, if nothing happens before.
    pub fn wake_at(&self) -> Option<Instant> {
        self.clock.wake_at()
    }

    /// It is `now`: does what is due. To call it too early, or without need, has no effect.
    pub fn wake(&mut self, now: Instant, fx: &mut impl Effects) {
        for due in self.clock.due(now) {
            if self.clock.take(due) {
                self.handle(due, now, fx);
            }
        }
    }

    fn handle(&mut self, due: Due, now: Instant, fx: &mut impl Effects) {
        let Some(backend) = self.backends.get_mut(&due.backend) else {
            return;
        };
        match due.timer {
            Timer::Report => {
                backend.tell_due(now, fx);
                self.clock.set(due.backend, due.timer, backend.report_due());
            }
            // For policies that act by themselves on what is held. `cont` alone does so far, and
            // nobody sets these.
            Timer::Deadline | Timer::Retry | Timer::Probe => {}
        }
    }

    /// A client of a former daemon has handed a request back. It is as good as held: it may have
    /// been, and while all is frozen it waits for `cont`. No event: it has not failed here.
    pub fn restored(&mut self, restored: &Restored) {
        if let Some(backend) = self.backends.get_mut(&restored.backend) {
            backend.restored(restored);
        }
    }

    /// A request that was held has been completed or dropped.
    pub fn resolved(&mut self, resolved: Resolved, fx: &mut impl Effects) {
        let Some(backend) = self.backends.get_mut(&resolved.backend) else {
            return;
        };
        if resolved.generation == backend.generation() {
            let place = (resolved.local, resolved.order);
            backend.held_mut().resolved(place);
            backend.thaw_if_nothing_held(&mut self.epoch, fx);
            self.gone(resolved.backend, resolved.end, fx);
        }
    }

    /// `stop`: no effect unless running.
    pub fn stop(&mut self, fx: &mut impl Effects) -> Result<(), Refusal> {
        match self.state {
            RunState::Running => self.halt(RunState::Paused, fx),
            RunState::Paused | RunState::IoError => {}
            RunState::Shutdown => return Err(Refusal::ShuttingDown),
        }
        Ok(())
    }

    /// `cont`: resets every status, goes back to running and releases every failure processed so
    /// far, whether or not the run state changes. `blocker` is why a node refuses, if one does:
    /// then nothing changes. `force`: the VM is resumed even if somebody else has paused it.
    pub fn cont(
        &mut self,
        blocker: Option<String>,
        force: bool,
        fx: &mut impl Effects,
    ) -> Result<(), Refusal> {
        if self.state == RunState::Shutdown {
            return Err(Refusal::ShuttingDown);
        }
        if let Some(reason) = blocker {
            return Err(Refusal::Blocked(reason));
        }
        let ids: Vec<_> = self.backends.keys().copied().collect();
        for id in ids {
            self.release(id, fx);
        }
        self.release_unclaimed(fx);
        if self.state != RunState::Running {
            self.resume(fx);
        }
        self.release_all(fx);
        fx.vm(VmOrder::Resume { force });
        self.revision += 1;
        Ok(())
    }

    fn resume(&mut self, fx: &mut impl Effects) {
        self.state = RunState::Running;
        self.inherited = false;
        self.revision += 1;
        fx.event(Event {
            at: SystemTime::now(),
            kind: EventKind::Resume,
        });
    }

    fn release_all(&mut self, fx: &mut impl Effects) {
        self.epoch += 1;
        let epoch = self.epoch;
        for backend in self.backends.values() {
            backend.post_release(|upto| GateMessage::Release { epoch, upto }, fx);
        }
    }

    /// `x-block-export-cont`: as [`Self::cont`], for one backend whose scope is not `vm`. Under a
    /// `stop` its requests go on with the next `cont`.
    pub fn cont_backend(
        &mut self,
        device: &str,
        blocker: Option<String>,
        fx: &mut impl Effects,
    ) -> Result<(), Refusal> {
        if self.state == RunState::Shutdown {
            return Err(Refusal::ShuttingDown);
        }
        let Some(id) = self.find(device) else {
            return Err(Refusal::NotFound(device.to_owned()));
        };
        if self.backends[&id].config().scope == HoldScope::Vm {
            return Err(Refusal::ScopeIsVm(device.to_owned()));
        }
        if let Some(reason) = blocker {
            return Err(Refusal::Blocked(reason));
        }
        self.release(id, fx);
        self.revision += 1;
        self.epoch += 1;
        let epoch = self.epoch;
        self.backends[&id].post_release(|upto| GateMessage::ReleaseBackend { epoch, upto }, fx);
        Ok(())
    }

    /// Of one backend all goes on, with its status reset.
    fn release(&mut self, id: BackendId, fx: &mut impl Effects) {
        if let Some(backend) = self.backends.get_mut(&id) {
            backend.reset_status();
            backend.release();
            self.gone(id, HoldEnd::NotAwaited, fx);
        }
    }

    /// The daemon ends: nothing new is started; what is held stays as it is. No `STOP`, as in
    /// QEMU. A second call has no effect.
    pub fn shutdown(&mut self, reason: &'static str, fx: &mut impl Effects) {
        if self.state != RunState::Shutdown {
            self.ended_in = self.state;
            self.state = RunState::Shutdown;
            self.revision += 1;
            fx.event(Event {
                at: SystemTime::now(),
                kind: EventKind::Shutdown { reason },
            });
            self.freeze_all(fx);
        }
    }

    fn halt(&mut self, state: RunState, fx: &mut impl Effects) {
        self.state = state;
        self.revision += 1;
        fx.event(Event {
            at: SystemTime::now(),
            kind: EventKind::Stop,
        });
        self.freeze_all(fx);
        fx.vm(VmOrder::Pause);
    }

    fn freeze_all(&mut self, fx: &mut impl Effects) {
        self.epoch += 1;
        for backend in self.backends.values() {
            backend.post(GateMessage::Freeze { epoch: self.epoch }, fx);
        }
    }
}
