//! Memory of our own to read into and write from: aligned as storage may want it.
//!
//! Each thread keeps a bounded stock by size class, so that the steady state allocates nothing.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use libc::iovec;

use crate::driver::buffers::Buffers;
use crate::words::error::{BlockError, Result};

/// Longest buffer in bytes that is kept for the next one who wants it. Who has more to move does it
/// piece by piece.
pub const PIECE_MAX: usize = 1 << 20;

/// Alignment of each buffer in bytes: no storage is known to ask for more.
pub const ALIGNMENT: usize = 4096;

const CLASSES: usize = PIECE_MAX.ilog2() as usize - ALIGNMENT.ilog2() as usize + 1;

/// Bytes that one thread keeps in each class (at least one buffer).
const KEEP_BYTES: usize = 2 << 20;

thread_local! {
    static STOCK: RefCell<[Vec<Memory>; CLASSES]> = const { RefCell::new([const { Vec::new() }; CLASSES]) };
}

/// Memory with [`ALIGNMENT`], all of it initialised.
struct Memory {
    address: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is memory and nothing else.
unsafe impl Send for Memory {}

impl Memory {
    fn allocate(layout: Layout) -> Option<Self> {
        // SAFETY: the layout is not empty: see `layout_of`. Zeroed, so that the bytes may be read
        // whatever happens.
        let address = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { address, layout })
    }

    /// The list of the stock that it belongs to.
    fn class(&self) -> Option<usize> {
        class_of(self.layout.size())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout, and nobody uses it any more.
        unsafe { dealloc(self.address.as_ptr(), self.layout) };
    }
}

/// What is allocated for `bytes`, of which there is at least one; none if no address space has room
/// for it. Up to [`PIECE_MAX`] a power of two.
fn layout_of(bytes: usize) -> Option<Layout> {
    let size = match bytes {
        ..=PIECE_MAX => bytes.next_power_of_two().max(ALIGNMENT),
        _ => bytes.checked_next_multiple_of(ALIGNMENT)?,
    };
    Layout::from_size_align(size, ALIGNMENT).ok()
}

/// The class of a size that [`layout_of`] gives; none if such a size is not kept.
fn class_of(size: usize) -> Option<usize> {
    (size <= PIECE_MAX).then(|| (size.ilog2() - ALIGNMENT.ilog2()) as usize)
}

/// A buffer of our own, aligned to [`ALIGNMENT`]. Its bytes are a slice as long as it is not
/// [lent](Self::lend). Up to [`PIECE_MAX`] it goes to the stock of the thread that drops it.
pub struct OwnedBuffer {
    /// None if there are no bytes, and while it is being dropped.
    memory: Option<Memory>,
    bytes: usize,
    /// What a view of it lies in.
    segment: [iovec; 1],
}

// SAFETY: it owns its memory; `segment` is only looked at while it is lent, by whoever has borrowed
// it.
unsafe impl Send for OwnedBuffer {}
// SAFETY: as above; shared it only gives out slices that nobody changes.
unsafe impl Sync for OwnedBuffer {}

impl OwnedBuffer {
    /// A buffer of `bytes` with unspecified content.
    ///
    /// # Errors
    ///
    /// ENOMEM: there is no memory.
    pub fn new(bytes: usize) -> Result<Self> {
        let memory = match bytes {
            0 => None,
            _ => Some(take(bytes).ok_or_else(|| no_memory(bytes))?),
        };
        Ok(Self {
            memory,
            bytes,
            segment: [iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            }],
        })
    }

    /// A buffer of `bytes` zeroes.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn zeroed(bytes: usize) -> Result<Self> {
        let mut buffer = Self::new(bytes)?;
        buffer.fill(0);
        Ok(buffer)
    }

    /// The whole of it as a view, to be given to a request.
    pub fn lend(&mut self) -> Buffers<'_> {
        let Some(memory) = &self.memory else {
            return Buffers::EMPTY;
        };
        self.segment = [iovec {
            iov_base: memory.address.as_ptr().cast(),
            iov_len: self.bytes,
        }];
        // SAFETY: the memory is ours and stays as long as `self` is borrowed; there are no slices of it
        // meanwhile.
        unsafe { Buffers::from_iovecs(&self.segment, self.bytes) }
    }
}

/// Memory of at least so many bytes.
fn take(bytes: usize) -> Option<Memory> {
    let layout = layout_of(bytes)?;
    let stocked = class_of(layout.size())
        .and_then(|class| STOCK.with_borrow_mut(|stock| stock.get_mut(class)?.pop()));
    stocked.or_else(|| Memory::allocate(layout))
}

#[cold]
fn no_memory(bytes: usize) -> BlockError {
    BlockError::new(
        libc::ENOMEM,
        format!("no memory for a buffer of {bytes} bytes"),
    )
}

impl Deref for OwnedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            // SAFETY: there are at least `bytes`, all initialised; borrowed from `self`.
            Some(memory) => unsafe {
                std::slice::from_raw_parts(memory.address.as_ptr(), self.bytes)
            },
            None => &[],
        }
    }
}

impl DerefMut for OwnedBuffer {
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

impl Drop for OwnedBuffer {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else {
            return;
        };
        // Without a stock the thread is ending.
        let _ = STOCK.try_with(|stock| {
            let mut stock = stock.borrow_mut();
            if let Some(list) = memory.class().and_then(|class| stock.get_mut(class))
                && (list.len() + 1) * memory.layout.size() <= KEEP_BYTES
            {
                list.push(memory);
            }
        });
    }
}

impl fmt::Debug for OwnedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedBuffer")
            .field("bytes", &self.bytes)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_length_aligned_and_lent() {
        for bytes in [
            0,
            1,
            511,
            4096,
            4097,
            65536,
            PIECE_MAX - 1,
            PIECE_MAX,
            PIECE_MAX + 1,
            3 * PIECE_MAX + 4095,
        ] {
            let mut buffer = OwnedBuffer::new(bytes).expect("memory");
            assert_eq!(buffer.len(), bytes);
            buffer.fill(0xaa);
            let lent = buffer.lend();
            assert_eq!(lent.len(), bytes);
            assert_eq!(lent.segments(), usize::from(bytes > 0));
            assert!(lent.is_aligned(4096, 1));
            if bytes > 0 {
                assert_eq!(lent.after(bytes - 1).copy_from(&[0x55]), 1);
                assert_eq!(buffer.last(), Some(&0x55));
                assert!(buffer[..bytes - 1] == vec![0xaa; bytes - 1]);
            }
        }
        let zeroed = OwnedBuffer::zeroed(4096).expect("memory");
        assert_eq!(*zeroed, [0; 4096], "although it comes from the stock");
    }

    #[test]
    fn no_memory_is_an_error() {
        // No layout is that long.
        let mut impossible = vec![usize::MAX, isize::MAX as usize];
        if !cfg!(miri) {
            // A layout is; Miri ends where an allocator says no.
            impossible.extend([isize::MAX as usize - 4095, 1 << 60]);
        }
        for bytes in impossible {
            let error = OwnedBuffer::new(bytes).expect_err("there is none");
            assert_eq!(error.errno(), libc::ENOMEM);
        }
    }

    #[test]
    fn steady_state_reuses_and_the_stock_is_bounded() {
        let first = OwnedBuffer::new(8000).expect("memory").as_ptr();
        for _ in 0..100 {
            assert_eq!(OwnedBuffer::new(8192).expect("memory").as_ptr(), first);
        }
        let many: Vec<_> = (0..8)
            .map(|_| OwnedBuffer::new(PIECE_MAX).expect("memory"))
            .collect();
        drop(many);
        drop(OwnedBuffer::new(PIECE_MAX + 1).expect("memory"));
        let kept = STOCK.with_borrow(|stock| stock.iter().map(Vec::len).collect::<Vec<_>>());
        assert_eq!(kept.len(), CLASSES);
        assert_eq!(kept[CLASSES - 1], KEEP_BYTES / PIECE_MAX);
        assert_eq!(kept.iter().sum::<usize>(), 1 + KEEP_BYTES / PIECE_MAX);
    }

    #[test]
    fn one_that_ends_on_another_thread_is_kept_there() {
        let mut buffer = OwnedBuffer::new(4096).expect("memory");
        buffer.fill(7);
        let there = std::thread::spawn(move || {
            assert_eq!(*buffer, [7; 4096]);
            drop(buffer);
            STOCK.with_borrow(|stock| stock[0].len())
        });
        assert_eq!(there.join().expect("ends"), 1);
        assert_eq!(STOCK.with_borrow(|stock| stock[0].len()), 0);
    }
}
