//! When a driver's own I/O is done, and what becomes of its failures: they are remembered with the node, shown
//! and logged, and nobody's request fails by them.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use crate::driver::capabilities::{OwnIo, Unwritten};

/// How long a drain, the end of an export and the end of the daemon wait for what drivers write back. What
/// takes longer goes on by itself, and is not waited for again.
pub const WRITE_BACK_MAX: Duration = Duration::from_secs(5);

/// What could not be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotOnDisk {
    /// The node.
    pub node: Arc<str>,
    /// What it is.
    pub unwritten: Unwritten,
    /// Why.
    pub reason: String,
}

impl fmt::Display for NotOnDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unwritten { bytes, what } = &self.unwritten;
        write!(
            f,
            "node '{}': {bytes} bytes of {what} are not on disk: {}",
            self.node, self.reason
        )
    }
}

#[derive(Debug, Default)]
struct State {
    busy: bool,
    /// Somebody has stopped waiting for what is under way.
    stuck: bool,
    waiting: Vec<Waker>,
    /// Why the last attempt has failed.
    failure: Option<String>,
}

/// What is known of the write-back of one node.
#[derive(Debug, Default)]
pub(super) struct WriteBack(Mutex<State>);

/// One attempt at a time.
struct Turn<'a>(&'a WriteBack);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.busy = false;
        state.stuck = false;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl WriteBack {
    /// Writes back what there is, after whoever does so already.
    pub async fn run(&self, node: &Arc<str>, driver: &dyn OwnIo) {
        let _turn = poll_fn(|cx| {
            let mut state = self.0.lock();
            if state.busy {
                state.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            state.busy = true;
            Poll::Ready(Turn(self))
        })
        .await;
        if driver.unwritten().is_none() {
            return self.note(node, driver, None);
        }
        let failed = driver.write_back().await.err();
        self.note(node, driver, failed.map(|error| error.to_string()));
    }

    /// Remembers how an attempt has ended. Logs what has changed.
    fn note(&self, node: &Arc<str>, driver: &dyn OwnIo, failure: Option<String>) {
        let mut state = self.0.lock();
        let before = std::mem::replace(&mut state.failure, failure.clone());
        drop(state);
        if before == failure {
            return;
        }
        match (failure, driver.unwritten()) {
            (Some(reason), Some(unwritten)) => {
                let node = Arc::clone(node);
                let left = NotOnDisk {
                    node,
                    unwritten,
                    reason,
                };
                tracing::warn!(
                    "{left}; it is kept, and tried again at the next flush, stop or drain"
                );
            }
            (Some(reason), None) => tracing::warn!("node '{node}': write-back failed: {reason}"),
            (None, _) => tracing::info!("node '{node}': what was not on disk has been written"),
        }
    }

    /// What is under way is not waited for any more.
    pub fn give_up(&self) {
        let mut state = self.0.lock();
        state.stuck = state.busy;
    }

    /// Whether somebody has stopped waiting for what is under way.
    pub fn is_stuck(&self) -> bool {
        self.0.lock().stuck
    }

    /// What could not be written, if there is something.
    pub fn not_on_disk(&self, node: &Arc<str>, driver: &dyn OwnIo) -> Option<NotOnDisk> {
        let reason = self.reason()?;
        Some(NotOnDisk {
            node: Arc::clone(node),
            unwritten: driver.unwritten()?,
            reason,
        })
    }

    /// What is not written, whether it has been tried or not: nobody will any more.
    pub fn left(&self, node: &Arc<str>, driver: &dyn OwnIo) -> Option<NotOnDisk> {
        let reason = self.reason();
        Some(NotOnDisk {
            node: Arc::clone(node),
            unwritten: driver.unwritten()?,
            reason: reason.unwrap_or_else(|| "it has not been tried".to_owned()),
        })
    }

    fn reason(&self) -> Option<String> {
        let state = self.0.lock();
        match state.stuck {
            true => Some("the storage does not answer".to_owned()),
            false => state.failure.clone(),
        }
    }
}
