//! What a service manager is told (sd_notify(3)); without `NOTIFY_SOCKET` nobody is.
//!
//! Sending waits for a manager that does not read. So it is done beside the control plane, one message
//! at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use block::Control;
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, timeout};

/// How long a message about the daemon's life may take before that goes on.
const PATIENCE: Duration = Duration::from_secs(1);

/// Everything is set up, and the sockets listen. From now on the watchdog is kept quiet, if there is
/// one, as long as run control answers: a daemon whose control plane hangs can neither tell of a
/// failure nor be told to go on, and is better started again.
pub async fn ready(control: &Control) {
    notify(NotifyState::Ready).await;
    let interval = sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero());
    if let Some(interval) = interval {
        tokio::spawn(keep_quiet(control.clone(), interval));
    }
}

/// The daemon ends in order.
pub async fn stopping() {
    notify(NotifyState::Stopping).await;
}

async fn keep_quiet(control: Control, interval: Duration) {
    let mut ticks = tokio::time::interval(interval / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let busy = Arc::new(AtomicBool::new(false));
    loop {
        ticks.tick().await;
        if control.call(|_, _| ()).await.is_none() {
            return;
        }
        if busy.swap(true, Ordering::Relaxed) {
            // The manager has not read the last one yet.
            continue;
        }
        let sent = Arc::clone(&busy);
        tokio::task::spawn_blocking(move || {
            send(NotifyState::Watchdog);
            sent.store(false, Ordering::Relaxed);
        });
    }
}

async fn notify(state: NotifyState<'static>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let sent = tokio::task::spawn_blocking(move || send(state));
    if timeout(PATIENCE, sent).await.is_err() {
        tracing::warn!("the service manager does not read what it is told; going on");
    }
}

fn send(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}
