//! A file whose bytes are memory: what is written there outlives the process, however that ends, without a system call.
//! It does not outlive the machine: nothing is synced.
//!
//! All of it has room from the beginning, because there is nobody to whom a store to memory could say that there is none.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, fallocate, fstatfs};
use rustix::mm::{MapFlags, ProtFlags, mlock, mmap, munmap};

/// File systems that promise no room to whoever writes again where he has written, or have servers that may be gone:
/// btrfs, bcachefs, ZFS, NFS, CIFS, SMB2, FUSE.
const UNFIT: [u64; 7] = [
    0x9123_683e,
    0xca45_1a4e,
    0x2fc1_2fc1,
    0x6969,
    0xff53_4d42,
    0xfe53_4d42,
    0x6573_5546,
];

/// See the [module](self). It is locked: as long as this exists, nobody else opens it.
#[derive(Debug)]
pub struct MappedFile {
    base: NonNull<u8>,
    length: usize,
    path: PathBuf,
    /// Has the lock.
    _file: File,
}

// SAFETY: the memory is this value's alone: nothing else in the process maps a file that is locked.
unsafe impl Send for MappedFile {}
// SAFETY: by a shared reference it is only read.
unsafe impl Sync for MappedFile {}

impl MappedFile {
    /// Makes a file of `length` zeroes, with mode 0600.
    ///
    /// # Errors
    /// There is one of that name, no room, or the file system is none that keeps room for who has it.
    pub fn create(path: &Path, length: usize) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let made = Self::fill(&file, length).and_then(|()| Self::map(file, path, length));
        let mut this = made.inspect_err(|_| {
            // It is ours, and nothing is in it.
            let _removed = std::fs::remove_file(path);
        })?;
        // Each page is there before anybody waits for it, and stays, if it may.
        this.as_mut().fill(0);
        // SAFETY: it is mapped.
        let _locked = unsafe { mlock(this.base.as_ptr().cast(), length) };
        Ok(this)
    }

    fn fill(file: &File, length: usize) -> io::Result<()> {
        let system = fstatfs(file)?.f_type;
        if UNFIT
            .iter()
            .any(|unfit| u64::try_from(system) == Ok(*unfit))
        {
            return Err(io::Error::other(
                "its file system does not keep the room of a file that is written over and over: use a directory in /run",
            ));
        }
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::from_raw_os_error(libc::EWOULDBLOCK),
            TryLockError::Error(error) => error,
        })?;
        Ok(fallocate(file, FallocateFlags::empty(), 0, length as u64)?)
    }

    /// Opens one that is there. None: somebody else has it open, or it is not `length` bytes long.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path, length: usize) -> io::Result<Option<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() != length as u64 {
            return Ok(None);
        }
        // One that was copied here may have holes.
        fallocate(&file, FallocateFlags::empty(), 0, length as u64)?;
        Self::map(file, path, length).map(Some)
    }

    fn map(file: File, path: &Path, length: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        }?;
        let base = NonNull::new(base.cast());
        Ok(Self {
            base: base.ok_or_else(|| io::Error::other("it was mapped nowhere"))?,
            length,
            path: path.to_owned(),
            _file: file,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Nobody finds it any more.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped as long as this exists, and are changed by its owner alone: the file is locked, and
        // readable for its user only.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.length) }
    }
}

impl AsMut<[u8]> for MappedFile {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.length) }
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length; nobody has a reference into it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_was_written_is_there_for_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut file = MappedFile::create(&path, 8192).unwrap();
        file.as_mut()[8191] = 7;
        assert!(MappedFile::open(&path, 8192).unwrap().is_none(), "in use");
        assert!(MappedFile::create(&path, 8192).is_err(), "it exists");
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        drop(file);
        assert!(MappedFile::open(&path, 4096).unwrap().is_none(), "longer");
        let file = MappedFile::open(&path, 8192).unwrap().unwrap();
        assert_eq!(file.as_ref()[8191], 7);
        file.remove().unwrap();
        assert!(!path.exists());
        assert!(MappedFile::open(&path, 8192).is_err());
    }
}
