//! Time: it passes only when a step says so. What is due then, and what must never be.

use std::time::Duration;

use standfast_block::{Action, EventKind};

use super::*;

/// The failures of one device that are reported or ignored: which of them have to become events, by
/// the rule as it is written down.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// The last event.
    told: Option<Instant>,
    /// The last failure, when it is not told yet.
    waits: Option<Reported>,
    /// Failures of which nobody will ever be told.
    merged: u64,
}

impl Reports {
    /// When the next event may come.
    fn next(&self) -> Option<Instant> {
        self.told.map(|told| told + REPORT_INTERVAL)
    }

    fn due(&self) -> Option<Instant> {
        self.waits.as_ref().and_then(|_| self.next())
    }

    /// Nobody is told of what waits.
    pub(super) fn forget(&mut self) -> Option<Reported> {
        self.merged += u64::from(self.waits.is_some());
        self.waits.take()
    }
}

impl World {
    pub fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    /// The control task looks at its alarm: it has rung if its time has come, maybe long ago.
    pub fn ring(&mut self) -> Check {
        if !self.alarm_rings() {
            return Ok(());
        }
        self.alarm = None;
        let mut outbox = Outbox::default();
        let now = match self.mutant {
            Mutant::ClockAhead => self.now + REPORT_INTERVAL,
            _ => self.now,
        };
        self.control.wake(now, &mut outbox);
        for event in &outbox.events {
            let EventKind::BlockIoError(error) = &event.kind else {
                return Err(format!("time alone caused {event:?}"));
            };
            let b = self.by_device(&error.device);
            let reports = &mut self.backends[b].reports;
            let request = (error.operation, error.offset, error.bytes);
            let expected = reports.waits.take();
            let expected = expected.map(|reported| {
                let Request {
                    op, offset, bytes, ..
                } = reported.request;
                (op, offset, bytes)
            });
            ensure!(
                expected == Some(request) && error.action != Action::Stop,
                "{error:?} is told, the last failure is {expected:?}"
            );
            self.tell(b)?;
            self.late += 1;
        }
        ensure!(
            outbox.posts.is_empty() && outbox.orders.is_empty() && outbox.ended.is_empty(),
            "time alone has touched what is held"
        );
        let due = |backend: &Backend| backend.reports.due().is_some_and(|due| due <= now);
        ensure!(
            !self.backends.iter().any(due),
            "something was due and was not told"
        );
        self.alarm = self.control.wake_at();
        Ok(())
    }

    pub(super) fn alarm_rings(&self) -> bool {
        self.alarm.is_some_and(|at| at <= self.now)
    }

    /// The task sets its alarm after each message.
    pub(super) fn set_alarm(&mut self, resets: bool) {
        match self.mutant {
            Mutant::AlarmLost if resets => self.alarm = None,
            Mutant::AlarmLost if self.alarm.is_none() && !self.reported_last => {}
            _ => self.alarm = self.control.wake_at(),
        }
    }

    fn by_device(&self, device: &str) -> usize {
        (0..self.backends.len())
            .find(|b| format!("disk{b}") == device)
            .expect("known device")
    }

    fn tell(&mut self, b: usize) -> Check {
        let reports = &mut self.backends[b].reports;
        if let Some(next) = reports.next() {
            ensure!(
                self.now >= next,
                "two events of disk{b} within {:?}",
                REPORT_INTERVAL - (next - self.now)
            );
        }
        reports.told = Some(self.now);
        Ok(())
    }

    /// Run control has taken the word that `reported` has failed: whether there is an event.
    pub(super) fn check_report(&mut self, b: usize, reported: &Reported, outbox: &Outbox) -> Check {
        let now = self.now;
        let events = outbox.events.len();
        let reports = &mut self.backends[b].reports;
        reports.merged += u64::from(reports.waits.replace(reported.clone()).is_some());
        let may = reports.next().is_none_or(|next| now >= next);
        ensure!(
            events == usize::from(may),
            "{events} events of disk{b}, which may have one: {may}"
        );
        if may {
            reports.waits = None;
            self.tell(b)?;
        }
        Ok(())
    }

    /// When no message is under way: nothing is overdue, nothing is lost, and the alarm is set to what
    /// comes next, and to nothing else.
    pub(super) fn check_time(&self) -> Check {
        let mut next = None;
        for (b, backend) in self.backends.iter().enumerate() {
            let reports = &backend.reports;
            let due = reports.due();
            ensure!(
                due.is_none_or(|due| due > self.now),
                "{:?} of disk{b} was due and was not told",
                reports.waits
            );
            next = next.into_iter().chain(due).min();
            if let Some(state) = self.control.backend(backend.id) {
                let merged = state.accounting().read().events_merged;
                ensure!(
                    merged == reports.merged,
                    "{merged} failures of disk{b} are counted as merged, must be {}",
                    reports.merged
                );
            }
        }
        ensure!(
            self.control.wake_at() == next,
            "wakes at {:?}, must at {next:?}",
            self.control.wake_at()
        );
        Ok(())
    }
}
