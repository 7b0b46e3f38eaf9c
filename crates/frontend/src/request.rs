//! Requests of a virtio block device and the shapes they can have in a ring.

use crate::protocol::{ID_BYTES, STATUS_OK, WRITE_ZEROES_UNMAP, request_type};
use crate::ring::Descriptor;
use crate::token::Token;

/// One range of a discard or write-zeroes request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First sector, of 512 bytes.
    pub sector: u64,
    /// Number of sectors, of 512 bytes.
    pub sectors: u32,
    /// The flags as they are sent; [`WRITE_ZEROES_UNMAP`] is the only valid one.
    pub flags: u32,
}

impl Segment {
    /// A range without flags.
    #[must_use]
    pub fn new(sector: u64, sectors: u32) -> Self {
        Self {
            sector,
            sectors,
            flags: 0,
        }
    }

    /// The same range, and the device may deallocate it (write-zeroes only).
    #[must_use]
    pub fn unmap(self) -> Self {
        Self {
            flags: self.flags | WRITE_ZEROES_UNMAP,
            ..self
        }
    }

    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.sectors.to_le_bytes());
        bytes[12..].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }
}

/// A request. Nothing is checked against the device's limits: a guest is free to ask for nonsense.
#[derive(Debug, Clone, Copy)]
pub enum Request<'a> {
    /// Read `len` bytes.
    Read {
        /// First sector, of 512 bytes.
        sector: u64,
        /// Bytes.
        len: u32,
    },
    /// Write.
    Write {
        /// First sector, of 512 bytes.
        sector: u64,
        /// What to write; copied into guest memory at once.
        data: &'a [u8],
    },
    /// Flush the write cache.
    Flush,
    /// Read the id string, 20 bytes padded with zeroes.
    GetId,
    /// Discard ranges.
    Discard(&'a [Segment]),
    /// Zero ranges.
    WriteZeroes(&'a [Segment]),
    /// A header of any type with an optional payload for the device to read.
    Other {
        /// Request type.
        kind: u32,
        /// Sector field of the header.
        sector: u64,
        /// What the device can read behind the header.
        payload: &'a [u8],
    },
    /// Descriptors exactly as given. See [`RawChain`].
    Raw(&'a RawChain),
}

/// A descriptor of a raw chain.
pub type RawDescriptor = Descriptor;

/// A chain that is put into the descriptor table as it is, right or wrong.
///
/// The buffers are the caller's, allocated with [`crate::GuestMemory::allocate`] or deliberately
/// elsewhere. Flags are literal. A `next` smaller than the number of descriptors is the position in
/// this list and is translated to the index in the table (so loops can be built); any other value is
/// literal.
#[derive(Debug, Clone, Default)]
pub struct RawChain {
    /// The descriptors; the first one is the head.
    pub descriptors: Vec<RawDescriptor>,
    /// Guest address of the status byte, if the chain has one. It is set to
    /// [`crate::protocol::STATUS_POISON`] at submission and read at completion.
    pub status: Option<u64>,
}

/// How a request is laid out in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of descriptors over which the data are spread, each with a buffer of its own.
    /// Used as 1 if there are fewer bytes.
    pub segments: u16,
    /// Use an indirect table. Ignored if that feature was not negotiated.
    pub indirect: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            segments: 1,
            indirect: false,
        }
    }
}

/// A completed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Which request.
    pub token: Token,
    /// The status byte; [`STATUS_OK`] for raw chains without one.
    pub status: u8,
    /// How many bytes the device says it has written.
    pub written: u32,
    /// What was read, for reads and GET_ID; empty if [`crate::Options::keep_read_data`] is off.
    pub data: Vec<u8>,
}

impl Completion {
    /// Whether the device says the request succeeded.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.status == STATUS_OK
    }
}

/// Which way the data of a request go.
#[derive(Debug, Clone)]
pub(crate) enum Data<'a> {
    None,
    /// Read by the device.
    Out(&'a [u8]),
    /// Segments, read by the device.
    Ranges(Vec<u8>),
    /// Written by the device: bytes.
    In(u32),
}

impl Data<'_> {
    pub fn len(&self) -> usize {
        match self {
            Data::None => 0,
            Data::Out(bytes) => bytes.len(),
            Data::Ranges(bytes) => bytes.len(),
            // usize has at least 32 bits on every supported target.
            Data::In(len) => *len as usize,
        }
    }

    /// The bytes for the device; empty if it is the device that writes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Data::None | Data::In(_) => &[],
            Data::Out(bytes) => bytes,
            Data::Ranges(bytes) => bytes,
        }
    }
}

impl<'a> Request<'a> {
    /// Type, sector and data of the request; `None` for raw chains.
    pub(crate) fn parts(&self) -> Option<(u32, u64, Data<'a>)> {
        let ranges = |segments: &[Segment]| {
            Data::Ranges(
                segments
                    .iter()
                    .flat_map(|segment| segment.to_bytes())
                    .collect(),
            )
        };
        Some(match *self {
            Request::Read { sector, len } => (request_type::IN, sector, Data::In(len)),
            Request::Write { sector, data } => (request_type::OUT, sector, Data::Out(data)),
            Request::Flush => (request_type::FLUSH, 0, Data::None),
            Request::GetId => (request_type::GET_ID, 0, Data::In(ID_BYTES)),
            Request::Discard(segments) => (request_type::DISCARD, 0, ranges(segments)),
            Request::WriteZeroes(segments) => (request_type::WRITE_ZEROES, 0, ranges(segments)),
            Request::Other {
                kind,
                sector,
                payload,
            } => (kind, sector, Data::Out(payload)),
            Request::Raw(_) => return None,
        })
    }
}

/// The 16 bytes of a request header.
pub(crate) fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// Lengths of `count` pieces of `len` bytes: whole sectors as far as possible, none empty.
pub(crate) fn split(len: usize, count: u16) -> impl Iterator<Item = usize> {
    let count = usize::from(count).clamp(1, len.max(1));
    let even = len / count;
    let even = if even >= 512 { even / 512 * 512 } else { even };
    let last = len - even * (count - 1);
    (0..count)
        .map(move |position| if position + 1 < count { even } else { last })
        .filter(|&piece| piece > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_data_without_an_empty_one() {
        for len in [0_usize, 1, 511, 512, 4096, 5000, 65536] {
            for count in [0_u16, 1, 2, 3, 7, 126] {
                let pieces: Vec<_> = split(len, count).collect();
                assert_eq!(pieces.iter().sum::<usize>(), len, "{len} in {count}");
                assert!(pieces.iter().all(|&piece| piece > 0));
                assert!(pieces.len() <= usize::from(count.max(1)));
                if len >= usize::from(count) && len > 0 && count > 0 {
                    assert_eq!(pieces.len(), usize::from(count));
                }
            }
        }
        assert_eq!(split(4096, 3).collect::<Vec<_>>(), [1024, 1024, 2048]);
    }

    #[test]
    fn ranges_have_the_layout_of_the_specification() {
        let segments = [Segment::new(0x0102, 0x03).unmap()];
        let (kind, sector, data) = Request::WriteZeroes(&segments).parts().unwrap();
        assert_eq!((kind, sector), (13, 0));
        assert_eq!(
            data.bytes(),
            [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0]
        );
        assert_eq!(header(4, 0x0506)[..10], [4, 0, 0, 0, 0, 0, 0, 0, 6, 5]);
    }
}
