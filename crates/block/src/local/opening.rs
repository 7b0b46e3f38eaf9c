//! A part that opens: run control is told of it and asked how things are. Whoever opens it may stop waiting
//! for that, and the backend may be gone.

use std::sync::Arc;

use crate::backend::Backend;
use crate::control::accounting::LocalStats;
use crate::words::ids::LocalId;

/// Takes a part back, if it is dropped before [`Self::done`]: nobody is to have it any more.
#[derive(Debug)]
pub struct Opening {
    backend: Arc<Backend>,
    id: LocalId,
    stats: Arc<LocalStats>,
    done: bool,
}

impl Opening {
    /// The part `id`, which the backend has and which counts in `stats`.
    pub fn new(backend: &Arc<Backend>, id: LocalId, stats: &Arc<LocalStats>) -> Self {
        Self {
            backend: Arc::clone(backend),
            id,
            stats: Arc::clone(stats),
            done: false,
        }
    }

    /// It is open.
    pub fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.backend.accounting().retire(&self.stats);
        self.backend.remove_local(self.id);
        let (backend, id) = (self.backend.id(), self.id);
        // Behind the word that there is such a part.
        self.backend.control().tell(move |state, wiring| {
            wiring.remove_local(id);
            state.remove_local(backend, id, wiring);
        });
    }
}
