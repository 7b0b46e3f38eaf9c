//! How a part of a backend tells run control of failures that policy reported or ignored: the sending
//! side of [`crate::control::reports`].

use iothread::mailbox::{Entry, Sender};

use crate::control::inbox::Message;
use crate::control::reports::Reports;
use crate::control::run_control::Reported;

/// See the [module](self).
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
    use crate::control::reports::Batch;
    use crate::words::error::Cause;
    use crate::words::error_policy::Action;
    use crate::words::ids::BackendId;
    use crate::words::request::{Operation, Request, Tag};

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
            node: None,
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
