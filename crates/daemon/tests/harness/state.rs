//! Daemons with a state, and states without a daemon.

use std::path::Path;

use anyhow::Result;
use block::{RunState, SavedState, StateFile};
use serde_json::json;

use super::{MIB, Setup};

/// A daemon with a state directory that has nothing but an export that never fails.
pub fn plain(dir: &Path) -> Result<Setup> {
    Ok(Setup::new()?
        .blockdev(&json!({ "driver": "null-co", "node-name": "disk0", "size": MIB }))
        .option("--state-dir", dir.display())
        .export("vda", "disk0", json!({})))
}

/// The state of a daemon that had run out of luck.
pub fn io_error() -> SavedState {
    SavedState {
        run_state: RunState::IoError,
        ..SavedState::default()
    }
}

/// Leaves a state as a daemon of this boot would.
pub fn save(dir: &Path, boot_id: &str, state: &SavedState) -> Result<()> {
    let (mut file, _) = StateFile::open(dir, boot_id)?;
    Ok(file.write(state)?)
}
