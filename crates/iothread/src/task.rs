//! What every task carries, and how it becomes runnable from another thread.

use std::{
    mem::ManuallyDrop,
    sync::{Arc, atomic::AtomicPtr},
};

use crate::shared::Shared;

/// What every task carries beside its future.
pub(crate) struct TaskMeta {
    /// Link of [`Shared::remote`].
    pub(crate) next: AtomicPtr<()>,
    pub(crate) shared: Arc<Shared>,
}

pub(crate) type Runnable = async_task::Runnable<TaskMeta>;

impl Shared {
    /// Makes a task runnable from another thread.
    pub(crate) fn push_remote(&self, runnable: Runnable) {
        let node = runnable.into_raw();
        // SAFETY: `node` came from `into_raw` this moment; ManuallyDrop leaves the ownership with
        // the list. `link` stays valid through the push because the task does; the push is the last
        // use of it.
        unsafe {
            let runnable = ManuallyDrop::new(Runnable::from_raw(node));
            let link: *const _ = &raw const runnable.metadata().next;
            self.remote.push(node, &*link);
        }
        self.wake();
    }
}
