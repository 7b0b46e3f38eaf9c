//! The vhost-user connection: messages, their replies and acknowledgements, all bounded in time.
//!
//! The codec is deliberately thin. [`Connection::send_bytes`] sends anything at all, so that tests
//! can be as rude as they like; the methods above it are what a well-behaved VMM uses.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::error::FrontendError;
use crate::protocol::{
    FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, HEADER_BYTES, PAYLOAD_BYTES_MAX, message,
};

/// Most descriptors sent or received with one message.
const FDS_MAX: usize = 8;

/// A reply of the back end.
#[derive(Debug)]
pub struct Reply {
    /// Everything behind the header.
    pub payload: Vec<u8>,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// A connection to a vhost-user back end.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    timeout: Duration,
    reply_ack: bool,
}

/// Closing alone does not end a connection as long as a child that has been forked, by another thread
/// maybe, has not come to its exec: the back end would not know that this client has gone, and refuse
/// the next one.
impl Drop for Connection {
    fn drop(&mut self) {
        // Not connected any more: it is what was wanted.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Connection {
    /// Connects to the back end listening at `path`. No message is sent.
    ///
    /// `timeout` bounds each later send and each wait for a reply.
    ///
    /// # Errors
    /// [`FrontendError::Connect`], or [`FrontendError::Options`] if `timeout` is zero.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, FrontendError> {
        let socket = UnixStream::connect(path).map_err(|source| FrontendError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Self::from_socket(socket, timeout)
    }

    /// Uses an already connected socket.
    ///
    /// # Errors
    /// [`FrontendError::Options`] if `timeout` is zero.
    pub fn from_socket(socket: UnixStream, timeout: Duration) -> Result<Self, FrontendError> {
        socket
            .set_read_timeout(Some(timeout))
            .and_then(|()| socket.set_write_timeout(Some(timeout)))
            .map_err(|error| FrontendError::Options(format!("timeout {timeout:?}: {error}")))?;
        Ok(Self {
            socket,
            timeout,
            reply_ack: false,
        })
    }

    /// From now on every message without a reply asks for an acknowledgement.
    pub fn set_reply_ack(&mut self, on: bool) {
        self.reply_ack = on;
    }

    /// The socket, to be polled for a hang-up.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a message and, if acknowledgements are on, waits for it to be accepted.
    ///
    /// # Errors
    /// [`FrontendError::Refused`] if the back end says no, else errors of the connection.
    pub fn set(
        &mut self,
        code: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), FrontendError> {
        let flags = if self.reply_ack { FLAG_NEED_REPLY } else { 0 };
        self.send(code, flags, payload, fds)?;
        if !self.reply_ack {
            return Ok(());
        }
        match self.receive(code)?.u64(code)? {
            0 => Ok(()),
            refused => Err(FrontendError::Refused {
                message: message::name(code),
                code: refused,
            }),
        }
    }

    /// Sends a message and waits for its reply.
    ///
    /// # Errors
    /// Errors of the connection; [`FrontendError::Malformed`] if the reply is not one to this message.
    pub fn get(&mut self, code: u32, payload: &[u8]) -> Result<Reply, FrontendError> {
        self.send(code, 0, payload, &[])?;
        self.receive(code)
    }

    /// Sends a message and waits for its reply, which is one number.
    ///
    /// # Errors
    /// As [`Connection::get`].
    pub fn get_u64(&mut self, code: u32) -> Result<u64, FrontendError> {
        self.get(code, &[])?.u64(code)
    }

    /// Sends one message.
    ///
    /// # Errors
    /// Errors of the connection.
    pub fn send(
        &mut self,
        code: u32,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), FrontendError> {
        let size = u32::try_from(payload.len())
            .map_err(|_| FrontendError::Options(format!("payload of {} bytes", payload.len())))?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        for word in [code, flags | FLAG_VERSION, size] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(payload);
        self.send_bytes(message::name(code), &bytes, fds)
    }

    /// Sends bytes as they are, with up to 8 descriptors attached to the first one.
    ///
    /// # Errors
    /// Errors of the connection; [`FrontendError::Options`] for more than 8 descriptors.
    pub fn send_bytes(
        &mut self,
        during: &'static str,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), FrontendError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(FrontendError::Options(format!(
                "{} descriptors with one message, at most {FDS_MAX}",
                fds.len()
            )));
        }
        let mut sent = 0;
        while sent < bytes.len() {
            let slices = [IoSlice::new(&bytes[sent..])];
            match rustix::net::sendmsg(&self.socket, &slices, &mut control, SendFlags::NOSIGNAL) {
                Ok(count) => {
                    sent += count;
                    control.clear();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(self.failure(during, errno.into())),
            }
        }
        Ok(())
    }

    /// Receives the reply to message `code`.
    ///
    /// # Errors
    /// Errors of the connection; [`FrontendError::Malformed`] if something else arrives.
    pub fn receive(&mut self, code: u32) -> Result<Reply, FrontendError> {
        let during = message::name(code);
        let mut header = [0; HEADER_BYTES];
        let mut fds = Vec::new();
        self.receive_exact(during, &mut header, &mut fds)?;
        let (found, flags, size) = (word(&header, 0), word(&header, 1), word(&header, 2));
        let malformed = |detail: String| Err(FrontendError::Malformed { during, detail });
        if found != code {
            return malformed(format!("code {found}, expected {code}"));
        }
        if flags & FLAG_REPLY == 0 || flags & 0x3 != FLAG_VERSION {
            return malformed(format!("flags {flags:#x}"));
        }
        let size = match usize::try_from(size) {
            Ok(size) if size <= PAYLOAD_BYTES_MAX => size,
            _ => return malformed(format!("payload of {size} bytes")),
        };
        let mut payload = vec![0; size];
        self.receive_exact(during, &mut payload, &mut fds)?;
        Ok(Reply { payload, fds })
    }

    fn receive_exact(
        &mut self,
        during: &'static str,
        buffer: &mut [u8],
        fds: &mut Vec<OwnedFd>,
    ) -> Result<(), FrontendError> {
        let mut received = 0;
        while received < buffer.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [io::IoSliceMut::new(&mut buffer[received..])];
            let flags = RecvFlags::CMSG_CLOEXEC;
            match rustix::net::recvmsg(&self.socket, &mut slices, &mut control, flags) {
                Ok(message) if message.bytes == 0 => return Err(FrontendError::Closed { during }),
                Ok(message) => received += message.bytes,
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(self.failure(during, errno.into())),
            }
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
        }
        Ok(())
    }

    fn failure(&self, during: &'static str, source: io::Error) -> FrontendError {
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => FrontendError::Timeout {
                during,
                after: self.timeout,
            },
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                FrontendError::Closed { during }
            }
            _ => FrontendError::Io {
                what: during,
                source,
            },
        }
    }
}

impl Reply {
    /// The payload as one number.
    ///
    /// # Errors
    /// [`FrontendError::Malformed`] if it has another size.
    pub fn u64(&self, code: u32) -> Result<u64, FrontendError> {
        match self.payload.as_slice().try_into() {
            Ok(bytes) => Ok(u64::from_ne_bytes(bytes)),
            Err(_) => Err(FrontendError::Malformed {
                during: message::name(code),
                detail: format!("payload of {} bytes, expected 8", self.payload.len()),
            }),
        }
    }
}

/// Word `index` (0 to 2) of a header.
fn word(header: &[u8; HEADER_BYTES], index: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&header[index * 4..index * 4 + 4]);
    u32::from_ne_bytes(bytes)
}

/// The front end's end of the channel on which the back end sends requests.
#[derive(Debug)]
pub struct BackendChannel {
    socket: UnixStream,
}

impl BackendChannel {
    /// Makes the channel; the second value is the end for the back end.
    ///
    /// # Errors
    /// [`FrontendError::Io`].
    pub fn new() -> Result<(Self, UnixStream), FrontendError> {
        let what = "socketpair for the back end's requests";
        let pair = UnixStream::pair().and_then(|(ours, theirs)| {
            ours.set_nonblocking(true)?;
            Ok((Self { socket: ours }, theirs))
        });
        pair.map_err(|source| FrontendError::Io { what, source })
    }

    /// How many CONFIG_CHANGE messages have arrived since the last call. Does not block.
    ///
    /// # Errors
    /// [`FrontendError::Malformed`] for any other message.
    pub fn take_config_changes(&mut self) -> Result<u32, FrontendError> {
        let during = "a request of the back end";
        let mut count = 0;
        loop {
            let mut header = [0; HEADER_BYTES];
            match self.socket.read(&mut header) {
                Ok(0) => return Ok(count),
                Ok(bytes) => {
                    let (code, size) = (word(&header, 0), word(&header, 2));
                    if bytes != HEADER_BYTES || code != message::BACKEND_CONFIG_CHANGE || size != 0
                    {
                        let detail = format!("{bytes} bytes: {header:?}");
                        return Err(FrontendError::Malformed { during, detail });
                    }
                    count += 1;
                    if word(&header, 1) & FLAG_NEED_REPLY != 0 {
                        self.acknowledge(header)?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(FrontendError::Io {
                        what: during,
                        source,
                    });
                }
            }
        }
    }

    fn acknowledge(&mut self, mut header: [u8; HEADER_BYTES]) -> Result<(), FrontendError> {
        header[4..8].copy_from_slice(&(FLAG_VERSION | FLAG_REPLY).to_ne_bytes());
        header[8..].copy_from_slice(&8_u32.to_ne_bytes());
        let mut reply = header.to_vec();
        reply.extend_from_slice(&0_u64.to_ne_bytes());
        let what = "reply to the back end";
        self.socket
            .write_all(&reply)
            .map_err(|source| FrontendError::Io { what, source })
    }
}
