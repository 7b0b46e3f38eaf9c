//! What must hold: when a request starts, after a message, and when nothing is under way.

use standfast_block::gate::Ticket;
use standfast_block::{Action, EventKind, HoldScope, RunState, Status, VmOrder};

use super::{Check, Life, Mutant, Outbox, Phase, World};

impl World {
    /// Whether the client of a request has left.
    fn is_left(&self, life: &Life) -> bool {
        self.backends[life.backend].locals[life.local].closed
    }

    /// Whether others may have to wait for it because of its range: it is held or replayed; or its
    /// client has left, and it is in flight and writes.
    fn is_in_the_way(&self, life: &Life) -> bool {
        match life.phase {
            Phase::Held { .. } => true,
            Phase::InFlight if self.is_left(life) => life.request.op.modifies(),
            Phase::Waiting | Phase::InFlight => life.was_held,
            Phase::Completed | Phase::Dropped => false,
        }
    }

    /// G5: whether the request of `ticket` may start now.
    pub(super) fn check_start(&self, b: usize, l: usize, ticket: &Ticket) -> Check {
        let local = &self.backends[b].locals[l];
        let (order, request) = (ticket.order(), *ticket.request());
        let life = local.orders[&order];
        ensure!(
            self.lives[life].phase == Phase::Waiting,
            "started in phase {:?}: {request:?}",
            self.lives[life].phase
        );
        ensure!(
            self.lives[life].generation == local.gate.generation(),
            "started after its device was reset: {request:?}"
        );
        for (&other, &number) in &local.orders {
            let older = &self.lives[number];
            if other >= order || !self.is_in_the_way(older) {
                continue;
            }
            // G5: what overlaps a held or replayed request waits behind it.
            ensure!(
                !(request.op.modifies() && older.request.overlaps(&request)),
                "{request:?} overtook {:?} ({:?})",
                older.request,
                older.phase
            );
        }
        if request.op.modifies() {
            // G5, across iothreads.
            for (number, other) in self.lives.iter().enumerate() {
                ensure!(
                    !(number != life
                        && other.backend == b
                        && other.local != l
                        && (!self.lives[life].was_held || self.is_left(other))
                        && self.is_in_the_way(other)
                        && other.request.overlaps(&request)),
                    "{request:?} overtook {:?} of another iothread",
                    other.request
                );
            }
        }
        // G5: what was released goes first, oldest first, unless it has to wait behind something
        // itself (which a request that modifies nothing never does).
        for (&other, &number) in &local.orders {
            let first = &self.lives[number];
            let goes_first = first.phase == Phase::Waiting
                && first.was_held
                && first.generation == self.lives[life].generation
                && first.request.tag.queue == request.tag.queue
                && !first.request.op.modifies();
            ensure!(
                !goes_first || (self.lives[life].was_held && order <= other),
                "{request:?} started before released {:?}",
                first.request
            );
        }
        Ok(())
    }

    /// Whether `request` of a life that waits must go on waiting for `other`: the rule, as it is
    /// written down.
    fn waits_behind(&self, waiting: (u64, usize), other: (u64, usize)) -> bool {
        let ((order, life), (other_order, other_life)) = (waiting, other);
        let (life, other) = (&self.lives[life], &self.lives[other_life]);
        let locals = &self.backends[life.backend].locals;
        let (here, there) = (locals[life.local].id, locals[other.local].id);
        let older = (other_order, there) < (order, here);
        let comes_first = if self.is_in_the_way(other) {
            older || (!life.was_held && here != there) || self.is_left(other)
        } else {
            let parked = other.phase == Phase::Waiting && other.request.op.modifies();
            parked && older && here == there && !life.was_held
        };
        comes_first && life.request.op.modifies() && life.request.overlaps(&other.request)
    }

    /// Nobody waits for nothing: when no message is under way, what could start has started.
    fn check_waiting(&self, b: usize, l: usize) -> Check {
        let local = &self.backends[b].locals[l];
        let all = self.backends[b]
            .locals
            .iter()
            .flat_map(|local| &local.orders);
        let all: Vec<_> = all.map(|(&order, &life)| (order, life)).collect();
        for (&order, &life) in &local.orders {
            let request = &self.lives[life].request;
            let waits = self.lives[life].phase == Phase::Waiting;
            if !waits || local.gate.is_frozen() || local.gate.is_stopped(request.tag.queue) {
                continue;
            }
            ensure!(
                all.iter()
                    .any(|&other| self.waits_behind((order, life), other)),
                "{request:?} waits for nothing"
            );
        }
        Ok(())
    }

    pub(super) fn expect_transition(&self, outbox: &Outbox, to: RunState) -> Check {
        ensure!(
            self.control.state() == to,
            "state {:?}, must be {to:?}",
            self.control.state()
        );
        let expected: &[EventKind] = match (self.state, to) {
            (a, b) if a == b => &[],
            (_, RunState::Running) => &[EventKind::Resume],
            _ => &[EventKind::Stop],
        };
        let kinds: Vec<_> = outbox
            .events
            .iter()
            .map(|event| event.kind.clone())
            .collect();
        ensure!(kinds == expected, "events {kinds:?}, must be {expected:?}");
        Ok(())
    }

    /// The link to the VMM is told of every change of the run state, and of every `cont`.
    pub(super) fn check_orders(&self, outbox: &Outbox, is_cont: bool) -> Check {
        let expected: &[VmOrder] = match (self.state, self.control.state()) {
            _ if is_cont => &[VmOrder::Resume { force: false }],
            (a, b) if a == b => &[],
            (_, RunState::Running) => &[VmOrder::Resume { force: false }],
            _ => &[VmOrder::Pause],
        };
        let orders = &outbox.orders;
        ensure!(
            orders == expected,
            "orders {orders:?}, must be {expected:?}"
        );
        Ok(())
    }

    /// G2: the order of the events of one message, and what a query sees after them.
    pub(super) fn check_events(
        &self,
        outbox: &Outbox,
        cause: Option<(usize, bool)>,
        before: &[Status],
    ) -> Check {
        let mut seen_cause = false;
        for event in &outbox.events {
            match &event.kind {
                EventKind::BlockIoError(error) => {
                    let Some((b, stop)) = cause else {
                        return Err("an event for a stale failure".to_owned());
                    };
                    ensure!(
                        (error.action == Action::Stop) == stop,
                        "event says {:?}",
                        error.action
                    );
                    if stop {
                        let status = match self.mutant {
                            Mutant::StatusAfterEvent => before[b],
                            _ => error.io_status,
                        };
                        ensure!(status != Status::Ok, "the event went out before the status");
                        ensure!(error.incident.is_some(), "a stop event without incident");
                    }
                    seen_cause = stop;
                }
                EventKind::Stop => {
                    ensure!(
                        self.state == RunState::Running,
                        "STOP while {:?}",
                        self.state
                    );
                    if self.control.state() == RunState::IoError {
                        ensure!(seen_cause, "STOP before its cause");
                    }
                }
                EventKind::Resume => {
                    ensure!(self.state != RunState::Running, "RESUME while running");
                }
                EventKind::Shutdown { .. }
                | EventKind::BlockExportDeleted { .. }
                | EventKind::BlockExportQueueBroken { .. }
                | EventKind::BlockWriteThreshold { .. }
                | EventKind::BlockImageCorrupted(_)
                | EventKind::JobStatusChange { .. }
                | EventKind::VmLink { .. } => {}
            }
        }
        if let Some((b, true)) = cause {
            ensure!(seen_cause, "a stop failure without an event");
            let stops = self.backends[b].scope == HoldScope::Vm && self.state == RunState::Running;
            ensure!(
                (self.control.state() == RunState::IoError)
                    == (stops || self.state == RunState::IoError),
                "state {:?} after a failure in {:?}",
                self.control.state(),
                self.state
            );
        }
        Ok(())
    }

    pub(super) fn check_settled(&self) -> Check {
        self.check_time()?;
        for (b, backend) in self.backends.iter().enumerate() {
            if backend.removed {
                continue;
            }
            let state = self.control.backend(backend.id).ok_or("backend is gone")?;
            let mut held_here = 0;
            let open = backend.locals.iter().enumerate();
            for (l, local) in open.filter(|(_, local)| !local.closed) {
                let gate = &local.gate;
                ensure!(
                    gate.in_flight() as usize == local.in_flight.len(),
                    "in flight miscounted"
                );
                ensure!(
                    local.parked.is_empty() || !gate.is_frozen(),
                    "frozen, and {} requests could start any time",
                    local.parked.len()
                );
                let held = gate.held().count();
                held_here += held;
                self.check_waiting(b, l)?;
                if self.state != RunState::Running {
                    ensure!(
                        gate.is_frozen(),
                        "{:?} but {:?} is not frozen",
                        self.state,
                        local.id
                    );
                }
                if backend.scope == HoldScope::Vm && self.state == RunState::Running {
                    ensure!(held == 0, "running, but {held} held under scope vm");
                }
            }
            if self.state == RunState::Running {
                let frozen = backend.scope == HoldScope::Device && held_here > 0;
                for local in backend.locals.iter().filter(|local| !local.closed) {
                    ensure!(
                        local.gate.is_frozen() == frozen,
                        "{:?} frozen: {}, must be {frozen}",
                        local.id,
                        local.gate.is_frozen()
                    );
                }
            }
            let known = state.held().len();
            let expected = self
                .lives
                .iter()
                .filter(|life| {
                    self.backends[life.backend].id == backend.id
                        && life.was_held
                        && life.generation
                            == self.backends[life.backend].locals[life.local]
                                .gate
                                .generation()
                        && !matches!(life.phase, Phase::Completed | Phase::Dropped)
                })
                .count();
            ensure!(
                known == expected,
                "run control knows {known} held, there are {expected}"
            );
            // What was handed back and has not failed since belongs to no incident.
            let failed = state.held().any(|held| held.attempts > 0);
            let incident = state.incident().is_some();
            ensure!(
                (incident || !failed) && (!incident || known > 0),
                "incident: {incident}, held: {known}, of it failed here: {failed}"
            );
        }
        Ok(())
    }
}
