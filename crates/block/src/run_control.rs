//! Run control: the run state, the I/O status of every backend, and what `stop` and `cont` do.
//!
//! Pure: takes one message at a time, applies it and says by [`Effects`] what has to be told to
//! whom, in that order. [`crate::control`] runs it as a task; the model test runs it among
//! imagined iothreads.
//!
//! The order within a failure is what management software relies on: latch, event, then the run
//! state and `STOP`. Queries read this very state, between messages. Whoever saw the event and asks, sees the status; `STOP` never precedes
//! its cause.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use crate::error::Cause;
use crate::error_policy::{Action, Policy};
use crate::event::{BlockIoError, Event, EventKind};
use crate::gate::HoldScope;
use crate::io_status::{IoStatus, Status};
use crate::request::Request;

/// Identifies a backend; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(pub u64);

/// Identifies a backend's part on one iothread; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalId(pub u64);

/// The run state (QEMU's `RunState`, as far as a daemon has it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum RunState {
    /// Requests are executed.
    #[default]
    Running,
    /// Stopped by `stop`.
    Paused,
    /// Stopped by an error of a backend whose hold scope is `vm`.
    IoError,
    /// The daemon ends.
    Shutdown,
}

impl RunState {
    /// QEMU's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::IoError => "io-error",
            Self::Shutdown => "shutdown",
        }
    }
}

/// A request failed under action *stop* and is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Whose.
    pub backend: BackendId,
    /// Where.
    pub local: LocalId,
    /// The generation of the device it belongs to.
    pub generation: u64,
    /// Number of the failure within backend and iothread, from 1, without gaps.
    pub seq: u64,
    /// Arrival number of the request within backend and iothread.
    pub order: u64,
    /// The request.
    pub request: Request,
    /// Why.
    pub cause: Cause,
    /// When.
    pub at: SystemTime,
}

/// A request failed and policy reported or ignored it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Whose.
    pub backend: BackendId,
    /// The generation of the device it belongs to.
    pub generation: u64,
    /// The request.
    pub request: Request,
    /// What was done: report or ignore.
    pub action: Action,
    /// Why.
    pub cause: Cause,
    /// When.
    pub at: SystemTime,
}

/// A request that was held has been completed or dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Whose.
    pub backend: BackendId,
    /// Where.
    pub local: LocalId,
    /// The generation of the device it belongs to.
    pub generation: u64,
    /// Its arrival number.
    pub order: u64,
}

/// What run control tells a backend's part on an iothread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateMessage {
    /// All backends freeze.
    Freeze {
        /// Its number.
        epoch: u64,
    },
    /// This backend freezes: it failed on another iothread.
    FreezeBackend {
        /// Its number.
        epoch: u64,
    },
    /// All backends go on; failures up to `upto` are retried.
    Release {
        /// Its number.
        epoch: u64,
        /// The last failure that run control has processed.
        upto: u64,
    },
    /// This backend goes on.
    ReleaseBackend {
        /// Its number.
        epoch: u64,
        /// The last failure that run control has processed.
        upto: u64,
    },
    /// The device was reset.
    Reset {
        /// The new generation.
        generation: u64,
    },
    /// A new error policy.
    SetPolicy(Policy),
    /// Complete held flushes with an error.
    FailHeldFlushes,
}

/// What run control causes outside itself, in the order it is called.
pub trait Effects {
    /// An event for every observer.
    fn event(&mut self, event: Event);
    /// A message for one backend's part on one iothread; FIFO.
    fn post(&mut self, local: LocalId, message: GateMessage);
}

/// The first or last error of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorRecord {
    /// Why.
    pub cause: Cause,
    /// Which request.
    pub request: Request,
    /// When.
    pub at: SystemTime,
}

/// A held request, as queries show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRecord {
    /// The request.
    pub request: Request,
    /// Why, the last time it failed.
    pub cause: Cause,
    /// When it failed first.
    pub since: SystemTime,
    /// How often it has failed.
    pub attempts: u64,
}

/// From a backend's first *stop* error until all it held has been completed or dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// Its number, from 1.
    pub number: u64,
    /// When it began.
    pub since: SystemTime,
}

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

/// The state of one backend.
#[derive(Debug)]
pub struct BackendState {
    config: BackendConfig,
    io_status: IoStatus,
    generation: u64,
    /// The last failure processed, for each part.
    locals: BTreeMap<LocalId, u64>,
    held: BTreeMap<(LocalId, u64), HeldRecord>,
    incident: Option<Incident>,
    incidents: u64,
    first_error: Option<ErrorRecord>,
    last_error: Option<ErrorRecord>,
    stale_failures: u64,
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
        self.held.values()
    }

    /// The incident that goes on.
    pub fn incident(&self) -> Option<&Incident> {
        self.incident.as_ref()
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
        self.incident = None;
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

    /// Takes a backend in; its I/O status is disabled until [`Self::attach`].
    pub fn add_backend(&mut self, config: BackendConfig) -> BackendId {
        self.last_id += 1;
        let id = BackendId(self.last_id);
        let backend = BackendState {
            config,
            io_status: IoStatus::default(),
            generation: 0,
            locals: BTreeMap::new(),
            held: BTreeMap::new(),
            incident: None,
            incidents: 0,
            first_error: None,
            last_error: None,
            stale_failures: 0,
        };
        self.backends.insert(id, backend);
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
        Ok(())
    }

    /// A backend's part on an iothread has ended.
    pub fn remove_local(&mut self, backend: BackendId, local: LocalId) {
        if let Some(state) = self.backends.get_mut(&backend) {
            state.locals.remove(&local);
            state.held.retain(|&(of, _), _| of != local);
            if state.held.is_empty() {
                state.incident = None;
            }
        }
    }

    /// A device attaches, or a client with a fresh life of the device: the status is enabled and
    /// reset, what was held is dropped. Returns the new generation.
    pub fn attach(&mut self, backend: BackendId, fx: &mut impl Effects) -> Option<u64> {
        let state = self.backends.get_mut(&backend)?;
        state.io_status.enable();
        state.first_error = None;
        state.generation += 1;
        state.forget_held();
        let generation = state.generation;
        for &local in state.locals.keys() {
            fx.post(local, GateMessage::Reset { generation });
        }
        Some(generation)
    }

    /// The device is gone: what was held is dropped, the status is disabled.
    pub fn detach(&mut self, backend: BackendId, fx: &mut impl Effects) {
        self.attach(backend, fx);
        if let Some(state) = self.backends.get_mut(&backend) {
            state.io_status.disable();
        }
    }

    /// Forgets a backend. Its parts must have ended, or are told to by [`Self::detach`] before.
    pub fn remove_backend(&mut self, backend: BackendId) {
        self.backends.remove(&backend);
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
            });
        }
        let record = backend
            .held
            .entry((failed.local, failed.order))
            .or_insert(HeldRecord {
                request: failed.request,
                cause: failed.cause,
                since: failed.at,
                attempts: 0,
            });
        record.cause = failed.cause;
        record.attempts += 1;

        let kind = backend.event((Action::Stop, failed.cause), &failed.request);
        fx.event(Event {
            at: failed.at,
            kind,
        });
        match backend.config.scope {
            HoldScope::Request => {}
            HoldScope::Device => {
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
                }
            }
        }
    }

    /// A request was reported or ignored.
    pub fn reported(&mut self, reported: &Reported, fx: &mut impl Effects) {
        let Some(backend) = self.backends.get_mut(&reported.backend) else {
            return;
        };
        if reported.generation != backend.generation {
            backend.stale_failures += 1;
            return;
        }
        backend.last_error = Some(ErrorRecord {
            cause: reported.cause,
            request: reported.request,
            at: reported.at,
        });
        let kind = backend.event((reported.action, reported.cause), &reported.request);
        fx.event(Event {
            at: reported.at,
            kind,
        });
    }

    /// A request that was held has been completed or dropped.
    pub fn resolved(&mut self, resolved: Resolved) {
        let Some(backend) = self.backends.get_mut(&resolved.backend) else {
            return;
        };
        if resolved.generation == backend.generation {
            backend.held.remove(&(resolved.local, resolved.order));
            if backend.held.is_empty() {
                backend.incident = None;
            }
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
    /// then nothing changes.
    pub fn cont(&mut self, blocker: Option<String>, fx: &mut impl Effects) -> Result<(), Refusal> {
        if self.state == RunState::Shutdown {
            return Err(Refusal::ShuttingDown);
        }
        if let Some(reason) = blocker {
            return Err(Refusal::Blocked(reason));
        }
        for backend in self.backends.values_mut() {
            backend.reset_status();
        }
        if self.state != RunState::Running {
            self.state = RunState::Running;
            fx.event(Event {
                at: SystemTime::now(),
                kind: EventKind::Resume,
            });
        }
        self.epoch += 1;
        let epoch = self.epoch;
        for backend in self.backends.values() {
            for (&local, &upto) in &backend.locals {
                fx.post(local, GateMessage::Release { epoch, upto });
            }
        }
        Ok(())
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
            self.state = RunState::Shutdown;
            fx.event(Event {
                at: SystemTime::now(),
                kind: EventKind::Shutdown { reason },
            });
            self.freeze_all(fx);
        }
    }

    fn halt(&mut self, state: RunState, fx: &mut impl Effects) {
        self.state = state;
        fx.event(Event {
            at: SystemTime::now(),
            kind: EventKind::Stop,
        });
        self.freeze_all(fx);
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
