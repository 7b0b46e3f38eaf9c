//! One process writes a journal: a lock file beside it, which lasts as long as the process.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{JournalError, system};
use crate::names;

/// The lock. Dropping it removes its file.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Takes the lock of the journal `journal`.
    ///
    /// # Errors
    /// If somebody else has it, or the system refuses.
    pub fn take(journal: &Path) -> Result<Self, JournalError> {
        let path = names::lock(journal);
        loop {
            let open = |access| {
                let flags = access | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
            };
            // NFS locks only what is open for writing. On a file system that cannot be written the lock of
            // a former process will do.
            let file = match open(OFlags::RDWR) {
                Err(Errno::ROFS) => open(OFlags::RDONLY),
                opened => opened,
            };
            let file = File::from(file.map_err(system(&path, "open the lock file"))?);
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    return Err(JournalError::InUse {
                        path: journal.to_owned(),
                    });
                }
                Err(errno) => return Err(system(&path, "lock the lock file")(errno)),
            }
            // The former owner may have removed the file between our open and our lock.
            if is_at(&file, &path) {
                return Ok(Self { path, file });
            }
        }
    }

    /// Whether the lock still keeps others out: it does not when its file was removed.
    pub fn is_ours(&self) -> bool {
        is_at(&self.file, &self.path)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.is_ours() {
            // Under the lock, so nobody else's can be meant. What is left is in nobody's way.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether `path` names the file.
pub fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(file), Ok(there)) = (file.metadata(), std::fs::symlink_metadata(path)) else {
        return false;
    };
    (file.dev(), file.ino()) == (there.dev(), there.ino())
}
