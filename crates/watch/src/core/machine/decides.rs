//! What is decided about incidents.

use std::sync::Arc;
use std::time::Duration;

use crate::settings::{OnFailed, Strategy};

use super::super::early::Stage as Early;
use super::super::incident::{DiskState, Stage};
use super::super::record::{Cause, Ending, Extended, Record, What};
use super::super::room::Ask;
use super::super::view::{HoldScope, RunState};
use super::sees::REPORT_EVERY;
use super::{Cont, Machine, Order, RoomAnswer, RoomOrder};

impl Machine {
    /// Does what is to be done about an incident whose machine has stopped.
    pub(super) fn begin(&mut self, now: Duration, at: usize) {
        let DiskState {
            settings, incident, ..
        } = &mut self.disks[at];
        let Some(incident) = incident else {
            return;
        };
        match (incident.cause, &settings.strategy, &settings.on_failed) {
            (Cause::Nospace | Cause::Unknown, Strategy::Leave, _) => {
                incident.stage = Stage::Left;
                self.alert(
                    at,
                    "leave",
                    "no strategy is configured for want of space".to_owned(),
                );
            }
            (Cause::Nospace | Cause::Unknown, strategy, _) => {
                let extend = *strategy != Strategy::Wait;
                if self.dry_run {
                    incident.stage = Stage::Left;
                    let would = would(strategy, settings.step);
                    self.decide(at, "dry run", would);
                } else {
                    self.order_room(at, extend);
                }
            }
            (Cause::Failed, _, OnFailed::Leave) => {
                incident.stage = Stage::Left;
                self.alert(
                    at,
                    "leave",
                    "it is not for want of space (on-failed = \"leave\")".to_owned(),
                );
            }
            (Cause::Failed, ..) if self.dry_run => {
                incident.stage = Stage::Left;
                self.decide(
                    at,
                    "dry run",
                    "would be continued when its storage is healthy".to_owned(),
                );
            }
            (Cause::Failed, _, OnFailed::After(after)) if !incident.has_waited => {
                incident.stage = Stage::Wait {
                    until: now + *after,
                };
                let why = format!("it is tried again in {} s", after.as_secs_f64());
                self.decide(at, "wait", why);
            }
            (Cause::Failed, ..) => {
                incident.stage = Stage::Health;
                let order = self.room_order(at, false);
                self.orders.extend(order.map(Order::Health));
            }
        }
    }

    pub(super) fn room_order(&self, at: usize, extend: bool) -> Option<Box<RoomOrder>> {
        let DiskState {
            disk,
            settings,
            incident,
            early,
            ..
        } = &self.disks[at];
        let incident = incident.as_ref()?;
        Some(Box::new(RoomOrder {
            disk: disk.clone(),
            settings: Arc::clone(settings),
            incident: incident.number,
            ask: Ask {
                own_event: incident.own_event,
                needs: incident.needs,
                extend,
                head_room: match settings.early {
                    Some(wanted) => early.pace.head_room(wanted),
                    None => 0,
                },
                early: false,
                used: None,
                baseline: incident.baseline.or(match settings.strategy {
                    // The size of a device says by its growth that there is room.
                    Strategy::Wait => incident.measure,
                    _ => None,
                }),
            },
        }))
    }

    pub(super) fn order_room(&mut self, at: usize, extend: bool) {
        let DiskState {
            incident, early, ..
        } = &mut self.disks[at];
        if let Some(incident) = incident {
            incident.stage = Stage::Room;
            if early.stage == Early::Extending {
                // That one may be all that is needed.
                early.awaited = true;
                return;
            }
        }
        let order = self.room_order(at, extend);
        self.orders.extend(order.map(Order::Room));
    }

    pub(super) fn wait_or_give_up(&mut self, now: Duration, at: usize, failed: u32, why: String) {
        let chance = self.chance.draw();
        let DiskState {
            settings, incident, ..
        } = &mut self.disks[at];
        let Some(incident) = incident else {
            return;
        };
        if failed >= settings.give_up_after {
            // Nothing that is there now is new.
            incident.baseline = incident.measure.or(incident.baseline);
            incident.stage = Stage::GaveUp {
                look: now + settings.poll.max(settings.backoff.max),
            };
            let what = What::GaveUp {
                attempts: failed,
                reason: why,
            };
            return self.tell(Some(at), what, true);
        }
        let delay = settings.backoff.delay(failed, chance);
        incident.stage = Stage::Wait { until: now + delay };
        let first = !std::mem::replace(&mut incident.alerted, true);
        let why = format!("{why}; again in {:.1} s", delay.as_secs_f64());
        match first {
            true => self.alert(at, "wait", why),
            false => self.decide(at, "wait", why),
        }
    }

    pub(super) fn cont_refused(&mut self, now: Duration, at: usize, why: &str) {
        let Some(incident) = &mut self.disks[at].incident else {
            return;
        };
        incident.failed += 1;
        let failed = incident.failed;
        self.wait_or_give_up(now, at, failed, format!("'cont' was refused: {why}"));
    }

    pub(super) fn is_all_ready(&self) -> bool {
        let mut of_vm = self
            .disks
            .iter()
            .filter(|disk| disk.disk.scope == HoldScope::Vm);
        of_vm.all(|disk| {
            disk.incident
                .as_ref()
                .is_none_or(|incident| incident.stage == Stage::Ready)
        })
    }

    /// Continues what can be continued.
    pub(super) fn go_on(&mut self, now: Duration) {
        if !self.connected {
            return;
        }
        for at in 0..self.disks.len() {
            let DiskState { disk, incident, .. } = &mut self.disks[at];
            if let Some(incident) = incident
                && incident.stage == Stage::Ready
                && disk.scope == HoldScope::Export
            {
                incident.stage = Stage::Continuing;
                let (disk, incident) = (disk.name.clone(), incident.number);
                self.orders.push(Order::ContExport { disk, incident });
            }
        }
        if self.cont != Cont::Idle {
            return;
        }
        let ready = self.disks.iter().any(|disk| {
            let incident = disk.incident.as_ref();
            disk.disk.scope == HoldScope::Vm && incident.is_some_and(|i| i.stage == Stage::Ready)
        });
        if !ready {
            return;
        }
        if self.held_by_other {
            return self.leave_it_to_the_daemon();
        }
        if let Some(RunState::Other(name)) = self.state.clone() {
            return self.leave_the_pause(&name);
        }
        // Another disk explains the stop: what this one remembers is of an earlier one.
        for at in 0..self.disks.len() {
            let stale = self.disks[at].incident.as_ref().is_some_and(|incident| {
                !incident.own_event && matches!(incident.stage, Stage::Left | Stage::GaveUp { .. })
            });
            if stale {
                self.end(now, at, Ending::Stale);
            }
        }
        if self.is_all_ready() {
            self.cont = Cont::Asked(self.ask_status());
        }
    }

    /// Its `cont` resumes the VM, too; one here would be against its will.
    fn leave_it_to_the_daemon(&mut self) {
        if !std::mem::replace(&mut self.told_of_pause, true) {
            let reason = "the daemon that is linked with it holds requests: that one goes on first";
            let decision = "wait";
            let reason = reason.to_owned();
            self.tell(None, What::Decision { decision, reason }, false);
        }
    }

    pub(super) fn leave_the_pause(&mut self, state: &str) {
        if !std::mem::replace(&mut self.told_of_pause, true) {
            let reason = format!("it is '{state}': somebody else's pause is theirs to end");
            let decision = "leave";
            self.tell(None, What::Decision { decision, reason }, true);
        }
    }

    pub(super) fn end_all(&mut self, now: Duration, ending: Ending) {
        for at in 0..self.disks.len() {
            if self.disks[at].disk.scope == HoldScope::Vm {
                self.end(now, at, ending);
            }
        }
        if self.cont != Cont::Sent {
            self.cont = Cont::Idle;
        }
    }

    pub(super) fn end(&mut self, now: Duration, at: usize, ending: Ending) {
        let DiskState { incident, past, .. } = &mut self.disks[at];
        let Some(incident) = incident.take() else {
            return;
        };
        match ending {
            Ending::Continued => past.continued = Some(now),
            Ending::ContinuedByOther | Ending::DiskGone => {
                (past.continued, past.flaps) = (None, 0);
            }
            _ => {}
        }
        let what = What::IncidentEnded {
            ending,
            seconds_paused: now.saturating_sub(incident.began).as_secs_f64(),
            extensions: incident.extensions,
        };
        let machine = self.name.clone();
        let disk = Some(self.disks[at].disk.name.clone());
        self.orders.push(Order::Tell(Record {
            machine,
            disk,
            incident: Some(incident.number),
            what,
            alert: false,
        }));
        self.disks[at].early.awaited = false;
        if ending != Ending::DiskGone {
            self.begin_early(at);
        }
    }

    pub(super) fn set_stage(&mut self, at: usize, stage: Stage) {
        if let Some(incident) = &mut self.disks[at].incident {
            incident.stage = stage;
        }
    }

    pub(super) fn stage_is(&self, at: usize, is: impl FnOnce(&Stage) -> bool) -> bool {
        self.disks[at]
            .incident
            .as_ref()
            .is_some_and(|incident| is(&incident.stage))
    }

    pub(super) fn find(&mut self, disk: &str, number: u64, stage: &Stage) -> Option<usize> {
        let at = self
            .disks
            .iter()
            .position(|known| known.disk.name == disk)?;
        let incident = self.disks[at].incident(number)?;
        (incident.stage == *stage).then_some(at)
    }

    pub(super) fn tell_extension(
        &mut self,
        at: usize,
        result: Extended,
        by: u64,
        grown: u64,
        answer: RoomAnswer,
    ) {
        let head_room = self.disks[at].early.head_room;
        let how = (false, head_room, Duration::ZERO);
        self.tell_growth(at, result, by, grown, answer, how);
    }

    /// `how`: whether it was early, for how much head-room, and how long before the answer's own time it began.
    pub(super) fn tell_growth(
        &mut self,
        at: usize,
        result: Extended,
        by: u64,
        grown: u64,
        answer: RoomAnswer,
        (early, head_room, lead): (bool, u64, Duration),
    ) {
        let what = What::Extension {
            result,
            by,
            grown,
            before: answer.before,
            early,
            head_room,
            seconds: (lead + answer.took).as_secs_f64(),
            seconds_to_start: (lead + answer.to_start).as_secs_f64(),
            seconds_running: answer.running.as_secs_f64(),
            detail: answer.detail,
        };
        self.tell(Some(at), what, false);
    }

    pub(super) fn decide(&mut self, at: usize, decision: &'static str, reason: String) {
        self.tell(Some(at), What::Decision { decision, reason }, false);
    }

    pub(super) fn alert(&mut self, at: usize, decision: &'static str, reason: String) {
        if let Some(incident) = &mut self.disks[at].incident {
            incident.alerted = true;
        }
        self.tell(Some(at), What::Decision { decision, reason }, true);
    }

    /// What concerns no disk that is known: now and then, however often it happens.
    pub(super) fn decide_nothing(&mut self, now: Duration, decision: &'static str, reason: &str) {
        if now < self.quiet_until {
            return;
        }
        self.quiet_until = now + REPORT_EVERY;
        let reason = reason.to_owned();
        self.tell(None, What::Decision { decision, reason }, true);
    }

    pub(super) fn tell(&mut self, at: Option<usize>, what: What, alert: bool) {
        let disk = at.map(|at| &self.disks[at]);
        let record = Record {
            machine: self.name.clone(),
            disk: disk.map(|disk| disk.disk.name.clone()),
            incident: disk.and_then(|disk| Some(disk.incident.as_ref()?.number)),
            what,
            alert: alert && !self.dry_run,
        };
        self.orders.push(Order::Tell(record));
    }
}

fn would(strategy: &Strategy, step: u64) -> String {
    match strategy {
        Strategy::Command(program) => {
            format!("would run {} for {step} bytes more", program.argv.join(" "))
        }
        Strategy::Quota(_) => format!("would raise the quota by {step} bytes"),
        Strategy::Lvm(_) => {
            format!("would extend the logical volume, or its pool, by {step} bytes")
        }
        Strategy::Zfs(zfs) => format!("would raise {} by {step} bytes", zfs.property.name()),
        Strategy::Wait => "would wait until somebody else has made room".to_owned(),
        Strategy::Leave => "would be left".to_owned(),
    }
}
