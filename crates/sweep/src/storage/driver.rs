//! The storage as a driver: requests become operations, and wait for their end.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use block::{
    BlockError, Buffers, Capabilities, Driver, FlushLatch, Grow, Io, IoFuture, Limits, Loss,
    NodeInfo, Resize,
};

use parking_lot::MutexGuard;

use super::{Discarded, State, Storage};
use crate::event::{Effect, Kind, Length, Operation};
use crate::sector::{SECTOR, index};

/// What is reserved behind what is asked for, in bytes at most.
const RESERVED_MAX: u64 = 256 << 10;

impl State {
    /// The operation that a request is.
    fn operation(&mut self, io: &Io<'_>) -> Operation {
        let kind = match io.op {
            block::Operation::Read => Kind::Read,
            block::Operation::Write => Kind::Write,
            block::Operation::WriteZeroes { .. } => Kind::Zeroes,
            block::Operation::Discard => Kind::Discard,
            block::Operation::Flush => Kind::Flush,
        };
        let (begin, end) = (index(io.offset), index(io.offset + io.bytes));
        let from = begin / SECTOR * SECTOR;
        let until = end.next_multiple_of(SECTOR);
        let mut length =
            (io.op.modifies() && kind != Kind::Discard).then_some(Length::AtLeast(until as u64));
        // What does not fill its sectors is written with what is around it, as a file system does it.
        let mut content = vec![0; until - from];
        if let Some(before) = self
            .page
            .get(from.min(self.page.len())..until.min(self.page.len()))
        {
            content[..before.len()].copy_from_slice(before);
        }
        let inside = begin - from..end - from;
        let content: Option<Arc<[u8]>> = match kind {
            Kind::Write => {
                io.buffers.copy_to(&mut content[inside]);
                Some(content.into())
            }
            Kind::Zeroes if inside == (0..content.len()) => None,
            Kind::Zeroes => {
                content[inside].fill(0);
                Some(content.into())
            }
            Kind::Discard => match self.settings.discarded {
                Discarded::Zeroes => None,
                Discarded::Kept => Some(content.into()),
                Discarded::Garbage => {
                    let word = self.rng.next_u64().to_le_bytes();
                    let garbage = content.iter_mut().zip(word.into_iter().cycle());
                    garbage.for_each(|(byte, any)| *byte = any | 1);
                    Some(content.into())
                }
            },
            Kind::Read | Kind::Flush | Kind::Length => None,
        };
        let mut effect = io.op.modifies().then(|| Effect {
            first: (from / SECTOR) as u64,
            sectors: (until - from) / SECTOR,
            content,
        });
        let kept = kind == Kind::Discard && self.settings.discarded == Discarded::Kept;
        if io.bytes == 0 || kept {
            (effect, length) = (None, None);
        }
        Operation {
            kind,
            offset: io.offset,
            bytes: io.bytes,
            fua: io.fua && io.op.modifies(),
            effect,
            length,
        }
    }
}

/// The future of an operation: it is over when the storage was told to end it. If it is dropped before, it ends
/// then, as the kernel would be waited for.
struct Wait<'a> {
    storage: &'a Storage,
    number: u64,
    buffers: Buffers<'a>,
}

impl Wait<'_> {
    fn take(&self, state: &mut State) -> Option<Result<(), BlockError>> {
        let outcome = state.in_flight.get(&self.number)?.outcome?;
        let one = state.in_flight.remove(&self.number)?;
        if outcome.is_ok() && one.operation.kind == Kind::Read {
            self.buffers.copy_from(&one.found);
        }
        Some(outcome.map_err(|errno| {
            let error = BlockError::new(errno, "the storage under test fails");
            error.at(&"storage".into(), one.operation.offset, one.operation.bytes)
        }))
    }
}

impl Future for Wait<'_> {
    type Output = block::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<block::Result<()>> {
        let mut state = self.storage.0.lock();
        if let Some(outcome) = self.take(&mut state) {
            return Poll::Ready(outcome);
        }
        if let Some(one) = state.in_flight.get_mut(&self.number) {
            one.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut state = self.storage.0.lock();
        if state
            .in_flight
            .get(&self.number)
            .is_some_and(|one| one.outcome.is_none())
        {
            state.end(self.number);
        }
        state.in_flight.remove(&self.number);
    }
}

impl Storage {
    /// Begins `operation`, with the memory of `io`, and for whoever has sent that.
    fn begin<'a>(
        &'a self,
        mut state: MutexGuard<'_, State>,
        operation: Operation,
        io: &Io<'a>,
    ) -> IoFuture<'a> {
        let number = state.begin(operation, io.losses_accepted);
        let at_once = state.at_once || {
            let percent = state.settings.at_once;
            state.rng.below(100) < percent
        };
        let wait = Wait {
            storage: self,
            number,
            buffers: io.buffers,
        };
        if at_once {
            state.end(number);
            let outcome = wait.take(&mut state);
            drop(state);
            return IoFuture::ready(outcome.unwrap_or(Ok(())));
        }
        IoFuture::new(wait)
    }
}

impl Driver for Storage {
    fn name(&self) -> &'static str {
        "sweep-storage"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo {
            filename: "sweep".to_owned(),
            ..NodeInfo::default()
        }
    }

    fn length(&self) -> u64 {
        self.0.lock().page.len() as u64
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 512,
            memory_alignment: 1,
            grows_zeroed: self.0.lock().is_file,
            ..Limits::default()
        }
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let mut state = self.0.lock();
        let operation = state.operation(&io);
        self.begin(state, operation, &io)
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            flush_latch: Some(self),
            resize: Some(self),
            grow: Some(self),
            ..Capabilities::default()
        }
    }
}

impl Grow for Storage {
    fn submit_beyond<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        self.submit(io)
    }

    fn reserve(&self, end: u64) -> Option<IoFuture<'_>> {
        let mut state = self.0.lock();
        // Files that cannot do it are among them.
        if !state.is_file || state.rng.below(4) == 0 {
            return None;
        }
        let end = (end + state.rng.below(RESERVED_MAX)).next_multiple_of(SECTOR as u64);
        let operation = Operation {
            kind: Kind::Length,
            offset: 0,
            bytes: end,
            fua: false,
            effect: None,
            length: Some(Length::AtLeast(end)),
        };
        Some(self.begin(state, operation, &Io::flush()))
    }
}

impl Resize for Storage {
    fn resized_length(&self, length: u64) -> block::Result<u64> {
        Ok(length.next_multiple_of(SECTOR as u64))
    }

    /// Called drained, by whoever cannot wait for the schedule: it ends at once.
    fn resize(&self, length: u64) -> block::Result<()> {
        let length = self.resized_length(length)?;
        let mut state = self.0.lock();
        let before = state.page.len() as u64;
        let shrinks = (before > length).then(|| Effect {
            first: length / SECTOR as u64,
            sectors: index(before - length) / SECTOR,
            content: None,
        });
        let operation = Operation {
            kind: Kind::Length,
            offset: 0,
            bytes: length,
            fua: false,
            effect: shrinks,
            length: Some(Length::Exactly(length)),
        };
        let number = state.begin(operation, 0);
        let fails = state.in_flight.get(&number).and_then(|one| one.fails);
        if fails.is_some()
            && let Some(one) = state.in_flight.get_mut(&number)
        {
            // A truncation is done, or it is not.
            one.operation.effect = None;
        }
        state.end(number);
        state.in_flight.remove(&number);
        fails.map_or(Ok(()), |errno| Err(BlockError::from_errno(errno)))
    }
}

impl FlushLatch for Storage {
    fn latched(&self) -> Option<Loss> {
        self.0.lock().latched.first().map(|(loss, _)| *loss)
    }

    fn latch(&self, loss: Loss) {
        self.0.lock().latched.push((loss, 0..u64::MAX));
    }

    fn accept_loss(&self, upto: u32) -> bool {
        let mut state = self.0.lock();
        let before = state.latched.len();
        state.latched.retain(|(loss, _)| loss.counts_for(upto));
        state.latched.len() < before
    }
}
