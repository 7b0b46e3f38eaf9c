//! A connection: one client of a backend, with parts of its own on one or more iothreads.
//!
//! A client's life is not a device's life. I/O status, error policy, held requests of others, counters,
//! losses and generation are the backend's, and stay as they are when a client comes or goes. What a
//! connection takes with it is what its client asked for and nobody can be told of any more.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use iothread::mailbox;

use crate::driver::loss::Loss;
use crate::words::ids::ConnectionId;

use super::Backend;

/// See the [module](self). Its parts are opened by [`crate::LocalBackend::open`]. They end with it,
/// also if it is dropped.
#[derive(Debug)]
pub struct Connection {
    backend: Arc<Backend>,
    id: ConnectionId,
}

impl Backend {
    /// A client connects. If no device has been there before, neither in this process nor in a former
    /// one, that begins its life, as [`Self::attach`] does; else nothing is reset: who joins finds I/O
    /// status and run state as they are. None: the daemon ends, or the backend has been removed.
    pub async fn connect(self: &Arc<Self>) -> Option<Connection> {
        let connection = Connection::open(self);
        let (id, losses_accepted) = (self.id, Arc::clone(&self.losses_accepted));
        self.control
            .call(move |state, wiring| {
                if state.join(id, wiring)? {
                    // Nobody has ever had a request here.
                    losses_accepted.store(Loss::last(), Ordering::SeqCst);
                    wiring.clear_void_losses();
                    state.touch();
                }
                Some(())
            })
            .await??;
        Some(connection)
    }

    /// The connection of an export whose client is the device itself: it lasts as long as the export, and
    /// the export says when the device is attached, reset or given up.
    pub fn connect_device(self: &Arc<Self>) -> Connection {
        Connection::open(self)
    }
}

impl Connection {
    fn open(backend: &Arc<Backend>) -> Self {
        Self {
            backend: Arc::clone(backend),
            id: backend.parts.connect(),
        }
    }

    /// Its number within the backend.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// What it is a connection to.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// The client has left: what is held, waits or is parked of it is dropped, and counted. An incident
    /// and a freeze that lasted only because of it are over when this returns; the run state stays.
    ///
    /// What is in flight is not waited for. It ends by itself, into the client's buffers, and until
    /// then whatever any other connection writes to the same range waits behind it: it could come
    /// later and bring old data back over newer. Drains and the removal of the backend wait for it.
    ///
    /// It does not wait for a client's own ordering either: a client that leaves with writes under way
    /// and comes back orders its new writes behind them only once this has been called.
    pub async fn close(&self) {
        let (done, mut told) = mailbox::channel();
        self.backend.parts.disconnect(self.id, &done);
        drop(done);
        while told.recv().await.is_some() {}
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let (done, _) = mailbox::channel();
        self.backend.parts.disconnect(self.id, &done);
    }
}
