//! How often the failures of a device that are no *stop* become events. Pure.
//!
//! As QEMU does since 9.2, for each device: one at once, then at most one each second, and that is
//! the last one there was. Unlike there, a *stop* is never limited, and does not count.

use std::time::{Duration, Instant};

use super::message::Reported;

/// The least time between two events of one device.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The limit of one device.
#[derive(Debug, Default)]
pub(super) struct ReportLimit {
    last: Option<Instant>,
    waits: Option<Reported>,
}

/// What becomes of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offered {
    /// It is to be sent now.
    Now,
    /// It will be when it is due, unless another one comes before.
    Later,
}

impl ReportLimit {
    /// A request has failed. Also how many failures will never be told of, because this one came.
    pub(super) fn offer(&mut self, reported: &Reported, now: Instant) -> (Offered, u64) {
        if self.next().is_some_and(|next| now < next) {
            let merged = self.waits.replace(reported.clone()).is_some();
            return (Offered::Later, u64::from(merged));
        }
        self.last = Some(now);
        (Offered::Now, u64::from(self.waits.take().is_some()))
    }

    /// Before that there is no other event.
    fn next(&self) -> Option<Instant> {
        self.last?.checked_add(REPORT_INTERVAL)
    }

    /// When the one that waits is due, if one does.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waits.as_ref()?;
        self.next()
    }

    /// The one that is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Reported> {
        let due = self.due().is_some_and(|due| due <= now);
        let reported = self.waits.take_if(|_| due);
        if reported.is_some() {
            self.last = Some(now);
        }
        reported
    }

    /// The device begins a new life: nobody is told what waits. How many that are.
    pub(super) fn forget(&mut self) -> u64 {
        u64::from(self.waits.take().is_some())
    }
}
