//! The file of an image, synchronously, and locked as QEMU does it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use block::{Access, Permissions};
use drivers::file::LockedImage;
use qcow2::{ReadAt, WriteAt};
use rustix::fs::{FileType, SeekFrom};

/// What is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It is looked at.
    Read,
    /// It is repaired.
    Write,
}

/// A regular file or a block device.
pub struct ImageFile {
    file: LockedImage,
    is_regular: bool,
}

impl ImageFile {
    /// Opens it and locks it: nobody may change what is looked at, unless `shared` says so.
    ///
    /// # Errors
    /// In words.
    pub fn open(path: &Path, wanted: Wanted, shared: bool) -> Result<Self, String> {
        let name = path.to_string_lossy();
        let file = OpenOptions::new()
            .read(true)
            .write(wanted == Wanted::Write)
            // A FIFO would wait for somebody at its other end.
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| error.to_string())?;
        let stat = rustix::fs::fstat(&file).map_err(|error| io::Error::from(error).to_string())?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
            return Err("it is neither a regular file nor a block device".to_owned());
        }
        let file = LockedImage::new(OwnedFd::from(file), &name, !shared);
        if !shared {
            let writes = Permissions::WRITE.and(Permissions::RESIZE);
            let held = match wanted {
                Wanted::Read => Permissions::CONSISTENT_READ,
                Wanted::Write => Permissions::CONSISTENT_READ.and(writes),
            };
            let shared = Permissions::ALL.without(writes);
            file.lock(Access { held, shared }).map_err(|error| {
                // Whoever says it has named the file.
                let named = format!(" on '{name}'");
                let desc = error.desc.strip_suffix(&named).unwrap_or(&error.desc);
                let hint = error.hint.map(|hint| format!("\n{hint}"));
                format!("{desc}{}", hint.unwrap_or_default())
            })?;
        }
        let is_regular = kind == FileType::RegularFile;
        Ok(Self { file, is_regular })
    }

    /// Where the next data or hole is; none: nothing is known of holes.
    fn seek(&self, to: SeekFrom) -> io::Result<Option<u64>> {
        if !self.is_regular {
            return Ok(None);
        }
        match rustix::fs::seek(&self.file, to) {
            Ok(at) => Ok(Some(at)),
            // Nothing of it follows.
            Err(rustix::io::Errno::NXIO) => self.length().map(Some),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl ReadAt for ImageFile {
    fn length(&self) -> io::Result<u64> {
        Ok(match self.is_regular {
            true => u64::try_from(rustix::fs::fstat(&self.file)?.st_size).unwrap_or(0),
            false => rustix::fs::seek(&self.file, SeekFrom::End(0))?,
        })
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(&self.file, &mut *rest, offset + done as u64) {
                Ok(0) => {
                    rest.fill(0);
                    break;
                }
                Ok(read) => done += read,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn data_from(&self, offset: u64) -> io::Result<u64> {
        Ok(self.seek(SeekFrom::Data(offset))?.unwrap_or(offset))
    }

    fn hole_from(&self, offset: u64) -> io::Result<u64> {
        match self.seek(SeekFrom::Hole(offset))? {
            Some(at) => Ok(at),
            None => self.length(),
        }
    }

    fn allocated(&self) -> Option<u64> {
        let blocks = rustix::fs::fstat(&self.file).ok()?.st_blocks;
        Some(512 * u64::try_from(blocks).ok()?)
    }
}

impl WriteAt for ImageFile {
    fn write_at(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pwrite(&self.file, rest, offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => done += written,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        // The length is part of what has to be there.
        Ok(rustix::fs::fsync(self.file.as_fd())?)
    }
}
