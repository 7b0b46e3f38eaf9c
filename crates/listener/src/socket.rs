//! The listening socket: for those it is meant for from the start, and ours alone as long as it
//! exists; or one that somebody else has made, and keeps.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::access::Access;
use crate::error::{SocketError, system};

/// Clients that may wait for their turn. With less, of many that connect at once some are refused
/// (EAGAIN); the system caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// A listening socket. Dropping it removes what was made for it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    _made: Made,
}

/// What lasts as long as a socket.
#[derive(Debug)]
enum Made {
    Files(#[expect(dead_code, reason = "held for its drop")] Files),
    Claim(#[expect(dead_code, reason = "held for its drop")] Claim),
}

/// The files of a socket with a path. Dropping it removes them.
#[derive(Debug)]
struct Files {
    path: PathBuf,
    /// Device and inode of the socket's file.
    made: (u64, u64),
    lock_path: PathBuf,
    _lock: File,
}

impl Drop for Files {
    fn drop(&mut self) {
        // Other programs know no lock of ours: one may have removed the file, and listens there itself.
        if identity(&self.path).is_ok_and(|there| there == self.made) {
            let _ = std::fs::remove_file(&self.path);
        }
        // Whoever removed it before us has done our work.
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

/// Makes the listening socket `path` for those that `access` names, and takes the lock `PATH.lock`
/// (mode 0600), so that no other daemon can take the path over while this one uses it. A socket that
/// nobody serves any more is replaced. It asks the file system, and may wait for it.
///
/// # Errors
/// [`SocketError`] names the path and the remedy; nothing is left behind.
pub fn bind_socket(path: &Path, access: Access) -> Result<Socket, SocketError> {
    if path.as_os_str().is_empty() {
        return Err(SocketError::NoPath);
    }
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let lock = take_lock(path, &lock_path)?;
    let bound = clear_path(path).and_then(|()| listen(path, access));
    match bound {
        Ok((listener, made)) => Ok(Socket {
            listener,
            _made: Made::Files(Files {
                path: absolute(path),
                made,
                lock_path: absolute(&lock_path),
                _lock: lock,
            }),
        }),
        Err(error) => {
            // Nobody misses a lock file that nobody holds.
            let _ = std::fs::remove_file(&lock_path);
            Err(error)
        }
    }
}

/// The working directory may be another one when it is removed.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
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
    match is_served(path) {
        Ok(false) => std::fs::remove_file(path).map_err(system(path, "remove the stale socket")),
        Ok(true) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
        Err(errno) => Err(system(path, "find out whether it is in use")(errno)),
    }
}

/// Whether somebody listens on `path`. Waits for nobody: where the backlog is full, nobody accepts.
fn is_served(path: &Path) -> rustix::io::Result<bool> {
    let address = SocketAddrUnix::new(path)?;
    match rustix::net::connect(&new_socket()?, &address) {
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Ok(true),
        Err(rustix::io::Errno::CONNREFUSED) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Device and inode of what has this name.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// The socket, and what its file is.
fn listen(path: &Path, access: Access) -> Result<(UnixListener, (u64, u64)), SocketError> {
    let address = SocketAddrUnix::new(path).map_err(system(path, "use that path"))?;
    let fd = new_socket().map_err(system(path, "make a socket"))?;
    // The file gets the socket's mode, less the umask: it is private from the first moment.
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(system(path, "set the mode"))?;
    rustix::net::bind(&fd, &address).map_err(system(path, "bind"))?;
    // Nobody can connect before the socket listens.
    let listens = identity(path)
        .map_err(system(path, "stat"))
        .and_then(|made| access.grant(path).map(|()| made))
        .and_then(|made| {
            let listens = rustix::net::listen(&fd, BACKLOG).map_err(system(path, "listen"));
            listens.map(|()| made)
        });
    match listens {
        Ok(made) => Ok((UnixListener::from(fd), made)),
        Err(error) => {
            // Nobody misses a socket that never listened.
            let _ = std::fs::remove_file(path);
            Err(error)
        }
    }
}

/// Inodes of the inherited sockets that are in use.
static CLAIMED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

/// The right to use an inherited socket, by whatever number it was given.
#[derive(Debug)]
struct Claim(u64);

impl Claim {
    fn new(inode: u64) -> Option<Self> {
        let mut claimed = CLAIMED.lock();
        claimed.insert(inode).then(|| Self(inode))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = CLAIMED.lock();
        claimed.remove(&self.0);
    }
}

impl Socket {
    /// Uses a unix stream socket that listens already, and was passed to this process. Nothing is
    /// locked and nothing removed: the path belongs to whoever passed it.
    ///
    /// # Errors
    /// [`SocketError`]: it is something else, or in use already.
    pub fn inherited(socket: OwnedFd) -> Result<Self, SocketError> {
        let is = (
            sockopt::socket_type(&socket),
            sockopt::socket_domain(&socket),
            sockopt::socket_acceptconn(&socket),
        );
        if is != (Ok(SocketType::STREAM), Ok(AddressFamily::UNIX), Ok(true)) {
            return Err(SocketError::Kind);
        }
        let stat = rustix::fs::fstat(&socket);
        let stat = stat.map_err(|errno| SocketError::Inherited(errno.into()))?;
        let claim = Claim::new(stat.st_ino).ok_or(SocketError::Claimed)?;
        let listener = UnixListener::from(socket);
        listener
            .set_nonblocking(true)
            .map_err(SocketError::Inherited)?;
        Ok(Self {
            listener,
            _made: Made::Claim(claim),
        })
    }

    /// Accepts a connection, if one waits. Its stream blocks.
    ///
    /// # Errors
    /// That of the system.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_locked_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let socket = bind_socket(&path, Access::default()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let lock = dir.path().join("disk.sock.lock");
        assert_eq!(std::fs::metadata(&lock).unwrap().mode() & 0o777, 0o600);
        let error = bind_socket(&path, Access::default()).unwrap_err();
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
        drop(bind_socket(&path, Access::default()).unwrap());
    }

    #[test]
    fn what_is_already_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let foreign = UnixListener::bind(&path).unwrap();
        assert!(matches!(
            bind_socket(&path, Access::default()),
            Err(SocketError::InUse { .. })
        ));
        drop(foreign);
        assert!(path.exists(), "a stale socket is left");
        drop(bind_socket(&path, Access::default()).unwrap());
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(
            bind_socket(&path, Access::default()),
            Err(SocketError::NotASocket { .. })
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        assert!(!dir.path().join("disk.sock.lock").exists());
        let long = dir.path().join("x".repeat(120));
        assert!(matches!(
            bind_socket(&long, Access::default()),
            Err(SocketError::System {
                what: "use that path",
                ..
            })
        ));
        let nowhere = dir.path().join("no").join("where");
        assert!(matches!(
            bind_socket(&nowhere, Access::default()),
            Err(SocketError::System { .. })
        ));
    }

    /// A daemon that was started on the socket of a server which hangs waited for ever, and heard no
    /// SIGTERM: the connection that was to find out whether somebody listens waited for a place in the
    /// backlog.
    #[test]
    fn a_server_that_hangs_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let address = SocketAddrUnix::new(&path).unwrap();
        let server = new_socket().unwrap();
        rustix::net::bind(&server, &address).unwrap();
        rustix::net::listen(&server, 0).unwrap();
        let mut waiting = Vec::new();
        loop {
            let client = new_socket().unwrap();
            match rustix::net::connect(&client, &address) {
                Ok(()) => waiting.push(client),
                Err(errno) => break assert_eq!(errno, rustix::io::Errno::AGAIN),
            }
        }
        let bound = bind_socket(&path, Access::default());
        assert!(matches!(bound, Err(SocketError::InUse { .. })));
    }

    /// The system made up an abstract name for it, to which everybody could connect.
    #[test]
    fn an_empty_path_is_none() {
        let bound = bind_socket(Path::new(""), Access::default());
        assert!(matches!(bound, Err(SocketError::NoPath)), "{bound:?}");
    }

    /// Programs that know no lock of ours remove a socket and listen in its place: theirs was removed at
    /// our end.
    #[test]
    fn what_somebody_else_has_put_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let socket = bind_socket(&path, Access::default()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
        UnixStream::connect(&path).unwrap();
    }

    /// Of 50 clients at once half got EAGAIN.
    #[test]
    fn many_may_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let _socket = bind_socket(&path, Access::default()).unwrap();
        let address = SocketAddrUnix::new(&path).unwrap();
        let clients: Vec<_> = (0..100).map(|_| new_socket().unwrap()).collect();
        for client in &clients {
            rustix::net::connect(client, &address).unwrap();
        }
    }

    #[test]
    fn inherited_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let theirs = UnixListener::bind(&path).unwrap();
        let again = || Socket::inherited(theirs.try_clone().unwrap().into());
        let socket = again().unwrap();
        assert!(matches!(again(), Err(SocketError::Claimed)));
        assert!(socket.accept().unwrap().is_none());
        let _client = UnixStream::connect(&path).unwrap();
        assert!(socket.accept().unwrap().is_some());
        drop(socket);
        assert!(path.exists(), "it is not ours to remove");
        drop(again().unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_inherited() {
        let bound = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let inet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (connected, _other) = UnixStream::pair().unwrap();
        let wrong: [OwnedFd; 5] = [
            bound,
            datagram.into(),
            inet.into(),
            connected.into(),
            tempfile::tempfile().unwrap().into(),
        ];
        for fd in wrong {
            assert!(matches!(Socket::inherited(fd), Err(SocketError::Kind)));
        }
    }
}
