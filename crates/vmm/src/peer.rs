//! Who answers at the other end of a socket.

use tokio::net::UnixStream;

/// The process that listened on the socket, as our PID namespace counts it.
///
/// The kernel says 0 of one outside of ours (a VMM in another container). Two lives of a VMM would
/// look like one by it, so it counts as unknown.
pub(crate) fn process(stream: &UnixStream) -> Option<i32> {
    let peer = stream.peer_cred().ok()?;
    peer.pid().filter(|&pid| pid > 0)
}
