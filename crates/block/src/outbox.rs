//! What a part of a backend tells run control: failures, what has become of them, and what was
//! reported or ignored. To post a failure neither fails nor allocates: the entries are there before.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Instant;

use iothread::mailbox::{Entry, Sender};

use crate::control::Message;
use crate::hold::SlotId;
use crate::run_control::{Failed, Reported, Resolved};

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
pub struct Outbox {
    control: Sender<Message>,
    slots: RefCell<Vec<SlotEntries>>,
    /// Taken in turn, so the first one is the first to be free again.
    reports: RefCell<VecDeque<Entry<Message>>>,
    max_reports: usize,
}

impl Outbox {
    /// For a part with `requests` requests at once.
    pub fn new(control: Sender<Message>, requests: u32) -> Self {
        Self {
            control,
            slots: RefCell::default(),
            reports: RefCell::default(),
            max_reports: requests as usize,
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

    /// A failure was reported to the client or ignored. False: it is left out, because as many as
    /// there may be requests at once have not been received yet.
    #[must_use]
    pub fn reported(&self, reported: Reported) -> bool {
        let mut reports = self.reports.borrow_mut();
        let free = reports.pop_front_if(|entry| !entry.is_queued());
        if free.is_none() && reports.len() >= self.max_reports {
            return false;
        }
        let entry = free.unwrap_or_default();
        self.post(&entry, Message::Reported(reported));
        reports.push_back(entry);
        true
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
    use crate::error::Cause;
    use crate::error_policy::Action;
    use crate::request::{Operation, Request, Tag};
    use crate::run_control::{BackendId, LocalId};

    const BACKEND: BackendId = BackendId(1);
    const LOCAL: LocalId = LocalId(1);

    fn outbox(requests: u32) -> (Outbox, Receiver<Message>) {
        let (sender, receiver) = channel();
        (Outbox::new(sender, requests), receiver)
    }

    fn request(head: u16) -> Request {
        Request {
            tag: Tag { queue: 0, head },
            op: Operation::Write,
            offset: 0,
            bytes: 512,
        }
    }

    fn reported(head: u16) -> Reported {
        Reported {
            backend: BACKEND,
            generation: 1,
            request: request(head),
            action: Action::Report,
            cause: Cause::of_errno(libc::EIO),
            at: SystemTime::UNIX_EPOCH,
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
            at: SystemTime::UNIX_EPOCH,
        }
    }

    fn resolved(order: u64) -> Resolved {
        Resolved {
            backend: BACKEND,
            local: LOCAL,
            generation: 1,
            order,
        }
    }

    /// Arrival numbers, or heads of what was reported.
    fn received(receiver: &mut Receiver<Message>) -> Vec<(&'static str, u64)> {
        let mut all = Vec::new();
        while let Some(message) = receiver.try_recv() {
            all.push(match message {
                Message::Failed(failed) => ("failed", failed.order),
                Message::Resolved(resolved) => ("resolved", resolved.order),
                Message::Reported(reported) => ("reported", reported.request.tag.head.into()),
                _ => unreachable!("nothing else is posted here"),
            });
        }
        all
    }

    #[test]
    fn undelivered_reports_are_bounded_and_their_entries_used_again() {
        let (outbox, mut receiver) = outbox(3);
        for head in 0..5 {
            assert_eq!(outbox.reported(reported(head)), head < 3, "{head}");
        }
        assert_eq!(outbox.reports.borrow().len(), 3);
        assert!(receiver.try_recv().is_some());
        assert!(outbox.reported(reported(5)), "one has been delivered");
        assert!(!outbox.reported(reported(6)));
        let expected = [("reported", 1), ("reported", 2), ("reported", 5)];
        assert_eq!(received(&mut receiver), expected);
        for head in 7..100 {
            assert!(outbox.reported(reported(head)));
            assert_eq!(received(&mut receiver), [("reported", head.into())]);
        }
        assert_eq!(outbox.reports.borrow().len(), 3);
    }

    #[test]
    fn entries_for_reports_come_as_they_are_needed() {
        let (outbox, mut receiver) = outbox(1000);
        for head in 0..10 {
            assert!(outbox.reported(reported(head)));
            assert_eq!(received(&mut receiver).len(), 1);
        }
        assert_eq!(outbox.reports.borrow().len(), 1);
    }

    #[test]
    fn a_slot_that_is_used_again_loses_no_message() {
        let (outbox, mut receiver) = outbox(1);
        let slot = SlotId(0);
        outbox.provide(1);
        outbox.failed(slot, failed(1));
        assert_eq!(received(&mut receiver), [("failed", 1)]);
        assert!(outbox.goes_on(slot).is_some() && outbox.goes_on(slot).is_none());
        outbox.resolved(slot, resolved(1));
        // The next request fails there and is dropped before anything has been received.
        outbox.failed(slot, failed(2));
        outbox.resolved(slot, resolved(2));
        assert!(outbox.given_up(slot).is_some());
        outbox.failed(slot, failed(3));
        let expected = [
            ("resolved", 1),
            ("failed", 2),
            ("resolved", 2),
            ("failed", 3),
        ];
        assert_eq!(received(&mut receiver), expected);
    }
}
