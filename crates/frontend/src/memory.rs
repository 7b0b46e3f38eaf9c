//! Guest memory: memfd regions, mapped here and handed to the back end.
//!
//! All unsafe code of the crate is in this module. What it must guarantee: a mapping stays in place
//! as long as anything refers to it, and every access is inside it. Everything in shared memory may
//! be changed by the back end at any moment, so it is accessed through atomics or copied through raw
//! pointers, and no Rust reference to plain bytes of it exists.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

use crate::error::FrontendError;
use crate::heap::Heap;

pub use crate::heap::Block;

/// Guest address of the first region.
const FIRST_ADDRESS: u64 = 0x10_0000;
/// Unmapped guest addresses between regions, so that no buffer can straddle two by accident.
const GAP: u64 = 0x1000_0000;
/// Sizes of regions are multiples of this.
const PAGE: u64 = 4096;

/// A shared mapping of a file descriptor.
pub struct Mapping {
    fd: OwnedFd,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain shared memory, owned by this value and valid on every thread; all
// accesses are atomic or raw copies that tolerate concurrent change.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("base", &self.base)
            .field("len", &self.len)
            .finish()
    }
}

impl Mapping {
    /// Maps `len` bytes of a new memfd, filled with zeroes.
    ///
    /// # Errors
    /// [`FrontendError::Io`].
    pub fn new(len: usize) -> Result<Self, FrontendError> {
        let fd = rustix::fs::memfd_create("standfast-guest-memory", MemfdFlags::CLOEXEC)
            .map_err(FrontendError::io("memfd_create for guest memory"))?;
        let bytes =
            u64::try_from(len).map_err(|_| FrontendError::Options(format!("{len} bytes")))?;
        rustix::fs::ftruncate(&fd, bytes)
            .map_err(FrontendError::io("ftruncate of guest memory"))?;
        Self::of_fd(fd, 0, len)
    }

    /// Maps `len` bytes of `fd` from `offset` on.
    ///
    /// # Errors
    /// [`FrontendError::Io`].
    pub fn of_fd(fd: OwnedFd, offset: u64, len: usize) -> Result<Self, FrontendError> {
        // SAFETY: a new shared mapping at an address the kernel chooses touches no existing one.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                offset,
            )
        }
        .map_err(FrontendError::io("mmap of shared memory"))?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(FrontendError::MemoryFull {
            what: "a mapping at address 0",
            len: offset,
        })?;
        Ok(Self { fd, base, len })
    }

    /// Address of the mapping in this process.
    #[must_use]
    pub fn address(&self) -> u64 {
        // A pointer fits in 64 bits on every supported target.
        self.base.as_ptr().addr() as u64
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is empty. It never is: an empty mapping cannot be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The descriptor behind it.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Pointer to `len` bytes at `offset`.
    ///
    /// # Panics
    /// If they are not inside the mapping: callers check what comes from outside.
    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(
            inside,
            "{offset:#x}+{len:#x} is not inside a mapping of {:#x} bytes",
            self.len
        );
        // SAFETY: just checked to be inside the mapping, which is one allocation.
        unsafe { self.base.add(offset) }
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// If the range is not inside the mapping.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        let from = self.at(offset, out.len());
        // SAFETY: both ranges are valid for their length and cannot overlap, `out` being ordinary
        // memory. The other process may write meanwhile; then the bytes are arbitrary, not invalid.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), out.as_mut_ptr(), out.len()) };
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// If the range is not inside the mapping.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: as in `read`, the other way round.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }

    /// Sets `len` bytes to `value`.
    ///
    /// # Panics
    /// If the range is not inside the mapping.
    pub fn fill(&self, offset: usize, len: usize, value: u8) {
        let to = self.at(offset, len);
        // SAFETY: the range is valid for writes; no reference to it exists.
        unsafe { ptr::write_bytes(to.as_ptr(), value, len) };
    }

    /// A 16-bit word in shared memory.
    ///
    /// # Panics
    /// If it is not inside the mapping or not aligned.
    #[must_use]
    pub fn u16_at(&self, offset: usize) -> &AtomicU16 {
        let word = self.aligned::<AtomicU16>(offset);
        // SAFETY: inside the mapping, aligned, and any bit pattern is a value; the mapping outlives
        // the reference. The other process accesses it atomically or not at all.
        unsafe { word.as_ref() }
    }

    /// A 32-bit word in shared memory.
    ///
    /// # Panics
    /// If it is not inside the mapping or not aligned.
    #[must_use]
    pub fn u32_at(&self, offset: usize) -> &AtomicU32 {
        let word = self.aligned::<AtomicU32>(offset);
        // SAFETY: as in `u16_at`.
        unsafe { word.as_ref() }
    }

    /// A 64-bit word in shared memory.
    ///
    /// # Panics
    /// If it is not inside the mapping or not aligned.
    #[must_use]
    pub fn u64_at(&self, offset: usize) -> &AtomicU64 {
        let word = self.aligned::<AtomicU64>(offset);
        // SAFETY: as in `u16_at`.
        unsafe { word.as_ref() }
    }

    fn aligned<T>(&self, offset: usize) -> NonNull<T> {
        let word = self.at(offset, size_of::<T>()).cast::<T>();
        assert!(
            word.is_aligned(),
            "{offset:#x} is not aligned for {} bytes",
            size_of::<T>()
        );
        word
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of our own mapping; nothing refers to it any more, all
        // users hold an `Arc` of this value or borrow it.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping: {unmapped:?}");
    }
}

/// One region of guest memory.
#[derive(Debug, Clone)]
pub struct Region {
    guest: u64,
    mapping: Arc<Mapping>,
}

impl Region {
    /// Guest address of its first byte.
    #[must_use]
    pub fn guest_address(&self) -> u64 {
        self.guest
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        // usize is at most 64 bits on every supported target.
        self.mapping.len() as u64
    }

    /// Whether it is empty, which it never is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mapping.is_empty()
    }

    /// The mapping, with its descriptor.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }
}

/// The guest's memory and the allocator of its buffers.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
    heap: Heap,
}

impl GuestMemory {
    /// `bytes` of memory in `count` regions with gaps between them.
    ///
    /// # Errors
    /// [`FrontendError::Options`] if `count` is not 1 to 8 or a region would be empty; [`FrontendError::Io`].
    pub fn new(bytes: u64, count: u16) -> Result<Self, FrontendError> {
        let mut memory = Self {
            regions: Vec::new(),
            heap: Heap::new(),
        };
        if !(1..=8).contains(&count) {
            return Err(FrontendError::Options(format!(
                "{count} memory regions, possible are 1 to 8"
            )));
        }
        for _ in 0..count {
            memory.add_region(bytes / u64::from(count))?;
        }
        Ok(memory)
    }

    /// Adds a region of at least `bytes`, behind all others.
    ///
    /// # Errors
    /// [`FrontendError::Options`] if it would be empty or a ninth one; [`FrontendError::Io`].
    pub fn add_region(&mut self, bytes: u64) -> Result<(), FrontendError> {
        let bytes = bytes.next_multiple_of(PAGE);
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        if bytes == 0 || self.regions.len() == 8 {
            return Err(FrontendError::Options(format!(
                "a memory region of {bytes} bytes beside {} others; at most 8, none empty",
                self.regions.len()
            )));
        }
        let guest = match self.regions.last() {
            None => FIRST_ADDRESS,
            Some(last) => (last.guest + last.len()).next_multiple_of(GAP) + GAP,
        };
        self.regions.push(Region {
            guest,
            mapping: Arc::new(Mapping::new(len)?),
        });
        self.heap.add(guest, bytes);
        Ok(())
    }

    /// The regions in the order of their addresses.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Allocates a buffer: contiguous, aligned to its size rounded up to a power of two, at most to
    /// a page. Its content is arbitrary.
    pub fn allocate(&mut self, len: u64) -> Option<Block> {
        self.heap.allocate(len)
    }

    /// Gives a buffer back.
    pub fn free(&mut self, block: Block) {
        self.heap.free(block);
    }

    /// The mapping that holds a guest range, and the offset in it.
    ///
    /// # Errors
    /// [`FrontendError::OutOfMemoryRange`].
    pub fn find(&self, address: u64, len: u64) -> Result<(&Arc<Mapping>, usize), FrontendError> {
        self.regions
            .iter()
            .find_map(|region| {
                let offset = address.checked_sub(region.guest)?;
                let end = offset.checked_add(len)?;
                let offset = usize::try_from(offset).ok()?;
                (end <= region.len()).then_some((&region.mapping, offset))
            })
            .ok_or(FrontendError::OutOfMemoryRange { address, len })
    }

    /// Copies bytes out of guest memory.
    ///
    /// # Errors
    /// [`FrontendError::OutOfMemoryRange`].
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), FrontendError> {
        let (mapping, offset) = self.find(address, out.len() as u64)?;
        mapping.read(offset, out);
        Ok(())
    }

    /// Copies bytes into guest memory.
    ///
    /// # Errors
    /// [`FrontendError::OutOfMemoryRange`].
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), FrontendError> {
        let (mapping, offset) = self.find(address, bytes.len() as u64)?;
        mapping.write(offset, bytes);
        Ok(())
    }

    /// Sets bytes of guest memory to `value`.
    ///
    /// # Errors
    /// [`FrontendError::OutOfMemoryRange`].
    pub fn fill(&self, address: u64, len: u64, value: u8) -> Result<(), FrontendError> {
        let (mapping, offset) = self.find(address, len)?;
        let len =
            usize::try_from(len).map_err(|_| FrontendError::OutOfMemoryRange { address, len })?;
        mapping.fill(offset, len, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn every_byte_of_every_region_is_reachable_and_none_beyond() {
        let memory = GuestMemory::new(1 << 20, 3).unwrap();
        assert_eq!(memory.regions().len(), 3);
        for region in memory.regions() {
            let (first, end) = (
                region.guest_address(),
                region.guest_address() + region.len(),
            );
            memory.write(first, b"first").unwrap();
            memory.write(end - 4, b"last").unwrap();
            let mut found = [0; 4];
            memory.read(end - 4, &mut found).unwrap();
            assert_eq!(&found, b"last");
            assert!(memory.write(end - 3, b"last").is_err());
            assert!(memory.read(first - 1, &mut found).is_err());
            assert!(memory.read(u64::MAX - 1, &mut found).is_err());
        }
    }

    #[test]
    fn another_mapping_of_the_same_descriptor_sees_the_writes() {
        let memory = GuestMemory::new(8192, 1).unwrap();
        let ours = memory.regions()[0].mapping();
        let fd = ours.fd().try_clone_to_owned().unwrap();
        let theirs = Mapping::of_fd(fd, 4096, 4096).unwrap();
        theirs.u16_at(2).store(0x1234, Ordering::Release);
        assert_eq!(ours.u16_at(4098).load(Ordering::Acquire), 0x1234);
    }

    #[test]
    #[should_panic(expected = "is not aligned")]
    fn an_unaligned_word_is_refused() {
        let _ = Mapping::new(4096).unwrap().u32_at(2);
    }
}
