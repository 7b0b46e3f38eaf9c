//! What a part of a backend tells run control of failures that policy reported or ignored.
//!
//! A disk that fails at once does so a million times a second, and each time the guest may ask
//! again. So there is one message under way at most: what has failed until it is received is kept
//! here, the first and the last of it, and counted.

use std::sync::{Arc, Mutex, PoisonError};

use iothread::mailbox::{Entry, Sender};

use crate::control::Message;
use crate::run_control::Reported;

/// Failures that have not been received yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The first one.
    pub first: Reported,
    /// The last one, if there are several.
    pub last: Option<Reported>,
    /// How many there were in between.
    pub left_out: u64,
}

/// Where they are kept: [`Message::Reported`] is the word that something is there.
#[derive(Clone, Debug, Default)]
pub struct Reports(Arc<Mutex<Option<Batch>>>);

impl Reports {
    /// Adds one. True: there was none.
    fn add(&self, reported: Reported) -> bool {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(batch) = &mut *place else {
            *place = Some(Batch {
                first: reported,
                last: None,
                left_out: 0,
            });
            return true;
        };
        batch.left_out += u64::from(batch.last.replace(reported).is_some());
        false
    }

    /// Takes them all.
    pub fn take(&self) -> Option<Batch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The sending side.
#[derive(Debug)]
pub struct Reporter {
    control: Sender<Message>,
    reports: Reports,
    entry: Entry<Message>,
}

impl Reporter {
    /// For one part.
    pub fn new(control: Sender<Message>) -> Self {
        Self {
            control,
            reports: Reports::default(),
            entry: Entry::new(),
        }
    }

    /// A failure was reported to the client or ignored.
    pub fn reported(&self, reported: Reported) {
        if self.reports.add(reported) {
            // The entry is free: what was there has been taken, and before that the message.
            let message = Message::Reported(self.reports.clone());
            let posted = self.control.post(&self.entry, message);
            debug_assert!(posted.is_ok() || self.control.is_closed());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use iothread::mailbox::channel;

    use super::*;
    use crate::error::Cause;
    use crate::error_policy::Action;
    use crate::ids::BackendId;
    use crate::request::{Operation, Request, Tag};

    fn reported(head: u16) -> Reported {
        Reported {
            backend: BackendId(1),
            generation: 1,
            request: Request {
                tag: Tag { queue: 0, head },
                op: Operation::Write,
                offset: 0,
                bytes: 512,
            },
            action: Action::Report,
            cause: Cause::of_errno(libc::EIO),
            at: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn one_message_is_under_way_and_says_the_first_and_the_last() {
        let (sender, mut receiver) = channel();
        let reporter = Reporter::new(sender);
        for (heads, left_out) in [(0..1, 0), (1..3, 0), (3..100, 95)] {
            heads
                .clone()
                .for_each(|head| reporter.reported(reported(head)));
            let Some(Message::Reported(reports)) = receiver.try_recv() else {
                unreachable!("a report is posted");
            };
            assert!(receiver.try_recv().is_none());
            let last = (heads.len() > 1).then(|| reported(heads.end - 1));
            let expected = Batch {
                first: reported(heads.start),
                last,
                left_out,
            };
            assert_eq!(reports.take(), Some(expected));
            assert_eq!(reports.take(), None);
        }
    }
}
