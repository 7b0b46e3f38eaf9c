//! `--state-dir`: what the next daemon has to know about this one.

use std::path::Path;
use std::sync::Arc;

use assembly::wait_for_lock;
use block::state_file::{Found, boot_id};
use block::{Registry, Saver, StateFile, StateFileError, beside};

/// What an attempt to open the file can end with.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    File(#[from] StateFileError),
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Opens the state in `dir` and lets the registry go on from there. None, with a warning: nothing can
/// be saved there, the daemon does without.
///
/// # Errors
/// If another daemon uses the directory.
pub async fn restore(dir: &Path, registry: &Registry) -> Result<Option<StateFile>, String> {
    let opened = match boot_id() {
        Ok(boot_id) => {
            let attempt = || {
                let (dir, boot_id) = (dir.to_owned(), boot_id.clone());
                async { Ok(beside(move || StateFile::open(&dir, &boot_id)).await??) }
            };
            wait_for_lock(attempt, is_in_use).await
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
    Ok(Some(file))
}

/// Saves what changes from now on. All exports exist.
///
/// # Errors
/// If the system refuses a thread.
pub async fn keep(file: StateFile, registry: &Arc<Registry>) -> Result<Saver, String> {
    let unclaimed = registry
        .control()
        .call(|run, wiring| run.forget_unclaimed(wiring));
    let unclaimed = unclaimed.await;
    for export in unclaimed.into_iter().flatten() {
        tracing::warn!(
            "the saved state of export '{export}' is dropped: there is no such export on the same \
             node any more"
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
    let started = registry.save_to(file).await;
    started.map_err(|error| format!("cannot start saving the state: {error}"))
}

fn is_in_use(error: &OpenError) -> bool {
    matches!(error, OpenError::File(StateFileError::InUse(_)))
}
