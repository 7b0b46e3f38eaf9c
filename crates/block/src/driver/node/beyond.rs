//! What a parent sends that reaches beyond the end of its child.

use std::sync::Weak;

use super::{Child, GuestFault, Node};
use crate::driver::future::IoFuture;
use crate::driver::io::Io;
use crate::words::error::BlockError;
use crate::words::permissions::Permissions;
use crate::words::request::Operation;

impl Node {
    #[cold]
    pub(super) fn submit_beyond<'a>(
        &'a self,
        io: Io<'a>,
        fault: GuestFault,
        edge: &Child,
    ) -> IoFuture<'a> {
        let end = io.offset.checked_add(io.bytes);
        let is_range = end.is_some_and(|end| i64::try_from(end).is_ok());
        if fault == GuestFault::OutOfRange && is_range {
            match io.op {
                Operation::Read | Operation::Discard => return self.submit_clipped(io),
                Operation::Write | Operation::WriteZeroes { .. } => {
                    if edge.access().held.contains(Permissions::RESIZE) {
                        let full = || IoFuture::ready(Err(self.full_error(&io)));
                        return self.submit_growing(io).unwrap_or_else(full);
                    }
                }
                Operation::Flush => {}
            }
        }
        IoFuture::ready(Err(self.fault_error(fault, &io)))
    }

    /// As a device says it that ends there: the policy for want of space decides.
    fn full_error(&self, io: &Io<'_>) -> BlockError {
        let length = self.driver.length();
        let text = format!("it has {length} bytes, and does not grow");
        BlockError::new(libc::ENOSPC, text).at(&self.name, io.offset, io.bytes)
    }

    /// What of a read or discard lies inside; behind that there are zeroes.
    fn submit_clipped<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let inside = self.driver.length().saturating_sub(io.offset).min(io.bytes);
        let behind = io.slice(inside..io.bytes);
        if inside == 0 {
            behind.buffers.fill_zero();
            return IoFuture::ready(Ok(()));
        }
        IoFuture::new(async move {
            self.driver.submit(io.slice(0..inside)).await?;
            behind.buffers.fill_zero();
            Ok(())
        })
    }

    /// None: this node does not become longer by being written to.
    fn submit_growing<'a>(&'a self, io: Io<'a>) -> Option<IoFuture<'a>> {
        let grow = self.driver.capabilities().grow?;
        self.threshold.submitted(&io);
        let growing = Growing {
            node: self,
            before: self.driver.length(),
        };
        let future = grow.submit_beyond(io);
        if future.is_ready() {
            return Some(future);
        }
        Some(IoFuture::new(async move {
            let _growing = growing;
            future.await
        }))
    }
}

impl Child {
    /// [`crate::Grow::reserve`] of a node that is shorter than `end`, if the edge may resize it. Says nothing of how it
    /// ended: a write that still has to make the node longer does that itself, and hears why it cannot.
    pub async fn reserve(&self, end: u64) {
        let node = self.node();
        let length = node.driver.length();
        let Some(grow) = node.driver.capabilities().grow else {
            return;
        };
        if length < end
            && self.access().held.contains(Permissions::RESIZE)
            && let Some(reserved) = grow.reserve(end)
        {
            let _growing = Growing {
                node: &node,
                before: length,
            };
            if let Err(error) = reserved.await {
                tracing::debug!(node = %node.name, %error, "nothing is reserved");
            }
        }
    }
}

/// A write that may make its node longer. However it ends, if it did those are told who see the length.
struct Growing<'a> {
    node: &'a Node,
    before: u64,
}

impl Drop for Growing<'_> {
    fn drop(&mut self) {
        if self.node.driver.length() > self.before
            && let Some(growth) = self.node.growth.get().and_then(Weak::upgrade)
        {
            growth.happened();
        }
    }
}
