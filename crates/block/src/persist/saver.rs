//! Writes the state of the daemon to its file whenever it changes, on a thread of its own.
//!
//! The control task only says that something has changed: it never waits for the file system, and
//! no event is delayed. Changes that come while one is being written become one write.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::persist::changes::{Changes, Shared};
use crate::persist::saved::{SavedBackend, SavedState};
use crate::persist::state_file::StateFile;

/// The thread. Dropping this saves for the last time, counters included, which blocks for one write;
/// what changes afterwards is not saved.
#[derive(Debug)]
pub struct Saver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Saver {
    /// Saves what `state` yields now, and from now on whenever it is told of a change. `state` is called
    /// on the thread, and may wait shortly.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn start(
        file: StateFile,
        state: impl Fn() -> SavedState + Send + 'static,
    ) -> io::Result<(Self, Changes)> {
        let shared = Arc::new(Shared::default());
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("state".to_owned())
                .spawn(move || save(&shared, file, state))?
        };
        let changes = Changes::to(&shared);
        changes.changed();
        let saver = Self {
            shared,
            thread: Some(thread),
        };
        Ok((saver, changes))
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.shared.end();
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, there would be nothing to save either.
            let _ = thread.join();
        }
    }
}

fn save(shared: &Shared, mut file: StateFile, state: impl Fn() -> SavedState) {
    let mut failing = false;
    let mut told = Vec::new();
    loop {
        let (ended, waiting) = shared.wait(failing);
        let mut state = state();
        tell_left_out(&file.fit(&mut state), &mut told);
        let written = file.write(&state);
        shared.tried(waiting, written.is_ok(), ended);
        match written {
            Ok(()) if std::mem::take(&mut failing) => {
                tracing::info!(
                    "the state file '{}' is up to date again",
                    file.path().display()
                );
            }
            Ok(()) => {}
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        "cannot write the state file '{}': {error}; a restart would find an older \
                         state",
                        file.path().display()
                    );
                }
            }
        }
        if ended {
            return;
        }
        shared.collect();
    }
}

/// Says what finds no room in the file, each export once; `told` are those of which it was said.
fn tell_left_out(left_out: &[SavedBackend], told: &mut Vec<(String, String)>) {
    for SavedBackend { device, node, .. } in left_out {
        let name = (device.clone(), node.clone());
        if !told.contains(&name) {
            tracing::warn!(
                "the state file is full: what a former daemon saved of export '{device}' on node '{node}', \
                 which does not exist, is dropped"
            );
            told.push(name);
        }
    }
}
