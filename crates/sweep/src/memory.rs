//! Storage in memory of which every operation ends at once: for whoever needs no schedule and no cuts ([`mod@crate::storage`] has both).

use std::sync::Arc;

use block::{
    Access, BlockError, Capabilities, Driver, Grow, Io, IoFuture, Node, NodeInfo, Operation,
    Permissions, Resize, Result,
};
use parking_lot::Mutex;

use crate::sector::index;

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    /// As the last flush has left it.
    durable: Vec<u8>,
    /// Operations until all fail.
    left: usize,
}

/// See the [module](self). Clones are the same storage.
#[derive(Clone, Debug)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    most: usize,
    grows: bool,
}

impl Memory {
    /// With `image` on it, which is durable.
    pub fn new(image: &[u8]) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                bytes: image.to_vec(),
                durable: image.to_vec(),
                left: usize::MAX,
            })),
            most: usize::MAX,
            grows: true,
        }
    }

    /// Nobody may write behind `most` bytes: it panics then.
    #[must_use]
    pub fn bounded(self, most: usize) -> Self {
        Self { most, ..self }
    }

    /// It stays as long as it is.
    #[must_use]
    pub fn fixed(self) -> Self {
        Self {
            grows: false,
            ..self
        }
    }

    /// After so many operations all fail with ENOSPC.
    #[must_use]
    pub fn failing_after(self, operations: usize) -> Self {
        self.state.lock().left = operations;
        self
    }

    /// What is on it.
    pub fn content(&self) -> Vec<u8> {
        self.state.lock().bytes.clone()
    }

    /// What was on it at the last flush.
    pub fn durable(&self) -> Vec<u8> {
        self.state.lock().durable.clone()
    }

    /// As if that had been on it at the last flush.
    pub fn set_durable(&self, image: &[u8]) {
        self.state.lock().durable = image.to_vec();
    }

    /// How many operations are left until all fail.
    pub fn left(&self) -> usize {
        self.state.lock().left
    }

    /// A node with it.
    pub fn node(&self, name: &str) -> Arc<Node> {
        Node::new(name, Box::new(self.clone()))
    }

    fn perform(&self, io: &Io<'_>) -> Result<()> {
        let mut state = self.state.lock();
        let left = state.left.checked_sub(1);
        state.left = left.ok_or_else(|| BlockError::from_errno(libc::ENOSPC))?;
        let range = index(io.offset)..index(io.offset.saturating_add(io.bytes));
        let length = state.bytes.len();
        match io.op {
            Operation::Flush => {
                state.durable = state.bytes.clone();
                return Ok(());
            }
            Operation::Read => {
                let mut found = vec![0; range.len()];
                let inside = state.bytes.get(range.start..).unwrap_or(&[]);
                let inside = &inside[..inside.len().min(found.len())];
                found[..inside.len()].copy_from_slice(inside);
                io.buffers.copy_from(&found);
                return Ok(());
            }
            Operation::Discard if range.end > length => return Ok(()),
            Operation::Write | Operation::WriteZeroes { .. } | Operation::Discard => {}
        }
        assert!(
            range.end <= self.most,
            "written at {:#x}, where nothing of this image can be",
            io.offset
        );
        state.bytes.resize(length.max(range.end), 0);
        if io.op == Operation::Write {
            io.buffers.copy_to(&mut state.bytes[range]);
        } else {
            state.bytes[range].fill(0);
        }
        Ok(())
    }
}

impl Driver for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }

    fn length(&self) -> u64 {
        self.state.lock().bytes.len() as u64
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        IoFuture::ready(self.perform(&io))
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            resize: self.grows.then_some(self),
            grow: self.grows.then_some(self),
            ..Capabilities::default()
        }
    }
}

impl Grow for Memory {
    fn submit_beyond<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        self.submit(io)
    }
}

impl Resize for Memory {
    fn resized_length(&self, length: u64) -> Result<u64> {
        Ok(length)
    }

    fn resize(&self, length: u64) -> Result<()> {
        let length = index(length);
        if length > self.most {
            return Err(BlockError::from_errno(libc::EFBIG));
        }
        self.state.lock().bytes.resize(length, 0);
        Ok(())
    }
}

/// Whoever uses `node` may do all there is to what is below it.
pub fn allow_all(node: &Node) {
    for child in node.driver().children() {
        child.set_access(Access {
            held: Permissions::ALL,
            shared: Permissions::ALL,
        });
    }
}
