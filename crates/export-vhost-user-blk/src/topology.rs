//! What the guest is told of the storage's geometry: advice, in the units of the configuration space.
//!
//! What does not fit there, or makes no sense, is left out: a guest must not be led to nonsense by a
//! device that tells some.

use block::Limits;

use crate::request::{DISCARD_SECTORS_MAX, SECTOR_BYTES};

/// Larger physical blocks are not believed, as by QEMU.
const PHYSICAL_BYTES_MAX: u32 = 2 << 20;

/// Fields of the configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Topology {
    /// Logical blocks per physical one, as an exponent of two.
    pub physical_block_exp: u8,
    /// Where the first physical block begins, in logical blocks.
    pub alignment_offset: u8,
    /// In logical blocks; 1 if nothing is known.
    pub min_io_size: u16,
    /// In logical blocks; 1 if nothing is known.
    pub opt_io_size: u32,
    /// In sectors of 512 bytes; a power of two.
    pub discard_sector_alignment: u32,
}

impl Topology {
    /// For logical blocks of `block` bytes, a power of two.
    pub fn of(limits: &Limits, block: u32) -> Self {
        let known = |bytes: u32| (bytes > 0 && bytes.is_multiple_of(block)).then(|| bytes / block);
        let believed = |bytes: u32| bytes.is_power_of_two() && bytes <= PHYSICAL_BYTES_MAX;
        let told = Some(limits.physical_block).filter(|bytes| believed(*bytes));
        let asked = Some(limits.request_alignment).filter(|bytes| believed(*bytes));
        // None is less than any.
        let physical = told.max(asked).unwrap_or(block).max(block);
        let exponent = physical.ilog2() - block.ilog2();
        let offset = known(limits.alignment_offset).filter(|_| limits.alignment_offset < physical);
        let minimum = known(limits.minimum_io);
        // A size that is no whole number of physical blocks cannot be the best.
        let optimal = known(limits.optimal_io)
            .filter(|_| limits.optimal_io.is_multiple_of(physical))
            .filter(|blocks| minimum.is_none_or(|minimum| blocks.is_multiple_of(minimum)));
        let sectors = u64::from(limits.discard_alignment.max(block)) / SECTOR_BYTES;
        let sectors = u32::try_from(sectors).unwrap_or(1);
        Self {
            physical_block_exp: u8::try_from(exponent).unwrap_or(0),
            alignment_offset: offset.and_then(|o| u8::try_from(o).ok()).unwrap_or(0),
            min_io_size: minimum.and_then(|m| u16::try_from(m).ok()).unwrap_or(1),
            opt_io_size: optimal.unwrap_or(1),
            // A unit that no single discard covers would never be discarded.
            discard_sector_alignment: sectors.min(DISCARD_SECTORS_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Topology = Topology {
        physical_block_exp: 0,
        alignment_offset: 0,
        min_io_size: 1,
        opt_io_size: 1,
        discard_sector_alignment: 1,
    };

    fn of(block: u32, change: impl FnOnce(&mut Limits)) -> Topology {
        let mut limits = Limits::default();
        change(&mut limits);
        Topology::of(&limits, block)
    }

    #[test]
    fn what_is_known_is_told() {
        assert_eq!(of(512, |_| {}), NOTHING);
        let raid = |limits: &mut Limits| {
            *limits = Limits {
                request_alignment: 512,
                physical_block: 4096,
                minimum_io: 64 << 10,
                optimal_io: 192 << 10,
                alignment_offset: 3584,
                discard_alignment: 1 << 20,
                ..*limits
            };
        };
        let told = Topology {
            physical_block_exp: 3,
            alignment_offset: 7,
            min_io_size: 128,
            opt_io_size: 384,
            discard_sector_alignment: 2048,
        };
        assert_eq!(of(512, raid), told);
        let in_large_blocks = Topology {
            physical_block_exp: 0,
            alignment_offset: 0,
            min_io_size: 16,
            opt_io_size: 48,
            ..told
        };
        assert_eq!(of(4096, raid), in_large_blocks);
        // A file with O_DIRECT: what is known is what requests must be.
        let file = of(512, |limits| limits.request_alignment = 4096);
        let blocks = Topology {
            physical_block_exp: 3,
            ..NOTHING
        };
        assert_eq!(file, blocks);
    }

    #[test]
    fn nonsense_is_not_told() {
        for nonsense in [0, 1, 511, 513, 3 << 20, 16 << 20, u32::MAX] {
            let told = of(512, |limits| {
                limits.physical_block = nonsense;
                limits.alignment_offset = nonsense;
            });
            assert_eq!(told, NOTHING, "{nonsense}");
        }
        let mixed = of(512, |limits| {
            limits.physical_block = 4096;
            // What some disks say, and no whole number of their blocks.
            limits.optimal_io = 0xffff * 512;
            limits.minimum_io = 0x1_0000 * 512;
            limits.alignment_offset = 4096;
            limits.discard_alignment = 1 << 31;
        });
        let left = Topology {
            physical_block_exp: 3,
            discard_sector_alignment: DISCARD_SECTORS_MAX,
            ..NOTHING
        };
        assert_eq!(mixed, left);
        let largest = of(512, |limits| limits.minimum_io = 0xffff * 512);
        assert_eq!(largest.min_io_size, 0xffff);
    }
}
