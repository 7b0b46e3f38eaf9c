//! Messages as bytes.
//!
//! Numbers are in the byte order of the machine, as both sides run on the same one. A message has
//! exactly the size that belongs to it and exactly the descriptors, or it is refused: what is read
//! into the bytes that are there would be a guess.

use std::fmt;

use smallvec::SmallVec;

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

const CONFIG_HEADER_BYTES: usize = 12;
const INFLIGHT_BYTES: usize = 20;
const VERSION_MASK: u32 = 0x3;
const VERSION: u32 = 0x1;
const FLAG_REPLY: u32 = 0x4;
const FLAG_NEED_REPLY: u32 = 0x8;
/// In a vring descriptor message: there is no descriptor.
const NO_FD: u64 = 0x100;
const INDEX_MASK: u64 = 0xff;

/// Request codes of the front end.
mod code {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
    pub const GET_VRING_BASE_SKIP_DRAIN: u32 = 45;
}

/// Request code of the back end: the configuration space has changed.
const BACKEND_CONFIG_CHANGE: u32 = 2;

/// Names by code, the first one being 1; those we do not offer are here for their error messages.
const NAMES: [&str; 45] = [
    "GET_FEATURES",
    "SET_FEATURES",
    "SET_OWNER",
    "RESET_OWNER",
    "SET_MEM_TABLE",
    "SET_LOG_BASE",
    "SET_LOG_FD",
    "SET_VRING_NUM",
    "SET_VRING_ADDR",
    "SET_VRING_BASE",
    "GET_VRING_BASE",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ERR",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "GET_QUEUE_NUM",
    "SET_VRING_ENABLE",
    "SEND_RARP",
    "NET_SET_MTU",
    "SET_BACKEND_REQ_FD",
    "IOTLB_MSG",
    "SET_VRING_ENDIAN",
    "GET_CONFIG",
    "SET_CONFIG",
    "CREATE_CRYPTO_SESSION",
    "CLOSE_CRYPTO_SESSION",
    "POSTCOPY_ADVISE",
    "POSTCOPY_LISTEN",
    "POSTCOPY_END",
    "GET_INFLIGHT_FD",
    "SET_INFLIGHT_FD",
    "GPU_SET_SOCKET",
    "RESET_DEVICE",
    "VRING_KICK",
    "GET_MAX_MEM_SLOTS",
    "ADD_MEM_REG",
    "REM_MEM_REG",
    "SET_STATUS",
    "GET_STATUS",
    "GET_SHARED_OBJECT",
    "SET_DEVICE_STATE_FD",
    "CHECK_DEVICE_STATE",
    "GET_SHMEM_CONFIG",
    "GET_VRING_BASE_SKIP_DRAIN",
];

/// Which message it is, by its code; shown by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index = usize::try_from(self.0.wrapping_sub(1)).unwrap_or(usize::MAX);
        match NAMES.get(index) {
            Some(name) => f.write_str(name),
            None => write!(f, "message {}", self.0),
        }
    }
}

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

/// Reads a message. Descriptors that are not part of the result are dropped.
///
/// # Errors
/// [`MessageError`] names the message and what is wrong with it.
pub fn decode<F>(header: Header, payload: &[u8], fds: Fds<F>) -> Result<Message<F>, MessageError> {
    let mut body = Body {
        code: header.code,
        size: payload.len(),
        left: payload,
        found: fds.len(),
        fds: fds.into_iter(),
    };
    let message = body.message()?;
    body.end()?;
    Ok(message)
}

/// A message that is being read: everything must be used up in the end.
struct Body<'a, F> {
    code: Code,
    size: usize,
    left: &'a [u8],
    found: usize,
    fds: smallvec::IntoIter<[F; FDS_MAX]>,
}

impl<F> Body<'_, F> {
    fn message(&mut self) -> Result<Message<F>, MessageError> {
        Ok(match self.code.0 {
            code::GET_FEATURES => Message::GetFeatures,
            code::SET_FEATURES => Message::SetFeatures(self.u64()?),
            code::SET_OWNER => Message::SetOwner,
            code::RESET_OWNER => Message::ResetOwner,
            code::SET_MEM_TABLE => Message::SetMemTable(self.mem_table()?),
            code::SET_VRING_NUM => Message::SetVringNum(self.vring_state()?),
            code::SET_VRING_ADDR => Message::SetVringAddr(self.vring_addr()?),
            code::SET_VRING_BASE => Message::SetVringBase(self.vring_state()?),
            code::GET_VRING_BASE => Message::GetVringBase(self.vring_state()?.index),
            code::GET_VRING_BASE_SKIP_DRAIN => {
                Message::GetVringBaseSkipDrain(self.vring_state()?.index)
            }
            code::SET_VRING_KICK => self.vring_fd(Message::SetVringKick)?,
            code::SET_VRING_CALL => self.vring_fd(Message::SetVringCall)?,
            code::SET_VRING_ERR => self.vring_fd(Message::SetVringErr)?,
            code::GET_PROTOCOL_FEATURES => Message::GetProtocolFeatures,
            code::SET_PROTOCOL_FEATURES => Message::SetProtocolFeatures(self.u64()?),
            code::GET_QUEUE_NUM => Message::GetQueueNum,
            code::SET_VRING_ENABLE => {
                let VringState { index, value } = self.vring_state()?;
                match value {
                    0 | 1 => Message::SetVringEnable(index, value == 1),
                    _ => return Err(self.value("state", value.into())),
                }
            }
            code::SET_BACKEND_REQ_FD => Message::SetBackendReqFd(self.fd()?),
            code::GET_CONFIG => {
                let range = self.config_range()?;
                // The space that the answer will need; not everybody sends it.
                if !self.left.is_empty() {
                    self.bytes(range.len)?;
                }
                Message::GetConfig(range)
            }
            code::SET_CONFIG => {
                let range = self.config_range()?;
                Message::SetConfig(range, self.bytes(range.len)?.to_vec())
            }
            code::GET_INFLIGHT_FD => Message::GetInflightFd(self.inflight()?),
            code::SET_INFLIGHT_FD => Message::SetInflightFd(self.inflight()?, self.fd()?),
            code::GET_MAX_MEM_SLOTS => Message::GetMaxMemSlots,
            code::ADD_MEM_REG => Message::AddMemReg(self.padded_region()?, self.fd()?),
            code::REM_MEM_REG => {
                let region = self.padded_region()?;
                // Front ends of old send one, which must be closed.
                drop(self.fds.next());
                Message::RemMemReg(region)
            }
            code::SET_STATUS => {
                let status = self.u64()?;
                let byte = u8::try_from(status).map_err(|_| self.value("status", status))?;
                Message::SetStatus(byte)
            }
            code::GET_STATUS => Message::GetStatus,
            _ => return Err(MessageError::NotOffered { code: self.code }),
        })
    }

    fn end(self) -> Result<(), MessageError> {
        if !self.left.is_empty() {
            return Err(self.wrong_size());
        }
        match self.fds.len() {
            0 => Ok(()),
            left => Err(MessageError::Fds {
                code: self.code,
                found: self.found,
                expected: self.found - left,
            }),
        }
    }

    fn wrong_size(&self) -> MessageError {
        MessageError::Size {
            code: self.code,
            size: self.size,
        }
    }

    fn value(&self, field: &'static str, value: u64) -> MessageError {
        MessageError::Value {
            code: self.code,
            field,
            value,
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        match self.left.split_first_chunk() {
            Some((array, left)) => {
                self.left = left;
                Ok(*array)
            }
            None => Err(self.wrong_size()),
        }
    }

    fn bytes(&mut self, len: u32) -> Result<&[u8], MessageError> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        match self.left.split_at_checked(len) {
            Some((bytes, left)) => {
                self.left = left;
                Ok(bytes)
            }
            None => Err(self.wrong_size()),
        }
    }

    fn u16(&mut self) -> Result<u16, MessageError> {
        self.array().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, MessageError> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, MessageError> {
        self.array().map(u64::from_ne_bytes)
    }

    fn fd(&mut self) -> Result<F, MessageError> {
        self.fds.next().ok_or(MessageError::Fds {
            code: self.code,
            found: self.found,
            expected: self.found + 1,
        })
    }

    fn vring_state(&mut self) -> Result<VringState, MessageError> {
        Ok(VringState {
            index: self.u32()?,
            value: self.u32()?,
        })
    }

    fn vring_addr(&mut self) -> Result<VringAddr, MessageError> {
        let (index, flags) = (self.u32()?, self.u32()?);
        let (table, used, avail, _log) = (self.u64()?, self.u64()?, self.u64()?, self.u64()?);
        // The only flag asks for a log of what is written, which is not offered.
        if flags != 0 {
            return Err(self.value("flags", flags.into()));
        }
        for (field, address, align) in [
            ("descriptor table", table, 16),
            ("used ring", used, 4),
            ("available ring", avail, 2),
        ] {
            if !address.is_multiple_of(align) {
                return Err(self.value(field, address));
            }
        }
        Ok(VringAddr {
            index,
            table,
            used,
            avail,
        })
    }

    fn vring_fd(
        &mut self,
        message: impl FnOnce(u16, Option<F>) -> Message<F>,
    ) -> Result<Message<F>, MessageError> {
        let value = self.u64()?;
        if value & !(INDEX_MASK | NO_FD) != 0 {
            return Err(self.value("value", value));
        }
        let fd = match value & NO_FD {
            0 => Some(self.fd()?),
            _ => None,
        };
        let [index, ..] = value.to_le_bytes();
        Ok(message(index.into(), fd))
    }

    fn region(&mut self) -> Result<RegionSpec, MessageError> {
        Ok(RegionSpec {
            guest_address: self.u64()?,
            bytes: self.u64()?,
            user_address: self.u64()?,
            file_offset: self.u64()?,
        })
    }

    fn padded_region(&mut self) -> Result<RegionSpec, MessageError> {
        self.u64()?;
        self.region()
    }

    fn mem_table(&mut self) -> Result<Vec<(RegionSpec, F)>, MessageError> {
        let (count, _padding) = (self.u32()?, self.u32()?);
        if count == 0 || usize::try_from(count).is_ok_and(|count| count > FDS_MAX) {
            return Err(self.value("number of regions", count.into()));
        }
        (0..count)
            .map(|_| Ok((self.region()?, self.fd()?)))
            .collect()
    }

    fn config_range(&mut self) -> Result<ConfigRange, MessageError> {
        let (offset, len, flags) = (self.u32()?, self.u32()?, self.u32()?);
        if usize::try_from(len).is_ok_and(|len| len > CONFIG_BYTES_MAX) {
            return Err(self.value("size", len.into()));
        }
        Ok(ConfigRange { offset, len, flags })
    }

    fn inflight(&mut self) -> Result<Inflight, MessageError> {
        let spec = inflight::RegionSpec {
            bytes: self.u64()?,
            offset: self.u64()?,
            queues: self.u16()?,
            queue_size: self.u16()?,
        };
        let padded = !self.left.is_empty();
        if padded {
            self.u32()?;
        }
        if spec.queues == 0 || spec.queue_size == 0 {
            return Err(self.value("number or size of queues", 0));
        }
        Ok(Inflight { spec, padded })
    }
}

/// What a message is answered with.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<F> {
    /// Nothing but that it is done, if the client wants to hear that.
    Done,
    /// It cannot be done, if the client wants to hear that.
    Failed,
    /// A number.
    Number(u64),
    /// GET_VRING_BASE.
    VringBase(VringState),
    /// A part of the configuration space.
    Config(ConfigRange, Vec<u8>),
    /// A fresh inflight region.
    Inflight(Inflight, F),
}

impl<F> Answer<F> {
    /// The bytes to send, with the descriptor that goes along; none if nothing is to be sent.
    pub fn encode(self, to: Header) -> Option<(Vec<u8>, Option<F>)> {
        let number = u64::to_ne_bytes;
        let (payload, fd) = match self {
            Self::Done | Self::Failed if !to.need_reply => return None,
            Self::Done => (number(0).to_vec(), None),
            Self::Failed => (number(1).to_vec(), None),
            Self::Number(value) => (number(value).to_vec(), None),
            Self::VringBase(state) => (words(&[state.index, state.value]), None),
            Self::Config(range, mut bytes) => {
                let mut payload = words(&[range.offset, range.len, range.flags]);
                payload.append(&mut bytes);
                (payload, None)
            }
            Self::Inflight(Inflight { spec, padded }, fd) => {
                let mut payload = Vec::with_capacity(INFLIGHT_BYTES + 4);
                payload.extend(number(spec.bytes));
                payload.extend(number(spec.offset));
                payload.extend(spec.queues.to_ne_bytes());
                payload.extend(spec.queue_size.to_ne_bytes());
                if padded {
                    payload.extend([0; 4]);
                }
                (payload, Some(fd))
            }
        };
        Some((reply(to.code, &payload), fd))
    }
}

/// What a client hears that waits for a message to be done, if it cannot be; none if it has been
/// promised another answer, or none at all.
pub fn refusal(to: Header) -> Option<Vec<u8>> {
    (to.need_reply && !to.has_answer()).then(|| reply(to.code, &1_u64.to_ne_bytes()))
}

/// The message that tells the client to read the configuration space again.
pub fn config_change() -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&BACKEND_CONFIG_CHANGE.to_ne_bytes());
    bytes[4..8].copy_from_slice(&VERSION.to_ne_bytes());
    bytes
}

fn reply(code: Code, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = words(&[code.0, VERSION | FLAG_REPLY, size]);
    bytes.extend_from_slice(payload);
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[cfg(test)]
mod tests;
