//! What is wrong with an export, for whoever looks at it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    client: Option<String>,
    queues: BTreeMap<u16, String>,
}

/// The latest trouble of the client and of each queue. Touched only when something goes wrong, or
/// right again.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Mutex<State>);

impl Trouble {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_client(&self, text: Option<String>) {
        self.state().client = text;
    }

    pub fn set_queue(&self, queue: u16, text: String) {
        self.state().queues.insert(queue, text);
    }

    pub fn clear_queue(&self, queue: u16) {
        self.state().queues.remove(&queue);
    }

    /// All of it as one line.
    pub fn text(&self) -> Option<String> {
        let state = self.state();
        let queues = state.queues.iter();
        let lines: Vec<_> = (state.client.clone().into_iter())
            .chain(queues.map(|(queue, text)| format!("queue {queue} is broken: {text}")))
            .collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}
