//! One watcher for a machine.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::FlockOperation;

/// As long as it is there no other watcher with the same runtime directory has the machine.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another watcher has it.
    #[error("another watcher has this machine{0}")]
    Taken(String),
    /// The system refuses.
    #[error("the lock of this machine: {0}")]
    System(#[from] io::Error),
}

impl Lock {
    /// Takes the lock of the machine behind `socket`.
    ///
    /// # Errors
    /// It is taken, or there can be none.
    pub fn take(runtime_directory: &Path, socket: &Path) -> Result<Self, LockError> {
        // One machine, by whatever path.
        let socket = std::fs::canonicalize(socket).unwrap_or_else(|_| socket.to_owned());
        let directory = runtime_directory.join("locks");
        std::fs::create_dir_all(&directory)?;
        let path = directory.join(format!("{:016x}", fnv(socket.as_os_str().as_bytes())));
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                file.set_len(0)?;
                file.rewind()?;
                // For people, and for the one who is refused.
                write!(file, "{} {}", std::process::id(), socket.display())?;
                Ok(Self { _file: file })
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = file.take(20).read_to_string(&mut text);
                let pid = text.split(' ').next().filter(|pid| !pid.is_empty());
                Err(LockError::Taken(
                    pid.map(|pid| format!(" (process {pid})"))
                        .unwrap_or_default(),
                ))
            }
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }
}

/// FNV-1a: file names for paths.
fn fnv(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_by_any_path() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, link) = (dir.path().join("qmp"), dir.path().join("link"));
        std::fs::write(&socket, "").unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        let first = Lock::take(dir.path(), &socket).unwrap();
        let second = Lock::take(dir.path(), &link).unwrap_err();
        let process = format!(
            "another watcher has this machine (process {})",
            std::process::id()
        );
        assert_eq!(second.to_string(), process);
        Lock::take(dir.path(), &dir.path().join("other")).unwrap();
        drop(first);
        Lock::take(dir.path(), &link).unwrap();
        assert!(Lock::take(Path::new("/proc/nonexistent"), &socket).is_err());
    }
}
