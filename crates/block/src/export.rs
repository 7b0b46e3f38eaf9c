//! What every export has in common.

use std::fmt;
use std::sync::Arc;

use crate::backend::Backend;
use crate::driver::future::BoxFuture;

/// A node offered to clients over a protocol.
pub trait Export: Send + Sync + fmt::Debug {
    /// The export's id.
    fn id(&self) -> &str;

    /// QEMU's name of the protocol: `vhost-user-blk`.
    fn type_name(&self) -> &'static str;

    /// What it talks to.
    fn backend(&self) -> &Arc<Backend>;

    /// Whether clients may write.
    fn writable(&self) -> bool;

    /// Whether a client is connected.
    fn has_client(&self) -> bool;

    /// What is wrong with it, if something is: a broken queue, a client that was disconnected.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// What clients may still hand back that nobody in this process has seen, and how it would come:
    /// requests that a former daemon had taken.
    fn may_hand_back(&self) -> Option<String> {
        None
    }

    /// The node has a new length: tell the client. Waits for nobody.
    fn resized(&self) {}

    /// Clients see another image from now on: whatever they keep of it for the next daemon is changed. Waits
    /// for nobody.
    fn image_changed(&self) {}

    /// Ends it: the listening socket is gone, the client disconnected, nothing is in flight and the
    /// backend removed. What is held is neither completed nor failed.
    fn close(&self) -> BoxFuture<'_, ()>;
}

impl dyn Export {
    /// The node has another length, or another one is there: tells the client.
    pub fn tell_resized(&self) {
        self.backend().take_new_length();
        self.resized();
    }

    /// Tells the client of the length of the node, unless it was told of it before.
    pub fn tell_new_length(&self) {
        if self.backend().take_new_length() {
            self.resized();
        }
    }
}
