//! `pty`: a pseudo terminal, whose other end comes and goes.

#![expect(unsafe_code, reason = "a descriptor is registered with the runtime")]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use assembly::SetupError;
use block::strerror;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How often it is looked whether somebody has opened the terminal: nothing tells.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Our end of a pseudo terminal. Its link goes with it.
#[derive(Debug)]
pub struct Pty {
    end: OwnedFd,
    link: Option<PathBuf>,
}

impl Pty {
    /// Makes one, and `link` to it; its name.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new(link: Option<PathBuf>) -> Result<(Self, String), SetupError> {
        let failed = |error: io::Error| {
            SetupError::new(format!("Failed to create PTY: {}", strerror(&error)))
        };
        let (end, name) = open().map_err(failed)?;
        if let Some(link) = &link {
            symlink(&name, link).map_err(|error| {
                SetupError::new(format!(
                    "Failed to create PTY symlink: {}",
                    strerror(&error)
                ))
            })?;
        }
        Ok((Self { end, link }, name))
    }

    /// Waits until somebody has opened the other end.
    ///
    /// # Errors
    /// If the system has no descriptor for that.
    pub async fn opened(&self) -> io::Result<PtyStream> {
        while is_closed(&self.end) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        // A registration of its own: one that has seen the other end closed is ready for ever.
        let end = self.end.try_clone()?;
        // SAFETY: it owns the descriptor, and closes it after it has left the runtime.
        let end = unsafe { AsyncFd::register(end) };
        Ok(PtyStream(Arc::new(end?)))
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            // Whoever has removed it has done our work.
            let _ = std::fs::remove_file(link);
        }
    }
}

fn open() -> io::Result<(OwnedFd, String)> {
    let end = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&end)?;
    unlockpt(&end)?;
    let name = ptsname(&end, Vec::new())?;
    // The terminal knows only from then on that nobody has it open.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let other = rustix::fs::open(&*name, flags, Mode::empty())?;
    let mut attributes = tcgetattr(&other)?;
    attributes.make_raw();
    tcsetattr(&other, OptionalActions::Now, &attributes)?;
    fcntl_setfl(&end, fcntl_getfl(&end)? | OFlags::NONBLOCK)?;
    Ok((end, name.to_string_lossy().into_owned()))
}

fn is_closed(end: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(end, PollFlags::empty())];
    let found = rustix::event::poll(&mut fds, Some(&Timespec::default()));
    found.is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

/// What goes through the terminal, as long as somebody has it open.
#[derive(Clone, Debug)]
pub struct PtyStream(Arc<AsyncFd<OwnedFd>>);

impl AsyncRead for PtyStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let space = buffer.initialize_unfilled();
            let read = guard.try_io(|end| Ok(rustix::io::read(end, &mut *space)?));
            match read {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // EIO: the other end is closed.
                Ok(Err(_)) => return Poll::Ready(Ok(())),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for PtyStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|end| Ok(rustix::io::write(end, data)?)) {
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
