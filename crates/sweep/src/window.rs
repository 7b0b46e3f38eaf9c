//! A part of the storage as a node of its own, so that an image may lie in several files: what is cut loses parts of each,
//! and a flush of one says nothing of the others.

use std::ops::Range;
use std::sync::Arc;

use block::{
    Access, Capabilities, Child, Driver, Grow, Io, IoFuture, Limits, Node, NodeInfo, Operation,
    Permissions, Resize, Result,
};

/// See the [module](self).
#[derive(Debug)]
pub struct Window {
    file: Child,
    start: u64,
    /// None: it reaches to the end, and grows with that.
    bytes: Option<u64>,
}

impl Window {
    /// A node named `name` with the bytes of `range` of the storage `file`; one without an end grows as it is
    /// written. Both are multiples of a sector.
    pub fn node(name: &str, file: &Arc<Node>, range: Range<Option<u64>>) -> Arc<Node> {
        let start = range.start.unwrap_or(0);
        let child = Child::of(&name.into(), "file", Arc::clone(file));
        child.set_access(Access {
            held: Permissions::ALL,
            shared: Permissions::ALL,
        });
        let window = Self {
            file: child,
            start,
            bytes: range.end.map(|end| end - start),
        };
        Node::new(name, Box::new(window))
    }
}

impl Driver for Window {
    fn name(&self) -> &'static str {
        "window"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }

    fn length(&self) -> u64 {
        let all = self.file.length().saturating_sub(self.start);
        self.bytes.unwrap_or(all)
    }

    fn limits(&self) -> Limits {
        self.file.limits()
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let offset = io.offset + self.start;
        self.file.submit(match io.op {
            // The storage takes a range for what is to be flushed.
            Operation::Flush => Io {
                offset: self.start,
                bytes: self.length(),
                ..io
            },
            _ => Io { offset, ..io },
        })
    }

    fn children(&self) -> Vec<&Child> {
        vec![&self.file]
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            resize: Some(self),
            grow: self.bytes.is_none().then_some(self),
            ..Capabilities::default()
        }
    }
}

impl Grow for Window {
    fn submit_beyond<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        self.submit(io)
    }
}

/// As a device: what has an end has that.
impl Resize for Window {
    fn resized_length(&self, length: u64) -> Result<u64> {
        Ok(self.bytes.unwrap_or(length))
    }

    fn resize(&self, length: u64) -> Result<()> {
        match self.bytes {
            Some(_) => Ok(()),
            None => self.file.node().resize(length + self.start),
        }
    }
}
