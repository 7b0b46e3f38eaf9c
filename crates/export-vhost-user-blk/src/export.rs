//! The export as the registry sees it.

use std::io;
use std::sync::Arc;

use block::{Backend, BoxFuture, Export};
use listener::Socket;
use vhost_user::{ServeError, Served, Shape};

use crate::disk::Disk;
use crate::options::{OptionError, Options};
use crate::part::{BlockPart, Config};

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
    served: Served<BlockPart>,
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
        let shape = Shape {
            id: id.clone(),
            queues: options.num_queues,
            queue_size_max: options.queue_size_max,
            configure_mem_slots: options.configure_mem_slots,
        };
        let writable = options.writable;
        let config = Config {
            options,
            connection: Arc::new(backend.connect_device()),
        };
        let disk = |device| Disk::new(config.clone(), device);
        match Served::open(shape, &config, iothreads, socket, disk).await {
            Ok(served) => Ok(Arc::new(Self {
                id,
                writable,
                backend,
                served,
            })),
            Err(ServeError::Closed(_)) => Err(ExportError::Closed { id }),
            Err(ServeError::Thread(source)) => Err(ExportError::Thread { id, source }),
        }
    }
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
        self.served.has_client()
    }

    fn trouble(&self) -> Option<String> {
        self.served.trouble()
    }

    fn may_hand_back(&self) -> Option<String> {
        self.served.may_hand_back()
    }

    fn resized(&self) {
        // Its new length is in the configuration space already.
        self.served.config_changed();
    }

    fn image_changed(&self) {
        self.served.set_label(&self.backend.image().to_label());
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if !self.served.close().await {
                return;
            }
            self.backend.detach().await;
            self.backend.remove().await;
        })
    }
}
