//! Requests: from a descriptor chain to what is to be done. Total and pure: any chain in any memory
//! yields what is to be done, or the verdict that the queue can no longer be trusted.

use block::Operation;
pub use vhost_user::Buffer;
pub use vhost_user::chain::{BUFFERS_MAX, ChainError, GuestBytes, Table};
use vhost_user::{FRONT_BYTES, Record, Totals, total};
use virtio_bindings::virtio_blk;

/// Success.
pub const STATUS_OK: u8 = 0;
/// The request failed.
pub const STATUS_IOERR: u8 = 1;
/// The device does not know such a request.
pub const STATUS_UNSUPP: u8 = 2;

/// Unit of the protocol, in bytes.
pub const SECTOR_BYTES: u64 = 512;
/// Length of the id string in bytes.
pub const ID_BYTES: usize = virtio_blk::VIRTIO_BLK_ID_BYTES as usize;
/// Longest read or write in bytes: what Linux transfers at once.
pub const TRANSFER_BYTES_MAX: u64 = 0x7fff_f000;
/// Longest discard in sectors.
pub const DISCARD_SECTORS_MAX: u32 = 32768;
/// Longest write-zeroes in sectors.
pub const WRITE_ZEROES_SECTORS_MAX: u32 = 32768;

/// What of the device decides about requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whether clients may write.
    pub writable: bool,
    /// Offsets and lengths are multiples of it; a power of two, at least 512.
    pub block_bytes: u32,
}

/// A request that was read: what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Execute it. The range has the right alignment, but may lie outside the disk; the data are
    /// in [`Taken::readable`] for writes and in [`Taken::writable`] for reads.
    Submit {
        /// What it does.
        op: Operation,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// Answer with the id string, into [`Taken::writable`].
    Identify,
    /// Answer with this status.
    Answer {
        /// The status.
        status: u8,
        /// What it would have been, if it is to be counted as invalid.
        invalid: Option<Operation>,
    },
}

/// What is remembered about a request that was taken, in guest addresses.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    record: Record,
    /// Guest address of the status byte; it was in guest memory when the request was parsed.
    pub status_address: u64,
    /// What the used element says: bytes the device may write, status included.
    pub written: u32,
}

impl Taken {
    /// What the device may read, behind the header.
    pub fn readable(&self) -> &[Buffer] {
        self.record.readable()
    }

    /// What the device may write, before the status byte.
    pub fn writable(&self) -> &[Buffer] {
        self.record.writable()
    }
}

impl AsRef<Record> for Taken {
    fn as_ref(&self) -> &Record {
        &self.record
    }
}

/// A chain to which no answer is possible: the driver is broken, its queue must not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The descriptors make no chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// There is no byte for the status.
    #[error("the chain has no writable status byte")]
    NoStatus,
    /// The status byte is not in guest memory.
    #[error("the status byte at guest address {address:#x} is not in guest memory")]
    StatusNotMapped {
        /// Its address.
        address: u64,
    },
}

/// Reads the request whose chain begins at `head` into `taken`.
///
/// # Errors
/// [`Malformed`]: the queue is broken. Faults that can be answered are a [`Parsed::Answer`].
pub fn parse<M: GuestBytes>(
    memory: &M,
    table: Table,
    head: u16,
    rules: Rules,
    taken: &mut Taken,
) -> Result<Parsed, Malformed> {
    let record = &mut taken.record;
    let Totals { readable, writable } = record.read_chain(memory, table, head)?;
    taken.written = u32::try_from(writable).unwrap_or(u32::MAX);
    let address = record.take_last().ok_or(Malformed::NoStatus)?;
    if !memory.is_mapped(address) {
        return Err(Malformed::StatusNotMapped { address });
    }
    taken.status_address = address;
    let Some(header) = record.take_front(memory) else {
        return Ok(refuse(STATUS_IOERR, None));
    };
    let [low, sector] = header;
    let [t0, t1, t2, t3, ..] = low.to_le_bytes();
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    // What is left without status and header.
    let (readable, writable) = (readable - u64::from(FRONT_BYTES), writable - 1);
    Ok(match kind {
        virtio_blk::VIRTIO_BLK_T_IN => transfer(Operation::Read, sector, writable, rules),
        virtio_blk::VIRTIO_BLK_T_OUT => transfer(Operation::Write, sector, readable, rules),
        virtio_blk::VIRTIO_BLK_T_FLUSH => Parsed::Submit {
            op: Operation::Flush,
            offset: 0,
            bytes: 0,
        },
        virtio_blk::VIRTIO_BLK_T_GET_ID => Parsed::Identify,
        virtio_blk::VIRTIO_BLK_T_DISCARD => segment(memory, record, Operation::Discard, rules),
        virtio_blk::VIRTIO_BLK_T_WRITE_ZEROES => {
            let op = Operation::WriteZeroes { unmap: false };
            segment(memory, record, op, rules)
        }
        _ => refuse(STATUS_UNSUPP, None),
    })
}

const fn refuse(status: u8, invalid: Option<Operation>) -> Parsed {
    Parsed::Answer { status, invalid }
}

const DONE: Parsed = refuse(STATUS_OK, None);

fn transfer(op: Operation, sector: u64, bytes: u64, rules: Rules) -> Parsed {
    let invalid = refuse(STATUS_IOERR, Some(op));
    let Some(offset) = sector.checked_mul(SECTOR_BYTES) else {
        return invalid;
    };
    // A block is a power of two.
    let rest = (offset | bytes) & (u64::from(rules.block_bytes) - 1);
    if bytes > TRANSFER_BYTES_MAX || rest != 0 || (op.modifies() && !rules.writable) {
        return invalid;
    }
    if bytes == 0 {
        return DONE;
    }
    Parsed::Submit { op, offset, bytes }
}

/// Discard or write-zeroes: exactly one segment, as the configuration space says.
#[inline(never)]
fn segment<M: GuestBytes>(memory: &M, record: &mut Record, op: Operation, rules: Rules) -> Parsed {
    if !rules.writable {
        return refuse(STATUS_IOERR, Some(op));
    }
    if total(record.readable()) > FRONT_BYTES.into() {
        return refuse(STATUS_UNSUPP, None);
    }
    let Some(bytes) = record.take_front(memory) else {
        return refuse(STATUS_IOERR, Some(op));
    };
    let [sector, rest] = bytes;
    let [n0, n1, n2, n3, f0, f1, f2, f3] = rest.to_le_bytes();
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    let unmap = flags & virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    let (op, max) = match op {
        Operation::WriteZeroes { .. } => {
            (Operation::WriteZeroes { unmap }, WRITE_ZEROES_SECTORS_MAX)
        }
        // The flag has no meaning for a discard; the specification wants it refused.
        _ if unmap => return refuse(STATUS_UNSUPP, None),
        op => (op, DISCARD_SECTORS_MAX),
    };
    if flags & !virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
        return refuse(STATUS_UNSUPP, None);
    }
    if sectors > max {
        return refuse(STATUS_IOERR, Some(op));
    }
    transfer(op, sector, u64::from(sectors) * SECTOR_BYTES, rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    const RULES: Rules = Rules {
        writable: true,
        block_bytes: 512,
    };
    const TABLE: Table = Table {
        address: 0,
        size: 8,
        indirect: true,
    };
    const DATA: u64 = 0x1000;

    /// Lays `readable` bytes out in pieces, then writable buffers, one descriptor each.
    fn chain(readable: &[&[u8]], writable: &[(u64, u32)]) -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let mut at = DATA;
        let mut buffers = Vec::new();
        for bytes in readable {
            memory.write_slice(bytes, GuestAddress(at)).unwrap();
            buffers.push((at, u32::try_from(bytes.len()).unwrap(), 0));
            at += 0x1000;
        }
        buffers.extend(writable.iter().map(|&(address, len)| (address, len, 2)));
        for (index, &(address, len, flags)) in buffers.iter().enumerate() {
            let index = u16::try_from(index).unwrap();
            let last = usize::from(index) + 1 == buffers.len();
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend((flags | u16::from(!last)).to_le_bytes());
            bytes.extend((index + 1).to_le_bytes());
            memory
                .write_slice(&bytes, GuestAddress(u64::from(index) * 16))
                .unwrap();
        }
        memory
    }

    fn header(kind: u32, sector: u64) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        bytes
    }

    fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    }

    fn parsed(memory: &GuestMemoryMmap, rules: Rules) -> (Result<Parsed, Malformed>, Taken) {
        let mut record = Taken::default();
        (parse(memory, TABLE, 0, rules, &mut record), record)
    }

    fn of(readable: &[&[u8]], writable: &[(u64, u32)]) -> Result<Parsed, Malformed> {
        parsed(&chain(readable, writable), RULES).0
    }

    const STATUS: (u64, u32) = (0x8000, 1);

    #[test]
    fn read_and_its_record() {
        let memory = chain(&[&header(0, 3)], &[(0x4000, 512), (0x5000, 512), STATUS]);
        let (found, record) = parsed(&memory, RULES);
        let (op, offset, bytes) = (Operation::Read, 1536, 1024);
        assert_eq!(found, Ok(Parsed::Submit { op, offset, bytes }));
        assert_eq!((record.status_address, record.written), (0x8000, 1025));
        assert_eq!((record.readable().len(), record.writable().len()), (0, 2));
    }

    #[test]
    fn header_data_and_status_in_any_layout() {
        let mut bytes = header(1, 0);
        bytes.extend([7; 512]);
        let (a, b) = bytes.split_at(5);
        let memory = chain(&[a, b], &[(0x4000, 3)]);
        let (found, record) = parsed(&memory, RULES);
        let (op, offset, bytes) = (Operation::Write, 0, 512);
        assert_eq!(found, Ok(Parsed::Submit { op, offset, bytes }));
        assert_eq!(
            record.readable(),
            [Buffer {
                address: DATA + 0x1000 + 11,
                len: 512
            }]
        );
        assert_eq!(record.status_address, 0x4002);
    }

    #[test]
    fn answers() {
        let data = [0; 512];
        let read = |sector| header(0, sector);
        let (wz, discard) = (header(13, 0), header(11, 0));
        let invalid = |op| Ok(refuse(STATUS_IOERR, Some(op)));
        let unsupported = Ok(refuse(STATUS_UNSUPP, None));
        let zeroes = |unmap| Operation::WriteZeroes { unmap };
        let submit = |op, offset, bytes| Ok(Parsed::Submit { op, offset, bytes });
        let (r0, r1, r2, r3) = (
            range(8, 16, 0),
            range(8, 16, 1),
            range(8, 16, 2),
            range(8, 32769, 0),
        );
        let (wild, two) = (
            range(u64::MAX, 1, 0),
            [range(0, 1, 0), range(1, 1, 0)].concat(),
        );
        for (what, readable, writable, expected) in [
            (
                "flush",
                vec![&header(4, 9)[..]],
                vec![STATUS],
                submit(Operation::Flush, 0, 0),
            ),
            (
                "id",
                vec![&header(8, 0)],
                vec![(0x4000, 20), STATUS],
                Ok(Parsed::Identify),
            ),
            ("unknown", vec![&header(2, 0)], vec![STATUS], unsupported),
            (
                "short header",
                vec![&header(0, 0)[..15]],
                vec![STATUS],
                Ok(refuse(STATUS_IOERR, None)),
            ),
            (
                "no header",
                vec![],
                vec![STATUS],
                Ok(refuse(STATUS_IOERR, None)),
            ),
            ("nothing to read", vec![&read(0)], vec![STATUS], Ok(DONE)),
            (
                "half a sector",
                vec![&read(0)],
                vec![(0x4000, 511), STATUS],
                invalid(Operation::Read),
            ),
            (
                "wrapping sector",
                vec![&read(1 << 55)],
                vec![(0x4000, 512), STATUS],
                invalid(Operation::Read),
            ),
            (
                "zeroes",
                vec![&wz, &r0],
                vec![STATUS],
                submit(zeroes(false), 4096, 8192),
            ),
            (
                "zeroes, unmap",
                vec![&wz, &r1],
                vec![STATUS],
                submit(zeroes(true), 4096, 8192),
            ),
            ("zeroes, flag", vec![&wz, &r2], vec![STATUS], unsupported),
            (
                "zeroes, too long",
                vec![&wz, &r3],
                vec![STATUS],
                invalid(zeroes(false)),
            ),
            (
                "discard",
                vec![&discard, &r0],
                vec![STATUS],
                submit(Operation::Discard, 4096, 8192),
            ),
            (
                "discard, unmap",
                vec![&discard, &r1],
                vec![STATUS],
                unsupported,
            ),
            (
                "discard, two",
                vec![&discard, &two],
                vec![STATUS],
                unsupported,
            ),
            (
                "discard, short",
                vec![&discard, &r0[..15]],
                vec![STATUS],
                invalid(Operation::Discard),
            ),
            (
                "discard, wrapping",
                vec![&discard, &wild],
                vec![STATUS],
                invalid(Operation::Discard),
            ),
            (
                "no status",
                vec![&header(1, 0), &data],
                vec![],
                Err(Malformed::NoStatus),
            ),
            (
                "status elsewhere",
                vec![&header(4, 0)],
                vec![(0x10000, 1)],
                Err(Malformed::StatusNotMapped { address: 0x10000 }),
            ),
            (
                "status wraps around",
                vec![&header(4, 0)],
                vec![(u64::MAX, 9)],
                Err(Malformed::StatusNotMapped { address: u64::MAX }),
            ),
        ] {
            assert_eq!(of(&readable, &writable), expected, "{what}");
        }
    }

    #[test]
    fn rules_of_the_device() {
        let read_only = Rules {
            writable: false,
            ..RULES
        };
        let zeroes = Operation::WriteZeroes { unmap: false };
        for (kind, op) in [
            (1, Operation::Write),
            (11, Operation::Discard),
            (13, zeroes),
        ] {
            let memory = chain(&[&header(kind, 0), &[0; 512]], &[STATUS]);
            assert_eq!(
                parsed(&memory, read_only).0,
                Ok(refuse(STATUS_IOERR, Some(op)))
            );
        }
        let blocks = Rules {
            block_bytes: 4096,
            ..RULES
        };
        for (sector, len, ok) in [(8, 4096, true), (1, 4096, false), (8, 512, false)] {
            let memory = chain(&[&header(0, sector)], &[(0x4000, len), STATUS]);
            let found = parsed(&memory, blocks).0;
            assert_eq!(
                matches!(found, Ok(Parsed::Submit { .. })),
                ok,
                "{sector} {len}"
            );
        }
        let huge = chain(&[&header(0, 0)], &[(0, u32::MAX), (0, u32::MAX), STATUS]);
        assert_eq!(
            parsed(&huge, RULES).0,
            Ok(refuse(STATUS_IOERR, Some(Operation::Read)))
        );
    }

    proptest! {
        #[test]
        fn any_memory_yields_a_bounded_result(
            bytes in proptest::collection::vec(any::<u8>(), 256),
            small in proptest::collection::vec((0u64..0x200, 0u32..64, 0u16..8, 0u16..9), 8),
            head in 0u16..10,
        ) {
            let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x200)]).unwrap();
            memory.write_slice(&bytes, GuestAddress(0x100)).unwrap();
            for (index, (address, len, flags, next)) in (0..).zip(small) {
                let mut raw = u64::to_le_bytes(address).to_vec();
                raw.extend(u32::to_le_bytes(len));
                raw.extend(u16::to_le_bytes(flags));
                raw.extend(u16::to_le_bytes(next));
                memory.write_slice(&raw, GuestAddress(index * 16)).unwrap();
            }
            let mut record = Taken::default();
            if let Ok(Parsed::Submit { op, offset, bytes }) = parse(&memory, TABLE, head, RULES, &mut record) {
                let data = match op {
                    Operation::Read => total(record.writable()),
                    Operation::Write => total(record.readable()),
                    _ => bytes,
                };
                prop_assert_eq!(data, bytes);
                prop_assert!(offset % 512 == 0 && bytes % 512 == 0 && offset.checked_add(bytes).is_some());
            }
            prop_assert!(record.readable().len() + record.writable().len() <= BUFFERS_MAX);
        }
    }
}
