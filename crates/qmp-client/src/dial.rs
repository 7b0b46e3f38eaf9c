//! Connecting to a Unix socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

/// How often it is tried again while there is no place among those who wait to be accepted.
const RETRY: Duration = Duration::from_millis(20);

/// Connects. A server that hangs accepts nobody, and then nobody waits for it for longer than `limit`.
///
/// # Errors
/// What the system says; [`io::ErrorKind::TimedOut`] if nobody is accepted.
pub async fn connect_unix(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let deadline = Instant::now() + limit;
    loop {
        match UnixStream::connect(path).await {
            // The backlog is full.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "it has accepted nobody for {} s, whoever listens there hangs",
                    limit.as_secs()
                ),
            ));
        }
        sleep(RETRY).await;
    }
}
