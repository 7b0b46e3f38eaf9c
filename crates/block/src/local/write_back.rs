//! When drivers write back what they have not written yet: when all is frozen, when a drain has ended what is
//! in flight, and when this part ends.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use iothread::time;

use crate::driver::node::Node;
use crate::driver::own_io::WRITE_BACK_MAX;
use crate::driver::threads::Attachment;

use super::LocalBackend;

impl LocalBackend {
    /// The nodes that have something to write back, those on top first: what they write may be something
    /// to write back for those below.
    fn own_io(&self) -> Vec<Arc<Node>> {
        let mut nodes = self.0.node.borrow().bottom_up();
        nodes.reverse();
        nodes.retain(|node| node.has_own_io());
        nodes
    }

    /// As [`Self::write_back`], when nothing is in flight here. Nobody waits for it.
    pub(super) fn begin_write_back(&self) {
        // One waits at a time, however often all is frozen while something hangs.
        if self.own_io().is_empty() || self.0.will_write_back.replace(true) {
            return;
        }
        let this = self.clone();
        iothread::spawn_local(async move {
            this.until(|gate| gate.in_flight() == 0).await;
            this.0.will_write_back.set(false);
            this.write_back().await;
        })
        .detach();
    }

    /// Lets drivers write back, and waits until they have tried, at most [`WRITE_BACK_MAX`]: what takes
    /// longer goes on, and is not waited for again. Until it has ended it is in nobody's way, and nothing
    /// waits for its turn behind it.
    pub(super) async fn write_back(&self) {
        let mut nodes = self.own_io();
        nodes.retain(|node| !node.is_write_back_stuck());
        if nodes.is_empty() {
            return;
        }
        // This part may end before.
        let attachment = Attachment::new(&self.0.node.borrow());
        let all = nodes.clone();
        let mut task = iothread::spawn_local(async move {
            for node in all {
                node.write_back().await;
            }
            drop(attachment);
        });
        let mut limit = pin!(time::sleep(WRITE_BACK_MAX));
        let ended = poll_fn(|cx| {
            if pin!(&mut task).poll(cx).is_ready() {
                return Poll::Ready(true);
            }
            limit.as_mut().poll(cx).map(|()| false)
        });
        if !ended.await {
            task.detach();
            nodes.iter().for_each(|node| node.give_write_back_up());
        }
    }
}
