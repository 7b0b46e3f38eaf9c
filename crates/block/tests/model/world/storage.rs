//! What storage does.

use super::*;

impl World {
    /// The last request that was started fails.
    pub fn end_last(&mut self, b: usize, l: usize, errno: i32) -> Check {
        let in_flight = self.backends[b].locals[l].in_flight.len();
        self.end(b, l, in_flight.saturating_sub(1), Some(errno))
    }

    /// The driver does not begin one that it was given.
    pub fn park(&mut self, b: usize, l: usize, nth: usize) -> Check {
        let local = &mut self.backends[b].locals[l];
        let fresh = |ticket: &Ticket| ticket.order() + 1 == local.orders.len() as u64;
        let nth = match local.in_flight.last().is_some_and(fresh) {
            true => local.in_flight.len() - 1,
            false if local.in_flight.is_empty() => return Ok(()),
            false => nth % local.in_flight.len(),
        };
        if self.lives[local.orders[&local.in_flight[nth].order()]].generation
            != local.gate.generation()
        {
            // It has begun before the reset, or would have been taken back.
            return Ok(());
        }
        let mut ticket = local.in_flight.remove(nth);
        local.gate.parks(&mut ticket);
        local.parked.push(ticket);
        self.take_back(b, l, false)
    }

    /// The driver begins one that it had parked.
    pub fn go_on(&mut self, b: usize, l: usize, nth: usize) -> Check {
        let local = &mut self.backends[b].locals[l];
        if local.parked.is_empty() {
            return Ok(());
        }
        let nth = nth % local.parked.len();
        let mut ticket = local.parked.remove(nth);
        let request = *ticket.request();
        if !local.gate.may_pop(request.tag.queue) {
            local.parked.push(ticket);
            return Err(format!("{request:?} was begun although it may not start"));
        }
        local.gate.goes_on(&mut ticket);
        local.in_flight.push(ticket);
        Ok(())
    }

    /// What is parked in the driver and may not start now comes back; or all.
    pub(super) fn take_back(&mut self, b: usize, l: usize, all: bool) -> Check {
        let local = &mut self.backends[b].locals[l];
        if self.mutant == Mutant::ParkedNotTakenBack && !all {
            return Ok(());
        }
        for ticket in std::mem::take(&mut local.parked) {
            if !all && local.gate.may_pop(ticket.request().tag.queue) {
                local.parked.push(ticket);
                continue;
            }
            let (order, request) = (ticket.order(), *ticket.request());
            let verdict = local.gate.finish(ticket, Outcome::TakenBack);
            ensure!(
                verdict == Verdict::PutBack,
                "{request:?} was taken back, and it is {verdict:?}"
            );
            self.lives[local.orders[&order]].phase = Phase::Waiting;
            self.taken_back += 1;
        }
        Ok(())
    }

    pub fn end(&mut self, b: usize, l: usize, nth: usize, errno: Option<i32>) -> Check {
        let local = &mut self.backends[b].locals[l];
        if local.in_flight.is_empty() {
            return Ok(());
        }
        let nth = nth % local.in_flight.len();
        let ticket = local.in_flight.remove(nth);
        let (order, request) = (ticket.order(), *ticket.request());
        let life = local.orders[&order];
        let stale = self.lives[life].generation != local.gate.generation();
        let outcome = match errno {
            None => Outcome::Ok,
            Some(errno) => Outcome::Error(Cause::of_errno(errno)),
        };
        let frozen_before = local.gate.is_frozen();
        let mut verdict = local.gate.finish(ticket, outcome);
        if verdict == Verdict::Dropped && self.mutant == Mutant::CompletionAfterReset {
            verdict = Verdict::Complete {
                result: Ok(()),
                reported: None,
                was_held: None,
            };
        }
        self.take_back(b, l, false)?;
        let generation = self.backends[b].locals[l].gate.generation();
        let (backend, local_id) = (self.backends[b].id, self.backends[b].locals[l].id);
        match verdict {
            Verdict::Held { seq, cause, .. } => {
                ensure!(!stale, "held after reset: {request:?}");
                self.holds += 1;
                if self.backends[b].scope != HoldScope::Request {
                    let frozen = self.backends[b].locals[l].gate.is_frozen();
                    let frozen = if self.mutant == Mutant::FreezeLate {
                        frozen_before
                    } else {
                        frozen
                    };
                    ensure!(frozen, "not frozen at once by the failure of {request:?}");
                }
                let life = &mut self.lives[life];
                life.phase = Phase::Held { seq };
                life.was_held = true;
                self.backends[b].blockers.insert(local_id, order, request);
                self.inbox.push_back(Message::Failed(Failed {
                    backend,
                    local: local_id,
                    generation,
                    seq,
                    order,
                    request,
                    cause,
                    node: None,
                    at: SystemTime::UNIX_EPOCH,
                }));
            }
            Verdict::PutBack => ensure!(false, "put back: {request:?}"),
            Verdict::Dropped => {
                ensure!(stale, "dropped without a reset: {request:?}");
                self.lives[life].phase = Phase::Dropped;
                self.unblock(b, l, order);
            }
            Verdict::Complete {
                result,
                reported,
                was_held,
            } => {
                // G7: no completion after the reset.
                ensure!(!stale, "completed after reset: {request:?}");
                // G1: at most once, and no error where policy says stop.
                ensure!(
                    self.lives[life].phase == Phase::InFlight,
                    "completed twice: {request:?} was {:?}",
                    self.lives[life].phase
                );
                ensure!(
                    was_held.is_some() == self.lives[life].was_held,
                    "forgot the hold of {request:?}"
                );
                if let Some((action, cause)) = reported {
                    ensure!(action != Action::Stop, "completed under stop: {request:?}");
                    let expected = match action {
                        Action::Ignore => Ok(()),
                        Action::Report | Action::Stop => Err(ClientError::Io(cause)),
                    };
                    ensure!(result == expected, "{action:?} gave {result:?}");
                    self.inbox.push_back(Message::Reported(Reported {
                        backend,
                        generation,
                        request,
                        action,
                        cause,
                        node: None,
                        at: SystemTime::UNIX_EPOCH,
                    }));
                }
                self.lives[life].phase = Phase::Completed;
                self.completions += 1;
                if was_held.is_some() {
                    self.unblock(b, l, order);
                    self.inbox.push_back(Message::Resolved(Resolved {
                        backend,
                        local: local_id,
                        generation,
                        order,
                        end: match reported {
                            Some(_) => HoldEnd::Reported,
                            None => HoldEnd::Completed,
                        },
                    }));
                }
            }
        }
        self.pump(b, l)
    }
}
