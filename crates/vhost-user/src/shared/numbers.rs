//! Single numbers at any place of an area, for the other side, which tests play.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
#[cfg(test)]
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::Area;

macro_rules! load {
    ($name:ident $atomic:ident $number:ident) => {
        /// The little-endian number at `offset` bytes, which must be aligned and inside.
        pub fn $name(&self, offset: usize, order: Ordering) -> $number {
            $number::from_le(self.cells::<$atomic>(offset, 1)[0].load(order))
        }
    };
}

macro_rules! store {
    ($name:ident $atomic:ident $number:ident) => {
        /// Stores a little-endian number at `offset` bytes, which must be aligned and inside.
        pub fn $name(&self, offset: usize, value: $number, order: Ordering) {
            self.cells::<$atomic>(offset, 1)[0].store(value.to_le(), order);
        }
    };
}

impl Area {
    load!(load_u16 AtomicU16 u16);
    store!(store_u8 AtomicU8 u8);
    store!(store_u16 AtomicU16 u16);
}

#[cfg(test)]
impl Area {
    load!(load_u8 AtomicU8 u8);
    load!(load_u32 AtomicU32 u32);
    load!(load_u64 AtomicU64 u64);
    store!(store_u64 AtomicU64 u64);
}
