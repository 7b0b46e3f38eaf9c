//! The I/O status of a backend: a latch that keeps the first error until it is reset. Pure.

use crate::words::error::{Cause, ErrorKind};
use crate::words::error_policy::Policy;

/// The value of the latch (QEMU's `BlockDeviceIoStatus`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Status {
    /// No error since the last reset.
    #[default]
    Ok,
    /// The first error since the last reset was for want of space.
    Nospace,
    /// The first error since the last reset was any other.
    Failed,
}

impl Status {
    /// QEMU's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Nospace => "nospace",
            Self::Failed => "failed",
        }
    }
}

/// The I/O status of one backend. Created disabled and ok.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct IoStatus {
    enabled_by_device: bool,
    status: Status,
}

impl IoStatus {
    /// The device supports I/O status. Also resets it, as attaching does.
    pub fn enable(&mut self) {
        self.enabled_by_device = true;
        self.status = Status::Ok;
    }

    /// As [`Self::enable`], for a device that was there before the daemon was started again: the
    /// value stays.
    pub fn enable_again(&mut self) {
        self.enabled_by_device = true;
    }

    /// What was saved.
    pub const fn restored(enabled_by_device: bool, status: Status) -> Self {
        Self {
            enabled_by_device,
            status,
        }
    }

    /// Whether there is a device that supports I/O status, whatever the policy.
    pub const fn has_device(self) -> bool {
        self.enabled_by_device
    }

    /// The device is gone; the value is kept but no longer shown.
    pub fn disable(&mut self) {
        self.enabled_by_device = false;
    }

    /// Whether the status means anything: enabled by the device and a policy that can stop.
    pub fn is_enabled(&self, policy: Policy) -> bool {
        self.enabled_by_device && policy.can_stop()
    }

    /// Back to ok.
    pub fn reset(&mut self) {
        self.status = Status::Ok;
    }

    /// Latches an error; only the first since the last reset counts. Goes by what the error means, not
    /// by its errno. Total: no state refuses it.
    pub fn set_err(&mut self, cause: Cause) {
        if self.status == Status::Ok {
            self.status = match cause.kind {
                ErrorKind::NoSpace => Status::Nospace,
                _ => Status::Failed,
            };
        }
    }

    /// The raw value; show it only if [`Self::is_enabled`].
    pub fn get(&self) -> Status {
        self.status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::error_policy::OnError;

    const ENOSPC: Cause = Cause::of_errno(libc::ENOSPC);
    const EIO: Cause = Cause::of_errno(libc::EIO);

    #[test]
    fn first_error_wins_until_reset() {
        let mut status = IoStatus::default();
        status.set_err(ENOSPC);
        status.set_err(EIO);
        assert_eq!(status.get(), Status::Nospace);
        status.reset();
        assert_eq!(status.get(), Status::Ok);
        status.set_err(EIO);
        status.set_err(ENOSPC);
        assert_eq!(status.get(), Status::Failed);
    }

    /// A device that has vanished says ENOSPC: `nospace` would be a lie.
    #[test]
    fn goes_by_the_meaning() {
        for kind in ErrorKind::ALL {
            for errno in [libc::ENOSPC, libc::EIO] {
                let mut status = IoStatus::default();
                status.set_err(Cause { kind, errno });
                let nospace = status.get() == Status::Nospace;
                assert_eq!(nospace, kind == ErrorKind::NoSpace, "{kind:?} {errno}");
            }
        }
    }

    #[test]
    fn enabled_needs_device_and_policy() {
        let (stop, report) = (
            Policy::new(OnError::Report, OnError::Enospc),
            Policy::new(OnError::Report, OnError::Ignore),
        );
        let mut status = IoStatus::default();
        assert!(!status.is_enabled(stop), "created disabled");
        status.enable();
        assert!(status.is_enabled(stop));
        assert!(!status.is_enabled(report));
        status.set_err(EIO);
        status.disable();
        assert!(!status.is_enabled(stop));
        assert_eq!(status.get(), Status::Failed, "disabling keeps the value");
        status.enable();
        assert_eq!(status.get(), Status::Ok, "enabling resets");
    }
}
