//! Backends, their parts and the lives of their devices: how they come and go, and what becomes then
//! of what is held.

use std::sync::Arc;

use crate::persist::saved::{SavedBackend, SavedState};
use crate::words::ids::{BackendId, LocalId};
use crate::words::incident::HoldEnd;
use crate::words::run_state::RunState;
use crate::words::vm::VmOrder;

use super::backend::{BackendConfig, BackendState};
use super::clock::Timer;
use super::message::{Effects, GateMessage};
use super::{Refusal, RunControl};

impl RunControl {
    /// Goes on where a former daemon was. Called first of all: backends that are added from now on
    /// find their state by export id and node name.
    pub fn restore(&mut self, saved: SavedState) {
        self.state = saved.run_state;
        self.inherited = saved.run_state != RunState::Running;
        self.saved = saved.backends;
        self.vm_pause = saved.vm_pause;
    }

    /// All exports are there: what is saved of any other is forgotten. Returns their ids.
    pub fn forget_unclaimed(&mut self, fx: &mut impl Effects) -> Vec<String> {
        let unclaimed = std::mem::take(&mut self.saved);
        self.revision += u64::from(!unclaimed.is_empty());
        let ids = unclaimed.iter().map(|saved| saved.device.clone()).collect();
        for saved in unclaimed {
            self.unclaimed(saved, fx);
        }
        ids
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
        let backend = BackendState::new(config, saved);
        self.backends.insert(id, backend);
        self.revision += 1;
        id
    }

    /// Another node is the root of a backend from now on: events name it, and the next daemon finds the
    /// backend's state by it.
    pub fn set_node(&mut self, backend: BackendId, node: Arc<str>) {
        if let Some(state) = self.backends.get_mut(&backend) {
            state.set_node(node);
            self.revision += 1;
        }
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
        state.add_local(local, fx);
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
        if state.is_frozen() {
            self.epoch += 1;
            fx.post(local, GateMessage::FreezeBackend { epoch: self.epoch });
        }
        Ok(())
    }

    /// A backend's part on an iothread has ended, with all that was held there. The rest of the backend
    /// stays as it is, and so does the run state.
    pub fn remove_local(&mut self, backend: BackendId, local: LocalId, fx: &mut impl Effects) {
        if let Some(state) = self.backends.get_mut(&backend) {
            state.remove_local(local);
            state.thaw_if_nothing_held(&mut self.epoch, fx);
            self.revision += 1;
            self.gone(backend, HoldEnd::PartRemoved, fx);
        }
    }

    /// A device attaches, or a client with a fresh life of the device: the status is enabled and
    /// reset, what was held is dropped. Returns the new generation.
    ///
    /// If that leaves the run state `io-error` with nothing held anywhere, it is `running` again:
    /// there is nothing that a `cont` could be needed for, and the new client would wait for it.
    pub fn attach(&mut self, backend: BackendId, fx: &mut impl Effects) -> Option<u64> {
        let generation = self.begin_life(backend, HoldEnd::Attached, fx)?;
        if self.state == RunState::IoError && !self.backends.values().any(BackendState::holds) {
            self.resume(fx);
            self.release_all(fx);
            fx.vm(VmOrder::Resume { force: false });
        }
        Some(generation)
    }

    /// A client joins. If there has never been a device, it attaches one ([`Self::attach`]), and true is
    /// returned; else nothing changes. None: there is no such backend.
    pub fn join(&mut self, backend: BackendId, fx: &mut impl Effects) -> Option<bool> {
        let first = !self.backends.get(&backend)?.has_device();
        if first {
            self.attach(backend, fx)?;
        }
        Some(first)
    }

    /// The client resets its device and stays: what was held is dropped, the status reset. The run
    /// state is left alone: a guest that is reset while the VM is stopped stays stopped until
    /// `cont`, as in QEMU. Returns the new generation.
    pub fn reset_device(&mut self, backend: BackendId, fx: &mut impl Effects) -> Option<u64> {
        self.begin_life(backend, HoldEnd::Reset, fx)
    }

    /// The first client of this process hands its inflight region back: it goes on with the life of
    /// the device that a former daemon served. The status is enabled and what is known stays.
    pub fn reattach(&mut self, backend: BackendId) {
        if let Some(state) = self.backends.get_mut(&backend) {
            state.enable_status_again();
            self.revision += 1;
        }
    }

    /// That client has handed back all that a former daemon has left: nothing more is awaited, and an
    /// incident of which nothing has come back has ended.
    pub fn handed_back(&mut self, backend: BackendId, fx: &mut impl Effects) {
        if let Some(state) = self.backends.get_mut(&backend) {
            state.held_mut().handed_back();
            state.thaw_if_nothing_held(&mut self.epoch, fx);
            self.gone(backend, HoldEnd::NoRecord, fx);
        }
    }

    fn begin_life(
        &mut self,
        backend: BackendId,
        end: HoldEnd,
        fx: &mut impl Effects,
    ) -> Option<u64> {
        let state = self.backends.get_mut(&backend)?;
        state.enable_status();
        self.drop_held(backend, end, fx)
    }

    /// Nobody is there any more who could ask for what is held, or hand it back: it is dropped.
    /// Returns the new generation.
    pub fn abandon(&mut self, backend: BackendId, fx: &mut impl Effects) -> Option<u64> {
        self.drop_held(backend, HoldEnd::Abandoned, fx)
    }

    fn drop_held(
        &mut self,
        backend: BackendId,
        end: HoldEnd,
        fx: &mut impl Effects,
    ) -> Option<u64> {
        let state = self.backends.get_mut(&backend)?;
        let generation = state.abandon(fx);
        self.clock.set(backend, Timer::Report, state.report_due());
        self.revision += 1;
        self.gone(backend, end, fx);
        Some(generation)
    }

    /// The device is gone: what was held is dropped, the status is disabled.
    pub fn detach(&mut self, backend: BackendId, fx: &mut impl Effects) {
        self.begin_life(backend, HoldEnd::Detached, fx);
        if let Some(state) = self.backends.get_mut(&backend) {
            state.disable_status();
        }
    }

    /// Forgets a backend. Its parts must have ended, or are told to by [`Self::detach`] before.
    pub fn remove_backend(&mut self, backend: BackendId, fx: &mut impl Effects) {
        if let Some(state) = self.backends.get_mut(&backend) {
            state.held_mut().clear();
            self.gone(backend, HoldEnd::BackendRemoved, fx);
            self.backends.remove(&backend);
            self.clock.forget(backend);
        }
        self.revision += 1;
    }
}
