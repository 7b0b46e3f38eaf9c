//! An incident of a disk, and what is remembered of those before.

use std::sync::Arc;
use std::time::Duration;

use crate::settings::Settings;

use super::early::Early;
use super::record::Cause;
use super::room::Measure;
use super::view::Disk;

/// How far an incident is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The error is known, and the machine runs as far as is known: a `cont` now would lose the request
    /// in QEMU.
    AwaitStop {
        /// Not longer.
        until: Duration,
        /// When its run state is asked for again.
        ask: Duration,
    },
    /// Room is made, or looked for.
    Room,
    /// It is asked whether the storage is healthy.
    Health,
    /// Nothing, until then.
    Wait {
        /// Until when.
        until: Duration,
    },
    /// All is well for this disk: the machine can be continued.
    Ready,
    /// `x-block-export-cont` was sent for it.
    Continuing,
    /// It is left to somebody else.
    Left,
    /// Attempts have failed too often. It is still looked whether there is new space.
    GaveUp {
        /// When.
        look: Duration,
    },
}

/// From the first *stop* error to the machine's going on.
#[derive(Clone, Debug)]
pub struct Incident {
    /// Its number, unique for the machine.
    pub number: u64,
    /// What it is about.
    pub cause: Cause,
    /// Whether an error of this incident itself was seen.
    pub own_event: bool,
    /// The longest request that has failed, in bytes: less room than that is of no use.
    pub needs: u64,
    /// How far it is.
    pub stage: Stage,
    /// When it began.
    pub began: Duration,
    /// Attempts that have failed.
    pub failed: u32,
    /// Extensions that have succeeded.
    pub extensions: u32,
    /// Whether it has waited because its machine has stopped again at once.
    pub has_waited: bool,
    /// What was measured last.
    pub measure: Option<Measure>,
    /// What was there when it was given up.
    pub baseline: Option<Measure>,
    /// Whether somebody was woken because of it.
    pub alerted: bool,
}

/// What is remembered of a disk's incidents.
#[derive(Clone, Copy, Debug, Default)]
pub struct Past {
    /// When the machine was continued because of this disk.
    pub continued: Option<Duration>,
    /// How often in a row that did not help although there was room.
    pub flaps: u32,
    /// Errors that its guest was told of and that were not told yet, and until when none is.
    pub reported: u64,
    /// See there.
    pub quiet_until: Duration,
}

/// A disk, its incident if there is one, and its past.
#[derive(Clone, Debug)]
pub struct DiskState {
    /// As the machine shows it.
    pub disk: Disk,
    /// What is wanted.
    pub settings: Arc<Settings>,
    /// What goes on.
    pub incident: Option<Incident>,
    /// What was.
    pub past: Past,
    /// What is done before it is full.
    pub early: Early,
}

impl DiskState {
    /// The incident, if it has that number.
    pub fn incident(&mut self, number: u64) -> Option<&mut Incident> {
        self.incident
            .as_mut()
            .filter(|incident| incident.number == number)
    }
}
