//! Who is let in: one client at a time. Another one is not left waiting without a word: it is
//! disconnected at once, as qemu-storage-daemon does it, and both the log and the export's trouble
//! say why.
//!
//! A thread of its own accepts clients, because the one that serves them may be waiting for the I/O
//! of the client it serves. Who comes while the former client is on its way out waits for its turn.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use listener::Socket;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use crate::trouble::Trouble;

/// How long to leave a listening socket alone that cannot accept.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);
/// VMMs try again every second; the log says so this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Clients {
    closing: bool,
    /// The client that is served.
    served: Option<UnixStream>,
    /// The client that is served next, once what the former one has left behind has ended.
    next: Option<UnixStream>,
}

/// What other threads can do about the clients of an export.
#[derive(Debug)]
pub(crate) struct Door {
    state: Mutex<Clients>,
    changed: Condvar,
    wake: OwnedFd,
}

/// What becomes of somebody who has connected.
#[derive(Debug, PartialEq, Eq)]
enum Admission {
    In,
    /// Another client is served, or waits to be.
    Refused {
        /// Its process, where the system tells.
        other: Option<i32>,
    },
    Closed,
}

/// Who comes next.
#[derive(Debug)]
pub(crate) enum Next {
    /// A client; an error: it could not be served.
    Client(io::Result<UnixStream>),
    /// Nobody has come in time.
    Nobody,
    /// Nobody will come any more.
    Closed,
}

impl Door {
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            wake: rustix::event::eventfd(0, flags)?,
        })
    }

    /// Nobody is let in any more, and the client is disconnected.
    pub fn close(&self) {
        let mut state = self.state();
        state.closing = true;
        state.next = None;
        if let Some(served) = &state.served {
            // It may be gone already.
            let _ = served.shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
        // A full counter wakes as well.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// The client is disconnected; others may come.
    pub fn disconnect(&self) {
        if let Some(served) = &self.state().served {
            // It may be gone already.
            let _ = served.shutdown(Shutdown::Both);
        }
    }

    /// Whether a client is served.
    pub fn is_connected(&self) -> bool {
        self.state().served.is_some()
    }

    pub fn is_closing(&self) -> bool {
        self.state().closing
    }

    /// Waits for a client, which is served from now on; with a limit, at most so long.
    pub fn next_client(&self, limit: Option<Duration>) -> Next {
        let mut state = self.state();
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            if state.closing {
                return Next::Closed;
            }
            if let Some(next) = state.next.take() {
                return Next::Client(next.try_clone().inspect(|_| state.served = Some(next)));
            }
            match deadline {
                None => self.changed.wait(&mut state),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Next::Nobody;
                    }
                    self.changed.wait_for(&mut state, left);
                }
            }
        }
    }

    /// The client is not served any more.
    pub fn leave(&self) {
        self.state().served = None;
    }

    fn admit(&self, stream: UnixStream) -> Admission {
        let mut state = self.state();
        if state.closing {
            return Admission::Closed;
        }
        let mut others = state.served.iter().chain(&state.next);
        if let Some(other) = others.find(|other| !is_gone(other)) {
            let other = process(other);
            return Admission::Refused { other };
        }
        state.next = Some(stream);
        self.changed.notify_all();
        Admission::In
    }

    fn state(&self) -> MutexGuard<'_, Clients> {
        self.state.lock()
    }
}

/// Whether the client has closed its end, even if that has not been noticed yet.
fn is_gone(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = Timespec::default();
    matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1))
}

/// The process at the other end, as our PID namespace counts it. The kernel says 0 of one that is
/// outside of ours (a VMM in another container); that is nobody we could name.
///
/// rustix reads the credentials into a type that cannot be 0, so it cannot be asked (undefined
/// behaviour in 1.1).
fn process(stream: &UnixStream) -> Option<i32> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = libc::socklen_t::try_from(size_of_val(&peer)).ok()?;
    // SAFETY: the kernel writes at most `len` bytes to `peer`, which is that long, lives until the
    // call is over, and is valid for any bytes.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    (result == 0 && peer.pid > 0).then_some(peer.pid)
}

/// Accepts clients.
pub(crate) struct Porter {
    pub id: String,
    pub socket: Socket,
    pub door: Arc<Door>,
    pub trouble: Arc<Trouble>,
}

impl Porter {
    /// Starts the thread. It ends, and with it the socket, when the door is closed.
    pub fn spawn(self) -> io::Result<JoinHandle<()>> {
        let thread = std::thread::Builder::new().name("accept".to_owned());
        thread.spawn(move || self.run())
    }

    fn run(self) {
        let mut logged = None;
        while !self.door.is_closing() {
            let accepted = self
                .wait(Some(&self.socket), None)
                .and_then(|()| self.socket.accept());
            match accepted {
                Ok(Some(stream)) => self.receive(stream, &mut logged),
                Ok(None) => {}
                Err(error) => {
                    // Out of descriptors, most likely: that passes.
                    tracing::error!(export = self.id, %error, "cannot accept clients for now");
                    let text = format!("cannot accept clients: {error}");
                    self.trouble.set_client(Some(text));
                    if self.wait(None, Some(ACCEPT_RETRY)).is_err() {
                        break;
                    }
                }
            }
        }
    }

    fn receive(&self, stream: UnixStream, logged: &mut Option<Instant>) {
        let name = |pid: Option<i32>| match pid {
            Some(pid) => format!("process {pid}"),
            None => "a process".to_owned(),
        };
        let who = process(&stream);
        let Admission::Refused { other } = self.door.admit(stream) else {
            return;
        };
        let text = format!(
            "{} has connected and was refused: {} is the client, an export has one at a time",
            name(who),
            name(other)
        );
        let now = Instant::now();
        if logged.is_none_or(|last| now.saturating_duration_since(last) >= LOG_INTERVAL) {
            *logged = Some(now);
            tracing::warn!(export = self.id, "{text}");
        }
        self.trouble.set_refused(text);
    }

    /// Sleeps until a client connects, the door is closed, or the time is over.
    fn wait(&self, socket: Option<&Socket>, timeout: Option<Duration>) -> io::Result<()> {
        let mut fds = vec![PollFd::new(&self.door.wake, PollFlags::IN)];
        fds.extend(socket.map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    #[test]
    fn one_is_served_and_one_may_wait_for_one_that_leaves() {
        let door = Door::new().unwrap();
        let (first, ours) = pair();
        assert_eq!(door.admit(ours), Admission::In);
        let me = Some(std::process::id().cast_signed());
        let refused = Admission::Refused { other: me };
        assert_eq!(door.admit(pair().1), refused, "one waits already");
        let Next::Client(Ok(served)) = door.next_client(None) else {
            unreachable!("it waits");
        };
        assert!(door.is_connected());
        assert_eq!(door.admit(pair().1), refused);
        // What it has sent last is still being read.
        drop(first);
        let (second, ours) = pair();
        assert_eq!(door.admit(ours), Admission::In);
        assert_eq!(door.admit(pair().1), refused);
        drop(second);
        let (_third, ours) = pair();
        assert_eq!(door.admit(ours), Admission::In, "the second is gone");
        drop(served);
        door.leave();
        assert!(!door.is_connected());
        assert!(matches!(door.next_client(None), Next::Client(Ok(_))));
        let nobody = door.next_client(Some(Duration::from_millis(1)));
        assert!(matches!(nobody, Next::Nobody));
        door.close();
        assert!(matches!(door.next_client(None), Next::Closed));
        assert_eq!(door.admit(pair().1), Admission::Closed);
    }
}
