//! What is wanted for a disk: plain data.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::core::backoff::Backoff;
use crate::core::headroom::HeadRoom;
use crate::pattern::Pattern;

/// A program and its arguments; no shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program, then its arguments. Not empty.
    pub argv: Vec<String>,
    /// After that it is killed, with all that it has started.
    pub time_limit: Duration,
}

/// What makes room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Nobody: it is told.
    Leave,
    /// Somebody else: it is looked at until there is room.
    Wait,
    /// A program.
    Command(Program),
    /// `x-quota-set` of a node of `standfastd`; none: the disk's top node.
    Quota(Option<String>),
    /// `lvextend` of the logical volume that the disk lies on, or of its pool.
    Lvm(Lvm),
    /// `zfs set` of a property of the dataset that the disk lies on.
    Zfs(Zfs),
}

/// How logical volumes are extended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lvm {
    /// Where `lvs` and `lvextend` are.
    pub tools: PathBuf,
    /// How long one of them may take.
    pub time_limit: Duration,
    /// No other host changes the volume group.
    pub sole_writer: bool,
}

/// How datasets of ZFS are extended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zfs {
    /// Where `zfs` is.
    pub tools: PathBuf,
    /// How long it may take.
    pub time_limit: Duration,
    /// What is raised.
    pub property: ZfsProperty,
    /// Of which dataset; none: of the one on which the disk's data lies.
    pub dataset: Option<String>,
}

/// What is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZfsProperty {
    /// The size of a volume.
    Volsize,
    /// What a dataset may refer to.
    Refquota,
    /// What a dataset may use, with all below.
    Quota,
}

impl ZfsProperty {
    /// As ZFS calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Volsize => "volsize",
            Self::Refquota => "refquota",
            Self::Quota => "quota",
        }
    }
}

/// What is done about a failure that is not for want of space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnFailed {
    /// It is told.
    Leave,
    /// The machine goes on when a program says that the storage is healthy.
    WhenHealthy(Program),
    /// It goes on after that time, if the storage can be looked at.
    After(Duration),
}

/// What is wanted for a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What makes room.
    pub strategy: Strategy,
    /// By how much storage is extended, in bytes; more, if the head-room is more than half of it.
    pub step: u64,
    /// How much is to be free before it is full; none: it is extended when it is full.
    pub early: Option<HeadRoom>,
    /// The greatest size that it is extended to, in bytes.
    pub cap: Option<u64>,
    /// So many free bytes are room enough to go on.
    pub enough: u64,
    /// So many bytes stay free in the file system below a quota.
    pub reserve: u64,
    /// Where the disk's data lies, if the machine says it wrongly.
    pub path: Option<PathBuf>,
    /// What is done about other failures.
    pub on_failed: OnFailed,
    /// How long between attempts.
    pub backoff: Backoff,
    /// After so many that failed in a row it is left.
    pub give_up_after: u32,
    /// A machine that stops again within that time after it was continued has not been helped.
    pub settle: Duration,
    /// How often it is looked whether somebody else has made room.
    pub poll: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        const STEP: u64 = 2 << 30;
        Self {
            strategy: Strategy::Leave,
            step: STEP,
            early: None,
            cap: None,
            enough: STEP / 2,
            reserve: 0,
            path: None,
            on_failed: OnFailed::Leave,
            backoff: Backoff {
                first: Duration::from_secs(1),
                max: Duration::from_secs(300),
            },
            give_up_after: 8,
            settle: Duration::from_secs(10),
            poll: Duration::from_secs(5),
        }
    }
}

/// Which disks settings are for: all that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// The node-name.
    pub node: Option<Pattern>,
    /// The name, id or path of the device.
    pub qdev: Option<Pattern>,
    /// The file.
    pub file: Option<Pattern>,
}
