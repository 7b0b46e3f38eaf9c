//! Nodes that leave the graph are closed where nobody waits: giving locks back and close(2) ask the
//! storage, which may hang.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use iothread::mailbox::{self, Receiver};

use crate::driver::node::Node;

/// Nodes that have left the graph, until they are closed. Each is when the last one who has it lets go
/// (a query that was under way, a parent that is being closed itself), on a thread of its own: what hangs
/// keeps no other one. If this is dropped they are closed all the same.
#[derive(Debug, Default)]
#[must_use]
pub struct Closing(Vec<Closed>);

struct Closed {
    name: Arc<str>,
    filename: String,
    closed: Receiver<()>,
}

impl fmt::Debug for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Closing {
    /// `nodes` are in no graph any more.
    pub(crate) fn of(nodes: Vec<Arc<Node>>) -> Self {
        let close = |node: &Arc<Node>| {
            let (told, closed) = mailbox::channel();
            node.tell_closed(told);
            Closed {
                name: Arc::clone(node.name()),
                filename: node.driver().info().filename,
                closed,
            }
        };
        Self(nodes.iter().map(close).collect())
    }

    /// Something else that `node` has to do, which is done when `done` ends.
    pub(crate) fn and(mut self, node: &Node, done: Receiver<()>) -> Self {
        self.0.push(Closed {
            name: Arc::clone(node.name()),
            filename: node.driver().info().filename,
            closed: done,
        });
        self
    }

    /// Waits until all are closed. May be given up, and called again.
    pub async fn closed(&mut self) {
        poll_fn(|cx| {
            let hangs = |node: &mut Closed| node.closed.poll_recv(cx).is_pending();
            self.0.retain_mut(hangs);
            match self.0.is_empty() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }

    /// Those that [`Self::closed`] has not seen closed: name and file.
    pub fn left(&self) -> impl Iterator<Item = (&str, &str)> {
        let left = self.0.iter();
        left.map(|closed| (&*closed.name, closed.filename.as_str()))
    }
}
