//! What a service manager is told (sd_notify(3)); without `NOTIFY_SOCKET` nobody is.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::timeout;

/// A manager that does not read does not keep the watcher.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells it.
pub async fn tell(state: NotifyState<'static>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let sent = tokio::task::spawn_blocking(move || sd_notify::notify(&[state]));
    match timeout(PATIENCE, sent).await {
        Ok(Ok(Err(error))) => tracing::warn!("cannot tell the service manager: {error}"),
        Ok(_) => {}
        Err(_) => tracing::warn!("the service manager does not read what it is told; going on"),
    }
}

/// How often the manager's watchdog wants to hear of us, if it does.
pub fn interval() -> Option<Duration> {
    let interval = sd_notify::watchdog_enabled()?;
    (!interval.is_zero()).then_some(interval / 2)
}
