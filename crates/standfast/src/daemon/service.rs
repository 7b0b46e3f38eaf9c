//! What a service manager is told (sd_notify(3)); without `NOTIFY_SOCKET` nobody is.

use block::Control;
use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;

/// Everything is set up, and the sockets listen. From now on the watchdog is kept quiet, if there is
/// one, as long as run control answers: a daemon whose control plane hangs can neither tell of a
/// failure nor be told to go on, and is better started again.
pub fn ready(control: &Control) {
    notify(NotifyState::Ready);
    let timeout = sd_notify::watchdog_enabled().filter(|timeout| !timeout.is_zero());
    if let Some(timeout) = timeout {
        let control = control.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(timeout / 2);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if control.call(|_, _| ()).await.is_none() {
                    return;
                }
                notify(NotifyState::Watchdog);
            }
        });
    }
}

/// The daemon ends in order.
pub fn stopping() {
    notify(NotifyState::Stopping);
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}
