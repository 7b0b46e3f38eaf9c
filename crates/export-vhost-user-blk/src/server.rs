//! The export's control thread: one client at a time, again and again.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iothread::mailbox::Sender;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use crate::descriptor::Foreign;
use crate::protocol::message::{self, Answer, Message, MessageError};
use crate::protocol::socket::{Connection, ReceiveError};
use crate::session::{Refused, Session};
use crate::socket::Socket;
use crate::trouble::Trouble;

/// How long to leave a listening socket alone that cannot accept.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// How long a client may say nothing between the removal of memory and its return. Front ends do not
/// pause there at all, but a machine may be busy.
const MEMORY_RETURN_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct State {
    closing: bool,
    connection: Option<UnixStream>,
}

/// Ends the thread, from any other.
#[derive(Debug)]
pub(crate) struct Stopper {
    state: Mutex<State>,
    wake: OwnedFd,
}

impl Stopper {
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            state: Mutex::default(),
            wake: rustix::event::eventfd(0, flags)?,
        })
    }

    /// Nothing is accepted any more, and the client is disconnected.
    pub fn stop(&self) {
        let mut state = self.state();
        state.closing = true;
        if let Some(connection) = &state.connection {
            // It may be gone already.
            let _ = connection.shutdown(Shutdown::Both);
        }
        // A full counter wakes as well.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// The client is disconnected; others may come.
    pub fn disconnect(&self) {
        if let Some(connection) = &self.state().connection {
            // It may be gone already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Whether a client is connected.
    pub fn is_connected(&self) -> bool {
        self.state().connection.is_some()
    }

    /// Makes `stop` reach the connection; false if it has been called already.
    fn register(&self, connection: &UnixStream) -> io::Result<bool> {
        let mut state = self.state();
        state.connection = Some(connection.try_clone()?);
        Ok(!state.closing)
    }

    fn unregister(&self) {
        self.state().connection = None;
    }

    fn is_closing(&self) -> bool {
        self.state().closing
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread works with.
pub(crate) struct Server {
    pub id: String,
    pub socket: Socket,
    pub session: Session,
    pub stopper: Arc<Stopper>,
    pub trouble: Arc<Trouble>,
}

impl Server {
    /// Starts the thread. It drops `ended` after the socket is gone and all rings have ended.
    pub fn spawn(self, ended: Sender<()>) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("vhost-user".to_owned());
        thread.spawn(move || {
            self.run();
            drop(ended);
        })?;
        Ok(())
    }

    fn run(self) {
        let Self {
            id,
            socket,
            mut session,
            stopper,
            trouble,
        } = self;
        while !stopper.is_closing() {
            let accepted = wait(Some(&socket), &stopper, None).and_then(|()| socket.accept());
            let stream = match accepted {
                Ok(Some(stream)) => stream,
                Ok(None) => continue,
                Err(error) => {
                    // Out of descriptors, most likely: that passes.
                    tracing::error!(export = id, %error, "cannot accept clients for now");
                    trouble.set_client(Some(format!("cannot accept clients: {error}")));
                    if wait(None, &stopper, Some(ACCEPT_RETRY)).is_err() {
                        break;
                    }
                    continue;
                }
            };
            trouble.set_client(None);
            tracing::debug!(export = id, "client connected");
            if let Some(why) = serve(stream, &mut session, &stopper) {
                tracing::error!(export = id, "client disconnected: {why}");
                trouble.set_client(Some(format!("the client was disconnected: {why}")));
            }
            if session.end().is_err() {
                break;
            }
        }
    }
}

/// Sleeps until a client connects, the export is closed, or the time is over.
fn wait(socket: Option<&Socket>, stopper: &Stopper, timeout: Option<Duration>) -> io::Result<()> {
    let mut fds = vec![PollFd::new(&stopper.wake, PollFlags::IN)];
    fds.extend(socket.map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)));
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Serves one connection to its end. Returns why it was ended, if not by the client.
fn serve(stream: UnixStream, session: &mut Session, stopper: &Stopper) -> Option<String> {
    match stopper.register(&stream) {
        Ok(true) => {}
        Ok(false) => return None,
        Err(error) => return Some(error.to_string()),
    }
    let connection = Connection::new(stream);
    let why = loop {
        if session.memory_moves() && !connection.is_readable_within(MEMORY_RETURN_MAX) {
            // It is not in the middle of a change.
            if let Err(refused) = session.settle_memory() {
                break Some(refused.to_string());
            }
        }
        match serve_message(&connection, session) {
            Ok(()) => {}
            Err(End::Gone) => break None,
            Err(End::Wrong(why)) => break Some(why),
        }
    };
    stopper.unregister();
    why.filter(|_| !stopper.is_closing())
}

/// Why a connection ends.
enum End {
    Gone,
    Wrong(String),
}

impl From<ReceiveError> for End {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Gone => Self::Gone,
            error => Self::Wrong(error.to_string()),
        }
    }
}

fn handle(session: &mut Session, message: Message<Foreign>) -> Result<Answer<OwnedFd>, Refused> {
    tracing::trace!("{message:x?}");
    session.handle(message)
}

fn serve_message(connection: &Connection, session: &mut Session) -> Result<(), End> {
    let packet = connection.receive()?;
    let header = packet.header;
    // Whoever does not read its answers is gone, or as good as gone.
    let send =
        |bytes: &[u8], fd: Option<&OwnedFd>| connection.send(bytes, fd).map_err(|_| End::Gone);
    let fds = packet.fds.into_iter().map(Foreign::new).collect();
    let refused = match message::decode(header, &packet.payload, fds) {
        Ok(message) => match handle(session, message) {
            Ok(answer) => {
                return match answer.encode(header) {
                    Some((bytes, fd)) => send(&bytes, fd.as_ref()),
                    None => Ok(()),
                };
            }
            Err(refused) => End::Wrong(refused.to_string()),
        },
        Err(error) => {
            if let (MessageError::NotOffered { .. }, Some(refusal)) =
                (error, message::refusal(header))
            {
                // It asks, and it is told: no reason to part.
                tracing::debug!("refused: {error}");
                return send(&refusal, None);
            }
            End::Wrong(error.to_string())
        }
    };
    if let Some(refusal) = message::refusal(header) {
        // It has been told, or it is gone: this is the end in either case.
        let _ = send(&refusal, None);
    }
    Err(refused)
}
