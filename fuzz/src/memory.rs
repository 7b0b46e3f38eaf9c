//! Storage in memory that becomes longer to a bound.

use std::sync::{Arc, Mutex};

use block::{
    Access, BlockError, Capabilities, Driver, Grow, Io, IoFuture, Node, NodeInfo, Operation,
    Permissions, Resize, Result,
};

/// See the [module](self). Clones are the same storage.
#[derive(Clone, Debug)]
pub struct Memory {
    bytes: Arc<Mutex<Vec<u8>>>,
    most: usize,
}

impl Memory {
    /// Storage on which `image` is. Nobody may write behind `most` bytes.
    pub fn new(image: &[u8], most: usize) -> Self {
        Self {
            bytes: Arc::new(Mutex::new(image.to_vec())),
            most,
        }
    }

    /// What is on it.
    pub fn content(&self) -> Vec<u8> {
        self.bytes.lock().expect("nobody panics").clone()
    }

    fn perform(&self, io: Io<'_>) -> Result<()> {
        let mut all = self.bytes.lock().expect("nobody panics");
        let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let range = index(io.offset)..index(io.offset.saturating_add(io.bytes));
        match io.op {
            Operation::Flush => return Ok(()),
            Operation::Read => {
                let mut found = vec![0; range.len()];
                let inside = all.get(range.start..).unwrap_or(&[]);
                let inside = &inside[..inside.len().min(found.len())];
                found[..inside.len()].copy_from_slice(inside);
                io.buffers.copy_from(&found);
                return Ok(());
            }
            Operation::Discard if range.end > all.len() => return Ok(()),
            Operation::Write | Operation::WriteZeroes { .. } | Operation::Discard => {}
        }
        assert!(
            range.end <= self.most,
            "written at {:#x}, where nothing of this image can be",
            io.offset
        );
        if all.len() < range.end {
            all.resize(range.end, 0);
        }
        if io.op == Operation::Write {
            io.buffers.copy_to(&mut all[range]);
        } else {
            all[range].fill(0);
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
        self.content().len() as u64
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        IoFuture::ready(self.perform(io))
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            resize: Some(self),
            grow: Some(self),
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
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > self.most {
            return Err(BlockError::from_errno(
                rustix::io::Errno::FBIG.raw_os_error(),
            ));
        }
        self.bytes.lock().expect("nobody panics").resize(length, 0);
        Ok(())
    }
}

/// Whoever uses `node` may do all there is.
pub fn allow_all(node: &Node) {
    for child in node.driver().children() {
        child.set_access(Access {
            held: Permissions::ALL,
            shared: Permissions::ALL,
        });
    }
}
