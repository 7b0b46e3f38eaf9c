//! What a part of a backend tells run control of what it holds: that it is held, and that it is not any
//! more. To post a notice neither fails nor allocates: the entries are there before.
//!
//! By the places of the gate's table ([`crate::gate`]), which owns what is held; here is only a copy of
//! when that began.

use std::cell::RefCell;
use std::time::Instant;

use iothread::mailbox::{Entry, Sender};

use crate::control::inbox::Message;
use crate::control::run_control::{Failed, Resolved};
use crate::gate::line::SlotId;

/// What the request in a slot of the gate's table posts. Each entry carries one message at a time.
#[derive(Debug, Default)]
struct SlotEntries {
    failed: Entry<Message>,
    resolved: Entry<Message>,
    /// When the request was held, until it goes on.
    held_since: Option<Instant>,
}

impl SlotEntries {
    /// Makes both entries free, whatever the former request of the slot has posted.
    fn renew(&mut self) {
        for entry in [&mut self.failed, &mut self.resolved] {
            if entry.is_queued() {
                *entry = Entry::new();
            }
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct HoldNotices {
    control: Sender<Message>,
    slots: RefCell<Vec<SlotEntries>>,
}

impl HoldNotices {
    /// Without any entry.
    pub fn new(control: Sender<Message>) -> Self {
        Self {
            control,
            slots: RefCell::default(),
        }
    }

    /// Provides for `slots` slots, before anything can fail in them.
    pub fn provide(&self, slots: usize) {
        let mut entries = self.slots.borrow_mut();
        if entries.len() < slots {
            entries.resize_with(slots, SlotEntries::default);
        }
    }

    /// The request in `slot` is held.
    pub fn failed(&self, slot: SlotId, failed: Failed) {
        let entry = &mut self.slots.borrow_mut()[slot.index()];
        entry.held_since = Some(Instant::now());
        // Free: a retry starts only after run control has taken the message that told of the
        // failure, and a slot that is given up earlier gets fresh entries (`Self::given_up`).
        self.post(&entry.failed, Message::Failed(failed));
    }

    /// The request in `slot` goes on: since when it was held.
    pub fn goes_on(&self, slot: SlotId) -> Option<Instant> {
        self.slots.borrow_mut()[slot.index()].held_since.take()
    }

    /// The request in `slot`, which was held, has ended.
    pub fn resolved(&self, slot: SlotId, resolved: Resolved) {
        let entries = &mut self.slots.borrow_mut()[slot.index()];
        if entries.resolved.is_queued() {
            // By the slot's former request: this one has ended without ever having been released.
            entries.renew();
        }
        self.post(&entries.resolved, Message::Resolved(resolved));
    }

    /// The request in `slot` is gone without having been executed to its end. Since when it was
    /// held.
    pub fn given_up(&self, slot: SlotId) -> Option<Instant> {
        let entries = &mut self.slots.borrow_mut()[slot.index()];
        entries.renew();
        entries.held_since.take()
    }

    fn post(&self, entry: &Entry<Message>, message: Message) {
        let posted = self.control.post(entry, message);
        debug_assert!(
            posted.is_ok() || self.control.is_closed(),
            "the entry is still queued"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use iothread::mailbox::{Receiver, channel};

    use super::*;
    use crate::words::error::Cause;
    use crate::words::ids::{BackendId, LocalId};
    use crate::words::incident::HoldEnd;
    use crate::words::request::{Operation, Request, Tag};

    const BACKEND: BackendId = BackendId(1);
    const LOCAL: LocalId = LocalId(1);

    fn notices() -> (HoldNotices, Receiver<Message>) {
        let (sender, receiver) = channel();
        (HoldNotices::new(sender), receiver)
    }

    fn request(head: u16) -> Request {
        Request {
            tag: Tag { queue: 0, head },
            op: Operation::Write,
            offset: 0,
            bytes: 512,
        }
    }

    fn failed(order: u64) -> Failed {
        Failed {
            backend: BACKEND,
            local: LOCAL,
            generation: 1,
            seq: order,
            order,
            request: request(0),
            cause: Cause::of_errno(libc::ENOSPC),
            node: None,
            at: SystemTime::UNIX_EPOCH,
        }
    }

    fn resolved(order: u64) -> Resolved {
        Resolved {
            backend: BACKEND,
            local: LOCAL,
            generation: 1,
            order,
            end: HoldEnd::Completed,
        }
    }

    /// Arrival numbers.
    fn received(receiver: &mut Receiver<Message>) -> Vec<(&'static str, u64)> {
        let mut all = Vec::new();
        while let Some(message) = receiver.try_recv() {
            all.push(match message {
                Message::Failed(failed) => ("failed", failed.order),
                Message::Resolved(resolved) => ("resolved", resolved.order),
                _ => unreachable!("nothing else is posted here"),
            });
        }
        all
    }

    #[test]
    fn a_slot_that_is_used_again_loses_no_message() {
        let (notices, mut receiver) = notices();
        let slot = SlotId(0);
        notices.provide(1);
        notices.failed(slot, failed(1));
        assert_eq!(received(&mut receiver), [("failed", 1)]);
        assert!(notices.goes_on(slot).is_some() && notices.goes_on(slot).is_none());
        notices.resolved(slot, resolved(1));
        // The next request fails there and is dropped before anything has been received.
        notices.failed(slot, failed(2));
        notices.resolved(slot, resolved(2));
        assert!(notices.given_up(slot).is_some());
        notices.failed(slot, failed(3));
        let expected = [
            ("resolved", 1),
            ("failed", 2),
            ("resolved", 2),
            ("failed", 3),
        ];
        assert_eq!(received(&mut receiver), expected);
    }
}
