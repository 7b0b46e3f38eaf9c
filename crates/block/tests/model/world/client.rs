//! What comes from outside: the client, and commands.

use super::*;

impl World {
    pub fn submit(
        &mut self,
        b: usize,
        l: usize,
        queue: u16,
        op: Operation,
        offset: u64,
        bytes: u64,
    ) -> Check {
        let backend = &mut self.backends[b];
        let local = &mut backend.locals[l];
        // An export takes a request only if the gate lets it, or to park it.
        if backend.attaching || local.closed {
            return Ok(());
        }
        let (offset, bytes) = match op {
            Operation::Flush => (0, 0),
            _ => (
                offset % backend.length,
                bytes.min(backend.length - offset % backend.length),
            ),
        };
        let head = local.next_head;
        local.next_head = head.wrapping_add(1);
        let request = Request {
            tag: Tag {
                queue: queue % QUEUES,
                head,
            },
            op,
            offset,
            bytes,
        };
        let life = self.lives.len();
        // From a stopped queue nothing new is taken: the client hands something back.
        let handed_back = local.gate.is_stopped(request.tag.queue);
        self.lives.push(Life {
            backend: b,
            local: l,
            generation: local.gate.generation(),
            request,
            phase: Phase::Waiting,
            was_held: handed_back,
        });
        if handed_back {
            let order = local.gate.take_up(request);
            local.orders.insert(order, life);
            backend.blockers.insert(local.id, order, request);
            if self.mutant != Mutant::HandedBackUnseen {
                self.inbox.push_back(Message::Restored(Restored {
                    backend: backend.id,
                    local: local.id,
                    generation: local.gate.generation(),
                    order,
                    request,
                    at: SystemTime::UNIX_EPOCH,
                }));
            }
            return Ok(());
        }
        let may_pop = local.gate.may_pop(request.tag.queue);
        let id = local.id;
        let blockers = &mut backend.blockers;
        match local.gate.admit(request, |order, request| {
            blockers.blocks(id, order, request)
        }) {
            Admission::Start(ticket) => {
                ensure!(may_pop, "started although frozen: {request:?}");
                local.orders.insert(ticket.order(), life);
                self.started(b, l, ticket)?;
            }
            Admission::Parked => {
                let order = local
                    .orders
                    .last_key_value()
                    .map_or(0, |(&order, _)| order + 1);
                local.orders.insert(order, life);
                self.pump(b, l)?;
            }
        }
        Ok(())
    }

    pub fn attach(&mut self, b: usize) {
        if self.backends[b].leaving {
            return;
        }
        self.backends[b].attaching = true;
        self.inbox.push_back(Message::Attach(b));
    }

    /// The client stays and resets its device.
    pub fn reset_device(&mut self, b: usize) {
        if self.backends[b].leaving {
            return;
        }
        self.backends[b].attaching = true;
        self.inbox.push_back(Message::ResetDevice(b));
    }

    /// The device goes away; a later attach brings a client back.
    pub fn detach(&mut self, b: usize) {
        if self.backends[b].leaving {
            return;
        }
        self.backends[b].attaching = true;
        self.inbox.push_back(Message::Detach(b));
    }

    pub fn stop(&mut self) {
        self.inbox.push_back(Message::Stop);
    }

    pub fn cont(&mut self) {
        self.inbox.push_back(Message::Cont);
    }

    pub fn cont_backend(&mut self, b: usize) {
        self.inbox.push_back(Message::ContBackend(b));
    }

    pub fn set_policy(&mut self, b: usize, policy: Policy) {
        self.inbox.push_back(Message::SetPolicy(b, policy));
    }

    /// The operator accepts a loss: held flushes are completed with an error.
    pub fn accept_loss(&mut self, b: usize) {
        self.inbox.push_back(Message::AcceptLoss(b));
    }

    /// A ring starts, and the client has no record of every other request that waits there.
    pub fn retain(&mut self, b: usize, l: usize, queue: u16) -> Check {
        let gate = &mut self.backends[b].locals[l].gate;
        let removed = gate.retain(queue % QUEUES, |head| head % 2 == 0);
        self.forget(b, l, &removed, HoldEnd::NoRecord);
        self.pump(b, l)
    }

    /// One part ends while the others go on: its client leaves. Nobody waits for what is in flight.
    pub fn close_local(&mut self, b: usize, l: usize) -> Check {
        match self.backends[b].locals[l].closed {
            true => Ok(()),
            false => self.end_part(b, l),
        }
    }

    /// One more client comes, with a part of its own.
    pub fn join(&mut self, b: usize) {
        let coming = |message: &&Message| matches!(message, Message::Join(of) if *of == b);
        let coming = self.inbox.iter().filter(coming).count();
        if !self.backends[b].leaving && self.parts(b) + coming < PARTS_MAX {
            self.inbox.push_back(Message::Join(b));
        }
    }

    fn end_part(&mut self, b: usize, l: usize) -> Check {
        self.take_back(b, l, true)?;
        let backend = &mut self.backends[b];
        let locals = &mut backend.locals;
        locals[l].closed = true;
        let mut writes = Vec::new();
        if self.mutant != Mutant::LeftInFlight {
            let tickets = locals[l].in_flight.iter();
            writes.extend(tickets.map(|ticket| (ticket.order(), *ticket.request())));
            writes.retain(|(_, request)| request.op.modifies());
        }
        let ended = locals[l].id;
        (backend.blockers).end_local(ended, &writes, |told| delivery::recheck(locals, told));
        let removed = locals[l].gate.close();
        self.forget(b, l, &removed, HoldEnd::PartRemoved);
        self.inbox.push_back(Message::RemoveLocal(b, l));
        Ok(())
    }

    /// An export is removed while the others go on; one that was never served is not detached before.
    /// One is enough.
    pub fn remove_backend(&mut self, b: usize, detach: bool) -> Check {
        if self.backends.iter().any(|backend| backend.leaving) {
            return Ok(());
        }
        for l in 0..self.parts(b) {
            if !self.backends[b].locals[l].closed {
                self.end_part(b, l)?;
            }
        }
        if detach {
            self.detach(b);
        }
        self.inbox.push_back(Message::RemoveBackend(b));
        self.backends[b].leaving = true;
        Ok(())
    }

    /// GET_VRING_BASE and a ring start: what waits stays, whatever is held.
    pub fn toggle_queue(&mut self, b: usize, l: usize, queue: u16, start: bool) -> Check {
        let gate = &mut self.backends[b].locals[l].gate;
        if start {
            gate.start_queue(queue % QUEUES);
            return self.pump(b, l);
        }
        gate.stop_queue(queue % QUEUES);
        self.take_back(b, l, false)
    }

    /// A resize as the registry does it: drained; refused below the end of a held request.
    pub fn resize(&mut self, b: usize, length: u64, errno: Option<i32>) -> Check {
        self.backends[b].drained = true;
        for l in 0..self.parts(b) {
            self.backends[b].locals[l].gate.drain_begin();
            self.take_back(b, l, false)?;
            // G6: a drain ends when what is in flight has ended, whatever is held or parked.
            while !self.backends[b].locals[l].in_flight.is_empty() {
                self.end(b, l, 0, errno)?;
            }
            let gate = &self.backends[b].locals[l].gate;
            ensure!(
                gate.in_flight() == 0,
                "drained, but {} in flight",
                gate.in_flight()
            );
        }
        while !self.inbox.is_empty() {
            self.control_step()?;
        }
        self.backends[b].drained = false;
        let furthest = self.backends[b]
            .locals
            .iter()
            .filter_map(|local| local.gate.furthest());
        let refused = furthest.map(|request| request.end()).max() > Some(length);
        if !refused {
            self.backends[b].length = length;
        }
        for life in &self.lives {
            if life.backend == b
                && matches!(life.phase, Phase::Held { .. } | Phase::Waiting)
                && life.generation == self.backends[b].generation
            {
                ensure!(
                    life.request.end() <= self.backends[b].length,
                    "resized below a {:?} request {:?}",
                    life.phase,
                    life.request
                );
            }
        }
        for l in 0..self.parts(b) {
            self.backends[b].locals[l].gate.drain_end();
            self.pump(b, l)?;
        }
        Ok(())
    }
}
