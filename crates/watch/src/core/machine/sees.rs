//! What becomes of what was seen: the run state, the disks, their incidents.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::early::Stage as Early;
use super::super::incident::{DiskState, Incident, Past, Stage};
use super::super::notice::{Action, IoError};
use super::super::record::{Cause, Ending, What};
use super::super::view::{DISKS_MAX, Disk, HoldScope, IoStatus, RunState};
use super::super::zfs;
use super::{Cont, Machine, Order};
use crate::settings::Strategy;

/// How long after an error its STOP may take.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How often the run state is asked for meanwhile.
pub(super) const STOP_ASK: Duration = Duration::from_millis(500);
/// QEMU 9.2 and newer send an error up to a second late; then STOP comes first.
const LATE_EVENT: Duration = Duration::from_millis(1500);
/// Errors that guests were told of are told at most so often, per disk; so is what concerns no known disk.
pub(super) const REPORT_EVERY: Duration = Duration::from_secs(10);

impl Machine {
    pub(super) fn look(&mut self) {
        if self.connected && !self.looking {
            self.looking = true;
            self.orders.push(Order::Look);
        }
    }

    pub(super) fn ask_status(&mut self) -> u64 {
        self.asked += 1;
        self.orders.push(Order::Status(self.asked));
        self.asked
    }

    /// The run state as it is now, by an answer.
    pub(super) fn saw(&mut self, now: Duration, state: Option<RunState>) {
        let Some(state) = state else {
            return;
        };
        self.state = Some(state.clone());
        for at in 0..self.disks.len() {
            let waits = self.stage_is(at, |stage| matches!(stage, Stage::AwaitStop { .. }));
            let vm = self.disks[at].disk.scope == HoldScope::Vm;
            match state {
                // It was read before the machine has stopped: that is no end.
                RunState::Running if waits || !vm => {}
                RunState::Running if self.cont == Cont::Sent => {}
                RunState::Running => self.end(now, at, Ending::FoundRunning),
                RunState::IoError | RunState::Other(_) if waits => self.begin(now, at),
                RunState::IoError | RunState::Other(_) => {}
            }
        }
        let known = self.disks.iter().any(|disk| disk.incident.is_some());
        if state == RunState::IoError && !known && !self.looking {
            self.unexplained.get_or_insert(now + LATE_EVENT);
        }
    }

    pub(super) fn take_disks(&mut self, now: Duration, disks: Vec<Disk>) {
        for at in (0..self.disks.len()).rev() {
            let name = &self.disks[at].disk.name;
            if disks.iter().all(|disk| disk.name != *name) {
                self.end(now, at, Ending::DiskGone);
                self.disks.remove(at);
            }
        }
        for disk in disks.into_iter().take(DISKS_MAX) {
            let settings = self.rules.of(&disk);
            match self
                .disks
                .iter_mut()
                .find(|known| known.disk.name == disk.name)
            {
                Some(known) => {
                    let moved = known.disk.growth.node != disk.growth.node
                        || known.disk.file != disk.file
                        || known.settings != settings;
                    if moved && known.early.stage != Early::Extending {
                        known.early.forget();
                    }
                    (known.disk, known.settings) = (disk, settings);
                }
                None => self.disks.push(DiskState {
                    disk,
                    settings,
                    incident: None,
                    past: Past::default(),
                    early: super::super::early::Early::default(),
                }),
            }
        }
    }

    /// Begins an incident that happened while nobody listened, if there is one.
    pub(super) fn explain(&mut self, now: Duration, at: usize, stopped: bool) {
        let DiskState { disk, incident, .. } = &self.disks[at];
        if incident.is_some() {
            return;
        }
        let held = disk.held.unwrap_or(0) > 0;
        let cause = match disk.io_status {
            // What is held now is of now, whatever the run state.
            _ if held && disk.held_nospace => Cause::Nospace,
            _ if held => Cause::Failed,
            None | Some(IoStatus::Ok) => return,
            // A stale status of a machine that runs is no incident; nor is a pause of somebody else.
            Some(_) if !stopped || disk.held.is_some() => return,
            Some(_) if !disk.status_is_fresh() => Cause::Unknown,
            Some(IoStatus::Nospace) => Cause::Nospace,
            Some(IoStatus::Failed) => Cause::Failed,
        };
        let reason = "it was stopped when it was looked at".to_owned();
        self.open(now, at, cause, String::new(), reason);
        self.begin(now, at);
    }

    /// A request of a disk has failed.
    pub(super) fn failed(&mut self, now: Duration, at: usize, error: &IoError) {
        if error.action != Action::Stop {
            return self.reported(now, at, error);
        }
        if error.nospace && !error.error_node.is_empty() {
            self.disks[at].disk.full_node = Some(error.error_node.clone());
        }
        // An answer that is under way may have been given before this.
        if let Cont::Asked(_) = self.cont {
            self.cont = Cont::Idle;
        }
        // QEMU takes what ZFS says for a failure like any other; the dataset's figures have to say the same.
        let quota = matches!(self.disks[at].settings.strategy, Strategy::Zfs(_))
            && zfs::is_quota(&error.reason);
        let cause = match error.nospace {
            true => Cause::Nospace,
            false if quota => Cause::Unknown,
            false => Cause::Failed,
        };
        if cause == Cause::Unknown && self.disks[at].incident.is_some() {
            return;
        }
        if let Some(incident) = &mut self.disks[at].incident {
            // More of the same. What an earlier one only supposed is known now.
            incident.own_event = true;
            incident.needs = incident.needs.max(error.length);
            if incident.cause == Cause::Unknown {
                incident.cause = cause;
            }
            return;
        }
        self.open(
            now,
            at,
            cause,
            error.operation.clone(),
            error.reason.clone(),
        );
        if let Some(incident) = &mut self.disks[at].incident {
            incident.needs = error.length;
        }
        let stops = self.disks[at].disk.scope == HoldScope::Vm;
        let runs = matches!(self.state, None | Some(RunState::Running));
        if !stops || !runs {
            self.begin(now, at);
        }
    }

    pub(super) fn reported(&mut self, now: Duration, at: usize, error: &IoError) {
        if error.nospace {
            self.told_of_no_space(at);
        }
        let past = &mut self.disks[at].past;
        past.reported += 1;
        if now < past.quiet_until {
            return;
        }
        past.quiet_until = now + REPORT_EVERY;
        let count = std::mem::take(&mut past.reported);
        let what = What::Reported {
            action: match error.action {
                Action::Ignore => "ignore",
                _ => "report",
            },
            nospace: error.nospace,
            reason: error.reason.clone(),
            count,
        };
        self.tell(Some(at), what, true);
    }

    pub(super) fn open(
        &mut self,
        now: Duration,
        at: usize,
        cause: Cause,
        operation: String,
        reason: String,
    ) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let DiskState {
            settings,
            past,
            early,
            ..
        } = &mut self.disks[at];
        // It does not write while it is stopped.
        early.sample = None;
        let again = past
            .continued
            .is_some_and(|then| now.saturating_sub(then) <= settings.settle);
        past.flaps = if again { past.flaps + 1 } else { 0 };
        self.disks[at].incident = Some(Incident {
            number,
            cause,
            own_event: cause != Cause::Unknown,
            needs: 0,
            stage: Stage::AwaitStop {
                until: now + STOP_LIMIT,
                ask: now + STOP_ASK,
            },
            began: now,
            failed: 0,
            extensions: 0,
            has_waited: false,
            measure: None,
            baseline: None,
            alerted: false,
        });
        let what = What::IncidentBegan {
            cause,
            operation,
            reason,
        };
        self.tell(Some(at), what, false);
    }
}
