//! The data plane of a disk: what a driver asks for goes to the block layer, and what that says to the
//! queue it concerns.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use block::{
    Backend, Client, ClientError, Connection, EventKind, LocalBackend, Operation, Request, Tag,
};
use vhost_user::{Access, Part, Requests, Unmapped};

use crate::options::Options;
use crate::request::{ID_BYTES, Parsed, Rules, STATUS_IOERR, STATUS_OK};

/// What a disk is made of.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub options: Options,
    /// The client of a vhost-user export is the device: one connection for all clients that it has in
    /// its life.
    pub connection: Arc<Connection>,
}

impl Config {
    pub fn backend(&self) -> &Arc<Backend> {
        self.connection.backend()
    }
}

struct Shared {
    id_string: [u8; ID_BYTES],
    /// Whether a write may complete before it is durable.
    writeback: Cell<bool>,
}

/// See the [module](self).
#[derive(Clone)]
pub(crate) struct BlockPart {
    local: LocalBackend,
    shared: Rc<Shared>,
}

impl fmt::Debug for BlockPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockPart").finish_non_exhaustive()
    }
}

impl BlockPart {
    pub fn set_writeback(&self, writeback: bool) {
        self.shared.writeback.set(writeback);
    }

    fn identify<Q: Requests<Rules>>(&self, queue: &Q, head: u16) -> u8 {
        match queue.store(head, &self.shared.id_string) {
            Ok(()) => STATUS_OK,
            Err(_) => STATUS_IOERR,
        }
    }
}

impl Part for BlockPart {
    type Format = Rules;
    type Config = Config;

    async fn open<Q: Requests<Rules>>(config: &Config, queues: Vec<Option<Rc<Q>>>) -> Option<Self> {
        let Config {
            options,
            connection,
        } = config;
        let shared = Rc::new(Shared {
            id_string: options.id_string(),
            writeback: Cell::new(!options.writethrough),
        });
        let here = (0..).zip(&queues).filter(|(_, queue)| queue.is_some());
        let here: Vec<u16> = here.map(|(index, _)| index).collect();
        let front = Front {
            queues,
            shared: Rc::clone(&shared),
        };
        let local = LocalBackend::open(connection, Rc::new(front), options.num_queues).await?;
        for queue in here {
            // Started by their rings.
            local.stop_queue(queue).await;
        }
        Some(Self { local, shared })
    }

    fn format(config: &Config, _queue: u16) -> Rules {
        Rules {
            writable: config.options.writable,
            block_bytes: config.options.logical_block_size,
        }
    }

    fn queue_broken(config: &Config, queue: u16, reason: String) {
        let id = config.backend().device().to_string();
        let event = EventKind::BlockExportQueueBroken { id, queue, reason };
        config.backend().control().announce(event);
    }

    fn unrecorded(config: &Config) {
        config.backend().set_remembered(false);
    }

    fn expect(&self, more: usize) {
        self.local.expect(more);
    }

    fn may_take(&self, queue: u16) -> bool {
        self.local.may_pop(queue)
    }

    fn act<Q: Requests<Rules>>(&self, index: u16, queue: &Q, head: u16, parsed: Parsed) {
        match parsed {
            Parsed::Submit { op, offset, bytes } => {
                let tag = Tag { queue: index, head };
                self.local.submit(Request {
                    tag,
                    op,
                    offset,
                    bytes,
                });
            }
            Parsed::Identify => {
                let status = self.identify(queue, head);
                queue.complete(head, status);
            }
            Parsed::Answer { status, invalid } => {
                if let Some(op) = invalid {
                    self.local.invalid(op);
                }
                queue.complete(head, status);
            }
        }
    }

    fn start_queue(&self, queue: u16) {
        self.local.start_queue(queue);
    }

    fn suspend_queue(&self, queue: u16) {
        self.local.suspend_queue(queue);
    }

    async fn settle_queue(&self, queue: u16) {
        self.local.settle_queue(queue).await;
    }

    fn retain(&self, queue: u16, keep: impl FnMut(u16) -> bool) {
        self.local.retain(queue, keep);
    }

    fn memory_moves(&self) {
        self.local.memory_moves();
    }

    fn memory_settled(&self) {
        self.local.memory_settled();
    }

    async fn close(self) {
        self.local.close().await;
    }
}

/// The queues, as the block layer sees them.
struct Front<Q> {
    /// Those of the export by their numbers, as far as they are on this iothread.
    queues: Vec<Option<Rc<Q>>>,
    shared: Rc<Shared>,
}

impl<Q> Front<Q> {
    fn of(&self, request: &Request) -> Option<&Rc<Q>> {
        (self.queues.get(usize::from(request.tag.queue))?).as_ref()
    }
}

impl<Q: Requests<Rules>> Client for Front<Q> {
    fn map(&self, request: &Request, iov: &mut Vec<libc::iovec>) -> Result<(), block::Unmapped> {
        let queue = self.of(request).ok_or(block::Unmapped::Gone)?;
        let access = match request.op {
            Operation::Read => Some(Access::Store),
            Operation::Write => Some(Access::Load),
            Operation::Flush | Operation::Discard | Operation::WriteZeroes { .. } => None,
        };
        let mapped = queue.map(request.tag.head, access, iov);
        mapped.map_err(|unmapped| match unmapped {
            Unmapped::Gone => block::Unmapped::Gone,
            Unmapped::Moving => block::Unmapped::Moving,
        })
    }

    fn has_lost(&self, request: &Request, iov: &[libc::iovec]) -> bool {
        let access = match request.op {
            Operation::Read => Access::Store,
            _ => Access::Load,
        };
        let queue = self.of(request);
        queue.is_none_or(|queue| queue.has_lost(request.tag.head, access, iov))
    }

    fn unmap(&self, request: &Request) {
        if let Some(queue) = self.of(request) {
            queue.unmap(request.tag.head);
        }
    }

    fn fua(&self, request: &Request) -> bool {
        request.op.modifies() && !self.shared.writeback.get()
    }

    fn complete(&self, request: &Request, result: Result<(), ClientError>) {
        let status = match result {
            Ok(()) => STATUS_OK,
            Err(ClientError::Io(_) | ClientError::Guest) => STATUS_IOERR,
        };
        if let Some(queue) = self.of(request) {
            queue.complete(request.tag.head, status);
        }
    }

    fn succeeded(&self, request: &Request) {
        if let Some(queue) = self.of(request) {
            queue.end(request.tag.head, STATUS_OK);
        }
    }

    fn dropped(&self, request: &Request) {
        if let Some(queue) = self.of(request) {
            queue.forget(request.tag.head);
        }
    }

    fn resume(&self) {
        for queue in self.queues.iter().flatten() {
            queue.process();
        }
    }
}
