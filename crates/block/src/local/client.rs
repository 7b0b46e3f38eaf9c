//! What the block layer wants of an export on an iothread.

use crate::gate::ClientError;
use crate::words::request::Request;

/// Why buffers cannot be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// They are not in the client's memory.
    Gone,
    /// The client has taken memory away and may be about to give it back: nothing of this part is
    /// started before [`crate::LocalBackend::memory_settled`].
    Moving,
}

/// The export, as the block layer sees it on an iothread. Methods are called on that iothread and
/// must not call back into [`crate::LocalBackend`], except [`Client::resume`].
pub trait Client {
    /// Translates the request's buffers, as they are now, to addresses in this process, and keeps
    /// them mapped until [`Client::unmap`] or [`Client::succeeded`]. Called before each submission;
    /// `iov` is empty. Drivers rely on it, without `unsafe` of their own ([`crate::Buffers`]): what a read
    /// or write moves has as many bytes as the request, and other operations have no memory.
    ///
    /// # Errors
    /// If the client's memory is gone: the request is completed as the client's own fault, or waits.
    fn map(&self, request: &Request, iov: &mut Vec<libc::iovec>) -> Result<(), Unmapped>;

    /// Whether the client has taken away memory of these buffers, which are mapped for the request.
    /// Asked if the storage says EFAULT: it may have met that, or say it of its own accord.
    fn has_lost(&self, request: &Request, iov: &[libc::iovec]) -> bool;

    /// The submission has ended; the mapping may go. This or [`Client::succeeded`] is called once for
    /// each successful `map`.
    fn unmap(&self, request: &Request);

    /// Whether the request must be durable when it completes: there is no write cache. Asked at
    /// each submission; it matters for writes and write-zeroes only.
    fn fua(&self, _request: &Request) -> bool {
        false
    }

    /// The request has ended: tell the client. Called at most once for each request.
    fn complete(&self, request: &Request, result: Result<(), ClientError>);

    /// [`Client::unmap`] and [`Client::complete`] in one, of a request that did what it should: every
    /// request comes here as long as nothing fails.
    fn succeeded(&self, request: &Request) {
        self.unmap(request);
        self.complete(request, Ok(()));
    }

    /// The request will never be completed: the device was reset, or has no record of it any more.
    fn dropped(&self, request: &Request);

    /// What was frozen may go on: new requests may be taken from the queues.
    fn resume(&self);
}
