//! What the device says unasked, on a socket of the client's choice.

use std::os::fd::OwnedFd;

use parking_lot::{Mutex, MutexGuard};
use rustix::net::{SendFlags, sockopt};

use super::answer;
use crate::descriptor;

/// SET_BACKEND_REQ_FD with something else than a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("SET_BACKEND_REQ_FD with a descriptor that is not a socket")]
pub(crate) struct NotASocket;

/// The way to the client of the moment, if it has opened one.
#[derive(Debug, Default)]
pub(crate) struct BackChannel(Mutex<Option<OwnedFd>>);

impl BackChannel {
    fn socket(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.0.lock()
    }

    /// Replaces the socket.
    pub fn set(&self, socket: OwnedFd) -> Result<(), NotASocket> {
        if sockopt::socket_type(&socket).is_err() {
            descriptor::close(socket);
            return Err(NotASocket);
        }
        let former = self.socket().replace(socket);
        drop(former);
        Ok(())
    }

    /// The client is gone.
    pub fn clear(&self) {
        let former = self.socket().take();
        drop(former);
    }

    /// Tells the client, if it listens, to read the configuration space again. Never blocks: in a
    /// full socket there is such a message already that the client has not read yet. No reply is
    /// asked for, so none has to be read.
    pub fn config_changed(&self) {
        let sent = {
            let socket = self.socket();
            let Some(socket) = &*socket else { return };
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            rustix::net::send(socket, &answer::config_change(), flags)
        };
        if let Err(errno) = sent
            && errno != rustix::io::Errno::AGAIN
        {
            tracing::debug!("the client does not hear of a new configuration: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::message::HEADER_BYTES;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_client_that_does_not_read_blocks_nobody() {
        let channel = BackChannel::default();
        channel.config_changed();
        let (mut client, device) = UnixStream::pair().unwrap();
        channel.set(device.into()).unwrap();
        for _ in 0..100_000 {
            channel.config_changed();
        }
        let mut bytes = [0; HEADER_BYTES];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, answer::config_change());
        drop(client);
        channel.config_changed();
        channel.clear();
        channel.config_changed();
    }

    #[test]
    fn only_sockets() {
        let channel = BackChannel::default();
        let (client, device) = UnixStream::pair().unwrap();
        channel.set(device.into()).unwrap();
        let file = tempfile::tempfile().unwrap();
        assert_eq!(channel.set(file.into()), Err(NotASocket));
        channel.config_changed();
        client.set_nonblocking(true).unwrap();
        assert_eq!(
            (&client).read(&mut [0; 12]).unwrap(),
            12,
            "the former one stays"
        );
    }
}
