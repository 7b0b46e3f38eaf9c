//! The view of a request that a driver gets.

use crate::words::request::Operation;

/// One submission of a request to a node.
///
/// `iov` are the client's buffers in this process's address space. Whoever makes an `Io` answers
/// for it that they stay mapped until the future that [`crate::Node::submit`] returns has ended
/// (or has been dropped), and that their lengths add up to `bytes` for reads and writes. The client
/// may take the memory itself away at any time: a driver that meets EFAULT there returns it, and the
/// request ends as the client's own fault ([`crate::Client::has_lost`]).
#[derive(Clone, Copy, Debug)]
pub struct Io<'a> {
    /// What to do.
    pub op: Operation,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// The buffers; empty for flush, discard and write-zeroes.
    pub iov: &'a [libc::iovec],
    /// Whether the write must be durable when it completes (force unit access).
    pub fua: bool,
    /// Losses of the node up to this number are void for whoever sends this ([`crate::Loss`]).
    pub losses_accepted: u32,
}
