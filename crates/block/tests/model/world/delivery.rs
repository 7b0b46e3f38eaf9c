//! The delivery of messages: one at a time, in any order that the real mailboxes allow.

use super::*;

impl World {
    /// Run control takes one message.
    pub fn control_step(&mut self) -> Check {
        let Some(message) = self.inbox.pop_front() else {
            return Ok(());
        };
        let before: Vec<Status> = self
            .backends
            .iter()
            .map(|b| self.raw_status(b.id))
            .collect();
        let mut outbox = Outbox::default();
        let mut cause: Option<(usize, bool)> = None;
        let is_cont = matches!(message, Message::Cont);
        self.reported_last = matches!(message, Message::Reported(_));
        // How an incident may end by this.
        let end = match &message {
            Message::Resolved(resolved) => Some(resolved.end),
            Message::Attach(_) => Some(HoldEnd::Attached),
            Message::ResetDevice(_) => Some(HoldEnd::Reset),
            Message::Detach(_) => Some(HoldEnd::Detached),
            Message::RemoveLocal(..) => Some(HoldEnd::PartRemoved),
            Message::RemoveBackend(_) => Some(HoldEnd::BackendRemoved),
            _ => None,
        };
        let resets = matches!(
            message,
            Message::Attach(_) | Message::ResetDevice(_) | Message::RemoveBackend(_)
        );
        match message {
            Message::Failed(failed) => {
                let b = self.index(failed.backend);
                self.control.failed(&failed, &mut outbox);
                let backend = &mut self.backends[b];
                if failed.generation == backend.generation {
                    if backend.status == Status::Ok {
                        backend.status = match failed.cause.errno {
                            libc::ENOSPC => Status::Nospace,
                            _ => Status::Failed,
                        };
                    }
                    cause = Some((b, true));
                }
            }
            Message::Reported(reported) => {
                let b = self.index(reported.backend);
                self.control.reported(&reported, self.now, &mut outbox);
                let backend = &self.backends[b];
                if reported.generation == backend.generation && !backend.removed {
                    cause = Some((b, false));
                    self.check_report(b, &reported, &outbox)?;
                }
            }
            Message::Resolved(resolved) => self.control.resolved(resolved, &mut outbox),
            Message::Restored(restored) => self.control.restored(&restored),
            Message::Stop => {
                self.control.stop(&mut outbox).map_err(|e| e.to_string())?;
                let expected = match self.state {
                    RunState::Running => RunState::Paused,
                    other => other,
                };
                self.expect_transition(&outbox, expected)?;
            }
            Message::Cont => {
                self.control
                    .cont(None, false, &mut outbox)
                    .map_err(|e| e.to_string())?;
                self.expect_transition(&outbox, RunState::Running)?;
                for (backend, &before) in self.backends.iter_mut().zip(&before) {
                    backend.status = Status::Ok;
                    if self.mutant == Mutant::StatusNotReset {
                        backend.status = before;
                    }
                }
                // G4: everything that has been processed is released.
                for backend in &self.backends {
                    for local in backend.locals.iter().filter(|local| !local.closed) {
                        let upto = self
                            .control
                            .backend(backend.id)
                            .and_then(|state| state.upto(local.id))
                            .unwrap_or(0);
                        ensure!(
                            outbox.posts.iter().any(|&(to, message)| to == local.id
                                && matches!(message, GateMessage::Release { upto: u, .. } if u == upto)),
                            "cont does not release what {:?} had failed up to {upto}",
                            local.id
                        );
                    }
                }
            }
            Message::ContBackend(b) => {
                let device = format!("disk{b}");
                match self.control.cont_backend(&device, None, &mut outbox) {
                    Ok(()) => self.backends[b].status = Status::Ok,
                    Err(refusal) => {
                        ensure!(
                            self.backends[b].scope == HoldScope::Vm || self.backends[b].removed,
                            "refused: {refusal}"
                        );
                        ensure!(outbox.posts.is_empty(), "a refused command had an effect");
                    }
                }
            }
            Message::Attach(b) => {
                let resumes = self.resumes(b);
                let generation = self
                    .control
                    .attach(self.backends[b].id, &mut outbox)
                    .ok_or("attach of a backend that is not there")?;
                self.new_life(b, generation, &mut outbox);
                self.backends[b].attached = true;
                let expected = if resumes {
                    RunState::Running
                } else {
                    self.state
                };
                self.expect_transition(&outbox, expected)?;
            }
            Message::ResetDevice(b) => {
                let generation = self
                    .control
                    .reset_device(self.backends[b].id, &mut outbox)
                    .ok_or("reset of a backend that is not there")?;
                self.new_life(b, generation, &mut outbox);
                self.backends[b].attached = true;
                self.expect_transition(&outbox, self.state)?;
            }
            Message::Detach(b) => {
                self.control.detach(self.backends[b].id, &mut outbox);
                let state = self
                    .control
                    .backend(self.backends[b].id)
                    .ok_or("backend is gone")?;
                ensure!(
                    state.io_status().is_none(),
                    "status enabled without a device"
                );
                let generation = state.generation();
                self.new_life(b, generation, &mut outbox);
                self.backends[b].attached = false;
            }
            Message::AcceptLoss(b) => {
                let id = self.backends[b].id;
                self.control.fail_held_flushes(id, &mut outbox);
            }
            Message::RemoveLocal(b, l) => {
                let backend = &self.backends[b];
                let (id, local) = (backend.id, backend.locals[l].id);
                if self.mutant != Mutant::PartEndsUnheard {
                    self.control.remove_local(id, local, &mut outbox);
                }
            }
            Message::Join(b) => self.joined(b, &mut outbox)?,
            Message::RemoveBackend(b) => {
                self.control
                    .remove_backend(self.backends[b].id, &mut outbox);
                let backend = &mut self.backends[b];
                backend.removed = true;
                backend.status = Status::Ok;
                backend.reports.forget();
                ensure!(
                    self.control.backend(backend.id).is_none(),
                    "removed, but known"
                );
            }
            Message::SetPolicy(b, policy) => {
                self.control
                    .set_policy(self.backends[b].id, policy, &mut outbox);
                self.backends[b].policy = policy;
            }
        }
        self.check_events(&outbox, cause, &before)?;
        self.check_orders(&outbox, is_cont)?;
        let failed = cause.filter(|&(_, stop)| stop).map(|(b, _)| b);
        self.check_incidents(&outbox, failed, end)?;
        self.set_alarm(resets);
        self.state = self.control.state();
        // G3: first error wins, until a reset.
        for backend in &self.backends {
            ensure!(
                self.raw_status(backend.id) == backend.status,
                "status of {:?} is {:?}, must be {:?}",
                backend.id,
                self.raw_status(backend.id),
                backend.status
            );
        }
        self.deliver_posts(outbox.posts);
        Ok(())
    }

    /// A client joins: the first one attaches the device, and no other changes anything.
    fn joined(&mut self, b: usize, outbox: &mut Outbox) -> Check {
        if self.backends[b].leaving {
            return Ok(());
        }
        let (id, first) = (self.backends[b].id, !self.backends[b].attached);
        let resumes = first && self.resumes(b);
        let joined = self.control.join(id, outbox);
        ensure!(joined == Some(first), "joined: {joined:?}, must be {first}");
        let state = self.control.backend(id).ok_or("backend is gone")?;
        let generation = state.generation();
        if first {
            self.new_life(b, generation, outbox);
            self.backends[b].attached = true;
        }
        ensure!(
            first || outbox.posts.is_empty() && generation == self.backends[b].generation,
            "who joins is heard by others"
        );
        let to = if resumes {
            RunState::Running
        } else {
            self.state
        };
        self.expect_transition(outbox, to)?;
        self.deliver_posts(std::mem::take(&mut outbox.posts));

        let (policy, scope) = (self.backends[b].policy, self.backends[b].scope);
        let l = self.parts(b);
        let mut local = self.new_local(l % IOTHREADS, policy, scope);
        if self.backends[b].drained {
            local.gate.drain_begin();
        }
        let added = self.control.add_local(id, local.id, outbox);
        added.map_err(|refusal| refusal.to_string())?;
        if self.mutant == Mutant::JoinsUnfrozen {
            outbox.posts.retain(|(_, message)| {
                use GateMessage::{Freeze, FreezeBackend};
                !matches!(message, Freeze { .. } | FreezeBackend { .. })
            });
        }
        self.backends[b].locals.push(local);
        self.deliver_posts(std::mem::take(&mut outbox.posts));
        // It takes note of how things are before its client has it.
        while !self.backends[b].locals[l].mailbox.is_empty() {
            self.local_step(b, l)?;
        }
        Ok(())
    }

    /// Whether an attach finds nothing that a `cont` could be needed for.
    fn resumes(&self, b: usize) -> bool {
        self.state == RunState::IoError
            && (self.control.backends())
                .all(|(id, state)| id == self.backends[b].id || state.held().len() == 0)
    }

    /// A life of the device has begun, or the last one has ended.
    fn new_life(&mut self, b: usize, generation: u64, outbox: &mut Outbox) {
        let backend = &mut self.backends[b];
        backend.generation = generation;
        backend.status = Status::Ok;
        if let Some(mut reported) = backend.reports.forget()
            && self.mutant == Mutant::ReportOutlivesReset
        {
            reported.generation = generation;
            self.control.reported(&reported, self.now, outbox);
        }
    }

    /// A backend's part takes one message.
    pub fn local_step(&mut self, b: usize, l: usize) -> Check {
        let Some(message) = self.backends[b].locals[l].mailbox.pop_front() else {
            return Ok(());
        };
        match message {
            Some(message) => self.obey(b, l, message)?,
            None => {
                let backend = &mut self.backends[b];
                let local = &mut backend.locals[l];
                for order in backend.blockers.take_woken(local.id) {
                    if self.mutant != Mutant::RecheckLost {
                        local.gate.recheck(order);
                    }
                }
            }
        }
        // An attach is settled when every part has taken it and nothing older is in flight.
        let backend = &mut self.backends[b];
        if backend.attaching
            && backend.attached
            && backend.locals.iter().all(|local| {
                let told = local.gate.generation() == backend.generation;
                local.closed || (told && local.mailbox.is_empty())
            })
            && !self
                .inbox
                .iter()
                .any(|m| matches!(m, Message::Attach(of) | Message::ResetDevice(of) | Message::Detach(of) if *of == b))
        {
            backend.attaching = false;
        }
        self.pump(b, l)
    }

    fn obey(&mut self, b: usize, l: usize, message: GateMessage) -> Check {
        if matches!(message, GateMessage::Reset { .. }) {
            self.take_back(b, l, true)?;
        }
        let local = &mut self.backends[b].locals[l];
        if local.closed {
            return Ok(());
        }
        match message {
            GateMessage::Freeze { epoch } => {
                if !(self.mutant == Mutant::FreezeForgotten && local.iothread == 1) {
                    local.gate.freeze(epoch);
                }
            }
            GateMessage::FreezeBackend { epoch } => {
                local.gate.freeze_backend(epoch);
            }
            GateMessage::ThawBackend { epoch } => {
                if self.mutant != Mutant::ThawForgotten {
                    local.gate.thaw_backend(epoch);
                }
            }
            GateMessage::Release { epoch, upto } | GateMessage::ReleaseBackend { epoch, upto } => {
                let held: Vec<_> = local.gate.held().collect();
                let given = match self.mutant {
                    Mutant::ReleaseWithoutUpto => u64::MAX,
                    _ => upto,
                };
                if matches!(message, GateMessage::Release { .. }) {
                    local.gate.release(epoch, given);
                } else {
                    local.gate.release_backend(epoch, given);
                }
                let still: Vec<_> = local.gate.held().map(|held| held.order).collect();
                for held in held {
                    let life = local.orders[&held.order];
                    ensure!(
                        still.contains(&held.order) == (held.seq > upto),
                        "release up to {upto} treated failure {} wrongly",
                        held.seq
                    );
                    if held.seq <= upto {
                        self.lives[life].phase = Phase::Waiting;
                    }
                }
            }
            GateMessage::Reset { generation } => {
                let removed = local.gate.reset(generation);
                self.forget(b, l, &removed, HoldEnd::Reset);
            }
            GateMessage::SetPolicy(policy) => local.gate.set_policy(policy),
            GateMessage::FailHeldFlushes => {
                let removed = local.gate.take_held_flushes();
                self.forget(b, l, &removed, HoldEnd::LossAccepted);
            }
        }
        self.take_back(b, l, false)
    }

    /// A request that was held has ended: the other iothreads hear of it.
    pub(super) fn unblock(&mut self, b: usize, l: usize, order: u64) {
        let backend = &mut self.backends[b];
        let locals = &mut backend.locals;
        let ended = locals[l].id;
        (backend.blockers).remove(ended, order, |told| recheck(locals, told));
    }

    pub(super) fn deliver_posts(&mut self, posts: Vec<(LocalId, GateMessage)>) {
        for (to, message) in posts {
            for backend in &mut self.backends {
                for local in &mut backend.locals {
                    if local.id == to {
                        local.mailbox.push_back(Some(message));
                    }
                }
            }
        }
    }
}

/// What has waited in a part behind something elsewhere may go on.
pub(super) fn recheck(locals: &mut [Local], told: LocalId) {
    for local in locals.iter_mut().filter(|local| local.id == told) {
        local.mailbox.push_back(None);
    }
}
