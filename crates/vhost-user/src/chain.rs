//! Descriptor chains: from a head index to the buffers they name. Total: any table, in any memory,
//! yields a bounded number of buffers or an error.

use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use crate::buffer::Buffer;

/// Most buffers in one chain; what one system call takes (IOV_MAX), and QEMU's bound.
pub const BUFFERS_MAX: usize = 1024;

const DESCRIPTOR_BYTES: u64 = 16;
const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;

/// A descriptor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Guest address of the first descriptor.
    pub address: u64,
    /// Number of descriptors.
    pub size: u16,
    /// Whether INDIRECT_DESC was negotiated.
    pub indirect: bool,
}

/// Why a chain cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// An index that is not in the table.
    #[error("descriptor index {index} in a table of {size}")]
    Index {
        /// The index.
        index: u16,
        /// Number of descriptors in the table.
        size: u32,
    },
    /// A descriptor that is not in guest memory.
    #[error("the descriptor at guest address {address:#x} is not in guest memory")]
    Unreadable {
        /// Its address.
        address: u64,
    },
    /// More descriptors than there can be without a loop.
    #[error("more than {max} descriptors in a chain: it has a loop, or is too long")]
    TooLong {
        /// How many there can be.
        max: usize,
    },
    /// An indirect table inside an indirect table, of no or of broken size, followed by another
    /// descriptor, or not negotiated.
    #[error(
        "an indirect table of {bytes} bytes that is empty, broken, misplaced or not negotiated"
    )]
    Indirect {
        /// Its size in bytes.
        bytes: u32,
    },
    /// A buffer for the device to read behind one for it to write.
    #[error("a readable descriptor behind a writable one")]
    Order,
}

/// Guest memory, as far as requests are read from it. It may change at any time: each load tells
/// what was there at that moment.
pub trait GuestBytes {
    /// See [`GuestBytes::units`].
    type Units<'a>: Units
    where
        Self: 'a;

    /// What can be had in one piece of `count` units of 16 bytes from a guest address on: none of
    /// them, all, or only the first. A descriptor is such a unit.
    fn units(&self, address: u64, count: u32) -> Self::Units<'_>;

    /// The 16 bytes from a guest address on, as two little-endian numbers, if all of them are in
    /// guest memory. A descriptor and a request's header are as long.
    fn load(&self, address: u64) -> Option<[u64; 2]>;

    /// The byte at a guest address.
    fn load_byte(&self, address: u64) -> Option<u8>;

    /// Whether the byte at a guest address is in guest memory.
    fn is_mapped(&self, address: u64) -> bool;
}

/// Units of 16 bytes one after the other, which need not be looked up one by one.
pub trait Units {
    /// The one at `index`, as two little-endian numbers, if it is among them.
    fn load(&self, index: u16) -> Option<[u64; 2]>;
}

/// Of memory in which everything is looked up: none.
impl Units for () {
    fn load(&self, _index: u16) -> Option<[u64; 2]> {
        None
    }
}

/// 16 bytes as two little-endian numbers.
pub(crate) fn words(bytes: [u8; 16]) -> [u64; 2] {
    let mut words = [0; 2];
    for (word, &bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(bytes);
    }
    words
}

impl<M: GuestMemory> GuestBytes for M {
    type Units<'a>
        = ()
    where
        Self: 'a;

    fn units(&self, _address: u64, _count: u32) {}

    fn load(&self, address: u64) -> Option<[u64; 2]> {
        let mut bytes = [0; 16];
        self.read_slice(&mut bytes, GuestAddress(address)).ok()?;
        Some(words(bytes))
    }

    fn load_byte(&self, address: u64) -> Option<u8> {
        self.read_obj(GuestAddress(address)).ok()
    }

    fn is_mapped(&self, address: u64) -> bool {
        self.check_range(GuestAddress(address), 1, Permissions::Write)
    }
}

#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn new([address, rest]: [u64; 2]) -> Self {
        let [l0, l1, l2, l3, f0, f1, n0, n1] = rest.to_le_bytes();
        Self {
            address,
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Descriptors that a chain can have without a loop in a table of `size`.
fn length_max(size: u32) -> usize {
    usize::try_from(size).map_or(BUFFERS_MAX, |size| size.min(BUFFERS_MAX))
}

/// The descriptor at `index` of a table that is not, or not up to there, in one piece.
#[cold]
fn load_far<M: GuestBytes>(memory: &M, base: u64, index: u16) -> Result<[u64; 2], ChainError> {
    let address = base
        .checked_add(u64::from(index) * DESCRIPTOR_BYTES)
        .ok_or(ChainError::Unreadable { address: base })?;
    memory
        .load(address)
        .ok_or(ChainError::Unreadable { address })
}

/// Calls `visit` with each buffer of the chain that begins at `head`, empty ones left out; the flag
/// says whether the device may write it. Buffers to be read come first.
///
/// The guest may write to the tables meanwhile: a descriptor is loaded once for each time the chain
/// comes to it, and what was loaded is what is judged and visited.
///
/// # Errors
/// [`ChainError`]; buffers before the fault have been visited.
#[inline]
pub fn walk<M: GuestBytes>(
    memory: &M,
    table: Table,
    head: u16,
    mut visit: impl FnMut(Buffer, bool),
) -> Result<(), ChainError> {
    let (mut base, mut size) = (table.address, u32::from(table.size));
    let mut units = memory.units(base, size);
    let mut left = length_max(size);
    let (mut indirect, mut writable) = (table.indirect, false);
    let mut index = head;
    loop {
        let near = units.load(index);
        if near.is_none() && u32::from(index) >= size {
            return Err(ChainError::Index { index, size });
        }
        left = match left.checked_sub(1) {
            Some(left) => left,
            None => {
                let max = length_max(size);
                return Err(ChainError::TooLong { max });
            }
        };
        let descriptor = Descriptor::new(match near {
            Some(loaded) => loaded,
            None => load_far(memory, base, index)?,
        });
        if descriptor.has(FLAG_INDIRECT) {
            let bytes = descriptor.len;
            let count = bytes / 16;
            if !indirect || descriptor.has(FLAG_NEXT) || count == 0 || !bytes.is_multiple_of(16) {
                return Err(ChainError::Indirect { bytes });
            }
            // The table may be larger than the queue (Linux goes by seg_max alone). There is none
            // inside it.
            (base, size, index, indirect) = (descriptor.address, count, 0, false);
            (units, left) = (memory.units(base, size), length_max(size));
            continue;
        }
        let writes = descriptor.has(FLAG_WRITE);
        if writable && !writes {
            return Err(ChainError::Order);
        }
        writable = writes;
        if descriptor.len > 0 {
            let buffer = Buffer {
                address: descriptor.address,
                len: descriptor.len,
            };
            visit(buffer, writes);
        }
        if !descriptor.has(FLAG_NEXT) {
            return Ok(());
        }
        index = descriptor.next;
    }
}

#[cfg(test)]
pub(crate) mod reference;

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryMmap;

    const TABLE: Table = Table {
        address: 0x1000,
        size: 4,
        indirect: true,
    };

    type Raw = (u64, u32, u16, u16);

    fn memory(at: u64, descriptors: &[Raw]) -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1000), 0x10000)]).unwrap();
        write(&memory, at, descriptors);
        memory
    }

    fn write(memory: &GuestMemoryMmap, at: u64, descriptors: &[Raw]) {
        for (place, &(address, len, flags, next)) in (0..).zip(descriptors) {
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            memory
                .write_slice(&bytes, GuestAddress(at + place * 16))
                .unwrap();
        }
    }

    fn buffers(memory: &GuestMemoryMmap, head: u16) -> Result<Vec<(u64, u32, bool)>, ChainError> {
        let mut found = Vec::new();
        walk(memory, TABLE, head, |buffer, writable| {
            found.push((buffer.address, buffer.len, writable));
        })?;
        Ok(found)
    }

    #[test]
    fn plain_chain_without_its_empty_buffers() {
        let memory = memory(
            0x1000,
            &[(1, 16, 1, 2), (9, 9, 0, 0), (2, 0, 1, 3), (3, 5, 2, 0)],
        );
        assert_eq!(buffers(&memory, 0), Ok(vec![(1, 16, false), (3, 5, true)]));
    }

    #[test]
    fn indirect_table_may_be_larger_than_the_queue() {
        let memory = memory(0x1000, &[(0x2000, 96, 4, 0)]);
        let inner: Vec<Raw> = (1..=6)
            .map(|n| (n, 1, u16::from(n < 6), u16::try_from(n).unwrap()))
            .collect();
        write(&memory, 0x2000, &inner);
        assert_eq!(buffers(&memory, 0).unwrap().len(), 6);
    }

    #[test]
    fn hostile_chains() {
        let cases: &[(&str, &[Raw], u16, ChainError)] = &[
            ("head", &[], 4, ChainError::Index { index: 4, size: 4 }),
            (
                "next",
                &[(1, 1, 1, 9)],
                0,
                ChainError::Index { index: 9, size: 4 },
            ),
            (
                "self loop",
                &[(1, 1, 1, 0)],
                0,
                ChainError::TooLong { max: 4 },
            ),
            (
                "loop",
                &[(1, 1, 1, 1), (1, 1, 1, 0)],
                0,
                ChainError::TooLong { max: 4 },
            ),
            ("order", &[(1, 1, 3, 1), (1, 1, 0, 0)], 0, ChainError::Order),
            (
                "empty table",
                &[(0x2000, 0, 4, 0)],
                0,
                ChainError::Indirect { bytes: 0 },
            ),
            (
                "odd table",
                &[(0x2000, 17, 4, 0)],
                0,
                ChainError::Indirect { bytes: 17 },
            ),
            (
                "table and next",
                &[(0x2000, 16, 5, 1)],
                0,
                ChainError::Indirect { bytes: 16 },
            ),
            (
                "nested",
                &[(0x1000, 16, 4, 0)],
                0,
                ChainError::Indirect { bytes: 16 },
            ),
            (
                "table elsewhere",
                &[(0, 16, 4, 0)],
                0,
                ChainError::Unreadable { address: 0 },
            ),
            (
                "table at the end",
                &[(u64::MAX - 8, 16, 4, 0)],
                0,
                ChainError::Unreadable {
                    address: u64::MAX - 8,
                },
            ),
        ];
        for (what, descriptors, head, expected) in cases {
            assert_eq!(
                buffers(&memory(0x1000, descriptors), *head),
                Err(*expected),
                "{what}"
            );
        }
        let huge = memory(0x1000, &[(0x2000, 0xffff_fff0, 4, 0)]);
        write(&huge, 0x2000, &[(1, 1, 1, 0)]);
        assert_eq!(
            buffers(&huge, 0),
            Err(ChainError::TooLong { max: BUFFERS_MAX })
        );
        let plain = Table {
            indirect: false,
            ..TABLE
        };
        assert!(walk(&memory(0x1000, &[(0x2000, 16, 4, 0)]), plain, 0, |_, _| ()).is_err());
    }
}
