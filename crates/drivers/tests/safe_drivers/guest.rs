//! Memory of a guest: mapped here as the device sees it, and changed through its descriptor, which no
//! compiler and no borrow knows of.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use block::Buffers;
use libc::iovec;

/// The guest's side.
#[derive(Clone, Debug)]
pub struct Guest(Arc<File>);

impl Guest {
    pub fn write(&self, at: usize, bytes: &[u8]) {
        self.0.write_all_at(bytes, at as u64).expect("written");
    }

    pub fn read(&self, range: Range<usize>) -> Vec<u8> {
        let mut bytes = vec![0; range.len()];
        (self.0.read_exact_at(&mut bytes, range.start as u64)).expect("read");
        bytes
    }
}

/// The device's side.
#[derive(Debug)]
pub struct Memory {
    base: *mut u8,
    bytes: usize,
    guest: Guest,
}

// SAFETY: a mapping belongs to no thread.
unsafe impl Send for Memory {}
// SAFETY: as above; there are no references into it, whoever looks at it.
unsafe impl Sync for Memory {}

impl Memory {
    pub fn new(bytes: usize) -> Self {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("guest", flags).expect("a memfd"));
        file.set_len(bytes as u64).expect("sized");
        // SAFETY: a new mapping, wherever there is room.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        Self {
            base: base.cast(),
            bytes,
            guest: Guest(Arc::new(file)),
        }
    }

    pub fn guest(&self) -> Guest {
        self.guest.clone()
    }

    /// Segments one behind the other from `at` on.
    pub fn segments(&self, at: usize, lengths: &[usize]) -> Segments<'_> {
        let mut list = Vec::new();
        let mut end = at;
        for &length in lengths {
            list.push(iovec {
                iov_base: self.base.wrapping_add(end).cast(),
                iov_len: length,
            });
            end += length;
        }
        assert!(end <= self.bytes);
        Segments {
            list,
            range: at..end,
            memory: self,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; views of it are borrowed from `self`.
        let result = unsafe { libc::munmap(self.base.cast(), self.bytes) };
        assert_eq!(result, 0);
    }
}

#[derive(Debug)]
pub struct Segments<'a> {
    list: Vec<iovec>,
    pub range: Range<usize>,
    memory: &'a Memory,
}

impl Segments<'_> {
    pub fn buffers(&self) -> Buffers<'_> {
        // SAFETY: they lie in the mapping, which is borrowed; there are no references into it.
        unsafe { Buffers::from_iovecs(&self.list, self.range.len()) }
    }

    /// What the guest has there.
    pub fn content(&self) -> Vec<u8> {
        self.memory.guest.read(self.range.clone())
    }
}
