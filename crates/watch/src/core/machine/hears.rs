//! What a machine is told.

use std::sync::Arc;
use std::time::Duration;

use super::super::incident::{DiskState, Incident, Stage};
use super::super::notice::Notice;
use super::super::record::{Cause, Ending, Extended};
use super::super::view::{Disk, HoldScope, RunState};
use super::early::LOOK_AGAIN;
use super::sees::STOP_ASK;
use super::{Cont, Machine, Order, RoomAnswer, RoomResult};

/// Errors of disks that are not known yet, kept until the machine was asked for its disks.
const UNKNOWN_MAX: usize = 64;

impl Machine {
    /// The connection is there.
    pub fn connected(&mut self) {
        self.connected = true;
        self.look();
    }

    /// It has ended. What goes on is looked for again at the next one.
    pub fn disconnected(&mut self, now: Duration) {
        self.connected = false;
        for at in 0..self.disks.len() {
            self.end(now, at, Ending::LostSight);
            self.disks[at].early.forget();
        }
        self.look_again = None;
        self.state = None;
        self.unknown.clear();
        (self.looking, self.cont, self.unexplained) = (false, Cont::Idle, None);
        self.told_of_pause = false;
    }

    /// Whether a `standfastd` that is linked with this VMM keeps the VM from running.
    pub fn hold(&mut self, now: Duration, held: bool) {
        self.held_by_other = held;
        if !held {
            self.told_of_pause = false;
            self.go_on(now);
        }
    }

    /// What it answers to [`Order::Look`]: as soon as the run state is there.
    pub fn looked(&mut self, now: Duration, state: Option<RunState>, disks: Vec<Disk>) {
        self.looking = false;
        self.unexplained = None;
        self.take_disks(now, disks);
        self.saw(now, state.clone());
        // What was told says more than what is remembered.
        for error in std::mem::take(&mut self.unknown) {
            match self.disks.iter().position(|known| error.is_of(&known.disk)) {
                Some(at) => self.failed(now, at, &error),
                None => self.decide_nothing(
                    now,
                    "an error of a disk that 'query-block' does not show",
                    &error.reason,
                ),
            }
        }
        let stopped = state == Some(RunState::IoError);
        for at in 0..self.disks.len() {
            self.explain(now, at, stopped);
        }
        self.unexplained = None;
        let explained = self.disks.iter().any(|disk| disk.incident.is_some());
        if stopped && !explained {
            self.decide_nothing(
                now,
                "leave",
                "it is stopped by an I/O error, and no disk says that it was its own",
            );
        }
        for at in 0..self.disks.len() {
            self.look_early(now, at);
        }
        self.look_again = self.wants_early().then(|| now + LOOK_AGAIN);
        self.go_on(now);
    }

    /// What it answers to [`Order::Status`].
    pub fn status(&mut self, now: Duration, number: u64, state: Option<RunState>) {
        let asked = self.cont == Cont::Asked(number);
        if asked {
            self.cont = Cont::Idle;
        }
        self.saw(now, state.clone());
        if !asked {
            return self.go_on(now);
        }
        match state {
            Some(RunState::IoError) if self.is_all_ready() && !self.held_by_other => {
                self.cont = Cont::Sent;
                self.orders.push(Order::Cont);
            }
            // Another disk is not well, or is no reason any more.
            Some(RunState::IoError) => self.go_on(now),
            None => {}
            Some(RunState::Running) => self.end_all(now, Ending::FoundRunning),
            Some(RunState::Other(name)) => self.leave_the_pause(&name),
        }
    }

    /// An event.
    pub fn notice(&mut self, now: Duration, notice: Notice) {
        match notice {
            Notice::IoError(error) => {
                match self.disks.iter().position(|known| error.is_of(&known.disk)) {
                    Some(at) => self.failed(now, at, &error),
                    None => {
                        if self.unknown.len() < UNKNOWN_MAX {
                            self.unknown.push(error);
                        }
                        self.look();
                    }
                }
            }
            Notice::Stop => {
                // What was asked before does not count; why it has stopped is asked.
                self.cont = Cont::Idle;
                self.state = None;
                let mut waited = false;
                for at in 0..self.disks.len() {
                    if self.stage_is(at, |stage| matches!(stage, Stage::AwaitStop { .. })) {
                        waited = true;
                        self.begin(now, at);
                    }
                }
                if !waited {
                    self.ask_status();
                }
            }
            Notice::Resume => {
                self.state = Some(RunState::Running);
                self.told_of_pause = false;
                self.unexplained = None;
                let ending = match self.cont {
                    Cont::Sent => Ending::Continued,
                    _ => Ending::ContinuedByOther,
                };
                self.end_all(now, ending);
            }
            Notice::Threshold { node, reached, age } => self.grown(now, &node, reached, age),
            Notice::Disks => self.look(),
        }
        self.go_on(now);
    }

    /// What became of [`Order::Room`].
    pub fn room(&mut self, now: Duration, disk: &str, number: u64, answer: RoomAnswer) {
        let Some(at) = self.find(disk, number, &Stage::Room) else {
            return;
        };
        let settings = Arc::clone(&self.disks[at].settings);
        let flaps = self.disks[at].past.flaps;
        let Some(incident) = self.disks[at].incident.as_mut() else {
            return;
        };
        incident.measure = answer.measure.or(incident.measure);
        if let Some(baseline) = incident.baseline {
            let new = incident
                .measure
                .map_or(0, |measure| measure.more_than(baseline));
            if answer.result == RoomResult::Enough && new >= settings.enough.min(1 << 20) {
                (incident.failed, incident.baseline) = (0, None);
                incident.stage = Stage::Ready;
                self.disks[at].past.flaps = 0;
                self.decide(
                    at,
                    "continue",
                    format!("there are {new} bytes more than when it was given up"),
                );
            } else {
                incident.stage = Stage::GaveUp {
                    look: now + settings.poll.max(settings.backoff.max),
                };
            }
            return self.go_on(now);
        }
        match answer.result {
            RoomResult::Grown { by, grown } => {
                incident.extensions += 1;
                incident.stage = Stage::Ready;
                let state = &mut self.disks[at];
                state.past.flaps = 0;
                state.early.pace.extended(answer.took);
                self.tell_extension(at, Extended::Grown, by, grown, answer);
            }
            RoomResult::Enough => {
                if flaps == 0 || incident.has_waited {
                    incident.stage = Stage::Ready;
                    self.decide(at, "continue", "there is room".to_owned());
                } else {
                    let why = "there is room, and yet it has stopped again at once".to_owned();
                    self.wait_or_give_up(now, at, flaps, why);
                }
            }
            // An error of its own was told meanwhile.
            RoomResult::NotAtEnd if incident.own_event => self.begin(now, at),
            RoomResult::NotAtEnd => {
                incident.cause = Cause::Failed;
                let why =
                    "its storage is not at its end, and no error of this incident says that it was";
                // Another disk may be the reason; then this one stops nothing.
                let others = self.disks.iter().enumerate().any(|(other, disk)| {
                    let busy = |incident: &Incident| {
                        !matches!(incident.stage, Stage::Left | Stage::GaveUp { .. })
                    };
                    other != at && disk.incident.as_ref().is_some_and(busy)
                });
                if others {
                    self.set_stage(at, Stage::Left);
                }
                self.decide(at, "treat as failed", why.to_owned());
                if !others {
                    self.begin(now, at);
                }
            }
            RoomResult::Full => {
                let first = !std::mem::replace(&mut incident.alerted, true);
                incident.stage = Stage::Wait {
                    until: now + settings.poll,
                };
                if first {
                    self.alert(
                        at,
                        "wait",
                        "it is full, and somebody else makes room".to_owned(),
                    );
                }
            }
            RoomResult::Failed { by } => {
                let why = answer.detail.clone();
                incident.failed += 1;
                let failed = incident.failed;
                self.tell_extension(at, Extended::Failed, by, 0, answer);
                self.wait_or_give_up(now, at, failed, why);
            }
            RoomResult::Refused | RoomResult::AtCap => {
                let why = answer.detail.clone();
                incident.failed += 1;
                let failed = incident.failed;
                self.tell_extension(at, Extended::Refused, 0, 0, answer);
                self.wait_or_give_up(now, at, failed, why);
            }
        }
        self.go_on(now);
    }

    /// What became of [`Order::Health`].
    ///
    /// # Errors
    /// `result` has why the storage is not healthy.
    pub fn health(&mut self, now: Duration, disk: &str, number: u64, result: Result<(), String>) {
        let Some(at) = self.find(disk, number, &Stage::Health) else {
            return;
        };
        let flaps = self.disks[at].past.flaps;
        let Some(incident) = self.disks[at].incident.as_mut() else {
            return;
        };
        match result {
            Ok(()) if flaps == 0 || incident.has_waited => {
                incident.stage = Stage::Ready;
                self.decide(at, "continue", "the storage is healthy".to_owned());
            }
            Ok(()) => {
                let why = "the storage is said to be healthy, and yet it has failed again at once"
                    .to_owned();
                self.wait_or_give_up(now, at, flaps, why);
            }
            Err(why) => {
                incident.failed += 1;
                let failed = incident.failed;
                self.wait_or_give_up(now, at, failed, why);
            }
        }
        self.go_on(now);
    }

    /// What it answers to [`Order::Cont`].
    pub fn continued(&mut self, now: Duration, result: Result<(), String>) {
        if self.cont != Cont::Sent {
            return;
        }
        self.cont = Cont::Idle;
        let ready = |disk: &DiskState| {
            let incident = disk.incident.as_ref();
            disk.disk.scope == HoldScope::Vm && incident.is_some_and(|i| i.stage == Stage::Ready)
        };
        for at in 0..self.disks.len() {
            if !ready(&self.disks[at]) {
                continue;
            }
            match &result {
                // Without a RESUME: it ran already.
                Ok(()) => self.end(now, at, Ending::Continued),
                Err(why) => self.cont_refused(now, at, why),
            }
        }
        self.go_on(now);
    }

    /// What it answers to [`Order::ContExport`].
    pub fn export_continued(
        &mut self,
        now: Duration,
        disk: &str,
        number: u64,
        result: Result<(), String>,
    ) {
        if let Some(at) = self.find(disk, number, &Stage::Continuing) {
            match result {
                Ok(()) => self.end(now, at, Ending::Continued),
                Err(why) => self.cont_refused(now, at, &why),
            }
        }
        self.go_on(now);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        if self.unexplained.is_some_and(|due| now >= due) {
            self.unexplained = None;
            self.look();
        }
        if self.look_again.is_some_and(|due| now >= due) {
            self.look_again = None;
            self.look();
        }
        let mut ask = false;
        for at in 0..self.disks.len() {
            self.early_tick(now, at);
            let poll = self.disks[at]
                .settings
                .poll
                .max(self.disks[at].settings.backoff.max);
            let Some(incident) = self.disks[at].incident.as_mut() else {
                continue;
            };
            match &mut incident.stage {
                Stage::AwaitStop { until, .. } if now >= *until => {
                    self.end(now, at, Ending::NotStopped);
                }
                Stage::AwaitStop { ask: due, .. } if now >= *due => {
                    *due = now + STOP_ASK;
                    ask = true;
                }
                Stage::Wait { until } if now >= *until => {
                    incident.has_waited = true;
                    self.begin(now, at);
                }
                Stage::GaveUp { look } if now >= *look => {
                    *look = now + poll;
                    if incident.cause == Cause::Nospace {
                        self.order_room(at, false);
                    }
                }
                _ => {}
            }
        }
        if ask {
            self.ask_status();
        }
        self.go_on(now);
    }
}
