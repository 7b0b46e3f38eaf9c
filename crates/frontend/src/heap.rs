//! The allocator of guest memory.
//!
//! Sizes are rounded up to powers of two. Freed blocks wait in a list per size, so that the steady
//! state of a benchmark costs a push and a pop; only when nothing fits are the lists merged back
//! into contiguous ranges.

use std::collections::BTreeMap;

/// Smallest block and smallest alignment, in bytes.
const BLOCK_MIN: u64 = 64;
/// Largest alignment, in bytes.
const ALIGN_MAX: u64 = 4096;

/// An allocated range of guest memory. Give it back with [`crate::GuestMemory::free`], or keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    address: u64,
    len: u64,
}

impl Block {
    /// Guest address of the first byte.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes, at least what was asked for.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it is empty, which it never is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[derive(Debug)]
pub(crate) struct Heap {
    /// Contiguous free ranges: address to length.
    ranges: BTreeMap<u64, u64>,
    /// Freed blocks by the logarithm of their size.
    lists: Vec<Vec<u64>>,
}

impl Heap {
    pub fn new() -> Self {
        Self {
            ranges: BTreeMap::new(),
            lists: vec![Vec::new(); 64],
        }
    }

    /// Makes a range available. It must not touch any range that is already known.
    pub fn add(&mut self, address: u64, len: u64) {
        self.ranges.insert(address, len);
    }

    pub fn allocate(&mut self, len: u64) -> Option<Block> {
        let len = len.max(BLOCK_MIN).checked_next_power_of_two()?;
        if let Some(address) = self.list(len).pop() {
            return Some(Block { address, len });
        }
        if let Some(block) = self.carve(len) {
            return Some(block);
        }
        self.merge();
        self.carve(len)
    }

    pub fn free(&mut self, block: Block) {
        self.list(block.len).push(block.address);
    }

    fn list(&mut self, len: u64) -> &mut Vec<u64> {
        // A logarithm of a u64 is at most 63.
        &mut self.lists[len.ilog2() as usize]
    }

    /// Takes a block from the first range in which it fits.
    fn carve(&mut self, len: u64) -> Option<Block> {
        let align = len.min(ALIGN_MAX);
        let (start, range, address) = self.ranges.iter().find_map(|(&start, &range)| {
            let address = start.next_multiple_of(align);
            (address + len <= start + range).then_some((start, range, address))
        })?;
        self.ranges.remove(&start);
        if address > start {
            self.ranges.insert(start, address - start);
        }
        let end = address + len;
        if start + range > end {
            self.ranges.insert(end, start + range - end);
        }
        Some(Block { address, len })
    }

    /// Returns all freed blocks to the ranges and joins neighbours.
    fn merge(&mut self) {
        for (order, list) in self.lists.iter_mut().enumerate() {
            for address in list.drain(..) {
                self.ranges.insert(address, 1 << order);
            }
        }
        let mut joined: BTreeMap<u64, u64> = BTreeMap::new();
        for (start, len) in std::mem::take(&mut self.ranges) {
            match joined.last_entry() {
                Some(mut last) if last.key() + last.get() == start => *last.get_mut() += len,
                _ => {
                    joined.insert(start, len);
                }
            }
        }
        self.ranges = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_and_disjoint_and_the_last_byte_is_used() {
        let mut heap = Heap::new();
        heap.add(0x1040, 0x10000 - 0x1040);
        let mut taken = Vec::new();
        for len in [4096, 100, 4096, 1, 8192, 513] {
            let block = heap.allocate(len).unwrap();
            assert!(block.len() >= len);
            assert_eq!(block.address() % block.len().min(4096), 0);
            taken.push(block);
        }
        while let Some(block) = heap.allocate(64) {
            taken.push(block);
        }
        let total: u64 = taken.iter().map(Block::len).sum();
        assert_eq!(total, 0x10000 - 0x1040);
        taken.sort_by_key(Block::address);
        assert!(
            taken
                .windows(2)
                .all(|two| two[0].address() + two[0].len() == two[1].address())
        );
    }

    #[test]
    fn small_freed_blocks_become_large_ones_again() {
        let mut heap = Heap::new();
        heap.add(0x10_0000, 0x10_0000);
        let small: Vec<_> = std::iter::from_fn(|| heap.allocate(4096)).collect();
        assert_eq!(small.len(), 256);
        assert!(heap.allocate(1).is_none());
        for block in small {
            heap.free(block);
        }
        assert!(heap.allocate(0x10_0000).is_some());
        assert!(heap.allocate(1).is_none());
    }
}
