//! What can go wrong: errors of the connection, refusals to submit, misdeeds of the device.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::token::Token;

/// Why an operation on a connection or a device failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrontendError {
    /// Nothing accepts connections at the socket.
    #[error("cannot connect to vhost-user socket {}", path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{what} failed")]
    Io {
        /// The call or what it was for.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The back end closed the connection.
    #[error("the back end closed the connection during {during}")]
    Closed {
        /// The message that was being exchanged, or `wait`.
        during: &'static str,
    },
    /// The back end did not answer in time. The connection cannot be used any more.
    #[error("no answer to {during} within {after:?}")]
    Timeout {
        /// The message that was not answered.
        during: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The answer is not one to the question.
    #[error("malformed answer to {during}: {detail}")]
    Malformed {
        /// The message that was answered.
        during: &'static str,
        /// What is wrong with the answer.
        detail: String,
    },
    /// The back end acknowledged a message with a failure.
    #[error("the back end refused {message} (code {code})")]
    Refused {
        /// The refused message.
        message: &'static str,
        /// The code of the acknowledgement, not 0.
        code: u64,
    },
    /// The back end does not offer what the front end cannot do without.
    #[error("the back end does not offer {what} (offered: {offered:#x})")]
    NotOffered {
        /// The feature's name.
        what: &'static str,
        /// The offered bits.
        offered: u64,
    },
    /// After a reconnect the back end offers less than what the guest already uses.
    #[error("the back end no longer offers what is in use: {what} {missing:#x}")]
    FeaturesLost {
        /// Which set of features.
        what: &'static str,
        /// The bits that are missing.
        missing: u64,
    },
    /// The options contradict themselves or the device.
    #[error("invalid option: {0}")]
    Options(String),
    /// A guest address range that is not in guest memory.
    #[error("guest range {address:#x}+{len:#x} is not in guest memory")]
    OutOfMemoryRange {
        /// Guest address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The guest memory cannot hold the rings or the buffers asked for.
    #[error("guest memory has no {len} bytes left for {what}; raise memory_bytes")]
    MemoryFull {
        /// What was to be allocated.
        what: &'static str,
        /// Bytes asked for.
        len: u64,
    },
    /// The request could not be submitted.
    #[error("the request was not submitted")]
    Submit(#[from] SubmitError),
    /// The operation needs running rings, or stopped ones.
    #[error("the device is {is}, {what} needs it {needed}")]
    State {
        /// The operation.
        what: &'static str,
        /// `running` or `stopped`.
        is: &'static str,
        /// `running` or `stopped`.
        needed: &'static str,
    },
}

impl FrontendError {
    /// An error of a system call.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io {
            what,
            source: errno.into(),
        }
    }
}

/// Why a request was not submitted. Nothing was made available to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// Not enough free descriptors; poll for completions and try again.
    #[error("the queue is full")]
    QueueFull,
    /// No guest memory for the buffers; poll for completions, or raise `memory_bytes`.
    #[error("no guest memory for the request's buffers")]
    MemoryFull,
    /// The request needs more descriptors than the queue, or an indirect table, can ever have.
    #[error("the request needs {needed} descriptors, at most {max} are possible")]
    TooManyDescriptors {
        /// Descriptors the request needs.
        needed: usize,
        /// Descriptors there are.
        max: usize,
    },
    /// A buffer larger than one descriptor can describe (4 GiB - 1).
    #[error("a buffer is larger than a descriptor can describe")]
    TooLong,
    /// A raw chain without any descriptor.
    #[error("the chain has no descriptor")]
    EmptyChain,
    /// The device has no such queue.
    #[error("queue {queue} does not exist, the device has {queues}")]
    NoSuchQueue {
        /// The queue asked for.
        queue: u16,
        /// Number of queues.
        queues: u16,
    },
}

/// Something a correct device never does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// A used element names a head that has been completed before and is not outstanding.
    CompletedTwice {
        /// Queue index.
        queue: u16,
        /// Descriptor index.
        head: u16,
    },
    /// A used element names a descriptor that was never the head of a submitted chain.
    NeverSubmitted {
        /// Queue index.
        queue: u16,
        /// Descriptor index.
        head: u16,
    },
    /// A used element's id is not a descriptor index at all.
    IdOutOfRange {
        /// Queue index.
        queue: u16,
        /// The id as the device wrote it.
        id: u32,
    },
    /// The used index runs ahead of everything submitted. The queue is not polled any more.
    UsedIndexJump {
        /// Queue index.
        queue: u16,
        /// Index up to which the front end had consumed.
        expected: u16,
        /// Index the device published.
        found: u16,
    },
    /// Completed without a status byte having been written.
    StatusNotWritten {
        /// Queue index.
        queue: u16,
        /// The request.
        token: Token,
    },
    /// The device claims to have written more than the chain's writable part.
    WrittenTooLong {
        /// Queue index.
        queue: u16,
        /// The request.
        token: Token,
        /// Bytes claimed.
        written: u32,
        /// Bytes that were writable.
        writable: u64,
    },
    /// The ring or a status byte changed after GET_VRING_BASE had been answered.
    TouchedWhileStopped {
        /// Queue index.
        queue: u16,
        /// What changed.
        what: String,
    },
    /// The device wrote into a buffer of a request that was dropped by a reset.
    StrayWrite {
        /// Queue index.
        queue: u16,
        /// The dropped request.
        token: Token,
        /// Guest address of the first byte that changed.
        address: u64,
    },
    /// Requests were completed, a call was wanted, and none came.
    CallMissing {
        /// Queue index.
        queue: u16,
    },
    /// The device answered GET_VRING_BASE with an index it cannot have reached.
    BadBase {
        /// Queue index.
        queue: u16,
        /// The answer.
        base: u32,
        /// Used index at that time: the lowest possible answer.
        used: u16,
        /// Available index at that time: the highest possible answer.
        avail: u16,
    },
}
