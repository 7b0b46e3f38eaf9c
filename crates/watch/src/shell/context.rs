//! What the tasks of all machines share.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::time::Instant;

use super::desk::Desk;
use super::fleet::Fleet;
use super::pairs::Pairs;
use super::teller::Teller;

/// What the tasks of all machines share.
#[derive(Debug)]
pub struct Context {
    /// Where room is made.
    pub desk: Desk,
    /// Who tells.
    pub teller: Teller,
    /// How all are.
    pub fleet: Arc<Fleet>,
    /// Sockets that are of one VM.
    pub pairs: Pairs,
    /// Numbers of incidents.
    pub numbers: Arc<AtomicU64>,
    /// Where locks are.
    pub runtime_directory: PathBuf,
    /// Nothing is done.
    pub dry_run: bool,
    /// Each machine is looked at once.
    pub once: bool,
    /// When the watcher began.
    pub began: Instant,
}
