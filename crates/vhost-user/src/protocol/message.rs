//! What there is to say: the messages of a front end, and what each begins with.

use smallvec::SmallVec;

use super::code::{self, Code};
use crate::inflight;
use crate::memory::RegionSpec;

/// Size of a header in bytes.
pub const HEADER_BYTES: usize = 12;
/// Most descriptors that come with one message: those of a memory table.
pub const FDS_MAX: usize = 8;
/// Size of the largest payload in bytes: SET_CONFIG of the whole space.
pub const PAYLOAD_BYTES_MAX: usize = CONFIG_HEADER_BYTES + CONFIG_BYTES_MAX;
/// Largest part of the configuration space in one message, in bytes.
pub const CONFIG_BYTES_MAX: usize = 256;

pub(super) const CONFIG_HEADER_BYTES: usize = 12;
const VERSION_MASK: u32 = 0x3;
pub(super) const VERSION: u32 = 0x1;
const FLAG_NEED_REPLY: u32 = 0x8;

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are what the texts say")]
pub enum MessageError {
    /// Another version of the protocol, a reply nobody waits for, or unknown flags.
    #[error(
        "{code} with flags {flags:#x}: version 1 is needed, and no flag but need_reply is known"
    )]
    Flags { code: Code, flags: u32 },
    /// More than any message has.
    #[error("{code} with a payload of {size} bytes, at most {PAYLOAD_BYTES_MAX} are possible")]
    TooLong { code: Code, size: u32 },
    /// Not the size of this message.
    #[error("{code} with a payload of {size} bytes, which is not its size")]
    Size { code: Code, size: usize },
    /// Not the descriptors of this message.
    #[error("{code} with {found} descriptors, {expected} expected")]
    Fds {
        code: Code,
        found: usize,
        expected: usize,
    },
    /// A field with a value that means nothing.
    #[error("{code} with {field} {value:#x}, which has no meaning")]
    Value {
        code: Code,
        field: &'static str,
        value: u64,
    },
    /// Nobody has told the client that it could send this.
    #[error("{code} is not offered by this device")]
    NotOffered { code: Code },
}

/// What every message begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which message it is.
    pub code: Code,
    /// Whether the sender waits to hear that it is done.
    pub need_reply: bool,
    /// Size of the payload in bytes, at most [`PAYLOAD_BYTES_MAX`].
    pub size: usize,
}

impl Header {
    /// Reads the header of a request.
    ///
    /// # Errors
    /// [`MessageError`] if there is no use in reading on.
    pub fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Self, MessageError> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        let code = Code(u32::from_ne_bytes([a, b, c, d]));
        let flags = u32::from_ne_bytes([e, f, g, h]);
        let size = u32::from_ne_bytes([i, j, k, l]);
        if flags & VERSION_MASK != VERSION || flags & !(VERSION_MASK | FLAG_NEED_REPLY) != 0 {
            return Err(MessageError::Flags { code, flags });
        }
        match usize::try_from(size) {
            Ok(size) if size <= PAYLOAD_BYTES_MAX => Ok(Self {
                code,
                need_reply: flags & FLAG_NEED_REPLY != 0,
                size,
            }),
            _ => Err(MessageError::TooLong { code, size }),
        }
    }

    /// Whether the message has an answer of its own, so that it is never just acknowledged.
    pub fn has_answer(&self) -> bool {
        matches!(
            self.code.0,
            code::GET_FEATURES
                | code::GET_VRING_BASE
                | code::GET_PROTOCOL_FEATURES
                | code::GET_QUEUE_NUM
                | code::GET_CONFIG
                | code::GET_INFLIGHT_FD
                | code::GET_MAX_MEM_SLOTS
                | code::GET_STATUS
                | code::GET_VRING_BASE_SKIP_DRAIN
        )
    }
}

/// A number for a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringState {
    /// The queue, as the client says.
    pub index: u32,
    /// Size, base, or whether it is enabled.
    pub value: u32,
}

/// Where a ring is, in the client's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringAddr {
    /// The queue, as the client says.
    pub index: u32,
    /// Descriptor table.
    pub table: u64,
    /// Used ring.
    pub used: u64,
    /// Available ring.
    pub avail: u64,
}

/// A part of the configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigRange {
    /// First byte.
    pub offset: u32,
    /// Length in bytes, at most [`CONFIG_BYTES_MAX`].
    pub len: u32,
    /// Why it is written; handed back when it is read.
    pub flags: u32,
}

/// What the client says about an inflight region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inflight {
    /// The region.
    pub spec: inflight::RegionSpec,
    /// Whether the message has the padding that C compilers add, so that the answer gets it too.
    pub padded: bool,
}

/// A message of the front end with descriptors of type `F`.
#[derive(Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the specification")]
pub enum Message<F> {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<(RegionSpec, F)>),
    SetVringNum(VringState),
    SetVringAddr(VringAddr),
    SetVringBase(VringState),
    GetVringBase(u32),
    GetVringBaseSkipDrain(u32),
    SetVringKick(u16, Option<F>),
    SetVringCall(u16, Option<F>),
    SetVringErr(u16, Option<F>),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable(u32, bool),
    SetBackendReqFd(F),
    GetConfig(ConfigRange),
    SetConfig(ConfigRange, Vec<u8>),
    GetInflightFd(Inflight),
    SetInflightFd(Inflight, F),
    GetMaxMemSlots,
    AddMemReg(RegionSpec, F),
    RemMemReg(RegionSpec),
    SetStatus(u8),
    GetStatus,
}

/// Descriptors of a message, in their order.
pub type Fds<F> = SmallVec<[F; FDS_MAX]>;
