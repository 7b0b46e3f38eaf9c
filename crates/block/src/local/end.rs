//! How a part ends: what waits is dropped at once; what is in flight ends by itself.

use iothread::mailbox::Sender;
use iothread::time;

use crate::words::incident::HoldEnd;

use super::LocalBackend;

impl LocalBackend {
    /// Ends this part, as the end of its connection does; returns when nothing is in flight.
    pub async fn close(self) {
        self.end();
        self.until(|_| self.0.gone.get()).await;
        self.is_known_to_have_ended().await;
    }

    /// The connection has ended. `done` is dropped when run control knows that this part has, too.
    pub(super) fn end_for(&self, done: Sender<()>) {
        self.end();
        let this = self.clone();
        iothread::spawn_local(async move {
            this.is_known_to_have_ended().await;
            drop(done);
        })
        .detach();
    }

    /// Takes nothing any more, and drops what waits. What is in flight is in the way of others from
    /// now on, until it has ended.
    fn end(&self) {
        let inner = &*self.0;
        if inner.closed.replace(true) {
            return;
        }
        self.take_back(|_| true);
        let busy = self.busy(usize::MAX);
        let writes = busy.iter().filter(|busy| busy.request.op.modifies());
        let writes: Vec<_> = writes.map(|busy| (busy.order, busy.request)).collect();
        // Before anything that waited behind what is dropped can start.
        inner.backend.end_local(inner.id, &writes);
        self.drop_waiting();
        let (backend, id) = (inner.backend.id(), inner.id);
        inner.backend.control().tell(move |state, wiring| {
            wiring.remove_local(id);
            state.remove_local(backend, id, wiring);
        });
        iothread::spawn_local(self.clone().leave()).detach();
    }

    /// Of a part that has ended nothing waits.
    #[cold]
    pub(super) fn drop_waiting(&self) {
        self.provide_entries();
        let removed = self.0.gate.borrow_mut().close();
        self.forget(&removed, HoldEnd::PartRemoved);
    }

    /// Goes when nothing is in flight any more.
    async fn leave(self) {
        self.until(|gate| gate.in_flight() == 0).await;
        self.write_back().await;
        let inner = &*self.0;
        inner.gate.borrow_mut().end_watch();
        inner.backend.blockers().remove_local(inner.id);
        inner.idle_workers.borrow_mut().clear();
        for worker in inner.workers.borrow_mut().drain(..) {
            worker.wake();
        }
        // What has ended in this round, too.
        inner.stats.settle(&inner.round, time::refresh());
        inner.backend.accounting().retire(&inner.stats);
        drop(inner.attachment.take());
        inner.backend.remove_local(inner.id);
        inner.gone.set(true);
        self.wake_ended();
    }

    /// Returns when run control has taken all that this part has told it so far.
    async fn is_known_to_have_ended(&self) {
        self.0.backend.control().call(|_, _| ()).await;
    }
}
