//! Run control: the run state, the I/O status of every backend, and what `stop` and `cont` do.
//!
//! Pure: takes one message at a time, applies it and says by [`Effects`] what has to be told to
//! whom, in that order. [`mod@crate::control::task`] runs it as a task; the model test runs it among
//! imagined iothreads.
//!
//! The order within a failure is what management software relies on: latch, event, then the run
//! state and `STOP`. Queries read this very state, between messages. Whoever saw the event and asks,
//! sees the status; `STOP` never precedes its cause.

mod message;
mod report_limit;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Instant, SystemTime};

use crate::control::accounting::Accounting;
use crate::driver::loss::Loss;
use crate::persist::saved::{SavedBackend, SavedState};
use crate::words::error::Cause;
use crate::words::error_policy::{Action, Policy};
use crate::words::event::{BlockIoError, Event, EventKind};
use crate::words::hold_scope::HoldScope;
use crate::words::ids::{BackendId, LocalId};
use crate::words::incident::{ErrorRecord, HeldRecord, Incident};
use crate::words::io_status::{IoStatus, Status};
use crate::words::request::Request;
use crate::words::run_state::RunState;
use crate::words::vm::{VmOrder, VmPause};
use crate::words::write_cache::WriteCache;

use self::report_limit::{Offered, ReportLimit};

pub use self::message::{Effects, Failed, GateMessage, LocalMessage, Reported, Resolved, Restored};
pub use self::report_limit::REPORT_INTERVAL;

/// What a backend is, to run control.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// The export's id: `device` of events.
    pub device: Arc<str>,
    /// The root node.
    pub node: Arc<str>,
    /// Its error policy.
    pub policy: Policy,
    /// What a stop error freezes.
    pub scope: HoldScope,
}

/// What run control knows of a request that has been held and has not ended.
#[derive(Debug)]
struct Known {
    record: HeldRecord,
    /// It waits for a `cont`; no longer once it has been released.
    waits: bool,
}

/// The state of one backend.
#[derive(Debug)]
pub struct BackendState {
    config: BackendConfig,
    io_status: IoStatus,
    generation: u64,
    /// The last failure processed, for each part.
    locals: BTreeMap<LocalId, u64>,
    held: BTreeMap<(LocalId, u64), Known>,
    /// Of `held`, those that wait for a `cont`.
    waiting: usize,
    /// Scope `device`: its parts were told to freeze, because something is held in one of them.
    frozen: bool,
    incident: Option<Incident>,
    incidents: u64,
    first_error: Option<ErrorRecord>,
    last_error: Option<ErrorRecord>,
    stale_failures: u64,
    write_cache: WriteCache,
    /// A former daemon held something of this backend, and its client has not been heard of since:
    /// what it may hand back counts as held.
    awaited: bool,
    reports: ReportLimit,
    accounting: Arc<Accounting>,
    losses_accepted: Arc<AtomicU32>,
}

impl BackendState {
    /// What it is.
    pub fn config(&self) -> &BackendConfig {
        &self.config
    }

    /// The I/O status, if it is enabled.
    pub fn io_status(&self) -> Option<Status> {
        self.io_status
            .is_enabled(self.config.policy)
            .then(|| self.io_status.get())
    }

    /// The value of the latch, enabled or not.
    pub fn raw_io_status(&self) -> Status {
        self.io_status.get()
    }

    /// The generation of the device: counts resets and attachments.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Held requests (also those whose retry has not ended), by iothread, oldest first.
    pub fn held(&self) -> impl ExactSizeIterator<Item = &HeldRecord> {
        self.held.values().map(|known| &known.record)
    }

    /// The incident that goes on.
    pub fn incident(&self) -> Option<&Incident> {
        self.incident.as_ref()
    }

    /// Whether something is held, or may be handed back that a former daemon held.
    pub fn holds(&self) -> bool {
        self.awaited || !self.held.is_empty()
    }

    /// Up to which number losses of its nodes are void for its client.
    pub fn losses_accepted(&self) -> &Arc<AtomicU32> {
        &self.losses_accepted
    }

    /// Where its requests are counted.
    pub fn accounting(&self) -> &Arc<Accounting> {
        &self.accounting
    }

    /// Number of incidents so far.
    pub fn incidents(&self) -> u64 {
        self.incidents
    }

    /// The first error since the status was last reset.
    pub fn first_error(&self) -> Option<&ErrorRecord> {
        self.first_error.as_ref()
    }

    /// The last error.
    pub fn last_error(&self) -> Option<&ErrorRecord> {
        self.last_error.as_ref()
    }

    /// Failures that came from before a reset and were ignored.
    pub fn stale_failures(&self) -> u64 {
        self.stale_failures
    }

    /// Whether the guest believes in a write cache.
    pub fn write_cache(&self) -> WriteCache {
        self.write_cache
    }

    /// The last failure of `local` that was processed.
    pub fn upto(&self, local: LocalId) -> Option<u64> {
        self.locals.get(&local).copied()
    }

    fn reset_status(&mut self) {
        self.io_status.reset();
        self.first_error = None;
    }

    fn forget_held(&mut self) {
        self.held.clear();
        (self.waiting, self.frozen) = (0, false);
        self.awaited = false;
        self.incident = None;
    }

    /// All that is held goes on. What a former daemon held is no longer waited for: whoever comes
    /// back finds it released.
    fn release(&mut self) {
        if self.waiting > 0 {
            for known in self.held.values_mut() {
                known.waits = false;
            }
        }
        (self.waiting, self.frozen) = (0, false);
        self.awaited = false;
        if self.held.is_empty() {
            self.incident = None;
        }
    }

    fn forget(&mut self, place: (LocalId, u64)) {
        if let Some(known) = self.held.remove(&place) {
            self.waiting -= usize::from(known.waits);
        }
    }

    /// Whatever has become of what was held: where nothing waits for a `cont` any more, nothing is
    /// frozen because of it. Called whenever something that was held has gone.
    fn thaw_if_nothing_held(&mut self, epoch: &mut u64, fx: &mut impl Effects) {
        if self.frozen && self.waiting == 0 && !self.awaited {
            self.frozen = false;
            *epoch += 1;
            for &local in self.locals.keys() {
                fx.post(local, GateMessage::ThawBackend { epoch: *epoch });
            }
        }
    }

    fn save(&self) -> SavedBackend {
        SavedBackend {
            device: self.config.device.to_string(),
            node: self.config.node.to_string(),
            io_status: self.io_status,
            incidents: self.incidents,
            incident: self.incident.clone(),
            first_error: self.first_error.clone(),
            last_error: self.last_error.clone(),
            write_cache: self.write_cache,
            losses_accepted: self.losses_accepted.load(Ordering::SeqCst),
            stats: self.accounting.read(),
        }
    }

    fn tell(&self, reported: &Reported, fx: &mut impl Effects) {
        let kind = self.event((reported.action, reported.cause), &reported.request);
        fx.event(Event {
            at: reported.at,
            kind,
        });
    }

    fn event(&self, kind: (Action, Cause), request: &Request) -> EventKind {
        let (action, cause) = kind;
        EventKind::BlockIoError(Box::new(BlockIoError {
            device: self.config.device.to_string(),
            node_name: self.config.node.to_string(),
            direction: request.op.direction(),
            action,
            status_enabled: self.io_status.is_enabled(self.config.policy),
            io_status: self.io_status.get(),
            cause,
            operation: request.op,
            offset: request.offset,
            bytes: request.bytes,
            incident: match action {
                Action::Stop => self.incident.as_ref().map(|incident| incident.number),
                Action::Ignore | Action::Report => None,
            },
        }))
    }
}

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
    /// Saved by a former daemon, for exports that do not exist yet.
    saved: Vec<SavedBackend>,
    vm_pause: VmPause,
    /// The state has been other than running since a former daemon's time.
    inherited: bool,
    revision: u64,
    /// When the first of the events that wait is due.
    report_due: Option<Instant>,
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
        let backends = self.backends.values().map(BackendState::save);
        SavedState {
            run_state: match self.state {
                RunState::Shutdown => self.ended_in,
                other => other,
            },
            backends: backends.chain(self.saved.iter().cloned()).collect(),
            losses: Vec::new(),
            vm_pause: self.vm_pause,
        }
    }

    /// Goes on where a former daemon was. Called first of all: backends that are added from now on
    /// find their state by export id and node name.
    pub fn restore(&mut self, saved: SavedState) {
        self.state = saved.run_state;
        self.inherited = saved.run_state != RunState::Running;
        self.saved = saved.backends;
        self.vm_pause = saved.vm_pause;
    }

    /// All exports are there: what is saved of any other is forgotten. Returns their ids.
    pub fn forget_unclaimed(&mut self) -> Vec<String> {
        let unclaimed: Vec<_> = self.saved.drain(..).map(|saved| saved.device).collect();
        self.revision += u64::from(!unclaimed.is_empty());
        unclaimed
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
            .find(|(_, b)| &*b.config.device == device)
            .map(|(&id, _)| id)
    }

    /// Takes a backend in, as a former daemon has left it if it did; else its I/O status is disabled
    /// until [`Self::attach`].
    pub fn add_backend(&mut self, config: BackendConfig) -> BackendId {
        self.last_id += 1;
        let id = BackendId(self.last_id);
        let same =
            |saved: &SavedBackend| *saved.device == *config.device && *saved.node == *config.node;
        let saved = match self.saved.iter().position(same) {
            Some(index) => self.saved.remove(index),
            None => SavedBackend::default(),
        };
        let backend = BackendState {
            io_status: saved.io_status,
            generation: 0,
            locals: BTreeMap::new(),
            held: BTreeMap::new(),
            waiting: 0,
            // A former daemon held something here, which froze it.
            frozen: config.scope == HoldScope::Device && saved.incident.is_some(),
            config,
            awaited: saved.incident.is_some(),
            incident: saved.incident,
            incidents: saved.incidents,
            first_error: saved.first_error,
            last_error: saved.last_error,
            write_cache: saved.write_cache,
            stale_failures: 0,
            reports: ReportLimit::default(),
            // A loss that is still to come counts in any case.
            losses_accepted: Arc::new(AtomicU32::new(saved.losses_accepted.min(Loss::last()))),
            accounting: Arc::new(Accounting::starting_from(saved.stats)),
        };
        self.backends.insert(id, backend);
        self.revision += 1;
        id
    }

    /// A backend's part on an iothread starts; messages posted to it arrive from now on. A gate
    /// begins frozen: this tells it how things are.
    pub fn add_local(
        &mut self,
        backend: BackendId,
        local: LocalId,
        fx: &mut impl Effects,
    ) -> Result<(), Refusal> {
        let Some(state) = self.backends.get_mut(&backend) else {
            return Err(Refusal::NotFound(format!("#{}", backend.0)));
        };
        state.locals.insert(local, 0);
        fx.post(
            local,
            GateMessage::Reset {
                generation: state.generation,
            },
        );
        fx.post(local, GateMessage::SetPolicy(state.config.policy));
        self.epoch += 1;
        let epoch = self.epoch;
        fx.post(
            local,
            match self.state {
                RunState::Running => GateMessage::Release { epoch, upto: 0 },
                RunState::Paused | RunState::IoError | RunState::Shutdown => {
                    GateMessage::Freeze { epoch }
                }
            },
        );
        if state.frozen {
            self.epoch += 1;
            fx.post(local, GateMessage::FreezeBackend { epoch: self.epoch });
        }
        Ok(())
    }

    /// A backend's part on an iothread has ended.
    pub fn remove_local(&mut self, backend: BackendId, local: LocalId, fx: &mut impl Effects) {
        if let Some(state) = self.backends.get_mut(&backend) {
            state.locals.remove(&local);
            state.held.retain(|&(of, _), _| of != local);
            state.waiting = state.held.values().filter(|known| known.waits).count();
            if !state.holds() {
                state.incident = None;
            }
            state.thaw_if_nothing_held(&mut self.epoch, fx);
            self.revision += 1;
        }
    }

    /// A device attaches, or a client with a fresh life of the device: the status is enabled and
    /// reset, what was held is dropped. Returns the new generation.
    ///
    /// If that leaves the run state `io-error` with nothing held anywhere, it is `running` again:
    /// there is nothing that a `cont` could be needed for, and the new client would wait for it.
    pub fn attach(&mut self, backend: BackendId, fx: &mut impl Effects) -> Option<u64> {
        let generation = self.begin_life(backend, fx)?;
        if self.state == RunState::IoError && !self.backends.values().any(BackendState::holds) {
            self.resume(fx);
            self.release_all(fx);
            fx.vm(VmOrder::Resume { force: false });
        }
        Some(generation)
    }

    /// The client resets its device and stays: what was held is dropped, the status reset. The run
    /// state is left alone: a guest that is reset while the VM is stopped stays stopped until
    /// `cont`, as in QEMU. Returns the new generation.
    pub fn reset_device(&mut self, backend: BackendId, fx: &mut impl Effects) -> Option<u64> {
        self.begin_life(backend, fx)
    }

    /// The first client of this process hands its inflight region back: it goes on with the life of
    /// the device that a former daemon served. The status is enabled and what is known stays.
    pub fn reattach(&mut self, backend: BackendId) {
        if let Some(state) = self.backends.get_mut(&backend) {
            state.io_status.enable_again();
            self.revision += 1;
        }
    }

    fn begin_life(&mut self, backend: BackendId, fx: &mut impl Effects) -> Option<u64> {
        let state = self.backends.get_mut(&backend)?;
        state.io_status.enable();
        state.first_error = None;
        self.abandon(backend, fx)
    }

    /// Nobody is there any more who could ask for what is held, or hand it back: it is dropped.
    /// Returns the new generation.
    pub fn abandon(&mut self, backend: BackendId, fx: &mut impl Effects) -> Option<u64> {
        let state = self.backends.get_mut(&backend)?;
        state.generation += 1;
        state.forget_held();
        state.accounting.merged(state.reports.forget());
        let generation = state.generation;
        for &local in state.locals.keys() {
            fx.post(local, GateMessage::Reset { generation });
        }
        self.revision += 1;
        Some(generation)
    }

    /// The device is gone: what was held is dropped, the status is disabled.
    pub fn detach(&mut self, backend: BackendId, fx: &mut impl Effects) {
        self.begin_life(backend, fx);
        if let Some(state) = self.backends.get_mut(&backend) {
            state.io_status.disable();
        }
    }

    /// Forgets a backend. Its parts must have ended, or are told to by [`Self::detach`] before.
    pub fn remove_backend(&mut self, backend: BackendId) {
        self.backends.remove(&backend);
        self.revision += 1;
    }

    /// Changes the error policy of a backend.
    pub fn set_policy(&mut self, backend: BackendId, policy: Policy, fx: &mut impl Effects) {
        if let Some(state) = self.backends.get_mut(&backend) {
            state.config.policy = policy;
            for &local in state.locals.keys() {
                fx.post(local, GateMessage::SetPolicy(policy));
            }
        }
    }

    /// The guest has been told, or has chosen, whether there is a write cache. No reset changes it.
    pub fn set_write_cache(&mut self, backend: BackendId, write_cache: WriteCache) {
        if let Some(state) = self.backends.get_mut(&backend)
            && std::mem::replace(&mut state.write_cache, write_cache) != write_cache
        {
            self.revision += 1;
        }
    }

    /// Completes the held flushes of a backend with an error.
    pub fn fail_held_flushes(&mut self, backend: BackendId, fx: &mut impl Effects) {
        if let Some(state) = self.backends.get(&backend) {
            for &local in state.locals.keys() {
                fx.post(local, GateMessage::FailHeldFlushes);
            }
        }
    }

    /// A request is held.
    pub fn failed(&mut self, failed: &Failed, fx: &mut impl Effects) {
        let Some(backend) = self.backends.get_mut(&failed.backend) else {
            return;
        };
        if failed.generation != backend.generation {
            backend.stale_failures += 1;
            return;
        }
        let Some(upto) = backend.locals.get_mut(&failed.local) else {
            return;
        };
        *upto = failed.seq;
        self.revision += 1;
        backend.io_status.set_err(failed.cause);
        let error = ErrorRecord {
            cause: failed.cause,
            request: failed.request,
            at: failed.at,
        };
        backend.first_error.get_or_insert_with(|| error.clone());
        backend.last_error = Some(error);
        if backend.incident.is_none() {
            backend.incidents += 1;
            backend.incident = Some(Incident {
                number: backend.incidents,
                since: failed.at,
                cause: Some(failed.cause),
            });
        }
        let known = backend
            .held
            .entry((failed.local, failed.order))
            .or_insert(Known {
                record: HeldRecord {
                    request: failed.request,
                    cause: None,
                    since: failed.at,
                    attempts: 0,
                },
                waits: false,
            });
        known.record.cause = Some(failed.cause);
        known.record.attempts += 1;
        backend.waiting += usize::from(!std::mem::replace(&mut known.waits, true));

        let kind = backend.event((Action::Stop, failed.cause), &failed.request);
        fx.event(Event {
            at: failed.at,
            kind,
        });
        match backend.config.scope {
            HoldScope::Request => {}
            HoldScope::Device => {
                backend.frozen = true;
                // The failing part froze itself; the others of the same backend have to be told.
                if backend.locals.len() > 1 {
                    self.epoch += 1;
                    for &local in backend
                        .locals
                        .keys()
                        .filter(|&&local| local != failed.local)
                    {
                        fx.post(local, GateMessage::FreezeBackend { epoch: self.epoch });
                    }
                }
            }
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
    /// ago, with [`Self::tick`].
    pub fn reported(&mut self, reported: &Reported, now: Instant, fx: &mut impl Effects) {
        let Some(backend) = self.backends.get_mut(&reported.backend) else {
            return;
        };
        if reported.generation != backend.generation {
            backend.stale_failures += 1;
            return;
        }
        self.revision += 1;
        backend.last_error = Some(ErrorRecord {
            cause: reported.cause,
            request: reported.request,
            at: reported.at,
        });
        let (offered, merged) = backend.reports.offer(reported, now);
        backend.accounting.merged(merged);
        match offered {
            Offered::Now => backend.tell(reported, fx),
            Offered::Later(due) => {
                let first = self.report_due.map_or(due, |known| known.min(due));
                self.report_due = Some(first);
            }
        }
    }

    /// `number` more failures of a backend were reported or ignored, of which nobody is told.
    pub fn left_out(&mut self, backend: BackendId, number: u64) {
        if let Some(backend) = self.backends.get(&backend) {
            backend.accounting.merged(number);
        }
    }

    /// When [`Self::tick`] is to be called.
    pub fn next_tick(&self) -> Option<Instant> {
        self.report_due
    }

    /// Sends the events whose time has come.
    pub fn tick(&mut self, now: Instant, fx: &mut impl Effects) {
        self.report_due = None;
        for backend in self.backends.values_mut() {
            if let Some(reported) = backend.reports.take_due(now) {
                backend.tell(&reported, fx);
            }
            self.report_due = match (self.report_due, backend.reports.due()) {
                (Some(first), Some(due)) => Some(first.min(due)),
                (first, due) => first.or(due),
            };
        }
    }

    /// A client of a former daemon has handed a request back. It is as good as held: it may have
    /// been, and while all is frozen it waits for `cont`. No event: it has not failed here.
    pub fn restored(&mut self, restored: &Restored) {
        let Some(backend) = self.backends.get_mut(&restored.backend) else {
            return;
        };
        let known = backend.locals.contains_key(&restored.local);
        if known && restored.generation == backend.generation {
            let known = Known {
                record: HeldRecord {
                    request: restored.request,
                    cause: None,
                    since: restored.at,
                    attempts: 0,
                },
                waits: backend.awaited,
            };
            backend.waiting += usize::from(known.waits);
            let place = (restored.local, restored.order);
            backend.held.insert(place, known);
        }
    }

    /// A request that was held has been completed or dropped.
    pub fn resolved(&mut self, resolved: Resolved, fx: &mut impl Effects) {
        let Some(backend) = self.backends.get_mut(&resolved.backend) else {
            return;
        };
        if resolved.generation == backend.generation {
            backend.forget((resolved.local, resolved.order));
            if backend.held.is_empty() {
                // Of what a former daemon held, all has been handed back by now.
                backend.awaited = false;
                self.revision += u64::from(backend.incident.take().is_some());
            }
            backend.thaw_if_nothing_held(&mut self.epoch, fx);
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
        for backend in self.backends.values_mut() {
            backend.reset_status();
            backend.release();
        }
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
            for (&local, &upto) in &backend.locals {
                fx.post(local, GateMessage::Release { epoch, upto });
            }
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
        let backend = self
            .backends
            .values_mut()
            .find(|backend| &*backend.config.device == device)
            .ok_or_else(|| Refusal::NotFound(device.to_owned()))?;
        if backend.config.scope == HoldScope::Vm {
            return Err(Refusal::ScopeIsVm(device.to_owned()));
        }
        if let Some(reason) = blocker {
            return Err(Refusal::Blocked(reason));
        }
        backend.reset_status();
        backend.release();
        self.revision += 1;
        self.epoch += 1;
        for (&local, &upto) in &backend.locals {
            fx.post(
                local,
                GateMessage::ReleaseBackend {
                    epoch: self.epoch,
                    upto,
                },
            );
        }
        Ok(())
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
            for &local in backend.locals.keys() {
                fx.post(local, GateMessage::Freeze { epoch: self.epoch });
            }
        }
    }
}
