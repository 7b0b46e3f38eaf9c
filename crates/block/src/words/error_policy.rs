//! The error policy: which action follows from a failed request. Pure.

use crate::words::error::{Cause, ErrorKind};

/// The configured reaction to errors of one direction (QEMU's `BlockdevOnError`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OnError {
    /// Hand the error to the client.
    Report,
    /// Pretend success.
    Ignore,
    /// Stop when there is no space, report anything else.
    Enospc,
    /// Hold the request.
    Stop,
    /// The default of the direction: `enospc` for writes, `report` for reads.
    #[default]
    Auto,
}

impl OnError {
    /// QEMU's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Ignore => "ignore",
            Self::Enospc => "enospc",
            Self::Stop => "stop",
            Self::Auto => "auto",
        }
    }
}

/// Which of the two policies judges a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Judged by `rerror`.
    Read,
    /// Judged by `werror`.
    Write,
}

/// What is done about one failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Completed as if it had succeeded.
    Ignore,
    /// Completed with the error.
    Report,
    /// Held.
    Stop,
}

impl Action {
    /// QEMU's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ignore => "ignore",
            Self::Report => "report",
            Self::Stop => "stop",
        }
    }
}

/// `werror` and `rerror` of a backend, resolved: never [`OnError::Auto`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    werror: OnError,
    rerror: OnError,
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(OnError::Auto, OnError::Auto)
    }
}

impl Policy {
    /// A policy; `auto` becomes QEMU's default of the direction.
    pub const fn new(werror: OnError, rerror: OnError) -> Self {
        Self {
            werror: match werror {
                OnError::Auto => OnError::Enospc,
                other => other,
            },
            rerror: match rerror {
                OnError::Auto => OnError::Report,
                other => other,
            },
        }
    }

    /// The policy for everything but reads.
    pub const fn werror(self) -> OnError {
        self.werror
    }

    /// The policy for reads.
    pub const fn rerror(self) -> OnError {
        self.rerror
    }

    /// Whether some error of some direction can lead to [`Action::Stop`].
    pub const fn can_stop(self) -> bool {
        matches!(self.werror, OnError::Enospc | OnError::Stop)
            || matches!(self.rerror, OnError::Enospc | OnError::Stop)
    }

    /// The action for one failure. Goes by the errno: what it means changes nothing, except that what nothing
    /// mends is always reported. Held it would be for ever, ignored the guest would go on with a disk that is none.
    pub const fn action(self, direction: Direction, cause: Cause) -> Action {
        if matches!(cause.kind, ErrorKind::Corrupt) {
            return Action::Report;
        }
        let on_error = match direction {
            Direction::Read => self.rerror,
            Direction::Write => self.werror,
        };
        match on_error {
            OnError::Ignore => Action::Ignore,
            OnError::Stop => Action::Stop,
            OnError::Enospc if cause.is_enospc() => Action::Stop,
            OnError::Report | OnError::Enospc | OnError::Auto => Action::Report,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn action_table() {
        use Action as A;
        use OnError as P;
        for (policy, nospace, other) in [
            (P::Report, A::Report, A::Report),
            (P::Ignore, A::Ignore, A::Ignore),
            (P::Enospc, A::Stop, A::Report),
            (P::Stop, A::Stop, A::Stop),
        ] {
            for (errno, expected) in [
                (libc::ENOSPC, nospace),
                (libc::EDQUOT, nospace),
                (libc::EIO, other),
                (libc::EFBIG, other),
            ] {
                let cause = Cause::of_errno(errno);
                let write = Policy::new(policy, P::Report);
                assert_eq!(
                    write.action(Direction::Write, cause),
                    expected,
                    "{policy:?} {errno}"
                );
                assert_eq!(write.action(Direction::Read, cause), A::Report);
                let read = Policy::new(P::Report, policy);
                assert_eq!(
                    read.action(Direction::Read, cause),
                    expected,
                    "{policy:?} {errno}"
                );
            }
        }
    }

    /// A device that has vanished says ENOSPC: no want of space, and still a stop, as in QEMU.
    #[test]
    fn what_an_errno_means_changes_no_action() {
        let policies = [
            OnError::Report,
            OnError::Ignore,
            OnError::Enospc,
            OnError::Stop,
        ];
        for (policy, errno) in policies
            .into_iter()
            .flat_map(|p| (1..134).map(move |e| (p, e)))
        {
            let policy = Policy::new(policy, policy);
            let plain = policy.action(Direction::Write, Cause::of_errno(errno));
            for kind in ErrorKind::ALL {
                let cause = Cause { kind, errno };
                let expected = match kind {
                    ErrorKind::Corrupt => Action::Report,
                    _ => plain,
                };
                for direction in [Direction::Read, Direction::Write] {
                    assert_eq!(policy.action(direction, cause), expected, "{cause:?}");
                }
            }
        }
        let gone = Cause {
            kind: ErrorKind::BackingGone,
            errno: libc::ENOSPC,
        };
        let action = Policy::default().action(Direction::Write, gone);
        assert_eq!(action, Action::Stop);
    }

    #[test]
    fn auto_is_qemu_default() {
        let policy = Policy::default();
        assert_eq!(
            (policy.werror(), policy.rerror()),
            (OnError::Enospc, OnError::Report)
        );
    }

    /// QEMU leaves `rerror=enospc` out and aborts when a read then fails with ENOSPC.
    #[test]
    fn every_policy_that_can_stop_says_so() {
        let all = [
            OnError::Report,
            OnError::Ignore,
            OnError::Enospc,
            OnError::Stop,
        ];
        for werror in all {
            for rerror in all {
                let policy = Policy::new(werror, rerror);
                let stops = [Direction::Read, Direction::Write]
                    .into_iter()
                    .any(|direction| {
                        [libc::ENOSPC, libc::EIO].into_iter().any(|errno| {
                            policy.action(direction, Cause::of_errno(errno)) == Action::Stop
                        })
                    });
                assert_eq!(policy.can_stop(), stops, "{policy:?}");
            }
        }
    }
}
