//! Where clients come from, and what they come through.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use block::BoxFuture;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Stdin};
use tokio::net::{UnixListener, tcp, unix};

use crate::descriptors;

/// Most descriptors that come with what is read at once; the kernel closes what has no room.
const DESCRIPTORS_MAX: usize = 16;

/// Where requests come from.
pub trait Input: AsyncRead + Unpin + Send + Sync {
    /// Whether the other end has left for good: neither sends nor reads any more. A client that has only
    /// sent all that it wants to say still gets its answers.
    fn has_left(&self) -> bool {
        false
    }

    /// The descriptors that came with the last bytes that were read.
    fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        Vec::new()
    }
}

/// Whether both directions of a socket are shut.
fn is_hung_up(socket: impl AsFd) -> bool {
    // HUP is always looked for.
    let mut fds = [PollFd::new(&socket, PollFlags::empty())];
    let found = rustix::event::poll(&mut fds, Some(&Timespec::default()));
    found.is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// What comes through a unix socket: bytes, and descriptors with them.
#[derive(Debug)]
pub struct UnixInput {
    half: unix::OwnedReadHalf,
    passed: Vec<OwnedFd>,
}

impl UnixInput {
    /// Reads from `half`.
    pub fn new(half: unix::OwnedReadHalf) -> Self {
        Self {
            half,
            passed: Vec::new(),
        }
    }

    fn receive(half: &unix::OwnedReadHalf, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let buffers = &mut [io::IoSliceMut::new(buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = recvmsg(half.as_ref(), buffers, &mut control, flags)?;
        let mut passed = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                passed.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            tracing::warn!(
                "a monitor client has passed more than {DESCRIPTORS_MAX} file descriptors at once: the \
                 others are closed"
            );
        }
        Ok((received.bytes, passed))
    }
}

impl AsyncRead for UnixInput {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let stream = this.half.as_ref();
            ready!(stream.poll_read_ready(cx))?;
            let space = buffer.initialize_unfilled();
            let received = stream.try_io(Interest::READABLE, || Self::receive(&this.half, space));
            match received {
                Ok((bytes, passed)) => {
                    buffer.advance(bytes);
                    if !passed.is_empty() {
                        descriptors::close(std::mem::replace(&mut this.passed, passed));
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Input for UnixInput {
    fn has_left(&self) -> bool {
        is_hung_up(self.half.as_ref())
    }

    fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.passed)
    }
}

impl Drop for UnixInput {
    fn drop(&mut self) {
        descriptors::close(std::mem::take(&mut self.passed));
    }
}

impl Input for tcp::OwnedReadHalf {
    fn has_left(&self) -> bool {
        is_hung_up(self.as_ref())
    }
}

impl Input for Stdin {}

/// Any other stream: nobody can be seen to leave it but by its end.
#[derive(Debug)]
pub struct Other<R>(pub R);

impl<R: AsyncRead + Unpin> AsyncRead for Other<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buffer)
    }
}

impl<R: AsyncRead + Unpin + Send + Sync> Input for Other<R> {}

impl Input for Box<dyn Input> {
    fn has_left(&self) -> bool {
        (**self).has_left()
    }

    fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        (**self).take_descriptors()
    }
}

/// A client that has come.
pub struct Connection {
    /// What it sends.
    pub reader: Box<dyn Input>,
    /// What it gets.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl From<tokio::net::UnixStream> for Connection {
    fn from(stream: tokio::net::UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self {
            reader: Box::new(UnixInput::new(reader)),
            writer: Box::new(writer),
        }
    }
}

impl From<tokio::net::TcpStream> for Connection {
    fn from(stream: tokio::net::TcpStream) -> Self {
        // Answers are small and waited for. Without it they come later.
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.into_split();
        Self {
            reader: Box::new(reader),
            writer: Box::new(writer),
        }
    }
}

/// Where clients come from, one after the other.
pub trait Door: Send {
    /// The next one. It is cancelled by a drop, and nobody is lost.
    ///
    /// # Errors
    /// That nobody can come now. It is tried again.
    fn next(&self) -> BoxFuture<'_, io::Result<Connection>>;
}

impl Door for UnixListener {
    fn next(&self) -> BoxFuture<'_, io::Result<Connection>> {
        Box::pin(async { Ok(self.accept().await?.0.into()) })
    }
}

impl Door for tokio::net::TcpListener {
    fn next(&self) -> BoxFuture<'_, io::Result<Connection>> {
        Box::pin(async { Ok(self.accept().await?.0.into()) })
    }
}
