//! The device's control thread: one client at a time, again and again.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use iothread::mailbox::Sender;
use listener::Socket;

use crate::class::Class;
use crate::descriptor::Foreign;
use crate::door::{Door, Next, Porter};
use crate::protocol::answer::{self, Answer};
use crate::protocol::decode::decode;
use crate::protocol::message::{Message, MessageError};
use crate::protocol::socket::{Connection, ReceiveError};
use crate::session::{Refused, Session};
use crate::trouble::Trouble;

/// How long a client may say nothing between the removal of memory and its return. Front ends do not
/// pause there at all, but a machine may be busy.
const MEMORY_RETURN_MAX: Duration = Duration::from_secs(5);

/// How often to look whether a client that has stopped its rings still has its inflight region.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What the thread works with.
pub(crate) struct Server<C: Class> {
    pub id: String,
    pub session: Session<C>,
    pub door: Arc<Door>,
    pub trouble: Arc<Trouble>,
}

impl<C: Class> Server<C> {
    /// Starts the thread, and the one that accepts clients at `socket`. It drops `ended` after the
    /// socket is gone and all rings have ended.
    pub fn spawn(self, socket: Socket, ended: Sender<()>) -> io::Result<()> {
        let door = Arc::clone(&self.door);
        let porter = Porter {
            id: self.id.clone(),
            socket,
            door: Arc::clone(&door),
            trouble: Arc::clone(&self.trouble),
        };
        let accepting = porter.spawn()?;
        let thread = std::thread::Builder::new().name("vhost-user".to_owned());
        let spawned = thread.spawn(move || {
            let door = Arc::clone(&self.door);
            self.run();
            // Also if it was not closed: nobody is there to serve anybody.
            door.close();
            // A panic there has been printed already.
            let _ = accepting.join();
            drop(ended);
        });
        if spawned.is_err() {
            door.close();
        }
        spawned.map(drop)
    }

    fn run(self) {
        let Self {
            id,
            mut session,
            door,
            trouble,
        } = self;
        loop {
            let look = session.may_be_left().then_some(LOOK_INTERVAL);
            let next = door.next_client(look);
            if matches!(next, Next::Closed) || session.drop_if_left().is_err() {
                break;
            }
            let Next::Client(next) = next else { continue };
            trouble.set_client(None);
            tracing::debug!(export = id, "client connected");
            let why = match next {
                Ok(stream) => serve(stream, &mut session, &door),
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = why {
                tracing::error!(export = id, "client disconnected: {why}");
                trouble.set_client(Some(format!("the client was disconnected: {why}")));
            }
            if session.end().is_err() {
                break;
            }
        }
    }
}

/// Serves one connection to its end. Returns why it was ended, if not by the client.
fn serve<C: Class>(stream: UnixStream, session: &mut Session<C>, door: &Door) -> Option<String> {
    let connection = Connection::new(stream);
    let why = loop {
        if session.memory_moves() && !connection.is_readable_within(MEMORY_RETURN_MAX) {
            // It is not in the middle of a change.
            if let Err(refused) = session.settle_memory() {
                break Some(refused.to_string());
            }
        }
        while session.may_be_left() && !connection.is_readable_within(LOOK_INTERVAL) {
            if session.drop_if_left().is_err() {
                break;
            }
        }
        match serve_message(&connection, session, door) {
            Ok(()) => {}
            Err(End::Gone) => break None,
            Err(End::Wrong(why)) => break Some(why),
        }
    };
    door.leave();
    why.filter(|_| !door.is_closing())
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

fn handle<C: Class>(
    session: &mut Session<C>,
    message: Message<Foreign>,
) -> Result<Answer<OwnedFd>, Refused> {
    tracing::trace!("{message:x?}");
    session.handle(message)
}

fn serve_message<C: Class>(
    connection: &Connection,
    session: &mut Session<C>,
    door: &Door,
) -> Result<(), End> {
    let packet = connection.receive()?;
    let header = packet.header;
    // Whoever does not read its answers is gone, or as good as gone.
    let send =
        |bytes: &[u8], fd: Option<&OwnedFd>| connection.send(bytes, fd).map_err(|_| End::Gone);
    let fds = packet.fds.into_iter().map(Foreign::new).collect();
    let refused = match decode(header, &packet.payload, fds) {
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
                (error, answer::refusal(header))
            {
                // It asks, and it is told: no reason to part.
                tracing::debug!("refused: {error}");
                return send(&refusal, None);
            }
            End::Wrong(error.to_string())
        }
    };
    if let Some(refusal) = answer::refusal(header) {
        // Once it is told it may come back at once, and is not somebody else then.
        door.leave();
        // It has been told, or it is gone: this is the end in either case.
        let _ = send(&refusal, None);
    }
    Err(refused)
}
