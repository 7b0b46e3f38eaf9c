//! One queue on its iothread: from available descriptors to requests, from results to used ones.
//!
//! Every head that was taken is in one of its [`Slot`]s, whatever becomes of the ring: a held
//! request keeps its slot while the ring is stopped, and over a reconnect.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use block::{LocalBackend, Operation, Request, Tag, Unmapped};
use iothread::ring::{self as uring, Readiness};
use iothread::{Deferred, LocalTask, Poller, PollerGuard};
use vm_memory::{Bytes, GuestAddress};

use crate::inflight::{InflightError, Marked, QueueRegion, Region};
use crate::memory::Memory;
use crate::request::{self, Action, BUFFERS_MAX, ID_BYTES, Malformed, Record, Rules};
use crate::ring::{Layout, Ring, RingError};
use crate::trouble::Trouble;

/// What the queues of one device have in common on one iothread.
pub(crate) struct Context {
    pub device: Arc<str>,
    pub rules: Rules,
    pub id_string: [u8; ID_BYTES],
    pub trouble: Arc<Trouble>,
    /// Whether a write may complete before it is durable.
    pub writeback: Cell<bool>,
    pub local: RefCell<Option<LocalBackend>>,
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

/// What tells two starts of a ring without inflight region apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    layout: Layout,
    features: u64,
    next_avail: u16,
    used: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SlotState {
    #[default]
    Free,
    /// Taken from the ring, not completed.
    Taken,
    /// Completed, not yet published.
    Done { status: u8 },
}

/// What is remembered about one head.
#[derive(Default)]
struct Slot {
    state: SlotState,
    /// The inflight region's counter of this request.
    counter: u64,
    record: Record,
    /// The memory that a submission in flight uses.
    memory: Option<Arc<Memory>>,
}

struct Live {
    ring: Ring,
    region: Option<QueueRegion>,
    features: u64,
    /// Cleared while the ring is being started or stopped.
    popping: bool,
    broken: bool,
}

struct State {
    live: Option<Live>,
    /// SET_VRING_ENABLE.
    enabled: bool,
    slots: Vec<Slot>,
    /// Heads that are done, in the order of their completion.
    done: Vec<u16>,
    call: Option<Rc<OwnedFd>>,
    error: Option<Rc<OwnedFd>>,
    /// How the ring was left, if it had no inflight region.
    left: Option<Identity>,
}

/// Why a queue cannot go on.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("request at descriptor {head}: {source}")]
    Request { head: u16, source: Malformed },
    #[error("the driver made descriptor {head} available, the queue has {size}")]
    Head { head: u16, size: u16 },
    #[error("the driver made descriptor {head} available again before it was completed")]
    Busy { head: u16 },
    #[error(transparent)]
    Inflight(#[from] InflightError),
    #[error(
        "SET_VRING_BASE {base} and the used index {used} are more than the queue size {size} apart"
    )]
    Base { base: u16, used: u16, size: u16 },
    #[error("the kick descriptor cannot be polled: {0}")]
    Kick(std::io::Error),
    #[error("request at descriptor {head}: its status byte is not in guest memory any more")]
    StatusGone { head: u16 },
}

/// See the [module](self).
pub(crate) struct Queue {
    index: u16,
    context: Rc<Context>,
    state: RefCell<State>,
    publish_queued: Cell<bool>,
    /// What runs as long as the ring does.
    attached: RefCell<Option<(LocalTask<()>, PollerGuard)>>,
    this: Weak<Queue>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl Queue {
    pub fn new(index: u16, size_max: u16, context: Rc<Context>) -> Rc<Self> {
        Rc::new_cyclic(|this| Self {
            index,
            context,
            state: RefCell::new(State {
                live: None,
                enabled: false,
                slots: Vec::new(),
                done: Vec::with_capacity(usize::from(size_max)),
                call: None,
                error: None,
                left: None,
            }),
            publish_queued: Cell::new(false),
            attached: RefCell::new(None),
            this: this.clone(),
        })
    }

    /// Takes everything that is available, as far as that is allowed. True if there was something.
    pub fn process(&self) -> bool {
        let Some(local) = self.context.local.borrow().clone() else {
            return false;
        };
        let mut found = false;
        while local.may_pop(self.index) {
            let popped = self.state.borrow_mut().pop(self.context.rules);
            match popped {
                Ok(Some((head, action))) => {
                    found = true;
                    self.act(&local, head, action);
                }
                Ok(None) => break,
                Err(broken) => {
                    self.set_broken(&broken);
                    break;
                }
            }
        }
        found
    }

    fn act(&self, local: &LocalBackend, head: u16, action: Action) {
        match action {
            Action::Submit { op, offset, bytes } => {
                let tag = Tag {
                    queue: self.index,
                    head,
                };
                local.submit(Request {
                    tag,
                    op,
                    offset,
                    bytes,
                });
            }
            Action::Identify => {
                let status = self.identify(head);
                self.complete(head, status);
            }
            Action::Answer { status, invalid } => {
                if let Some(op) = invalid {
                    local.invalid(op);
                }
                self.complete(head, status);
            }
        }
    }

    fn identify(&self, head: u16) -> u8 {
        let state = self.state.borrow();
        let (Some(live), Some(slot)) = (&state.live, state.slots.get(usize::from(head))) else {
            return request::STATUS_IOERR;
        };
        let mut left = self.context.id_string.as_slice();
        for buffer in &slot.record.writable {
            let (now, later) = left.split_at(left.len().min(buffer.len as usize));
            let table = live.ring.memory().table();
            if table
                .write_slice(now, GuestAddress(buffer.address))
                .is_err()
            {
                return request::STATUS_IOERR;
            }
            left = later;
        }
        request::STATUS_OK
    }

    /// Translates the buffers of a request for one submission.
    pub fn map(&self, request: &Request, iov: &mut Vec<libc::iovec>) -> Result<(), Unmapped> {
        let state = &mut *self.state.borrow_mut();
        let (Some(live), Some(slot)) = (
            &state.live,
            state.slots.get_mut(usize::from(request.tag.head)),
        ) else {
            return Err(Unmapped);
        };
        let buffers = match request.op {
            Operation::Read => &slot.record.writable,
            Operation::Write => &slot.record.readable,
            Operation::Flush | Operation::Discard | Operation::WriteZeroes { .. } => return Ok(()),
        };
        let memory = live.ring.memory();
        for &buffer in buffers {
            memory.translate(buffer, iov).map_err(|_| Unmapped)?;
        }
        // Buffers may lie across regions; no system call takes more pieces.
        if iov.len() > BUFFERS_MAX {
            return Err(Unmapped);
        }
        slot.memory = Some(Arc::clone(memory));
        Ok(())
    }

    /// The submission has ended.
    pub fn unmap(&self, head: u16) {
        if let Some(slot) = self.state.borrow_mut().slots.get_mut(usize::from(head)) {
            slot.memory = None;
        }
    }

    /// The request has ended; the driver learns of it at the end of the round, or when the ring is
    /// started again.
    pub fn complete(&self, head: u16, status: u8) {
        let state = &mut *self.state.borrow_mut();
        let Some(slot) = state.slots.get_mut(usize::from(head)) else {
            return;
        };
        debug_assert_eq!(slot.state, SlotState::Taken);
        slot.state = SlotState::Done { status };
        state.done.push(head);
        if state.live.is_some() {
            self.queue_publish();
        }
    }

    /// The request will never be completed.
    pub fn forget(&self, head: u16) {
        if let Some(slot) = self.state.borrow_mut().slots.get_mut(usize::from(head)) {
            slot.state = SlotState::Free;
            slot.memory = None;
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
    }

    fn set_broken(&self, broken: &Broken) {
        let state = &mut *self.state.borrow_mut();
        if let Some(live) = &mut state.live {
            live.broken = true;
        }
        tracing::error!(
            export = %self.context.device,
            queue = self.index,
            "the queue is broken and not served any more: {broken}"
        );
        self.context
            .trouble
            .set_queue(self.index, broken.to_string());
        if let Some(error) = &state.error {
            uring::notify(Rc::clone(error));
        }
    }

    /// Starts the ring: what the region says is in flight goes on, then new requests are taken. A
    /// ring that cannot be started is broken, which [`Trouble`] tells.
    pub fn start(&self, setup: Setup) {
        self.context.trouble.clear_queue(self.index);
        let Setup {
            memory,
            layout,
            features,
            base,
            region,
            kick,
        } = setup;
        let Some(local) = self.context.local.borrow().clone() else {
            return;
        };
        let ring = match Ring::new(memory, layout) {
            Ok(ring) => ring,
            Err(error) => return self.set_broken(&error.into()),
        };
        let prepared = self
            .state
            .borrow_mut()
            .prepare(self.index, ring, region, features, base);
        let marked = match prepared {
            Ok(marked) => marked,
            Err(broken) => return self.set_broken(&broken),
        };
        local.retain(self.index, |head| {
            self.state.borrow().is_kept(head, &marked)
        });
        let left_out = self.state.borrow_mut().drop_unmarked(&marked);
        if left_out > 0 && marked.is_none() {
            tracing::warn!(
                export = %self.context.device,
                queue = self.index,
                "the ring is not the one that was left; {left_out} waiting requests are dropped"
            );
        }
        for marked in marked.into_iter().flatten() {
            let resumed = self.state.borrow_mut().resume(marked, self.context.rules);
            match resumed {
                Ok(Some(action)) => self.act(&local, marked.head, action),
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
            local.start_queue(self.index);
        }
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
        self.state.borrow_mut().live.as_mut()?.popping = false;
        let attached = self.attached.take();
        drop(attached);
        let local = self.context.local.borrow().clone();
        if let Some(local) = local {
            local.stop_queue(self.index).await;
        }
        self.publish();
        let next = self.state.borrow_mut().leave();
        // Let the call go out before anybody is told that the ring is stopped.
        iothread::yield_now().await;
        iothread::yield_now().await;
        next
    }

    /// SET_VRING_ENABLE. A ring that is disabled has nothing in flight when this returns.
    pub async fn set_enabled(&self, enabled: bool) {
        let running = {
            let state = &mut *self.state.borrow_mut();
            state.enabled = enabled;
            state.live.is_some()
        };
        let local = self.context.local.borrow().clone();
        let (Some(local), true) = (local, running) else {
            return;
        };
        if enabled {
            local.start_queue(self.index);
            // A kick that came while it was disabled has told nobody.
            self.process();
        } else {
            local.stop_queue(self.index).await;
        }
    }

    /// Sets where the driver is called. It is called at once: something may have been published
    /// while there was no descriptor.
    pub fn set_call(&self, call: Option<OwnedFd>) {
        let state = &mut *self.state.borrow_mut();
        state.call = call.map(Rc::new);
        if let (Some(call), Some(_)) = (&state.call, &state.live) {
            uring::notify(Rc::clone(call));
        }
    }

    /// Sets where the front end hears of a broken queue.
    pub fn set_error(&self, error: Option<OwnedFd>) {
        self.state.borrow_mut().error = error.map(Rc::new);
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
    }
}

impl State {
    /// Takes the next request from the ring.
    fn pop(&mut self, rules: Rules) -> Result<Option<(u16, Action)>, Broken> {
        let Some(live) = &mut self.live else {
            return Ok(None);
        };
        if !live.popping || live.broken || !self.enabled {
            return Ok(None);
        }
        let Some(head) = live.ring.peek()? else {
            return Ok(None);
        };
        let size = live.ring.layout().size;
        let slot = self.slots.get_mut(usize::from(head));
        let slot = slot.filter(|_| head < size);
        let slot = slot.ok_or(Broken::Head { head, size })?;
        if slot.state != SlotState::Free {
            return Err(Broken::Busy { head });
        }
        let action = slot.parse(&live.ring, head, rules)?;
        if let Some(region) = &mut live.region {
            slot.counter = region.mark(head);
        }
        slot.state = SlotState::Taken;
        live.ring.advance();
        Ok(Some((head, action)))
    }

    /// Makes the ring ours, with what was in flight before; nothing is taken from it yet. The
    /// result is what the region has marked; none without a region that leaves all as it was.
    fn prepare(
        &mut self,
        index: u16,
        mut ring: Ring,
        region: Option<Arc<Region>>,
        features: u64,
        base: u16,
    ) -> Result<Option<Vec<Marked>>, Broken> {
        let (size, used) = (ring.layout().size, ring.used_index());
        let places = usize::from(size).max(self.slots.len());
        self.slots.resize_with(places, Slot::default);
        let (mut next, mut marked, mut part) = (None, None, None);
        if let Some(region) = region {
            let mut region = region.queue(index, size)?;
            let fresh = region.is_fresh();
            let found = region.recover(used)?;
            if !fresh {
                // Everything that was taken is either used or marked. The base knows less: the
                // client may have read it off the ring while requests were still ending.
                let count = u16::try_from(found.len()).unwrap_or(u16::MAX);
                next = Some(used.wrapping_add(count));
            }
            (marked, part) = (Some(found), Some(region));
        }
        let next = match next {
            Some(next) => next,
            None => first_available(base, used, size)?,
        };
        ring.set_next_avail(next);
        let identity = Identity {
            layout: ring.layout(),
            features,
            next_avail: next,
            used,
        };
        if marked.is_none() && self.left.take() == Some(identity) {
            // The very ring that was left: everything that waits belongs to it.
            let kept = (0..size)
                .zip(&self.slots)
                .filter(|(_, slot)| slot.state != SlotState::Free);
            marked = Some(
                kept.map(|(head, slot)| Marked {
                    counter: slot.counter,
                    head,
                })
                .collect(),
            );
        }
        self.live = Some(Live {
            ring,
            region: part,
            features,
            popping: false,
            broken: false,
        });
        Ok(marked)
    }

    /// Whether our record of a head is the request that is marked there.
    fn is_kept(&self, head: u16, marked: &Option<Vec<Marked>>) -> bool {
        let Some(slot) = self.slots.get(usize::from(head)) else {
            return false;
        };
        let same = |marked: &Marked| marked.head == head && marked.counter == slot.counter;
        marked.iter().flatten().any(same)
    }

    /// Forgets what is done but not marked; what waits has been dropped by the block layer already.
    /// Returns how many there were.
    fn drop_unmarked(&mut self, marked: &Option<Vec<Marked>>) -> usize {
        let done = std::mem::take(&mut self.done);
        let before = done.len();
        let (kept, dropped): (Vec<_>, Vec<_>) = done
            .into_iter()
            .partition(|&head| self.is_kept(head, marked));
        for head in dropped {
            self.slots[usize::from(head)].state = SlotState::Free;
        }
        self.done.extend(kept);
        before - self.done.len()
    }

    /// Takes up a head that is marked: none if we remember it.
    fn resume(&mut self, marked: Marked, rules: Rules) -> Result<Option<Action>, Broken> {
        let Marked { counter, head } = marked;
        let (Some(live), Some(slot)) = (&self.live, self.slots.get_mut(usize::from(head))) else {
            return Ok(None);
        };
        if slot.state != SlotState::Free {
            return Ok(None);
        }
        let action = slot.parse(&live.ring, head, rules)?;
        slot.counter = counter;
        slot.state = SlotState::Taken;
        Ok(Some(action))
    }

    fn publish(&mut self) -> Result<(), Broken> {
        let Some(live) = &mut self.live else {
            return Ok(());
        };
        if self.done.is_empty() {
            return Ok(());
        }
        let mut gone = Ok(());
        let table = live.ring.memory().clone();
        self.done.retain(|&head| {
            let slot = &self.slots[usize::from(head)];
            let SlotState::Done { status } = slot.state else {
                return false;
            };
            let address = GuestAddress(slot.record.status_address);
            if table.table().write_obj(status, address).is_err() {
                // Without a status it cannot be completed: it stays marked.
                gone = Err(Broken::StatusGone { head });
                return false;
            }
            live.ring.put_used(head, slot.record.written);
            if let Some(region) = &live.region {
                region.add_to_batch(head);
            }
            true
        });
        let call = live.ring.publish();
        for head in self.done.drain(..) {
            if let Some(region) = &live.region {
                region.unmark(head);
            }
            self.slots[usize::from(head)].state = SlotState::Free;
        }
        if let Some(region) = &live.region {
            region.set_used(live.ring.used_index());
        }
        if let (true, Some(call)) = (call, &self.call) {
            uring::notify(Rc::clone(call));
        }
        gone
    }

    /// Gives the ring back; returns the next available index.
    fn leave(&mut self) -> Option<u16> {
        let live = self.live.take()?;
        let next_avail = live.ring.next_avail();
        self.left = live.region.is_none().then(|| Identity {
            layout: live.ring.layout(),
            features: live.features,
            next_avail,
            used: live.ring.used_index(),
        });
        Some(next_avail)
    }
}

/// Where a ring begins of which only the client knows something.
fn first_available(base: u16, used: u16, size: u16) -> Result<u16, Broken> {
    if base.wrapping_sub(used) <= size {
        Ok(base)
    } else if used.wrapping_sub(base) <= size {
        // Requests of a former connection ended after the client had read the index.
        Ok(used)
    } else {
        Err(Broken::Base { base, used, size })
    }
}

impl Slot {
    fn parse(&mut self, ring: &Ring, head: u16, rules: Rules) -> Result<Action, Broken> {
        let memory = ring.memory().table();
        request::parse(memory, ring.table(), head, rules, &mut self.record)
            .map_err(|source| Broken::Request { head, source })
    }
}

impl Deferred for Queue {
    fn run(&self) {
        self.publish_queued.set(false);
        self.publish();
    }
}

impl Poller for Queue {
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

impl Queue {
    fn may_pop(&self) -> bool {
        let local = self.context.local.borrow();
        local
            .as_ref()
            .is_some_and(|local| local.may_pop(self.index))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::tests::{LAYOUT, memory};

    const BASE: u16 = 7;

    fn state() -> State {
        State {
            live: None,
            enabled: true,
            slots: Vec::new(),
            done: Vec::new(),
            call: None,
            error: None,
            left: None,
        }
    }

    /// A ring whose used index is `used`.
    fn ring(used: u16) -> Ring {
        let memory = memory();
        let index = GuestAddress(LAYOUT.used + 2);
        memory.table().write_obj(used.to_le(), index).unwrap();
        Ring::new(memory, LAYOUT).unwrap()
    }

    fn region(heads: &[u16]) -> Arc<Region> {
        let (spec, file) = Region::create(1, 4).unwrap();
        let region = Region::open(&spec, &file).unwrap();
        let mut part = region.queue(0, 4).unwrap();
        part.recover(5).unwrap();
        for &head in heads {
            part.mark(head);
        }
        Arc::new(region)
    }

    fn next_avail(state: &State) -> u16 {
        state.live.as_ref().unwrap().ring.next_avail()
    }

    #[test]
    fn the_base_counts_only_for_a_region_that_was_never_used() {
        for (heads, base, expected) in [
            (&[][..], BASE, 5),
            (&[], 9999, 5),
            (&[2], BASE, 6),
            (&[2, 0], 9999, 7),
            (&[3, 2, 1, 0], 0, 9),
        ] {
            let mut state = state();
            let marked = state.prepare(0, ring(5), Some(region(heads)), 0, base);
            assert_eq!(next_avail(&state), expected, "{heads:?}, base {base}");
            let found: Vec<_> = marked
                .unwrap()
                .unwrap()
                .iter()
                .map(|marked| marked.head)
                .collect();
            assert_eq!(found, heads);
        }
        let (spec, file) = Region::create(1, 4).unwrap();
        let fresh = Arc::new(Region::open(&spec, &file).unwrap());
        let mut state = state();
        let marked = state.prepare(0, ring(5), Some(fresh), 0, BASE).unwrap();
        assert_eq!((next_avail(&state), marked), (BASE, Some(vec![])));
    }

    #[test]
    fn a_base_that_cannot_be_breaks_the_queue() {
        let next = |base, used| first_available(base, used, 4);
        for (base, used, expected) in [
            (5, 5, 5),
            (9, 5, 9),
            (4, 5, 5),
            (1, 5, 5),
            (3, u16::MAX, 3),
            (u16::MAX, 3, 3),
        ] {
            assert_eq!(next(base, used).unwrap(), expected, "{base} {used}");
        }
        for (base, used) in [(10, 5), (0, 5), (4, u16::MAX), (32768, 0)] {
            let error = next(base, used).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("SET_VRING_BASE {base}")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_record_survives_only_as_the_very_request_that_is_marked() {
        let mut state = state();
        let marked = state
            .prepare(0, ring(5), Some(region(&[2, 1])), 0, 0)
            .unwrap();
        for (head, counter) in [(0, 0), (1, 1), (2, 9)] {
            state.slots[head].state = SlotState::Done { status: 0 };
            state.slots[head].counter = counter;
        }
        state.done = vec![2, 1, 0];
        let kept: Vec<_> = (0..5)
            .filter(|&head| state.is_kept(head, &marked))
            .collect();
        assert_eq!(kept, [1]);
        assert_eq!(state.drop_unmarked(&marked), 2);
        assert_eq!(state.done, [1]);
        assert_eq!(state.slots[2].state, SlotState::Free);
    }

    #[test]
    fn without_region_only_the_ring_that_was_left_goes_on() {
        for (used, features, base, goes_on) in [
            (5, 1, 6, true),
            (4, 1, 6, false),
            (5, 0, 6, false),
            (5, 1, 5, false),
        ] {
            let mut state = state();
            state.prepare(0, ring(5), None, 1, 6).unwrap();
            state.slots[3].state = SlotState::Taken;
            assert_eq!(state.leave(), Some(6));
            let marked = state.prepare(0, ring(used), None, features, base).unwrap();
            assert_eq!(marked.is_some(), goes_on, "{used} {features} {base}");
            assert_eq!(state.is_kept(3, &marked), goes_on);
        }
    }
}
