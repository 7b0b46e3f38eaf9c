//! The listening socket: private from the start, and ours alone as long as it exists.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Clients that may wait for their turn.
const BACKLOG: i32 = 16;

/// Why a socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody else serves this path.
    #[error(
        "socket {} is in use by another process; stop it, or choose another path", path.display()
    )]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something else has this name.
    #[error("{} exists and is not a socket; remove it, or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("socket {}: cannot {what}: {source}", path.display())]
    System {
        /// The path concerned.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What it says.
        source: io::Error,
    },
}

/// A listening socket with its lock. Dropping it removes both files.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

/// Makes the listening socket `path` with mode 0600, and takes the lock `PATH.lock`, so that no
/// other daemon can take the path over while this one uses it. A socket that nobody serves any
/// more is replaced.
///
/// # Errors
/// [`SocketError`] names the path and the remedy.
pub fn bind_socket(path: &Path) -> Result<Socket, SocketError> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let lock = take_lock(path, &lock_path)?;
    let bound = clear_path(path).and_then(|()| listen(path));
    match bound {
        Ok(listener) => Ok(Socket {
            listener,
            path: path.to_owned(),
            lock_path,
            _lock: lock,
        }),
        Err(error) => {
            // Nobody misses a lock file that nobody holds.
            let _ = std::fs::remove_file(&lock_path);
            Err(error)
        }
    }
}

fn system<E: Into<io::Error>>(path: &Path, what: &'static str) -> impl FnOnce(E) -> SocketError {
    move |source| SocketError::System {
        path: path.to_owned(),
        what,
        source: source.into(),
    }
}

fn take_lock(path: &Path, lock_path: &Path) -> Result<File, SocketError> {
    loop {
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(lock_path)
            .map_err(system(lock_path, "open the lock file"))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(SocketError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(errno) => return Err(system(lock_path, "lock the lock file")(errno)),
        }
        // The former owner may have removed the file between our open and our lock.
        let ours = lock.metadata().map_err(system(lock_path, "stat"))?;
        match std::fs::symlink_metadata(lock_path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => return Ok(lock),
            _ => {}
        }
    }
}

/// Removes a socket that nobody serves. Another program's would have no lock of ours: ask it.
fn clear_path(path: &Path) -> Result<(), SocketError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system(path, "stat")(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(system(path, "remove the stale socket"))
        }
        Ok(_) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
        Err(error) => Err(system(path, "find out whether it is in use")(error)),
    }
}

fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let address = SocketAddrUnix::new(path).map_err(system(path, "use that path"))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(system(path, "make a socket"))?;
    // The file gets the socket's mode, less the umask: it is private from the first moment.
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(system(path, "set the mode"))?;
    rustix::net::bind(&fd, &address).map_err(system(path, "bind"))?;
    rustix::net::listen(&fd, BACKLOG).map_err(system(path, "listen"))?;
    Ok(UnixListener::from(fd))
}

impl Socket {
    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Accepts a connection, if one waits.
    pub(crate) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                Ok(Some(stream))
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            },
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Under the lock, so nobody else's socket can be meant. Whoever removed a file before us
        // has done our work.
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_locked_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let socket = bind_socket(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let lock = dir.path().join("disk.sock.lock");
        assert_eq!(std::fs::metadata(&lock).unwrap().mode() & 0o777, 0o600);
        let error = bind_socket(&path).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "socket {} is in use by another process; stop it, or choose another path",
                path.display()
            )
        );
        assert!(path.exists(), "the refused one has removed nothing");
        drop(socket);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        drop(bind_socket(&path).unwrap());
    }

    #[test]
    fn what_is_already_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let foreign = UnixListener::bind(&path).unwrap();
        assert!(matches!(bind_socket(&path), Err(SocketError::InUse { .. })));
        drop(foreign);
        assert!(path.exists(), "a stale socket is left");
        drop(bind_socket(&path).unwrap());
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(
            bind_socket(&path),
            Err(SocketError::NotASocket { .. })
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        assert!(!dir.path().join("disk.sock.lock").exists());
        let long = dir.path().join("x".repeat(120));
        assert!(matches!(
            bind_socket(&long),
            Err(SocketError::System {
                what: "use that path",
                ..
            })
        ));
        let nowhere = dir.path().join("no").join("where");
        assert!(matches!(
            bind_socket(&nowhere),
            Err(SocketError::System { .. })
        ));
    }
}
