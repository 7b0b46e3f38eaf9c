//! What becomes of each error that storage says: the table that tests compare the block layer and the
//! whole daemon with, and what QEMU 7.2 makes of the same (virtio-blk), row by row.

/// The errnos of Linux, by number.
pub fn errnos() -> impl Iterator<Item = i32> {
    (1..=133).filter(|errno| !matches!(errno, 41 | 58))
}

/// ENOSPC.
pub const ENOSPC: i32 = 28;
/// EDQUOT.
pub const EDQUOT: i32 = 122;

/// The causes, and the errnos that stand for them; all others are `failed`.
pub const CAUSES: [(&str, &[i32]); 7] = [
    ("nospace", &[ENOSPC, EDQUOT]),
    (
        // ENXIO ENODEV EPIPE ENOLINK ENETDOWN ENETUNREACH ECONNABORTED ECONNRESET ENOTCONN ESHUTDOWN
        // ECONNREFUSED EHOSTDOWN EHOSTUNREACH ESTALE
        "backing-gone",
        &[
            6, 19, 32, 67, 100, 101, 103, 104, 107, 108, 111, 112, 113, 116,
        ],
    ),
    // ETIME ETIMEDOUT
    ("timeout", &[62, 110]),
    // EPERM EACCES EROFS EBADE
    ("permission", &[1, 13, 30, 52]),
    // ENODATA EBADMSG EILSEQ EREMOTEIO
    ("media", &[61, 74, 84, 121]),
    // ENOTTY ENOSYS EOPNOTSUPP
    ("unsupported", &[25, 38, 95]),
    // EINVAL
    ("invalid", &[22]),
];

/// The operations, as events name them.
pub const OPERATIONS: [&str; 5] = ["read", "write", "flush", "discard", "write-zeroes"];

/// The values of an error policy; `auto` is one of them.
pub const POLICIES: [&str; 4] = ["report", "ignore", "enospc", "stop"];

/// A request that storage fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// What storage says.
    pub errno: i32,
    /// It is a block device that has shrunk or vanished.
    pub vanished: bool,
    /// One of [`OPERATIONS`].
    pub operation: &'static str,
    /// The policy of all but reads.
    pub werror: &'static str,
    /// The policy of reads.
    pub rerror: &'static str,
}

/// What the client learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// That it was done.
    Success,
    /// `VIRTIO_BLK_S_IOERR`.
    Failure,
    /// Nothing until `cont`.
    Nothing,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `action` of the event.
    pub action: &'static str,
    /// `nospace` of the event.
    pub nospace: Option<bool>,
    /// `io-status`, if it was `ok` before.
    pub io_status: Option<&'static str>,
    /// What the client learns.
    pub guest: Guest,
}

impl Case {
    /// Every errno, operation and pair of policies, on storage that is there and that is not.
    pub fn all() -> impl Iterator<Item = Self> {
        let policies = POLICIES
            .into_iter()
            .flat_map(|werror| POLICIES.map(|rerror| (werror, rerror)));
        let operations =
            policies.flat_map(|policy| OPERATIONS.map(|operation| (policy, operation)));
        operations.flat_map(|((werror, rerror), operation)| {
            errnos().flat_map(move |errno| {
                [false, true].map(|vanished| Self {
                    errno,
                    vanished,
                    operation,
                    werror,
                    rerror,
                })
            })
        })
    }

    fn policy(&self) -> &'static str {
        match self.operation {
            "read" => self.rerror,
            _ => self.werror,
        }
    }

    /// What `x-cause` says.
    #[must_use]
    pub fn cause(&self) -> &'static str {
        if self.vanished {
            return "backing-gone";
        }
        let found = CAUSES
            .iter()
            .find(|(_, errnos)| errnos.contains(&self.errno));
        found.map_or("failed", |(cause, _)| cause)
    }

    /// What becomes of it here.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let can_stop = |policy| matches!(policy, "enospc" | "stop");
        let nospace = self.cause() == "nospace";
        verdict(
            self.policy(),
            matches!(self.errno, ENOSPC | EDQUOT),
            nospace,
            can_stop(self.werror) || can_stop(self.rerror),
        )
    }

    /// What becomes of it in QEMU.
    #[must_use]
    pub fn qemu(&self) -> Verdict {
        let enabled = matches!(self.werror, "enospc" | "stop") || self.rerror == "stop";
        let nospace = self.errno == ENOSPC;
        verdict(self.policy(), nospace, nospace, enabled)
    }

    /// Why the verdict is not QEMU's, if it may be another.
    #[must_use]
    pub fn difference(&self) -> Option<&'static str> {
        DIFFERENCES
            .iter()
            .find(|(_, applies)| applies(self))
            .map(|(reason, _)| *reason)
    }
}

fn verdict(policy: &str, is_enospc: bool, nospace: bool, enabled: bool) -> Verdict {
    let (action, guest) = match policy {
        "ignore" => ("ignore", Guest::Success),
        "stop" => ("stop", Guest::Nothing),
        "enospc" if is_enospc => ("stop", Guest::Nothing),
        _ => ("report", Guest::Failure),
    };
    let io_status = match (action, nospace) {
        ("stop", true) => "nospace",
        ("stop", false) => "failed",
        _ => "ok",
    };
    Verdict {
        action,
        nospace: enabled.then_some(nospace),
        io_status: enabled.then_some(io_status),
        guest,
    }
}

type Applies = fn(&Case) -> bool;

/// Where QEMU does something else, and why we do not follow.
pub const DIFFERENCES: [(&str, Applies); 3] = [
    (
        "QEMU says nospace of a device that has vanished, and a manager extends a healthy volume",
        |case| case.vanished && matches!(case.errno, ENOSPC | EDQUOT),
    ),
    (
        "QEMU takes a quota that is used up for any other error, except through NBD, where it is ENOSPC",
        |case| case.errno == EDQUOT,
    ),
    (
        "QEMU forgets rerror=enospc: no status, and it aborts at the first ENOSPC",
        |case| case.rerror == "enospc" && matches!(case.werror, "report" | "ignore"),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// A difference has a reason, and there is a case for each reason.
    #[test]
    fn row_by_row_as_qemu_does() {
        let mut used = [0_usize; DIFFERENCES.len()];
        for case in Case::all() {
            if case.verdict() == case.qemu() {
                continue;
            }
            let applies = DIFFERENCES.iter().position(|(_, applies)| applies(&case));
            let Some(at) = applies else {
                panic!("{case:?}: {:?}, QEMU: {:?}", case.verdict(), case.qemu());
            };
            used[at] += 1;
        }
        assert!(used.iter().all(|&cases| cases > 0), "{used:?}");
        assert_eq!(Case::all().count(), 131 * 5 * 16 * 2);
    }
}
