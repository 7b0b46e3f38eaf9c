//! Memory that is shared with a client: mappings, and areas of them that are read and written by
//! atomic accesses only, because the other side may change them at any time.

#[cfg(any(test, fuzzing))]
mod numbers;

use std::any::Any;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use rustix::fs::FileType;
use rustix::mm::{MapFlags, ProtFlags};

use crate::sigbus::Guarded;

/// Offsets of mappings are aligned down to this at least: every page size divides it.
const ALIGN_MIN: u64 = 64 << 10;

/// Why a client's file cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Nothing to map, or a range that no file has.
    #[error("the range of {len} bytes at offset {offset} is empty or too large")]
    Range {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The file ends before the range does.
    #[error("the file has {size} bytes, {needed} are needed; the front end must make it larger")]
    TooShort {
        /// The file's size in bytes.
        size: u64,
        /// End of the range in bytes.
        needed: u64,
    },
    /// The system refuses.
    #[error("mmap of {len} bytes at offset {offset} failed: {source}")]
    System {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// What it says.
        source: io::Error,
    },
}

/// Where in which file something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    device: u64,
    inode: u64,
    /// Offset in bytes.
    offset: u64,
}

impl Origin {
    /// What is `bytes` behind it.
    pub fn plus(self, bytes: u64) -> Self {
        let offset = self.offset.saturating_add(bytes);
        Self { offset, ..self }
    }
}

/// A shared, writable mapping of a part of a file.
pub(crate) struct Mapping {
    base: NonNull<libc::c_void>,
    mapped: usize,
    /// Where the requested range begins in the mapping.
    skipped: usize,
    len: usize,
    origin: Origin,
    /// None only while it is being dropped.
    guard: Option<Guarded>,
}

// SAFETY: a mapping is plain memory, valid on every thread until it is unmapped by drop.
unsafe impl Send for Mapping {}
// SAFETY: as above; all accesses go through raw pointers and atomics.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes at `offset` of `file`, which must be at least that long.
    pub fn of_file(file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Arc<Self>, MapError> {
        let range = || MapError::Range { offset, len };
        let system = |errno: rustix::io::Errno| MapError::System {
            offset,
            len,
            source: errno.into(),
        };
        let end = offset.checked_add(len).filter(|_| len > 0);
        let end = end.ok_or_else(range)?;
        let stat = rustix::fs::fstat(file).map_err(system)?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if regular && end > size {
            return Err(MapError::TooShort { size, needed: end });
        }
        // Huge pages can be mapped and unmapped as a whole only; their size is the block size of
        // their file system.
        let block = u64::try_from(stat.st_blksize).unwrap_or(0);
        let align = block.max(ALIGN_MIN).checked_next_power_of_two();
        let align = align.ok_or_else(range)?;
        let start = offset & !(align - 1);
        let end = match end.checked_next_multiple_of(align) {
            Some(rounded) if regular => rounded,
            _ => end,
        };
        let to_usize = |value: u64| usize::try_from(value).map_err(|_| range());
        let (mapped, skipped) = (to_usize(end - start)?, to_usize(offset - start)?);
        let len = to_usize(len)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file,
                start,
            )
        }
        .map_err(system)?;
        let base = NonNull::new(base).ok_or_else(range)?;
        let mut mapping = Self {
            base,
            mapped,
            skipped,
            len,
            origin: Origin {
                device: stat.st_dev,
                inode: stat.st_ino,
                offset,
            },
            guard: None,
        };
        let start = base.as_ptr().expose_provenance();
        let guard = Guarded::new(start..start + mapped);
        mapping.guard = Some(guard.map_err(|source| MapError::System {
            offset,
            len: mapped as u64,
            source,
        })?);
        Ok(Arc::new(mapping))
    }

    /// Whether the client has taken pages away that were accessed here. What it contains now is
    /// nobody's.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        self.guard.as_ref().is_some_and(Guarded::is_poisoned)
    }

    #[cfg(test)]
    pub fn guard(&self) -> &Guarded {
        self.guard.as_ref().expect("it is not being dropped")
    }

    /// The first byte of the requested range.
    pub fn pointer(&self) -> NonNull<u8> {
        // SAFETY: `skipped` is less than the length of the mapping.
        unsafe { self.base.cast::<u8>().add(self.skipped) }
    }

    /// Where the first byte is in its file.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Length of the requested range in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// A part of the requested range; none if it does not lie inside.
    pub fn area(self: &Arc<Self>, offset: usize, len: usize) -> Option<Area> {
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // SAFETY: the part lies inside the mapping, which the area keeps.
        Some(unsafe { Area::new(self.pointer().add(offset), len, Arc::clone(self)) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First, or the handler could take what is mapped here next for ours.
        self.guard = None;
        // SAFETY: made by mmap with this length; whoever holds a pointer into it holds the mapping.
        let result = unsafe { rustix::mm::munmap(self.base.as_ptr(), self.mapped) };
        debug_assert!(result.is_ok(), "munmap: {result:?}");
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// A part of a mapping. Clones are the same memory.
#[derive(Clone)]
pub(crate) struct Area {
    base: NonNull<u8>,
    len: usize,
    /// Keeps the memory mapped.
    _keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the memory is valid on every thread (`Area::new`), and accesses are atomic.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// # Safety
    ///
    /// `len` bytes at `base` are readable and writable as long as `keep` lives.
    pub unsafe fn new<K: Any + Send + Sync>(base: NonNull<u8>, len: usize, keep: Arc<K>) -> Self {
        Self {
            base,
            len,
            _keep: keep,
        }
    }

    /// Whether the first byte's address is a multiple of `align`.
    pub fn is_aligned(&self, align: usize) -> bool {
        self.base.as_ptr().addr().is_multiple_of(align)
    }

    /// `count` values from `offset` bytes on, which must be aligned and inside. Callers compute
    /// offsets from sizes they have checked, so a failure here is a bug.
    pub fn cells<T: Shared>(&self, offset: usize, count: usize) -> Cells<T> {
        let bytes = size_of::<T>().saturating_mul(count);
        assert!(
            offset <= self.len && bytes <= self.len - offset,
            "{bytes} bytes at {offset} in an area of {}",
            self.len
        );
        // SAFETY: inside the area, by the assertion.
        let base: NonNull<T> = unsafe { self.base.add(offset) }.cast();
        assert!(base.is_aligned());
        Cells {
            base,
            count,
            _keep: Arc::clone(&self._keep),
        }
    }
}

/// What memory can be seen as that others write to at any time.
///
/// # Safety
///
/// It consists of atomic numbers only and has no destructor, so that any bytes are one, may change
/// at any time, and may be seen by several at once.
pub(crate) unsafe trait Shared {}

// SAFETY: an atomic number.
unsafe impl Shared for AtomicU8 {}
// SAFETY: an atomic number.
unsafe impl Shared for AtomicU16 {}
// SAFETY: an atomic number.
unsafe impl Shared for AtomicU32 {}
// SAFETY: an atomic number.
unsafe impl Shared for AtomicU64 {}
// SAFETY: nothing but its elements.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// A part of an area as a slice, whose range and alignment were checked when it was made. The
/// numbers in it are little-endian.
pub(crate) struct Cells<T> {
    base: NonNull<T>,
    count: usize,
    /// Keeps the memory mapped.
    _keep: Arc<dyn Any + Send + Sync>,
}

impl<T: Shared> Deref for Cells<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `Area::cells` has checked that so many are there and aligned; they stay mapped as
        // long as `self` is there, any bytes are valid, and all accesses are atomic (`Shared`): the
        // other side is another process or, in tests, uses atomics or does not run at that time.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.count) }
    }
}

impl<T> fmt::Debug for Cells<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cells")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Area")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// A memfd of `len` bytes that can never change its size.
pub(crate) fn sealed_memfd(name: &str, len: u64) -> rustix::io::Result<std::os::fd::OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags};
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, len)?;
    let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&fd, seals)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering;

    #[test]
    fn sizes_are_checked_before_mapping() {
        let fd = sealed_memfd("test", 4096).unwrap();
        assert!(matches!(
            Mapping::of_file(fd.as_fd(), 0, 4097),
            Err(MapError::TooShort {
                size: 4096,
                needed: 4097
            })
        ));
        for (offset, len) in [(0, 0), (u64::MAX, 2)] {
            assert!(matches!(
                Mapping::of_file(fd.as_fd(), offset, len),
                Err(MapError::Range { .. })
            ));
        }
        let mapping = Mapping::of_file(fd.as_fd(), 8, 4088).unwrap();
        assert!(mapping.area(0, 4089).is_none());
        assert!(mapping.area(usize::MAX, 1).is_none());
        let area = mapping.area(8, 16).unwrap();
        drop(mapping);
        area.store_u64(8, 0x0102, Ordering::Relaxed);
        assert_eq!(area.load_u16(8, Ordering::Relaxed), 0x0102);
        let mut byte = [0];
        rustix::io::pread(&fd, &mut byte, 24).unwrap();
        assert_eq!(byte, [2]);
    }

    #[test]
    fn cells_are_the_memory() {
        let fd = sealed_memfd("test", 32).unwrap();
        let mapping = Mapping::of_file(fd.as_fd(), 0, 32).unwrap();
        let area = mapping.area(8, 16).unwrap();
        let pairs = area.cells::<[AtomicU16; 2]>(4, 3);
        drop(mapping);
        pairs[2][1].store(0x0102_u16.to_le(), Ordering::Relaxed);
        assert_eq!(
            (pairs.len(), area.load_u16(14, Ordering::Relaxed)),
            (3, 0x0102)
        );
        for (offset, count) in [(4, 4), (17, 0), (2, 1), (8, usize::MAX)] {
            let cells = || area.cells::<AtomicU32>(offset, count);
            let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(cells));
            assert!(made.is_err(), "{count} at {offset}");
        }
    }

    #[test]
    #[should_panic(expected = "4 bytes at 14 in an area of 16")]
    fn an_access_outside_is_a_bug() {
        let fd = sealed_memfd("test", 16).unwrap();
        let mapping = Mapping::of_file(fd.as_fd(), 0, 16).unwrap();
        mapping.area(0, 16).unwrap().load_u32(14, Ordering::Relaxed);
    }
}
