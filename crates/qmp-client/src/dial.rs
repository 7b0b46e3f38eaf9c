//! Connecting to a Unix socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
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
        match connect_at_once(path) {
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

/// On a Unix socket that succeeds or fails at once. The standard library takes no path of 108 bytes, which
/// the system does, and servers that listen on one.
fn connect_at_once(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    UnixStream::from_std(socket.into())
}
