//! How all machines are: for whoever asks, and for the metrics.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// What it is called.
    pub machine: String,
    /// Its socket.
    pub socket: PathBuf,
    /// `running`, `io-error`, another run state, `unreachable`, or `taken` by another watcher.
    pub state: String,
    /// Why it is not reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Its disks that have stopped it.
    pub incidents: Vec<IncidentStatus>,
    /// How many disks it has.
    pub disks: usize,
    /// Those that are extended before they are full.
    pub early: Vec<EarlyStatus>,
}

/// A disk that is extended before it is full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EarlyStatus {
    /// The disk.
    pub disk: String,
    /// So much is to be free, in bytes.
    pub head_room: u64,
    /// How fast it grows.
    pub bytes_per_second: u64,
    /// How long an extension takes.
    pub extension_milliseconds: u64,
}

/// A disk that has stopped its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncidentStatus {
    /// The disk.
    pub disk: String,
    /// The number of the incident.
    pub incident: u64,
    /// What is done about it.
    pub stage: String,
    /// For how long, in seconds.
    pub seconds: u64,
    /// When it began; makes the seconds when it is asked for.
    #[serde(skip)]
    pub began: Duration,
}

/// All machines.
#[derive(Debug, Default)]
pub struct Fleet {
    machines: Mutex<BTreeMap<PathBuf, MachineStatus>>,
}

impl Fleet {
    /// How a machine is now. Returns whether that is something new.
    pub fn set(&self, status: MachineStatus) -> bool {
        let mut machines = self.machines.lock();
        if machines.get(&status.socket) == Some(&status) {
            return false;
        }
        machines.insert(status.socket.clone(), status);
        true
    }

    /// It is forgotten.
    pub fn remove(&self, socket: &Path) {
        self.machines.lock().remove(socket);
    }

    /// All of them, as they are at `now`.
    pub fn all(&self, now: Duration) -> Vec<MachineStatus> {
        let mut machines: Vec<_> = self.machines.lock().values().cloned().collect();
        for incident in machines
            .iter_mut()
            .flat_map(|machine| &mut machine.incidents)
        {
            incident.seconds = now.saturating_sub(incident.began).as_secs();
        }
        machines
    }

    /// How many machines are in each state, how many incidents there are, and the greatest head-room.
    pub fn counts(&self) -> (BTreeMap<&'static str, i64>, i64, i64) {
        let mut states = BTreeMap::from(STATES.map(|state| (state, 0)));
        let (mut incidents, mut head_room) = (0, 0);
        for machine in self.machines.lock().values() {
            incidents += i64::try_from(machine.incidents.len()).unwrap_or(i64::MAX);
            let early = machine.early.iter().map(|early| early.head_room).max();
            head_room = head_room.max(early.unwrap_or(0));
            // What else a machine may be is not running, either.
            let known = STATES.into_iter().find(|state| *state == machine.state);
            *states.entry(known.unwrap_or("paused")).or_default() += 1;
        }
        let head_room = i64::try_from(head_room).unwrap_or(i64::MAX);
        (states, incidents, head_room)
    }
}

/// The states that metrics tell apart.
const STATES: [&str; 5] = ["running", "io-error", "paused", "unreachable", "taken"];
