//! How the daemon ends: what tells it to, and in which order it goes.

use std::future::poll_fn;
use std::io;
use std::time::{Duration, Instant};

use super::logging;
use assembly::{Assembly, tidy_up};
use block::{Control, Saver};
use iothread::mailbox::Receiver;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

/// The reason of the `SHUTDOWN` event after a signal.
pub const HOST_SIGNAL: &str = "host-signal";

/// The reason after an error that leaves nothing else.
pub const HOST_ERROR: &str = "host-error";

/// The signals that end the daemon in order.
#[derive(Debug)]
pub struct Signals {
    all: [(Signal, &'static str); 3],
}

impl Signals {
    /// From now on they are heard here instead of killing the process.
    ///
    /// # Errors
    /// If the system refuses to deliver them.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            all: [
                (signal(SignalKind::terminate())?, "SIGTERM"),
                (signal(SignalKind::interrupt())?, "SIGINT"),
                (signal(SignalKind::hangup())?, "SIGHUP"),
            ],
        })
    }

    /// The name of the next one.
    pub async fn next(&mut self) -> &'static str {
        poll_fn(|cx| {
            let came = self
                .all
                .iter_mut()
                .find_map(|(signal, name)| signal.poll_recv(cx).is_ready().then_some(*name));
            came.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
        })
        .await
    }
}

/// Signals that would kill us for what a client or the storage does become errors of the system
/// calls that they stand for: EPIPE and EFBIG.
pub fn ignore_write_signals() {
    for number in [libc::SIGPIPE, libc::SIGXFSZ] {
        // SAFETY: SIG_IGN is a disposition that runs no code.
        unsafe { libc::signal(number, libc::SIG_IGN) };
    }
}

/// Waits until a signal or a monitor says that the daemon ends; the reason of the event.
pub async fn requested(signals: &mut Signals, quit: &mut Receiver<&'static str>) -> &'static str {
    tokio::select! {
        name = signals.next() => {
            tracing::info!("{name}: shutting down");
            HOST_SIGNAL
        }
        Some(reason) = quit.recv() => {
            tracing::info!("quit: shutting down");
            reason
        }
    }
}

/// Signals that come this soon after the first are part of it: `timeout` sends two, systemd SIGHUP right
/// after SIGTERM.
const ONE_SIGNAL: Duration = Duration::from_millis(500);

/// How long the end at once waits for the state file.
const LAST_SAVE_MAX: Duration = Duration::from_secs(1);

/// Waits for a signal of somebody who does not want to wait for an orderly end. SIGHUP is none: a terminal
/// that goes does not know of any end.
pub async fn insisted(signals: &mut Signals) -> &'static str {
    let began = Instant::now();
    loop {
        let name = signals.next().await;
        if name != "SIGHUP" && began.elapsed() >= ONE_SIGNAL {
            return name;
        }
    }
}

/// A second signal: whoever sent it does not want to wait, e.g. for storage that hangs. The state is saved.
/// Sockets and the pid file stay behind; the next daemon replaces them.
#[expect(clippy::exit, reason = "an orderly return would wait for the storage")]
pub async fn abandon(name: &str, control: &Control) -> ! {
    tracing::error!(
        "{name} while shutting down: ending at once, without waiting for I/O in flight"
    );
    // Whether it has succeeded is logged by whoever saves.
    let _ = timeout(LAST_SAVE_MAX, control.save(LAST_SAVE_MAX)).await;
    logging::finish();
    std::process::exit(1)
}

/// How long the end waits for what is in flight: less than `TimeoutStopSec` of the unit, after which nobody
/// would say what it was.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(25);

/// Ends exports and nodes: an orderly restart, if another daemon follows. What is held stays as it
/// is, is saved, and is told about. If the storage does not answer, the process ends without it, as by a
/// second signal: what is in flight then is the client's to send again, and the image is locked until it
/// has ended. False: tables of images are not on disk; the log names them.
pub async fn close_all(assembly: &Assembly, reason: &'static str, saver: Option<Saver>) -> bool {
    let settled = timeout(SETTLE_TIME_MAX, assembly.settle(reason)).await;
    if let Some(saver) = saver {
        // Before the exports go: what becomes of them then is not the state that is to be saved.
        tidy_up(
            "the state is not saved, the next daemon finds an older one",
            move || drop(saver),
        )
        .await;
    }
    match settled {
        Ok(settled) => {
            let is_whole = settled.is_whole();
            assembly.close_exports(settled).await;
            is_whole
        }
        Err(_) => give_up(&assembly.in_flight().await),
    }
}

/// The storage does not answer. Sockets and the pid file stay behind; the next daemon replaces them.
#[expect(clippy::exit, reason = "an orderly return would wait for the storage")]
fn give_up(in_flight: &[String]) -> ! {
    for what in in_flight {
        tracing::error!("{what}: the storage does not answer, the daemon ends without");
    }
    logging::finish();
    std::process::exit(1)
}
