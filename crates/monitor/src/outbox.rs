//! What waits to be sent to one client.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use qapi::wire::{self, Layout};
use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, watch};

/// A client for which more than this waits is disconnected. Bytes.
pub const OUTPUT_BYTES_MAX: usize = 16 << 20;

/// A client for which more than this waits gets no further command executed until it has read.
/// Bytes.
const REPLIES_BYTES_MAX: usize = 1 << 20;

/// How much is written at once, in bytes.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// How long a session that ends waits for its client to read what is left.
const FINISH_TIME_MAX: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Messages are taken in and sent.
    Open,
    /// What is in will be sent, within a time limit.
    Finishing,
    /// Nothing is taken in, nothing is sent.
    Closed,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Arc<[u8]>>,
    /// Bytes in `messages` and in the write that is under way.
    bytes: usize,
}

/// The output queue of one session.
pub(crate) struct Outbox {
    /// Names the client in log lines.
    client: String,
    layout: Layout,
    /// Whether it gets events.
    subscribed: AtomicBool,
    queue: Mutex<Queue>,
    phase: watch::Sender<Phase>,
    /// Too much waited for it.
    overflowed: AtomicBool,
    /// A message was put in. Only the writer waits.
    filled: Notify,
    /// Messages were sent. Only the reader waits.
    drained: Notify,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

impl Outbox {
    pub(crate) fn new(client: String, layout: Layout) -> Self {
        Outbox {
            client,
            layout,
            subscribed: AtomicBool::new(false),
            queue: Mutex::default(),
            phase: watch::Sender::new(Phase::Open),
            overflowed: AtomicBool::new(false),
            filled: Notify::new(),
            drained: Notify::new(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let later = *current < phase;
            *current = phase.max(*current);
            later
        });
        self.filled.notify_one();
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    pub(crate) fn is_subscribed(&self) -> bool {
        self.subscribed.load(Ordering::Acquire)
    }

    /// From now on it gets events.
    pub(crate) fn subscribe(&self) {
        self.subscribed.store(true, Ordering::Release);
    }

    /// Puts a message in; see [`Self::push_line`].
    pub(crate) fn push(&self, message: &impl Serialize) {
        self.push_line(wire::to_line(message, self.layout).into());
    }

    /// Puts a line in; never waits. Without effect if the session has ended. If too much waits, it
    /// ends: its client does not read.
    pub(crate) fn push_line(&self, line: Arc<[u8]>) {
        if *self.phase.borrow() == Phase::Closed {
            return;
        }
        {
            let mut queue = self.queue();
            if queue.bytes + line.len() <= OUTPUT_BYTES_MAX {
                queue.bytes += line.len();
                queue.messages.push_back(line);
                drop(queue);
                self.filled.notify_one();
                return;
            }
            queue.messages = VecDeque::new();
        }
        // The session logs it: here, run control's lock may be held.
        self.overflowed.store(true, Ordering::Relaxed);
        self.enter(Phase::Closed);
    }

    /// What is in is still sent, then the session ends.
    pub(crate) fn finish(&self) {
        self.enter(Phase::Finishing);
    }

    /// Waits until the session is about to end.
    pub(crate) async fn finishing(&self) {
        // An error would mean that the sender is gone; it is in self.
        let _ = self
            .phase
            .subscribe()
            .wait_for(|phase| *phase >= Phase::Finishing)
            .await;
    }

    /// Waits until nothing is sent any more.
    pub(crate) async fn closed(&self) {
        let _ = self
            .phase
            .subscribe()
            .wait_for(|phase| *phase == Phase::Closed)
            .await;
    }

    /// Waits until the client has read most of what it was sent. False: the session is about to
    /// end.
    pub(crate) async fn has_room(&self) -> bool {
        loop {
            if *self.phase.borrow() != Phase::Open {
                return false;
            }
            if self.queue().bytes <= REPLIES_BYTES_MAX {
                return true;
            }
            tokio::select! {
                () = self.drained.notified() => {}
                () = self.finishing() => return false,
            }
        }
    }

    /// Sends what is put in until the session ends.
    pub(crate) async fn send_to(&self, mut writer: impl AsyncWrite + Unpin) {
        let overdue = async {
            self.finishing().await;
            tokio::time::sleep(FINISH_TIME_MAX).await;
        };
        tokio::select! {
            () = self.closed() => {}
            () = overdue => {}
            result = self.send_all(&mut writer) => {
                if let Err(e) = result {
                    tracing::debug!(client = %self.client, "monitor client is gone: {e}");
                }
            }
        }
        self.enter(Phase::Closed);
        *self.queue() = Queue::default();
        if self.overflowed.load(Ordering::Relaxed) {
            tracing::warn!(
                client = %self.client,
                "monitor client does not read: disconnected, {OUTPUT_BYTES_MAX} bytes waited for it"
            );
        }
        // The client may be gone already.
        let _ = tokio::time::timeout(FINISH_TIME_MAX, writer.shutdown()).await;
    }

    async fn send_all(&self, writer: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        let mut batch = Vec::new();
        loop {
            self.take(&mut batch);
            if batch.is_empty() {
                if *self.phase.borrow() != Phase::Open {
                    return Ok(());
                }
                self.filled.notified().await;
                continue;
            }
            writer.write_all(&batch).await?;
            writer.flush().await?;
            let mut queue = self.queue();
            queue.bytes = queue.bytes.saturating_sub(batch.len());
            drop(queue);
            self.drained.notify_one();
        }
    }

    /// Takes messages out, at least one if there is one. They still count.
    fn take(&self, batch: &mut Vec<u8>) {
        batch.clear();
        let mut queue = self.queue();
        while batch.len() < WRITE_BYTES_MAX {
            let Some(message) = queue.messages.pop_front() else {
                return;
            };
            batch.extend_from_slice(&message);
        }
    }
}
