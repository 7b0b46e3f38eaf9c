//! One queue on its iothread: from available descriptors to requests, from results to used ones.
//!
//! Every head that was taken is in one of its slots ([`QueueState`]), whatever becomes of the ring: a held
//! request keeps its slot while the ring is stopped, and over a reconnect.

#[cfg(any(test, fuzzing))]
pub(crate) mod hostile;
mod life;
#[cfg(test)]
mod plain;
mod resume;
mod state;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use iothread::{Deferred, LocalTask, Poller, PollerGuard};

use crate::chain::BUFFERS_MAX;
use crate::class::{Format, Part, Requests, Unmapped};
use crate::inflight::Region;
use crate::memory::{Memory, NotMapped};
use crate::populate::{self, Access};
use crate::ring::Layout;
use crate::trouble::Trouble;
use state::{Broken, QueueState, Slot, SlotState};

/// Requests that are taken in one go, and their bytes: what ends at once takes its time.
const BATCH_REQUESTS: u32 = 64;
const BATCH_BYTES: u64 = 1 << 20;

type Outcome<P> = <<P as Part>::Format as Format>::Outcome;

/// Ends the connection of the client, from any thread.
pub(crate) type HangUp = Arc<dyn Fn() + Send + Sync>;

/// What the queues of one device have in common on one iothread.
pub(crate) struct Context<P: Part> {
    pub id: String,
    pub config: P::Config,
    pub trouble: Arc<Trouble>,
    /// Ends the connection.
    pub hang_up: HangUp,
    pub part: RefCell<Option<P>>,
}

/// What a ring is started with.
#[derive(Debug)]
pub(crate) struct Setup {
    pub memory: Arc<Memory>,
    pub layout: Layout,
    /// Negotiated virtio features.
    pub features: u64,
    /// SET_VRING_BASE.
    pub base: u16,
    pub region: Option<Arc<Region>>,
    pub kick: OwnedFd,
}

/// See the [module](self).
pub(crate) struct Queue<P: Part> {
    index: u16,
    format: P::Format,
    context: Rc<Context<P>>,
    state: RefCell<QueueState<P::Format>>,
    publish_queued: Cell<bool>,
    /// Whether `process` is taking requests: it publishes what ends meanwhile.
    processing: Cell<bool>,
    /// Whether a batch was left for the end of the round.
    unfinished: Cell<bool>,
    /// What runs as long as the ring does.
    attached: RefCell<Option<(LocalTask<()>, PollerGuard)>>,
    this: Weak<Self>,
}

impl<P: Part> fmt::Debug for Queue<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl<P: Part> Queue<P> {
    pub fn new(index: u16, context: Rc<Context<P>>) -> Rc<Self> {
        Rc::new_cyclic(|this| Self {
            index,
            format: P::format(&context.config, index),
            context,
            state: RefCell::default(),
            publish_queued: Cell::new(false),
            processing: Cell::new(false),
            unfinished: Cell::new(false),
            attached: RefCell::new(None),
            this: this.clone(),
        })
    }

    /// Gives the client up if it has truncated its memory. Asked after each batch.
    fn check_memory(&self) {
        if self.state.borrow().is_poisoned() {
            self.set_broken(&Broken::Memory);
            let text = format!("the client was disconnected: {}", Broken::Memory);
            self.context.trouble.set_client(Some(text));
            (self.context.hang_up)();
        }
    }

    /// A new life of the device: nothing of the former one is known any more. The ring is stopped.
    pub fn forget_all(&self) {
        let state = &mut *self.state.borrow_mut();
        debug_assert!(state.live.is_none());
        for slot in &mut state.slots {
            slot.state = SlotState::Free;
            slot.memory = None;
        }
        state.done.clear();
        state.left = None;
        self.context.trouble.clear_queue(self.index);
    }

    /// A request has ended. `with_ring`: what is to be done to its slot if the ring runs.
    #[inline]
    fn is_done(
        &self,
        head: u16,
        outcome: Outcome<P>,
        with_ring: impl FnOnce(&mut Slot<P::Format>),
    ) {
        let state = &mut *self.state.borrow_mut();
        let Some(slot) = state.slots.get_mut(usize::from(head)) else {
            return;
        };
        debug_assert_eq!(slot.state, SlotState::Taken);
        slot.state = SlotState::Done { outcome };
        state.done.push(head);
        if state.live.is_some() {
            with_ring(slot);
            if !self.processing.get() {
                self.queue_publish();
            }
        }
    }

    fn queue_publish(&self) {
        if !self.publish_queued.replace(true)
            && let Some(this) = self.this.upgrade()
        {
            iothread::defer(this);
        }
    }

    /// Shows the driver everything that is done: one index update, at most one call.
    fn publish(&self) {
        let gone = self.state.borrow_mut().publish();
        if let Err(broken) = gone {
            self.set_broken(&broken);
        }
        self.check_memory();
    }

    /// The queue is not served any more, until it is started anew. Others are.
    fn set_broken(&self, broken: &Broken) {
        let error = {
            let state = &mut *self.state.borrow_mut();
            if let Some(live) = &mut state.live
                && std::mem::replace(&mut live.broken, true)
            {
                return;
            }
            state.error.clone()
        };
        let (id, queue) = (&self.context.id, self.index);
        let reason = match self.state.borrow().is_poisoned() {
            true => Broken::Memory.to_string(),
            false => broken.to_string(),
        };
        // Whoever hears of it and asks sees it.
        let now = Instant::now();
        if (self.context.trouble).set_queue(queue, reason.clone(), now) {
            tracing::error!(export = %id, queue, "the queue is broken and not served any more: {reason}");
            P::queue_broken(&self.context.config, queue, reason);
        }
        if let Some(error) = error {
            error.notify();
        }
    }
}

impl<P: Part> Requests<P::Format> for Queue<P> {
    /// A long batch goes on after the others of this iothread have had their turn.
    fn process(&self) -> bool {
        let Some(part) = self.context.part.borrow().clone() else {
            return false;
        };
        self.processing.set(true);
        let (mut requests, mut left) = (0, BATCH_BYTES);
        while part.may_take(self.index) {
            if requests == BATCH_REQUESTS || left == 0 {
                self.unfinished.set(true);
                self.queue_publish();
                break;
            }
            let popped = self.state.borrow_mut().pop(self.format);
            match popped {
                Ok(Some((head, parsed))) => {
                    requests += 1;
                    left = left.saturating_sub(P::Format::bytes(&parsed));
                    part.act(self.index, self, head, parsed);
                }
                Ok(None) => break,
                Err(broken) => {
                    if matches!(*broken, Broken::MemoryMoves { .. }) {
                        part.memory_moves();
                    } else {
                        self.set_broken(&broken);
                    }
                    break;
                }
            }
        }
        self.processing.set(false);
        self.publish();
        requests > 0
    }

    fn map(
        &self,
        head: u16,
        access: Option<Access>,
        iov: &mut Vec<libc::iovec>,
    ) -> Result<(), Unmapped> {
        let state = &mut *self.state.borrow_mut();
        let (Some(live), Some(slot)) = (&state.live, state.slots.get_mut(usize::from(head))) else {
            return Err(Unmapped::Gone);
        };
        let buffers = match access {
            Some(Access::Store) => slot.taken.as_ref().writable(),
            Some(Access::Load) => slot.taken.as_ref().readable(),
            None => return Ok(()),
        };
        let view = live.ring.view();
        for &buffer in buffers {
            if view.translate(buffer, iov).is_err() {
                return Err(match view.memory().is_moving() {
                    true => Unmapped::Moving,
                    false => Unmapped::Gone,
                });
            }
        }
        // Buffers may lie across regions; no system call takes more pieces.
        if iov.len() > BUFFERS_MAX {
            return Err(Unmapped::Gone);
        }
        slot.memory = Some(Rc::clone(view));
        Ok(())
    }

    fn has_lost(&self, head: u16, access: Access, iov: &[libc::iovec]) -> bool {
        let state = self.state.borrow();
        let slot = state.slots.get(usize::from(head));
        let memory = slot.and_then(|slot| slot.memory.as_ref());
        memory.is_none_or(|view| view.memory().is_poisoned()) || !populate::is_there(iov, access)
    }

    fn unmap(&self, head: u16) {
        let state = &mut *self.state.borrow_mut();
        // Without a ring nobody has been shown the data yet.
        if state.live.is_some()
            && let Some(slot) = state.slots.get_mut(usize::from(head))
        {
            slot.memory = None;
        }
    }

    fn store(&self, head: u16, bytes: &[u8]) -> Result<(), NotMapped> {
        let state = self.state.borrow();
        let (Some(live), Some(slot)) = (&state.live, state.slots.get(usize::from(head))) else {
            return Err(NotMapped);
        };
        let mut left = bytes;
        for buffer in slot.taken.as_ref().writable() {
            let (now, later) = left.split_at(left.len().min(buffer.len as usize));
            live.ring.view().store_all(buffer.address, now)?;
            left = later;
        }
        Ok(())
    }

    fn complete(&self, head: u16, outcome: Outcome<P>) {
        self.is_done(head, outcome, |_| {});
    }

    #[inline]
    fn end(&self, head: u16, outcome: Outcome<P>) {
        // As in `unmap`.
        self.is_done(head, outcome, |slot| slot.memory = None);
    }

    fn forget(&self, head: u16) {
        if let Some(slot) = self.state.borrow_mut().slots.get_mut(usize::from(head)) {
            slot.state = SlotState::Free;
            slot.memory = None;
        }
    }
}

impl<P: Part> Deferred for Queue<P> {
    fn run(&self) {
        self.publish_queued.set(false);
        if self.unfinished.take() {
            self.process();
        } else {
            self.publish();
        }
    }
}

impl<P: Part> Poller for Queue<P> {
    fn poll(&self) -> bool {
        self.is_hungry() && self.process()
    }

    fn disable_notify(&self) {
        if let Some(live) = &self.state.borrow().live {
            live.ring.disable_kicks();
        }
    }

    fn enable_notify(&self) -> bool {
        let state = self.state.borrow();
        let Some(live) = &state.live else {
            return false;
        };
        // What may not be taken is no work; whoever allows it looks at the ring himself.
        live.ring.enable_kicks() && live.popping && !live.broken && state.enabled && self.may_pop()
    }
}

impl<P: Part> Queue<P> {
    fn may_pop(&self) -> bool {
        let part = self.context.part.borrow();
        part.as_ref().is_some_and(|part| part.may_take(self.index))
    }

    fn is_hungry(&self) -> bool {
        let state = self.state.borrow();
        let available = state
            .live
            .as_ref()
            .is_some_and(|live| live.popping && !live.broken && live.ring.has_available());
        available && state.enabled
    }
}
