//! What one request has reserved in the account, as long as anything of it may be under way.
//!
//! A request that is parked below ([`block::driver::park`]) has not begun: it has reserved nothing, and what
//! it needs is looked for when it goes on. So nobody is refused because of a write that waits for its budget,
//! and one whose place has gone meanwhile fails as a whole, as it would have before.

use std::future::poll_fn;
use std::ops::Range;
use std::pin::pin;
use std::task::Poll;

use block::driver::park;
use block::{Child, Io, Result};

use super::account::Ticket;
use super::books::Books;

/// What a request needs, in granules.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// What it may allocate: at most the two ends of a write-zeroes.
    pub writes: [Range<u64>; 2],
    /// What it may give back.
    pub discard: Range<u64>,
}

impl Wanted {
    /// What a write of these granules needs.
    pub fn write(range: Range<u64>) -> Self {
        Self {
            writes: [range, 0..0],
            discard: 0..0,
        }
    }
}

/// See the [module](self). Dropped before its end it counts as done for what it may have allocated, and as
/// not done for what it may have given back.
#[derive(Debug)]
pub struct Reserved<'a> {
    books: &'a Books,
    wanted: Wanted,
    is_taken: bool,
    writes: [Option<Ticket>; 2],
    discard: Option<Ticket>,
}

impl<'a> Reserved<'a> {
    /// Nothing yet.
    pub fn new(books: &'a Books, wanted: Wanted) -> Self {
        Self {
            books,
            wanted,
            is_taken: false,
            writes: [None; 2],
            discard: None,
        }
    }

    /// Takes all that is wanted, if it has not.
    fn take(&mut self, io: &Io<'_>) -> Result<()> {
        if self.is_taken {
            return Ok(());
        }
        for (range, ticket) in self.wanted.writes.iter().zip(&mut self.writes) {
            if range.is_empty() {
                continue;
            }
            match self.books.begin_write(io, range.clone()) {
                Ok(begun) => *ticket = Some(begun),
                Err(error) => {
                    self.end(false, false);
                    return Err(error);
                }
            }
        }
        if !self.wanted.discard.is_empty() {
            let begun = self
                .books
                .account()
                .begin_discard(self.wanted.discard.clone());
            self.discard = Some(begun);
        }
        self.is_taken = true;
        Ok(())
    }

    /// The request has ended, or has not begun.
    pub fn end(&mut self, written: bool, deallocated: bool) {
        self.is_taken = false;
        let mut account = self.books.account();
        for ticket in self.writes.iter_mut().filter_map(Option::take) {
            account.end_write(ticket, written);
        }
        if let Some(ticket) = self.discard.take() {
            account.end_discard(ticket, deallocated);
        }
    }

    /// Submits `io` to `file`. When this returns all that is wanted is reserved, unless there was no place.
    ///
    /// # Errors
    /// ENOSPC: nothing was done then. Those of the child.
    pub async fn submit(&mut self, file: &Child, io: Io<'_>) -> Result<()> {
        self.take(&io)?;
        let mut below = pin!(Some(file.submit(io)));
        let mut has_begun = false;
        poll_fn(|cx| {
            let Some(future) = below.as_mut().as_pin_mut() else {
                return Poll::Pending;
            };
            if let Err(error) = self.take(&io) {
                // Its turn has come, and there is no place any more.
                park::take_back(|| below.set(None));
                return Poll::Ready(Err(error));
            }
            let (polled, is_parked) = park::poll(future, cx);
            has_begun |= !is_parked;
            if !has_begun {
                self.end(false, false);
            }
            polled
        })
        .await
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.is_taken {
            // What is taken back from a child that has it parked has not been executed in any part.
            self.end(!park::is_taken_back(), false);
        }
    }
}
