//! What is known about a queue and its ring: which heads were taken, and what became of them. Touches
//! shared memory, but waits for nothing and calls nobody back.

use std::rc::Rc;
use std::sync::Arc;

use crate::class::Format;
use crate::inflight::{PartError, QueueRegion, Region};
use crate::ring::{Layout, Ring, RingError};
use crate::trailer;
use crate::view::View;
use iothread::ops::Notifier;

/// What tells two starts of a ring without inflight region apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) layout: Layout,
    pub(super) features: u64,
    pub(super) next_avail: u16,
    pub(super) used: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState<O> {
    Free,
    /// Taken from the ring, not completed.
    Taken,
    /// Completed, not yet published.
    Done {
        outcome: O,
    },
}

/// What is remembered about one head.
pub(super) struct Slot<F: Format> {
    pub(super) state: SlotState<F::Outcome>,
    /// The inflight region's counter of this request.
    pub(super) counter: u64,
    pub(super) taken: F::Taken,
    /// The memory that a submission in flight uses; or that the last one has used, if it has ended
    /// while there was no ring.
    pub(super) memory: Option<Rc<View>>,
}

impl<F: Format> Default for Slot<F> {
    fn default() -> Self {
        Self {
            state: SlotState::Free,
            counter: 0,
            taken: F::Taken::default(),
            memory: None,
        }
    }
}

pub(super) struct Live {
    pub(super) ring: Ring,
    pub(super) region: Option<QueueRegion>,
    /// What `region` is a part of.
    pub(super) whole: Option<Arc<Region>>,
    pub(super) features: u64,
    /// Cleared while the ring is being started or stopped.
    pub(super) popping: bool,
    pub(super) broken: bool,
}

pub(super) struct QueueState<F: Format> {
    pub(super) live: Option<Live>,
    /// SET_VRING_ENABLE.
    pub(super) enabled: bool,
    pub(super) slots: Vec<Slot<F>>,
    /// Heads that are done, in the order of their completion.
    pub(super) done: Vec<u16>,
    pub(super) call: Option<Rc<Notifier>>,
    pub(super) error: Option<Rc<Notifier>>,
    /// How the ring was left, if it had no inflight region.
    pub(super) left: Option<Identity>,
}

impl<F: Format> Default for QueueState<F> {
    fn default() -> Self {
        Self {
            live: None,
            enabled: false,
            slots: Vec::new(),
            done: Vec::new(),
            call: None,
            error: None,
            left: None,
        }
    }
}

impl Live {
    /// Whether nothing of this ring is recorded although the client keeps a region: it has no room
    /// for it. What it was made for.
    pub(super) fn is_left_out(&self) -> Option<trailer::Layout> {
        match &self.whole {
            Some(whole) if self.region.is_none() => Some(whole.layout()),
            _ => None,
        }
    }
}

/// Why a queue cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("request at descriptor {head}: {source}")]
    Request {
        head: u16,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the driver made descriptor {head} available, the queue has {size}")]
    Head { head: u16, size: u16 },
    #[error("the driver made descriptor {head} available again before it was completed")]
    Busy { head: u16 },
    #[error(transparent)]
    Inflight(#[from] PartError),
    #[error(
        "SET_VRING_BASE {base} and the used index {used} are more than the queue size {size} apart"
    )]
    Base { base: u16, used: u16, size: u16 },
    #[error("the kick descriptor cannot be polled: {0}")]
    Kick(std::io::Error),
    #[error("request at descriptor {head}: it needs memory that the client has removed")]
    MemoryMoves { head: u16 },
    #[error("request at descriptor {head}: its status byte is not in guest memory any more")]
    StatusGone { head: u16 },
    #[error("the client has truncated memory that it shares with this device")]
    Memory,
}

impl Broken {
    #[cold]
    fn request(head: u16, source: impl std::error::Error + Send + Sync + 'static) -> Box<Self> {
        Box::new(Self::Request {
            head,
            source: Box::new(source),
        })
    }

    #[cold]
    fn ring(error: RingError) -> Box<Self> {
        Box::new(error.into())
    }
}

impl<F: Format> QueueState<F> {
    /// Takes the next request from the ring. The error is boxed, so that what is popped is not
    /// moved about with room for it.
    #[inline]
    pub(super) fn pop(&mut self, format: F) -> Result<Option<(u16, F::Parsed)>, Box<Broken>> {
        let Some(live) = &mut self.live else {
            return Ok(None);
        };
        if !live.popping || live.broken || !self.enabled {
            return Ok(None);
        }
        let Some(head) = live.ring.peek().map_err(Broken::ring)? else {
            return Ok(None);
        };
        let size = live.ring.layout().size;
        let slot = self.slots.get_mut(usize::from(head));
        let Some(slot) = slot.filter(|_| head < size) else {
            return Err(Broken::Head { head, size }.into());
        };
        if slot.state != SlotState::Free {
            return Err(Broken::Busy { head }.into());
        }
        let parsed = slot.parse(&live.ring, head, format)?;
        if let Some(region) = &mut live.region {
            slot.counter = region.mark(head);
        }
        slot.state = SlotState::Taken;
        live.ring.advance();
        Ok(Some((head, parsed)))
    }

    pub(super) fn publish(&mut self) -> Result<(), Broken> {
        let Some(live) = &mut self.live else {
            return Ok(());
        };
        if self.done.is_empty() {
            return Ok(());
        }
        let (mut gone, mut later) = (Ok(()), Vec::new());
        // Those that cannot be completed are left out.
        let mut published = 0;
        for place in 0..self.done.len() {
            let head = self.done[place];
            let slot = &mut self.slots[usize::from(head)];
            let SlotState::Done { outcome } = slot.state else {
                continue;
            };
            let Ok(written) = F::answer(&slot.taken, outcome, live.ring.view()) else {
                if live.ring.view().memory().is_moving() {
                    later.push(head);
                    continue;
                }
                // Without a status it cannot be completed: it stays marked.
                gone = Err(Broken::StatusGone { head });
                continue;
            };
            live.ring.put_used(head, written);
            if let Some(region) = &live.region {
                region.add_to_batch(head);
            }
            slot.state = SlotState::Free;
            self.done[published] = head;
            published += 1;
        }
        let call = live.ring.publish();
        if let Some(region) = &live.region {
            for &head in &self.done[..published] {
                region.unmark(head);
            }
            region.set_used(live.ring.used_index());
        }
        self.done.clear();
        if !later.is_empty() {
            self.done = later;
        }
        if let (true, Some(call)) = (call, &self.call) {
            call.notify();
        }
        gone
    }

    /// Whether the client has taken memory away that was accessed here: nothing that has been read
    /// since then means anything.
    pub(super) fn is_poisoned(&self) -> bool {
        self.live.as_ref().is_some_and(|live| {
            live.ring.view().memory().is_poisoned()
                || live
                    .whole
                    .as_ref()
                    .is_some_and(|region| region.is_poisoned())
        })
    }

    /// Gives the ring back; returns the next available index.
    pub(super) fn leave(&mut self) -> Option<u16> {
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

impl<F: Format> Slot<F> {
    #[inline]
    pub(super) fn parse(
        &mut self,
        ring: &Ring,
        head: u16,
        format: F,
    ) -> Result<F::Parsed, Box<Broken>> {
        let view = ring.view();
        match format.parse(&**view, ring.table(), head, &mut self.taken) {
            Ok(parsed) if F::is_executed(&parsed) => Ok(parsed),
            // Its header or its buffers may be what is not there.
            _ if view.memory().is_moving() => Err(Broken::MemoryMoves { head }.into()),
            Ok(parsed) => Ok(parsed),
            Err(source) => Err(Broken::request(head, source)),
        }
    }
}
