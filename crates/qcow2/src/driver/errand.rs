//! I/O for the control plane: on an iothread of its own, which ends with the errand. Requests go to a node from
//! iothreads alone, and those of the exports may be elsewhere, hang, or not be there yet.

use std::future::Future;
use std::io;
use std::sync::Arc;

use block::{Attachment, Node, beside};
use iothread::{Config, IoThread};

/// Does `errand`, which sends requests to `nodes`, on a thread beside. Dropped, it goes on to its end there.
///
/// # Errors
/// If the system refuses what a thread takes.
pub async fn run<R, F, Fut>(nodes: Vec<Arc<Node>>, errand: F) -> io::Result<R>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = R> + 'static,
    R: Send + 'static,
{
    beside(move || wait(nodes, errand)).await?
}

/// The same, and whoever calls waits for it.
///
/// # Errors
/// As [`run`].
pub fn wait<R, F, Fut>(nodes: Vec<Arc<Node>>, errand: F) -> io::Result<R>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = R> + 'static,
    R: Send + 'static,
{
    Desk::new(nodes)?.wait(errand)
}

/// Where several errands are done one after the other, on the same iothread.
pub struct Desk {
    nodes: Vec<Arc<Node>>,
    thread: IoThread,
}

impl Desk {
    /// For errands that send requests to `nodes`.
    ///
    /// # Errors
    /// If the system refuses what a thread takes.
    pub fn new(nodes: Vec<Arc<Node>>) -> io::Result<Self> {
        let thread = IoThread::spawn(Config {
            name: "qcow2-errand".to_owned(),
            poll_max_ns: 0,
            ring_entries: 8,
            thread_pool_max: 4,
            ..Config::default()
        });
        let thread = thread.map_err(io::Error::other)?;
        Ok(Self { nodes, thread })
    }

    /// Does one, and waits for it.
    ///
    /// # Errors
    /// If the thread has ended.
    pub fn wait<R, F, Fut>(&self, errand: F) -> io::Result<R>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        let nodes = self.nodes.clone();
        let work = move || async move {
            let _attached: Vec<_> = nodes.iter().map(Attachment::new).collect();
            errand().await
        };
        let handle = self.thread.handle();
        handle.run_blocking(work).map_err(io::Error::other)
    }
}
