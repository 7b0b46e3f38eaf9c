//! What may wait for files, devices or name services, beside the control plane.

use super::setup_error::SetupError;

/// Runs `f`, which may block, where nobody else waits for it: a signal ends a daemon whose start hangs.
///
/// # Errors
/// Those of `f`.
pub async fn beside<R: Send + 'static>(
    f: impl FnOnce() -> Result<R, SetupError> + Send + 'static,
) -> Result<R, SetupError> {
    let ended = tokio::task::spawn_blocking(f).await;
    ended.map_err(|error| SetupError::new(error.to_string()))?
}
