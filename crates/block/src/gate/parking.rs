//! Requests that a driver has and does not begin, because it waits for something itself: a budget, a
//! connection. They are parked and not in flight, as if they waited here.
//!
//! They are outside, so that each goes on when the driver lets it. But none may while its queue is stopped
//! or something is frozen: whoever drives the gate takes them back then ([`super::Outcome::TakenBack`]),
//! and they wait in it at their old places.

use super::{Gate, Ticket};

impl Gate {
    /// The driver waits before it does anything for the request: it is not in flight, until
    /// [`Self::goes_on`].
    pub fn parks(&mut self, ticket: &mut Ticket) {
        if !ticket.is_parked() {
            ticket.set_parked(true);
            self.queue_mut(ticket.request().tag.queue).in_flight -= 1;
        }
    }

    /// The driver executes the request, which was parked there.
    pub fn goes_on(&mut self, ticket: &mut Ticket) {
        let queue = ticket.request().tag.queue;
        debug_assert!(
            self.may_pop(queue),
            "taken back when that was forbidden: {ticket:?}"
        );
        if ticket.is_parked() {
            ticket.set_parked(false);
            self.queue_mut(queue).in_flight += 1;
        }
    }
}
