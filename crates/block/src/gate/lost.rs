//! Requests whose tickets were dropped: their clients would wait for ever, and so would whoever waits
//! until nothing is in flight. That is a mistake in the daemon, which is found by tests; in
//! production the request is found again here, and whoever drives the gate lets it fail.

use std::task::{Context, Poll};

use super::ticket::Ticket;
use super::watch;

/// The lost requests of one gate, which go to whoever has this.
#[derive(Debug)]
pub struct Lost {
    gate: u32,
}

impl Lost {
    /// From now on what is lost of the gate with the number that is returned too comes here.
    pub(super) fn watch() -> (Self, u32) {
        let gate = watch::begin();
        (Self { gate }, gate)
    }

    /// The next one. None: nobody watches any more ([`super::Gate::end_watch`]).
    pub fn poll_next(&self, cx: &Context<'_>) -> Poll<Option<Ticket>> {
        watch::poll_next(self.gate, cx).map(|started| started.map(Ticket::new))
    }
}
