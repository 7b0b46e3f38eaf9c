//! One machine: what is seen of it, and what is decided.
//!
//! Whoever owns a [`Machine`] tells it what happens, in the order in which it happens, and carries out its
//! [`Order`]s. What must always hold:
//!
//! * `cont` is ordered only when `query-status`, asked after the last error that is known, has said
//!   `io-error`. In QEMU a `cont` between an error and its STOP loses the request; a pause that is not
//!   `io-error` is somebody else's.
//! * It is ordered only when every disk that has stopped the machine is well: one that is left as it is
//!   would stop it again at once.
//! * Attempts that do not help come ever later, and end.

mod decides;
mod early;
mod hears;
mod sees;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::settings::Settings;

use super::backoff::Chance;
use super::early::Stage as Early;
use super::incident::{DiskState, Stage};
use super::notice::IoError;
use super::record::Record;
use super::room::{Ask, Measure};
use super::view::{Disk, HoldScope, RunState};

/// Which settings a disk has.
pub trait Rules: std::fmt::Debug {
    /// The settings of a disk.
    fn of(&self, disk: &Disk) -> Arc<Settings>;
}

/// What is to be done. It is answered by the method of [`Machine`] that it names.
#[derive(Clone, Debug)]
pub enum Order {
    /// Ask for the disks, then for the run state: [`Machine::looked`], when the second answer is there. The
    /// other way round the machine could stop between the two, and be taken for one that runs.
    Look,
    /// Ask for the run state: [`Machine::status`], with that number.
    Status(u64),
    /// Make room: [`Machine::room`].
    Room(Box<RoomOrder>),
    /// Measure the storage: [`Machine::measured`].
    Measure(Box<RoomOrder>),
    /// Make room before it is full: [`Machine::early`].
    Early(Box<RoomOrder>),
    /// `block-set-write-threshold`: [`Machine::armed`].
    Arm {
        /// The disk.
        disk: String,
        /// The node.
        node: String,
        /// The threshold.
        threshold: u64,
    },
    /// Ask how the disks grow: [`Machine::stats`].
    Stats,
    /// Ask whether the storage is healthy: [`Machine::health`].
    Health(Box<RoomOrder>),
    /// `cont`: [`Machine::continued`].
    Cont,
    /// `x-block-export-cont`: [`Machine::export_continued`].
    ContExport {
        /// The export.
        disk: String,
        /// The incident.
        incident: u64,
    },
    /// Tell it. Needs no answer.
    Tell(Record),
}

/// For which disk, and what is known.
#[derive(Clone, Debug)]
pub struct RoomOrder {
    /// The disk.
    pub disk: Disk,
    /// What is wanted for it.
    pub settings: Arc<Settings>,
    /// The incident; 0: none.
    pub incident: u64,
    /// What is asked for.
    pub ask: Ask,
}

/// What became of an attempt to make room.
#[derive(Clone, Debug, PartialEq)]
pub struct RoomAnswer {
    /// What.
    pub result: RoomResult,
    /// What there is now, if that is known.
    pub measure: Option<Measure>,
    /// What there was before.
    pub before: Option<Measure>,
    /// How long it took.
    pub took: Duration,
    /// How long of that until the extension itself began, and how long that went on.
    pub to_start: Duration,
    /// See there.
    pub running: Duration,
    /// More, for people.
    pub detail: String,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoomResult {
    /// The storage was extended, and that was verified.
    Grown {
        /// What was asked for.
        by: u64,
        /// What has come.
        grown: u64,
    },
    /// There was room already.
    Enough,
    /// It is not at its end, and nobody has said that it was.
    NotAtEnd,
    /// It is full, and nothing was tried.
    Full,
    /// It was tried to extend it by so much, in vain.
    Failed {
        /// By how much.
        by: u64,
    },
    /// It is as large as it may be.
    AtCap,
    /// It must not be extended.
    Refused,
}

/// How far a `cont` of the whole machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cont {
    /// None is wanted.
    Idle,
    /// The run state was asked for by that number; nothing has happened since.
    Asked(u64),
    /// It was sent.
    Sent,
}

/// A machine.
#[derive(Debug)]
pub struct Machine {
    name: String,
    rules: Arc<dyn Rules + Send + Sync>,
    dry_run: bool,
    connected: bool,
    /// As far as it is known.
    state: Option<RunState>,
    disks: Vec<DiskState>,
    /// Errors of disks that are not known.
    unknown: Vec<IoError>,
    looking: bool,
    cont: Cont,
    asked: u64,
    /// It has stopped, and no error says why. Then its disks are asked.
    unexplained: Option<Duration>,
    /// When the disks are looked at again.
    look_again: Option<Duration>,
    /// Until then nothing is told that concerns no disk that is known.
    quiet_until: Duration,
    /// Somebody else's pause was told of.
    told_of_pause: bool,
    /// A `standfastd` that is linked with this VMM keeps the VM from running: that one goes on first.
    held_by_other: bool,
    /// Numbers of incidents, which the machines of a watcher share.
    numbers: Arc<AtomicU64>,
    chance: Chance,
    orders: Vec<Order>,
}

impl Machine {
    /// A machine that is not connected. `seed` is for chance.
    #[must_use]
    pub fn new(
        name: &str,
        rules: Arc<dyn Rules + Send + Sync>,
        dry_run: bool,
        numbers: Arc<AtomicU64>,
        seed: u64,
    ) -> Self {
        Self {
            name: name.to_owned(),
            rules,
            dry_run,
            connected: false,
            state: None,
            disks: Vec::new(),
            unknown: Vec::new(),
            looking: false,
            cont: Cont::Idle,
            asked: 0,
            unexplained: None,
            look_again: None,
            quiet_until: Duration::ZERO,
            told_of_pause: false,
            held_by_other: false,
            numbers,
            chance: Chance::new(seed),
            orders: Vec::new(),
        }
    }

    /// What is to be done now.
    pub fn take_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    /// When [`Self::tick`] is due.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        let due = |disk: &DiskState| match &disk.incident.as_ref()?.stage {
            Stage::AwaitStop { until, ask } => Some(*until.min(ask)),
            Stage::Wait { until } | Stage::GaveUp { look: until } => Some(*until),
            _ => None,
        };
        let early = |disk: &DiskState| match disk.early.stage {
            Early::Moving { until } | Early::Waiting { until } => Some(until),
            _ => None,
        };
        let disks = self.disks.iter();
        disks
            .clone()
            .filter_map(due)
            .chain(disks.filter_map(early))
            .chain(self.unexplained)
            .chain(self.look_again)
            .min()
    }

    /// The run state, as far as it is known.
    #[must_use]
    pub fn state(&self) -> Option<&RunState> {
        self.state.as_ref()
    }

    /// Whether it, or a disk of it, is kept from running, or may be: what is not known is no good news.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let of_vm = |disk: &DiskState| disk.incident.is_some() && disk.disk.scope == HoldScope::Vm;
        self.state != Some(RunState::Running) || self.disks.iter().any(of_vm)
    }

    /// Its disks.
    #[must_use]
    pub fn disks(&self) -> &[DiskState] {
        &self.disks
    }

    /// Whether nothing is under way: for a watcher that looks once.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let rests = |disk: &DiskState| {
            disk.incident.as_ref().is_none_or(|incident| {
                matches!(
                    incident.stage,
                    Stage::Left | Stage::GaveUp { .. } | Stage::Wait { .. }
                )
            })
        };
        let busy = |disk: &DiskState| {
            disk.incident.is_none()
                && matches!(disk.early.stage, Early::Measuring | Early::Extending)
        };
        if self.disks.iter().any(busy) {
            return false;
        }
        let paused = matches!(self.state, Some(RunState::Other(_)));
        let asks = self.looking || self.unexplained.is_some() || self.cont != Cont::Idle;
        let blocked = self
            .disks
            .iter()
            .any(|disk| disk.incident.is_some() && rests(disk));
        self.connected && !asks && (paused || blocked || self.disks.iter().all(rests))
    }

    /// Other settings are in force.
    pub fn reconfigure(&mut self, now: Duration, rules: Arc<dyn Rules + Send + Sync>) {
        for disk in &mut self.disks {
            disk.settings = rules.of(&disk.disk);
        }
        self.rules = rules;
        self.look_again = (self.connected && self.wants_early()).then_some(now);
        for at in 0..self.disks.len() {
            if self.disks[at].early.stage != Early::Extending {
                self.disks[at].early.forget();
            }
            if self.stage_is(at, |stage| *stage == Stage::Left) {
                self.begin(now, at);
            }
        }
    }
}
