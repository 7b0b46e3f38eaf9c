//! Blocks that say who wrote them, where and when.
//!
//! Every byte of a block is decided by its [`Stamp`]: a header with the stamp itself, a stream of
//! numbers seeded with it, a checksum at the end. So a block read back tells whether it is whole
//! (not *torn* between two writes), at its place (not *misplaced*) and the newest (neither *stale*
//! nor *lost*), without keeping what was written.

use crate::rng::Rng;

/// First bytes of every stamped block.
const MAGIC: u64 = u64::from_le_bytes(*b"stndfast");
/// Bytes of magic and stamp.
const HEADER_BYTES: usize = 32;
/// Granularity at which a device writes all or nothing.
pub const SECTOR_BYTES: usize = 512;

/// Who wrote a block, where, when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Number of the request.
    pub request: u64,
    /// Byte offset on the disk at which the block belongs.
    pub offset: u64,
    /// How often this block had been written, this time included.
    pub generation: u64,
}

/// What a block contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// Only zeroes.
    Zeroes,
    /// A write with this stamp.
    Stamped(Stamp),
}

/// What is wrong with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternFault {
    /// The block does not begin as a stamped one does, and is not zero.
    #[error("offset {offset:#x}: not a stamped block, it begins with {begins:#018x}")]
    Foreign {
        /// Where it was read.
        offset: u64,
        /// First 8 bytes, little-endian.
        begins: u64,
    },
    /// The block is not whole: header and body disagree.
    #[error("offset {offset:#x}: torn: byte {byte} does not belong to the header's {header:?}")]
    Torn {
        /// Where it was read.
        offset: u64,
        /// What the header says.
        header: Stamp,
        /// First byte that does not fit, from the beginning of the block.
        byte: usize,
    },
    /// A whole block that belongs elsewhere.
    #[error("offset {offset:#x}: misplaced: {found:?}")]
    Misplaced {
        /// Where it was read.
        offset: u64,
        /// The stamp found.
        found: Stamp,
    },
    /// A whole block at its place that has been overwritten since.
    #[error("offset {offset:#x}: stale: {found:?} instead of {expected:?}")]
    Stale {
        /// Where it was read.
        offset: u64,
        /// What is there.
        found: Content,
        /// What should be there.
        expected: Content,
    },
    /// Zeroes where a write should be.
    #[error("offset {offset:#x}: lost: zeroes instead of {expected:?}")]
    Lost {
        /// Where it was read.
        offset: u64,
        /// What should be there.
        expected: Content,
    },
}

/// The pattern for blocks of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    block_bytes: usize,
}

impl Pattern {
    /// Blocks of 512 bytes.
    pub const SECTOR: Self = Self {
        block_bytes: SECTOR_BYTES,
    };
    /// Blocks of 4096 bytes.
    pub const PAGE: Self = Self { block_bytes: 4096 };

    /// Size of a block in bytes.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        self.block_bytes
    }

    /// A block with this content.
    #[must_use]
    pub fn block(self, content: Content) -> Vec<u8> {
        let mut block = vec![0; self.block_bytes];
        if let Content::Stamped(stamp) = content {
            self.fill(&mut block, stamp);
        }
        block
    }

    /// Fills one block.
    ///
    /// # Panics
    /// If `block` has another size.
    pub fn fill(self, block: &mut [u8], stamp: Stamp) {
        assert_eq!(block.len(), self.block_bytes, "one block");
        let words = [MAGIC, stamp.request, stamp.offset, stamp.generation];
        let mut seed = 0;
        let (header, body) = block.split_at_mut(HEADER_BYTES);
        for (bytes, word) in header.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
            seed = Rng::new(seed ^ word).next_u64();
        }
        // A linear congruential stream: two operations per word, as tests run unoptimised.
        let (mut word, mut checksum) = (seed, seed);
        let last = body.len() - 8;
        let (body, tail) = body.split_at_mut(last);
        for bytes in body.chunks_exact_mut(8) {
            word = word
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            checksum ^= word;
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        tail.copy_from_slice(&checksum.to_le_bytes());
    }

    /// What a block read at `offset` contains, if it is whole and belongs there.
    ///
    /// # Errors
    /// [`PatternFault::Foreign`], [`PatternFault::Torn`] or [`PatternFault::Misplaced`].
    ///
    /// # Panics
    /// If `block` has another size.
    pub fn identify(self, block: &[u8], offset: u64) -> Result<Content, PatternFault> {
        assert_eq!(block.len(), self.block_bytes, "one block");
        // Whole slices are compared first: byte by byte is slow in unoptimised tests.
        if block == vec![0; block.len()] {
            return Ok(Content::Zeroes);
        }
        let [magic, request, at, generation] = [0, 8, 16, 24].map(|start| word(block, start));
        if magic != MAGIC {
            return Err(PatternFault::Foreign {
                offset,
                begins: magic,
            });
        }
        let header = Stamp {
            request,
            offset: at,
            generation,
        };
        let whole = self.block(Content::Stamped(header));
        if let Some(byte) = block
            .iter()
            .zip(&whole)
            .position(|(found, right)| found != right)
        {
            return Err(PatternFault::Torn {
                offset,
                header,
                byte,
            });
        }
        if at != offset {
            return Err(PatternFault::Misplaced {
                offset,
                found: header,
            });
        }
        Ok(Content::Stamped(header))
    }

    /// Checks that a block read at `offset` contains exactly `expected`.
    ///
    /// # Errors
    /// What is wrong with it.
    ///
    /// # Panics
    /// If `block` has another size.
    pub fn verify(self, block: &[u8], offset: u64, expected: Content) -> Result<(), PatternFault> {
        match self.identify(block, offset)? {
            found if found == expected => Ok(()),
            Content::Zeroes => Err(PatternFault::Lost { offset, expected }),
            found => Err(PatternFault::Stale {
                offset,
                found,
                expected,
            }),
        }
    }
}

/// The little-endian word at `start`.
fn word(block: &[u8], start: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[start..start + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Stamp = Stamp {
        request: 4,
        offset: 8192,
        generation: 1,
    };
    const NEW: Stamp = Stamp {
        request: 9,
        offset: 8192,
        generation: 2,
    };

    #[test]
    fn a_whole_block_identifies_itself() {
        for pattern in [Pattern::SECTOR, Pattern::PAGE] {
            let block = pattern.block(Content::Stamped(NEW));
            assert_eq!(pattern.identify(&block, 8192), Ok(Content::Stamped(NEW)));
            assert_eq!(pattern.verify(&block, 8192, Content::Stamped(NEW)), Ok(()));
            let zeroes = vec![0; pattern.block_bytes()];
            assert_eq!(pattern.verify(&zeroes, 8192, Content::Zeroes), Ok(()));
        }
    }

    #[test]
    fn each_kind_of_damage_has_its_name() {
        let pattern = Pattern::PAGE;
        let expected = Content::Stamped(NEW);
        let (old, new) = (
            pattern.block(Content::Stamped(OLD)),
            pattern.block(expected),
        );
        let verify = |block: &[u8], offset| pattern.verify(block, offset, expected).unwrap_err();

        assert!(matches!(
            verify(&vec![0; 4096], 8192),
            PatternFault::Lost { .. }
        ));
        assert!(matches!(verify(&old, 8192), PatternFault::Stale { .. }));
        assert!(matches!(verify(&new, 4096), PatternFault::Misplaced { .. }));
        assert!(matches!(
            verify(&vec![7; 4096], 8192),
            PatternFault::Foreign { .. }
        ));
        for sector in 1..8 {
            let torn = [&new[..sector * 512], &old[sector * 512..]].concat();
            let fault = verify(&torn, 8192);
            assert_eq!(
                fault,
                PatternFault::Torn {
                    offset: 8192,
                    header: NEW,
                    byte: sector * 512
                }
            );
        }
    }

    #[test]
    fn a_single_flipped_bit_is_found_wherever_it_is() {
        let block = Pattern::SECTOR.block(Content::Stamped(NEW));
        for bit in 0..block.len() * 8 {
            let mut damaged = block.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Pattern::SECTOR
                    .verify(&damaged, 8192, Content::Stamped(NEW))
                    .is_err()
            );
        }
    }
}
