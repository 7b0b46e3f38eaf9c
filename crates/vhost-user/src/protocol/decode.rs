//! Bytes to messages.
//!
//! Numbers are in the byte order of the machine, as both sides run on the same one. A message has
//! exactly the size that belongs to it and exactly the descriptors, or it is refused: what is read
//! into the bytes that are there would be a guess.

use super::code::{self, Code};
use super::message::{
    CONFIG_BYTES_MAX, ConfigRange, FDS_MAX, Fds, Header, Inflight, Message, MessageError,
    VringAddr, VringState,
};
use crate::inflight;
use crate::memory::RegionSpec;

/// In a vring descriptor message: there is no descriptor.
const NO_FD: u64 = 0x100;
const INDEX_MASK: u64 = 0xff;

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
