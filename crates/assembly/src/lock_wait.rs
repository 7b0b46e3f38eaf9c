//! Waiting for a lock that a daemon which has just died may still hold: it is on the descriptors that do the
//! I/O, and the kernel lets go of it with the last request of the old process.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::Instant;

/// How long, at the start. Whoever holds it then is alive.
pub const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// Calls `attempt` again and again while it finds a lock of another process, for as long as `limit`.
///
/// # Errors
/// That of the last attempt.
pub async fn wait_for_lock<T, E: Display, F: Future<Output = Result<T, E>>>(
    attempt: impl Fn() -> F,
    is_locked: impl Fn(&E) -> bool,
    limit: Duration,
) -> Result<T, E> {
    let begin = Instant::now();
    let mut told = false;
    loop {
        match attempt().await {
            Err(error) if is_locked(&error) && begin.elapsed() < limit => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("{error}: waiting up to {} s", limit.as_secs());
                }
                tokio::time::sleep(LOCK_RETRY).await;
            }
            result => return result,
        }
    }
}
