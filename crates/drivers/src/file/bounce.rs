//! Bounce buffers: aligned memory for requests whose own buffers O_DIRECT does not take.
//!
//! Each thread keeps a bounded stock by size class, so that the steady state allocates nothing.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use libc::iovec;

/// Longest bounce buffer in bytes; longer requests go piece by piece.
pub const PIECE_MAX: usize = 1 << 20;

/// Alignment of each buffer: no storage is known to ask for more.
pub const ALIGNMENT: usize = 4096;

const CLASSES: usize = PIECE_MAX.ilog2() as usize - ALIGNMENT.ilog2() as usize + 1;

/// Bytes that one thread keeps in each class (at least one buffer).
const KEEP_BYTES: usize = 2 << 20;

thread_local! {
    static STOCK: RefCell<[Vec<Memory>; CLASSES]> = const { RefCell::new([const { Vec::new() }; CLASSES]) };
}

/// Memory with [`ALIGNMENT`], a power of two long.
struct Memory {
    address: NonNull<u8>,
    class: usize,
}

impl Memory {
    fn layout(class: usize) -> Layout {
        let size = ALIGNMENT << class;
        Layout::from_size_align(size, ALIGNMENT).expect("both are small powers of two")
    }

    fn allocate(class: usize) -> Option<Self> {
        // SAFETY: the layout is not empty. Zeroed, so that the bytes may be read whatever happens.
        let address = NonNull::new(unsafe { alloc_zeroed(Self::layout(class)) })?;
        Some(Self { address, class })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout, and nobody uses it any more.
        unsafe { dealloc(self.address.as_ptr(), Self::layout(self.class)) };
    }
}

/// A bounce buffer; goes back to the thread's stock when it is dropped.
pub struct Bounce {
    /// None only while it is being dropped.
    memory: Option<Memory>,
    bytes: usize,
}

impl Bounce {
    /// A buffer of `bytes` (1..=[`PIECE_MAX`]) with unspecified content; none if there is no memory.
    pub fn take(bytes: usize) -> Option<Self> {
        debug_assert!((1..=PIECE_MAX).contains(&bytes));
        let class = class_of(bytes);
        let stocked = STOCK.with_borrow_mut(|stock| stock.get_mut(class)?.pop());
        let memory = match stocked {
            Some(memory) => memory,
            None => Memory::allocate(class)?,
        };
        Some(Self {
            memory: Some(memory),
            bytes,
        })
    }

    /// The whole buffer as the kernel wants it.
    pub fn iovec(&mut self) -> iovec {
        iovec {
            iov_base: self.as_mut_ptr().cast(),
            iov_len: self.bytes,
        }
    }
}

fn class_of(bytes: usize) -> usize {
    let size = bytes.next_power_of_two().max(ALIGNMENT);
    (size.ilog2() - ALIGNMENT.ilog2()) as usize
}

impl Deref for Bounce {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            // SAFETY: the class holds at least `bytes`, all initialised; borrowed from `self`.
            Some(memory) => unsafe {
                std::slice::from_raw_parts(memory.address.as_ptr(), self.bytes)
            },
            None => &[],
        }
    }
}

impl DerefMut for Bounce {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            // SAFETY: as above, and the buffer is ours alone.
            Some(memory) => unsafe {
                std::slice::from_raw_parts_mut(memory.address.as_ptr(), self.bytes)
            },
            None => &mut [],
        }
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else {
            return;
        };
        // Without a stock the thread is ending.
        let _ = STOCK.try_with(|stock| {
            let mut stock = stock.borrow_mut();
            if let Some(list) = stock.get_mut(memory.class)
                && (list.len() + 1) * (ALIGNMENT << memory.class) <= KEEP_BYTES
            {
                list.push(memory);
            }
        });
    }
}

impl fmt::Debug for Bounce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounce")
            .field("bytes", &self.bytes)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_is_asked() {
        for bytes in [1, 511, 4096, 4097, 65536, PIECE_MAX - 1, PIECE_MAX] {
            let mut buffer = Bounce::take(bytes).expect("memory");
            assert_eq!(buffer.len(), bytes);
            assert_eq!(buffer.as_ptr().addr() % ALIGNMENT, 0);
            buffer.fill(0xaa);
        }
        assert_eq!(class_of(PIECE_MAX), CLASSES - 1);
    }

    #[test]
    fn steady_state_reuses_and_the_stock_is_bounded() {
        let first = Bounce::take(8000).expect("memory").as_ptr();
        for _ in 0..100 {
            assert_eq!(Bounce::take(8192).expect("memory").as_ptr(), first);
        }
        let many: Vec<_> = (0..8)
            .map(|_| Bounce::take(PIECE_MAX).expect("memory"))
            .collect();
        drop(many);
        let kept = STOCK.with_borrow(|stock| stock[CLASSES - 1].len());
        assert_eq!(kept, KEEP_BYTES / PIECE_MAX);
    }
}
