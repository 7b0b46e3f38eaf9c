//! How the daemon ends: what tells it to, and in which order it goes.

use std::future::poll_fn;
use std::io;

use block::Registry;
use block::run_control::RunControl;
use iothread::mailbox::Receiver;
use tokio::signal::unix::{Signal, SignalKind, signal};

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

/// A second signal: whoever sent it does not want to wait, e.g. for storage that hangs. Sockets and
/// the pid file stay behind; the next daemon replaces them.
#[expect(clippy::exit, reason = "an orderly return would wait for the storage")]
pub fn abandon(name: &str) -> ! {
    tracing::error!(
        "{name} while shutting down: ending at once, without waiting for I/O in flight"
    );
    std::process::exit(1)
}

/// Ends exports and nodes. What is held stays as it is, and is told about.
pub async fn close_all(registry: &Registry, reason: &'static str) {
    let control = registry.control();
    control
        .call(move |state, wiring| state.shutdown(reason, wiring))
        .await;
    // What is in flight may still fail and be held.
    let mut drained = Vec::new();
    for export in registry.exports() {
        drained.push(export.backend().drain().await);
    }
    control.call(|state, _| warn_of_held(state)).await;
    drop(drained);
    registry.close_exports().await;
}

fn warn_of_held(state: &RunControl) {
    for (_, backend) in state.backends() {
        let requests = match backend.held().len() {
            0 => continue,
            1 => "1 held request is".to_owned(),
            held => format!("{held} held requests are"),
        };
        tracing::warn!(
            "export '{}': {requests} neither completed nor failed; the client keeps them for the \
             next daemon if it negotiated INFLIGHT_SHMFD",
            backend.config().device
        );
    }
}
