//! The life of a queue's ring: how it starts and stops, where it is, and whom it tells.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use iothread::ops::{Notifier, Readiness};

use super::state::Broken;
use super::{Queue, Setup};
use crate::class::{Part, Requests};
use crate::memory::Memory;
use crate::ring::Ring;
use crate::trailer;

impl<P: Part> Queue<P> {
    /// Starts the ring: what the region says is in flight goes on, then new requests are taken. A
    /// ring that cannot be started is broken, which [`crate::trouble::Trouble`] tells.
    ///
    /// A request that was suspended and is still in flight is joined to its I/O: the ring gets its
    /// completion, and it is not submitted again. One that this ring does not know has to end first:
    /// its head may be another request's now. So has one that reads into memory which the client has
    /// replaced; it is done again.
    pub async fn start(&self, setup: Setup) {
        self.context.trouble.clear_queue(self.index);
        let Setup {
            memory,
            layout,
            features,
            base,
            region,
            kick,
        } = setup;
        let Some(part) = self.context.part.borrow().clone() else {
            return;
        };
        let ring = match Ring::new(memory, layout) {
            Ok(ring) => ring,
            Err(error) => return self.set_broken(&error.into()),
        };
        let prepared = {
            let state = &mut *self.state.borrow_mut();
            let before = state.slots.len();
            let prepared = state.prepare(self.index, ring, region, features, base);
            // Many queues are offered and few are used: what a queue needs it gets when it starts.
            part.expect(state.slots.len() - before);
            prepared
        };
        let (live, marked) = match prepared {
            Ok(prepared) => prepared,
            Err(broken) => return self.set_broken(&broken),
        };
        if let Some(made_for) = live.is_left_out() {
            self.warn_left_out(made_for, layout.size);
        }
        let (strangers, moved) = {
            let state = self.state.borrow();
            (state.has_strangers(&marked), state.moved(&live, &marked))
        };
        if strangers || !moved.is_empty() {
            part.settle_queue(self.index).await;
        }
        // Before the ring is ours: others are looked at as well, and nothing may be published before
        // it is clear what is remembered.
        part.retain(self.index, |head| {
            self.state.borrow().is_kept(head, &marked)
        });
        self.state.borrow_mut().live = Some(live);
        let left_out = self.state.borrow_mut().drop_unmarked(&marked);
        self.state.borrow_mut().undo(&moved);
        if left_out > 0 && marked.is_none() {
            tracing::warn!(
                export = %self.context.id,
                queue = self.index,
                "the ring is not the one that was left; {left_out} waiting requests are dropped"
            );
        }
        for marked in marked.into_iter().flatten() {
            let resumed = self.state.borrow_mut().resume(marked, self.format);
            match resumed {
                Ok(Some(parsed)) => part.act(self.index, self, marked.head, parsed),
                Ok(None) => {}
                Err(broken) => {
                    self.set_broken(&broken);
                    break;
                }
            }
        }
        self.attach(kick);
        let enabled = {
            let state = &mut *self.state.borrow_mut();
            if let Some(live) = &mut state.live {
                live.popping = true;
            }
            if !state.done.is_empty() {
                self.queue_publish();
            }
            state.enabled
        };
        if enabled {
            // Calls back into `process`, if nothing is frozen.
            part.start_queue(self.index);
        }
    }

    /// The queue is served, but nobody remembers its requests for the next daemon.
    #[cold]
    fn warn_left_out(&self, made_for: trailer::Layout, size: u16) {
        P::unrecorded(&self.context.config);
        tracing::warn!(
            export = %self.context.id,
            queue = self.index,
            "the client's inflight region was made for {} queues of {}, and the queue has {size} \
             descriptors: what is in flight or held in this queue is lost if the daemon ends, until \
             the guest has reset the device",
            made_for.queues,
            made_for.queue_size,
        );
    }

    /// Replaces the kick descriptor of a running ring, which is looked at once.
    pub fn set_kick(&self, kick: OwnedFd) {
        self.attach(kick);
        self.process();
    }

    fn attach(&self, kick: OwnedFd) {
        let this = self.this.clone();
        let task = iothread::spawn_local(async move {
            // The counter is never read: a read of a descriptor that the client may read as well
            // could block, and each write is reported anyway.
            let mut kicks = Readiness::new(kick, libc::POLLIN);
            loop {
                let kicked = kicks.ready().await;
                let Some(queue) = this.upgrade() else { return };
                match kicked {
                    Ok(_) => {
                        queue.process();
                    }
                    Err(error) => return queue.set_broken(&Broken::Kick(error)),
                }
            }
        });
        let Some(this) = self.this.upgrade() else {
            return;
        };
        let old = self.attached.borrow_mut().take();
        drop(old);
        let guard = iothread::add_poller(this);
        *self.attached.borrow_mut() = Some((task, guard));
    }

    /// Stops the ring: takes nothing any more, waits for what is in flight, and shows the driver
    /// how it ended. Returns the next available index; none if the ring does not run. After this
    /// the ring is not touched.
    pub async fn stop(&self) -> Option<u16> {
        self.take_nothing();
        self.settle().await;
        self.leave().await
    }

    /// As [`Self::stop`], at once: what is in flight goes on, stays marked in the inflight region, and
    /// is shown to the ring that is started next. Without a region this is [`Self::stop`].
    pub async fn suspend(&self) -> Option<u16> {
        self.take_nothing();
        let recorded = {
            let state = self.state.borrow();
            (state.live.as_ref()).is_none_or(|live| live.region.is_some())
        };
        if !recorded {
            self.settle().await;
        }
        self.leave().await
    }

    fn take_nothing(&self) {
        if let Some(live) = &mut self.state.borrow_mut().live {
            live.popping = false;
        }
        let attached = self.attached.take();
        drop(attached);
        if let Some(part) = &*self.context.part.borrow() {
            part.suspend_queue(self.index);
        }
    }

    /// Waits for what is in flight.
    pub async fn settle(&self) {
        let part = self.context.part.borrow().clone();
        if let Some(part) = part {
            part.settle_queue(self.index).await;
        }
    }

    async fn leave(&self) -> Option<u16> {
        self.publish();
        let next = self.state.borrow_mut().leave()?;
        // Let the call go out before anybody is told that the ring is stopped.
        let call = self.state.borrow().call.clone();
        if let Some(call) = call {
            call.settle().await;
        }
        Some(next)
    }

    /// SET_VRING_ENABLE. Nothing is taken from a ring that is disabled; with `drain` nothing of it is
    /// in flight when this returns.
    pub async fn set_enabled(&self, enabled: bool, drain: bool) {
        let running = {
            let state = &mut *self.state.borrow_mut();
            state.enabled = enabled;
            state.live.is_some()
        };
        let part = self.context.part.borrow().clone();
        let (Some(part), true) = (part, running) else {
            return;
        };
        if enabled {
            part.start_queue(self.index);
            // A kick that came while it was disabled has told nobody.
            self.process();
        } else {
            part.suspend_queue(self.index);
            if drain {
                part.settle_queue(self.index).await;
            }
        }
    }

    /// Sets where the driver is called. It is called at once, whether the ring runs or not: something
    /// may have been published while there was no descriptor, or another one.
    pub fn set_call(&self, call: Option<OwnedFd>) {
        let call = call.map(|call| Rc::new(Notifier::new(call)));
        if let Some(call) = &call {
            call.notify();
        }
        let former = std::mem::replace(&mut self.state.borrow_mut().call, call);
        drop(former);
    }

    /// Sets where the front end hears of a broken queue.
    pub fn set_error(&self, error: Option<OwnedFd>) {
        let error = error.map(|error| Rc::new(Notifier::new(error)));
        let former = std::mem::replace(&mut self.state.borrow_mut().error, error);
        drop(former);
    }

    /// The memory table has changed: later translations go by the new one.
    pub fn set_memory(&self, memory: &Arc<Memory>) {
        let moved = match &mut self.state.borrow_mut().live {
            Some(live) => live.ring.relocate(Arc::clone(memory)),
            None => Ok(()),
        };
        if let Err(error) = moved {
            self.set_broken(&error.into());
        }
        if !self.state.borrow().done.is_empty() {
            self.queue_publish();
        }
    }
}
