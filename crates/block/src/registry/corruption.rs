//! Observers are told of an image that turns out to be corrupt.

use std::sync::Arc;

use super::Registry;
use crate::driver::node::Node;
use crate::driver::users::User;
use crate::words::event::{BlockImageCorrupted, EventKind};

impl Registry {
    /// From now on what the driver of `node` finds is an event, and a line in the log.
    pub(super) fn hear_corruption(&self, node: &Arc<Node>) {
        let Some(corruption) = node.driver().capabilities().corruption else {
            return;
        };
        let (control, name) = (self.control.clone(), Arc::clone(node.name()));
        // It is the node's own.
        let node = Arc::downgrade(node);
        corruption.listen(move |report| {
            let msg = &report.msg;
            match report.fatal {
                true => tracing::error!(
                    "node '{name}': the image is corrupt, and is not written any more: {msg}"
                ),
                false => tracing::warn!("node '{name}': the image is corrupt: {msg}"),
            }
            let users = node.upgrade().map(|node| node.users());
            let device = users.into_iter().flatten().find_map(|one| match one.user {
                User::Export(id) => Some(id.to_string()),
                User::Node(_) | User::Unnamed => None,
            });
            control.announce(EventKind::BlockImageCorrupted(Box::new(
                BlockImageCorrupted {
                    device: device.unwrap_or_default(),
                    node_name: name.to_string(),
                    msg: report.msg,
                    offset: report.offset,
                    bytes: report.bytes,
                    fatal: report.fatal,
                },
            )));
        });
    }
}
