//! Backends, their parts and the lives of their devices: how they come and go, and what becomes then
//! of what is held.

use std::sync::Arc;

use crate::persist::saved::SavedState;
use crate::words::ids::{BackendId, LocalId};
use crate::words::image::Image;
use crate::words::incident::HoldEnd;
use crate::words::run_state::RunState;
use crate::words::vm::VmOrder;

use super::backend::{BackendConfig, BackendState};
use super::clock::Timer;
use super::message::{Effects, GateMessage};
use super::unclaimed::{LeftOver, Unclaimed};
use super::{Refusal, RunControl};

impl RunControl {
    /// Goes on where a former daemon was. Called first of all: backends that are added from now on
    /// find their state by export id and node name.
    pub fn restore(&mut self, saved: SavedState) {
        self.state = saved.run_state;
        self.inherited = saved.run_state != RunState::Running;
        let unclaimed = saved.backends.into_iter().chain(saved.unclaimed);
        self.unclaimed = Unclaimed::restored(unclaimed.collect());
        self.vm_pause = saved.vm_pause;
    }

    /// The exports that the daemon is started with are there. What is saved of others is kept until they
    /// are added, up to a limit, but does not hold the VM: what a new client would have ended is ended
    /// now ([`Self::attach`]).
    pub fn start_ended(&mut self, fx: &mut impl Effects) -> LeftOver {
        let (dropped, fresh_client) = self.unclaimed.start_ended();
        self.revision += u64::from(!dropped.is_empty());
        for saved in &dropped {
            self.forgotten(saved, fx);
        }
        if fresh_client {
            self.end_io_error(fx);
        }
        LeftOver {
            kept: self.unclaimed.all().to_vec(),
            dropped,
        }
    }

    /// Takes a backend in, as a former daemon has left it if it did; else its I/O status is disabled
    /// until [`Self::attach`].
    pub fn add_backend(&mut self, config: BackendConfig) -> BackendId {
        self.last_id += 1;
        let id = BackendId(self.last_id);
        let saved = self.unclaimed.claim(&config.device, &config.node);
        let backend = BackendState::new(config, saved);
        self.backends.insert(id, backend);
        self.revision += 1;
        id
    }

    /// Another node is the root of a backend from now on: events name it, and the next daemon finds the
    /// backend's state by it. What a former daemon may have saved of the two together is void.
    pub fn set_node(&mut self, backend: BackendId, node: Arc<str>, fx: &mut impl Effects) {
        if let Some(state) = self.backends.get_mut(&backend) {
            let void = self.unclaimed.claim(&state.config().device, &node);
            state.set_node(node);
            self.revision += 1;
            if let Some(void) = void {
                self.forgotten(&void, fx);
            }
        }
    }

    /// Clients of a backend are about to see another image: until [`Self::set_image`] what is saved says of
    /// none.
    pub fn doubt_image(&mut self, backend: BackendId) {
        if let Some(state) = self.backends.get_mut(&backend) {
            state.doubt_image();
            self.revision += 1;
        }
    }

    /// Clients of a backend see this image from now on.
    pub fn set_image(&mut self, backend: BackendId, image: Image) {
        if let Some(state) = self.backends.get_mut(&backend) {
            state.set_image(image);
            self.revision += 1;
        }
    }

    /// The client of a backend is there, or is gone and may come back.
    pub fn set_connected(&mut self, backend: BackendId, connected: bool) {
        let state = self.backends.get_mut(&backend);
        let news = state.is_some_and(|state| state.set_connected(connected));
        self.revision += u64::from(news);
    }

    /// The image that a guest may still use, or have requests for, which a former daemon has served as the
    /// export `device`, on whatever node: after a live snapshot the name of the old one is that of the base. None:
    /// there is no such guest.
    pub fn image_left(&self, device: &str) -> Option<&Image> {
        self.unclaimed.image_left(device)
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
    /// there is nothing that a `cont` could be needed for, and the new client would wait for it. While the
    /// daemon starts, what exports held that are still to be made counts; afterwards it does not.
    pub fn attach(&mut self, backend: BackendId, fx: &mut impl Effects) -> Option<u64> {
        let generation = self.begin_life(backend, HoldEnd::Attached, fx)?;
        self.end_io_error(fx);
        Some(generation)
    }

    /// A client with a fresh life has come: `io-error` ends unless something is held.
    fn end_io_error(&mut self, fx: &mut impl Effects) {
        if self.state == RunState::IoError
            && !self.backends.values().any(BackendState::holds)
            && !self.unclaimed.may_hold()
        {
            self.resume(fx);
            self.release_all(fx);
            fx.vm(VmOrder::Resume { force: false });
        }
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

    /// The export of a backend that was just added was not made after all: what it has claimed of a former
    /// daemon's waits for the next one.
    pub fn unmake_backend(&mut self, backend: BackendId, fx: &mut impl Effects) {
        match self.backends.get(&backend) {
            Some(state) if state.is_claimed() => {
                self.unclaimed.give_back(state.save());
                self.backends.remove(&backend);
                self.clock.forget(backend);
                self.revision += 1;
            }
            _ => self.remove_backend(backend, fx),
        }
    }

    /// Forgets a backend, and all that was known of it. Its parts must have ended, or are told to by [`Self::detach`] before.
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
