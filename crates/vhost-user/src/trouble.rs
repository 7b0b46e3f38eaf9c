//! What is wrong with an export, for whoever looks at it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::protocol::back_channel::BackChannel;

/// A guest can break a queue and start it anew as often as it likes; events of one queue are at
/// least this far apart.
const EVENT_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Known {
    client: Option<String>,
    /// Somebody else who has tried to be the client.
    refused: Option<String>,
    queues: BTreeMap<u16, String>,
    /// When events told of queues.
    told: BTreeMap<u16, Instant>,
}

/// The latest trouble of the client and of each queue. Touched only when something goes wrong, or
/// right again.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    state: Mutex<Known>,
    back_channel: Arc<BackChannel>,
}

impl Trouble {
    /// A client that listens on `back_channel` hears of broken queues.
    pub fn new(back_channel: Arc<BackChannel>) -> Self {
        Self {
            state: Mutex::default(),
            back_channel,
        }
    }

    fn state(&self) -> MutexGuard<'_, Known> {
        self.state.lock()
    }

    /// Whoever was refused before has nothing to do with the client that comes, or leaves, now.
    pub fn set_client(&self, text: Option<String>) {
        let state = &mut *self.state();
        (state.client, state.refused) = (text, None);
    }

    /// Somebody else wants to be the client.
    pub fn set_refused(&self, text: String) {
        self.state().refused = Some(text);
    }

    /// A queue is broken. True if an event is to tell of it.
    pub fn set_queue(&self, queue: u16, text: String, now: Instant) -> bool {
        let due = {
            let state = &mut *self.state();
            state.queues.insert(queue, text);
            let last = state.told.get(&queue);
            let due =
                last.is_none_or(|&last| now.saturating_duration_since(last) >= EVENT_INTERVAL);
            if due {
                state.told.insert(queue, now);
            }
            due
        };
        // virtio 1.2, 2.1.2: a device that needs a reset says that its configuration has changed.
        self.back_channel.config_changed();
        due
    }

    /// Whether only a reset, or another start of its rings, mends the device.
    pub fn has_broken_queue(&self) -> bool {
        !self.state().queues.is_empty()
    }

    pub fn clear_queue(&self, queue: u16) {
        self.state().queues.remove(&queue);
    }

    /// All of it as one line.
    pub fn text(&self) -> Option<String> {
        let state = self.state();
        let queues = state.queues.iter();
        let lines: Vec<_> = (state.client.clone().into_iter())
            .chain(state.refused.clone())
            .chain(queues.map(|(queue, text)| format!("queue {queue} is broken: {text}")))
            .collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_breaks_again_and_again_floods_nobody() {
        let trouble = Trouble::default();
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        assert!(trouble.set_queue(1, "a".to_owned(), at(0)));
        for ms in [0, 1, 500, 999] {
            trouble.clear_queue(1);
            assert!(!trouble.set_queue(1, "b".to_owned(), at(ms)), "{ms}");
        }
        assert_eq!(trouble.text().as_deref(), Some("queue 1 is broken: b"));
        assert!(trouble.set_queue(0, "c".to_owned(), at(2)), "another queue");
        assert!(trouble.set_queue(1, "d".to_owned(), at(1000)));
    }
}
