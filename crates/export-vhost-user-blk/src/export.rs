//! The export as the registry sees it.

use std::io;
use std::sync::Arc;

use block::{Backend, BoxFuture, Export};
use iothread::mailbox::{self, Receiver};
use listener::Socket;
use std::sync::{Mutex, PoisonError};

use crate::device::{Closed, DeviceHandle};
use crate::door::Door;
use crate::options::{OptionError, Options};
use crate::protocol::back_channel::BackChannel;
use crate::queue::HangUp;
use crate::server::Server;
use crate::session::Session;
use crate::trouble::Trouble;
use crate::unclaimed::Unclaimed;

/// Why an export cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// An option makes no sense.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A writable export on a node that refuses writes.
    #[error("export '{id}' cannot be writable: node '{node}' is read-only")]
    ReadOnlyNode {
        /// The export.
        id: String,
        /// Its node.
        node: Arc<str>,
    },
    /// Nothing to run on.
    #[error("export '{id}': it needs at least one iothread")]
    NoIothread {
        /// The export.
        id: String,
    },
    /// The iothread or run control has ended.
    #[error("export '{id}': the daemon is shutting down")]
    Closed {
        /// The export.
        id: String,
    },
    /// The system refuses a thread or a descriptor.
    #[error("export '{id}': cannot start its control thread: {source}")]
    Thread {
        /// The export.
        id: String,
        /// What it says.
        source: io::Error,
    },
}

/// A node offered over vhost-user-blk.
#[derive(Debug)]
pub struct VhostUserBlkExport {
    id: String,
    writable: bool,
    backend: Arc<Backend>,
    trouble: Arc<Trouble>,
    device: DeviceHandle,
    back_channel: Arc<BackChannel>,
    unclaimed: Arc<Unclaimed>,
    door: Arc<Door>,
    /// Yields none when the control thread has ended.
    ended: Mutex<Option<Receiver<()>>>,
}

impl VhostUserBlkExport {
    /// Serves `backend` at `socket`, with queue `i` on the iothread `i` modulo their number. There
    /// must be at least one; those beyond the number of queues are not used.
    ///
    /// # Errors
    /// [`ExportError`]; then the socket is gone, and the backend is the caller's to remove.
    pub async fn new(
        options: Options,
        backend: Arc<Backend>,
        iothreads: &[iothread::Handle],
        socket: Socket,
    ) -> Result<Arc<Self>, ExportError> {
        options.check()?;
        let id = options.id.clone();
        if options.writable && backend.node().read_only() {
            let node = Arc::clone(backend.node().name());
            return Err(ExportError::ReadOnlyNode { id, node });
        }
        if iothreads.is_empty() {
            return Err(ExportError::NoIothread { id });
        }
        let back_channel = Arc::new(BackChannel::default());
        let trouble = Arc::new(Trouble::new(Arc::clone(&back_channel)));
        let door = match Door::new() {
            Ok(door) => Arc::new(door),
            Err(source) => return Err(ExportError::Thread { id, source }),
        };
        let hang_up: HangUp = {
            let door = Arc::clone(&door);
            Arc::new(move || door.disconnect())
        };
        let opened = DeviceHandle::open(iothreads, &options, &backend, &trouble, &hang_up).await;
        let Ok(device) = opened else {
            return Err(ExportError::Closed { id });
        };
        let unclaimed = Arc::new(Unclaimed::default());
        let session = Session::new(
            options.clone(),
            Arc::clone(&backend),
            device.clone(),
            Arc::clone(&back_channel),
            Arc::clone(&trouble),
            Arc::clone(&unclaimed),
        );
        let (ending, ended) = mailbox::channel();
        let server = Server {
            id: id.clone(),
            session,
            door: Arc::clone(&door),
            trouble: Arc::clone(&trouble),
        };
        match server.spawn(socket, ending) {
            Ok(()) => Ok(Arc::new(Self {
                id,
                writable: options.writable,
                backend,
                trouble,
                device,
                back_channel,
                unclaimed,
                door,
                ended: Mutex::new(Some(ended)),
            })),
            Err(source) => {
                // Nothing has been in flight; a daemon that ends needs no tidying up.
                let _: Result<(), Closed> = close(&device).await;
                Err(ExportError::Thread { id, source })
            }
        }
    }
}

async fn close(device: &DeviceHandle) -> Result<(), Closed> {
    (device.run_all(|device| async move { device.close().await })).await
}

impl Export for VhostUserBlkExport {
    fn id(&self) -> &str {
        &self.id
    }

    fn type_name(&self) -> &'static str {
        "vhost-user-blk"
    }

    fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn has_client(&self) -> bool {
        self.door.is_connected()
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.text()
    }

    fn may_hand_back(&self) -> Option<String> {
        self.unclaimed.reason()
    }

    fn resized(&self) {
        // Its new length is in the configuration space already.
        self.back_channel.config_changed();
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let ended = self
                .ended
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            // Closed a second time: the first call does it.
            let Some(mut ended) = ended else { return };
            self.door.close();
            while ended.recv().await.is_some() {}
            // An error means that the iothread is gone, and with it all that was in flight.
            let _: Result<(), Closed> = close(&self.device).await;
            self.backend.detach().await;
            self.backend.remove().await;
        })
    }
}

impl Drop for VhostUserBlkExport {
    fn drop(&mut self) {
        // Without `close` the thread would wait for clients for ever.
        self.door.close();
    }
}
