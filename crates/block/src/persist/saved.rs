//! What one daemon leaves to the next: run state, I/O status, error records, incidents, counters.
//!
//! What is held is not part of it: the clients remember that in their inflight regions, and hand it
//! back.

use serde::{Deserialize, Serialize};

use crate::words::image::Image;
use crate::words::incident::{ErrorRecord, Incident};
use crate::words::io_status::IoStatus;
use crate::words::run_state::RunState;
use crate::words::stats::BackendStats;
use crate::words::vm::VmPause;
use crate::words::write_cache::WriteCache;

/// What is saved of one backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedBackend {
    /// The export's id.
    pub device: String,
    /// Its root node.
    pub node: String,
    /// The latch.
    pub io_status: IoStatus,
    /// Number of incidents so far.
    pub incidents: u64,
    /// The incident that goes on: something is held.
    pub incident: Option<Incident>,
    /// The first error since the status was last reset.
    pub first_error: Option<ErrorRecord>,
    /// The last error.
    pub last_error: Option<ErrorRecord>,
    /// Whether its guest believes in a write cache.
    pub write_cache: WriteCache,
    /// The image that its clients saw; none: there were none, or a former version of the daemon did not say.
    pub image: Option<Image>,
    /// Whether a client was there: its guest may still use the image.
    pub connected: bool,
    /// Up to which number losses of its nodes are void for its client.
    pub losses_accepted: u32,
    /// The counters; the idle time is not saved.
    pub stats: BackendStats,
}

/// A flush of a node has failed, and the data that it was for is lost: nobody but the daemon
/// remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLoss {
    /// The node.
    pub node: String,
    /// Why.
    pub errno: i32,
    /// Its number ([`crate::Loss`]); 0: a former version of the daemon gave it none.
    #[serde(default)]
    pub number: u32,
}

/// What is saved of a daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedState {
    /// The run state; never `shutdown`.
    pub run_state: RunState,
    /// Every backend. What is read from a file is all here.
    pub backends: Vec<SavedBackend>,
    /// What former daemons have left of backends that do not exist, the latest first. It is saved behind
    /// the others, and what finds no room is left out, the last first.
    pub unclaimed: Vec<SavedBackend>,
    /// Nodes that have lost something.
    pub losses: Vec<SavedLoss>,
    /// Who has paused the VM.
    pub vm_pause: VmPause,
}
