//! What may wait for files, devices or name services, beside the control plane.

use std::time::Duration;

use tokio::time::timeout;

use crate::setup_error::SetupError;

/// How long the end waits for what only tidies up.
const TIDY_TIME_MAX: Duration = Duration::from_secs(2);

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

/// Runs `f`, which tidies up and may block, at the end. If it takes long, the process ends without:
/// `what` says what is left behind.
pub async fn tidy_up(what: &str, f: impl FnOnce() + Send + 'static) {
    let ended = tokio::task::spawn_blocking(f);
    if timeout(TIDY_TIME_MAX, ended).await.is_err() {
        tracing::warn!("the file system does not answer: {what}");
    }
}
