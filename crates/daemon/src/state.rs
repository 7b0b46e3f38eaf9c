//! `--state-dir`: what the next daemon has to know about this one.

use std::path::Path;
use std::sync::Arc;

use assembly::{LOCK_WAIT, wait_for_lock};
use block::run_control::{LeftOver, UNCLAIMED_MAX};
use block::state_file::{Found, boot_id};
use block::{Registry, SavedBackend, Saver, StateFile, StateFileError, beside};

/// What an attempt to open the file can end with.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    File(#[from] StateFileError),
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Opens the state in `dir`, lets the registry go on from there, and saves what changes from now on: what
/// is not claimed yet is part of it. None, with a warning: nothing can be saved there, the daemon does
/// without.
///
/// # Errors
/// If another daemon uses the directory, or the system refuses a thread.
pub async fn restore(dir: &Path, registry: &Arc<Registry>) -> Result<Option<Saver>, String> {
    let opened = match boot_id() {
        Ok(boot_id) => {
            let attempt = || {
                let (dir, boot_id) = (dir.to_owned(), boot_id.clone());
                async { Ok(beside(move || StateFile::open(&dir, &boot_id)).await??) }
            };
            wait_for_lock(attempt, is_in_use, LOCK_WAIT).await
        }
        Err(error) => Err(error.into()),
    };
    let (file, found) = match opened {
        Ok(opened) => opened,
        Err(error) if is_in_use(&error) => return Err(error.to_string()),
        Err(error) => {
            tracing::warn!("{error}: no state is kept, a restart begins afresh");
            return Ok(None);
        }
    };
    let path = file.path().display();
    match found {
        Found::Nothing => {}
        Found::OtherBoot => tracing::warn!(
            "the state in '{path}' is from before this machine was started, and is ignored"
        ),
        Found::Corrupt(corrupt) => {
            tracing::warn!("the state in '{path}' is ignored: {corrupt}; the daemon begins afresh")
        }
        Found::State(state) => {
            tracing::info!(
                "going on in state '{}', saved in '{path}'",
                state.run_state.name()
            );
            registry.restore(state).await;
        }
    }
    let started = registry.save_to(file).await;
    let saver = started.map_err(|error| format!("cannot start saving the state: {error}"))?;
    Ok(Some(saver))
}

/// All that the command line makes exists: says what is left of a former daemon.
pub async fn left_over(registry: &Registry) {
    let ended = registry
        .control()
        .call(|run, wiring| run.start_ended(wiring));
    let LeftOver { kept, dropped } = ended.await.unwrap_or_default();
    if !kept.is_empty() {
        tracing::warn!(
            "what a former daemon saved of exports that do not exist, or not on the same node, is kept \
             until they are added: {}",
            names(&kept)
        );
    }
    if !dropped.is_empty() {
        tracing::warn!(
            "the state of more than {UNCLAIMED_MAX} exports that do not exist is not kept; the oldest is \
             dropped: {}",
            names(&dropped)
        );
    }
    for loss in registry.unclaimed_losses() {
        tracing::warn!(
            "node '{}' does not exist, or is no image any more, and a former daemon could not flush \
             it ({}): that is remembered until a node of this name is back",
            loss.node,
            block::Cause::of_errno(loss.errno).reason()
        );
    }
}

fn names(exports: &[SavedBackend]) -> String {
    let name = |saved: &SavedBackend| format!("'{}' on '{}'", saved.device, saved.node);
    let names: Vec<_> = exports.iter().map(name).collect();
    names.join(", ")
}

fn is_in_use(error: &OpenError) -> bool {
    matches!(error, OpenError::File(StateFileError::InUse(_)))
}
