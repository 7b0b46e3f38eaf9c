//! How long closing nodes may take.

use std::time::Duration;

use block::Closing;
use tokio::time::timeout;

/// How long nodes may take to be closed until whoever waits for it goes on without. What hangs keeps a
/// thread, and the lock on its image, until the storage answers.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(5);

/// Waits until all are closed, or the limit is over, which the log says.
pub async fn wait(mut closing: Closing, limit: Duration) {
    if timeout(limit, closing.closed()).await.is_ok() {
        return;
    }
    for (name, filename) in closing.left() {
        tracing::warn!(
            "node '{name}': '{filename}' does not answer, it is not closed after {} s and may stay locked \
             until it answers",
            limit.as_secs_f32()
        );
    }
}
