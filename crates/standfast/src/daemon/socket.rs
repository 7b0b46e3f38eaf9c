//! Unix sockets: those we bind, and those we are started with.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use listener::{Socket, SocketError, bind_socket};
use qapi::options::SocketAccess;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_acceptconn, socket_domain};

use super::access::resolve;
use super::blocking::beside;
use super::descriptors::{self, FD_MIN};
use super::setup_error::SetupError;
use super::strerror;

/// Binds `path` for those that `access` names, with a lock beside it: the file is removed with what is
/// returned. The file system and the user database may take their time: nobody else waits for them.
///
/// # Errors
/// If the path is in use, or cannot be bound; if there is no such user or group.
pub async fn bind(path: &Path, access: SocketAccess) -> Result<Socket, SetupError> {
    let path = path.to_owned();
    beside(move || Ok(bind_socket(&path, resolve(&access)?)?)).await
}

/// Binds `path` as [`bind`] does, to be listened on here: the file is removed with what is returned
/// first.
///
/// # Errors
/// As [`bind`].
pub async fn bind_listener(
    path: &Path,
    access: SocketAccess,
) -> Result<(Socket, UnixListener), SetupError> {
    let socket = bind(path, access).await?;
    let listener = socket.as_fd().try_clone_to_owned();
    let listener = listener.map_err(|error| bind_error(path, &error))?;
    Ok((socket, listener.into()))
}

fn bind_error(path: &Path, error: &io::Error) -> SetupError {
    SetupError::new(format!(
        "Failed to bind socket to {}: {}",
        path.display(),
        strerror(error)
    ))
}

impl From<SocketError> for SetupError {
    /// QEMU's words, then ours.
    fn from(error: SocketError) -> Self {
        let hint = Some(error.to_string());
        let desc = match &error {
            SocketError::System { path, source, .. } => bind_error(path, source).desc,
            SocketError::InUse { path }
            | SocketError::NotASocket { path }
            | SocketError::Replaced { path } => {
                let in_use = io::Error::from_raw_os_error(libc::EADDRINUSE);
                bind_error(path, &in_use).desc
            }
            SocketError::Kind | SocketError::Claimed | SocketError::Inherited(_) => {
                return Self::new(error.to_string());
            }
        };
        Self { desc, hint }
    }
}

/// A unix socket that the process was started with, `listening` or connected.
///
/// # Errors
/// If it is not one, in QEMU's words.
pub fn inherited_socket(number: &str, listening: bool) -> Result<OwnedFd, SetupError> {
    let not_found = || SetupError::new(format!("File descriptor '{number}' is not a socket"));
    let raw = number.parse::<RawFd>().ok().filter(|raw| *raw >= FD_MIN);
    let raw = raw.ok_or_else(not_found)?;
    if !descriptors::is_inherited(raw) {
        return Err(not_found());
    }
    // SAFETY: the process was started with it, and nobody closes it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
    let fd = fcntl_dupfd_cloexec(borrowed, FD_MIN).map_err(|_| not_found())?;
    let unix = matches!(socket_domain(&fd), Ok(AddressFamily::UNIX));
    let accepts = socket_acceptconn(&fd).map_err(|_| not_found())?;
    match (unix, accepts == listening) {
        (true, true) => Ok(fd),
        (false, _) => Err(SetupError::new(format!(
            "File descriptor '{number}' is not a unix socket"
        ))),
        (true, false) => Err(SetupError::new(format!(
            "File descriptor '{number}' is {}a listening socket",
            if listening { "not " } else { "" }
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn made(path: &Path) -> Result<(Socket, UnixListener), SetupError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime
            .unwrap()
            .block_on(bind_listener(path, SocketAccess::default()))
    }

    #[test]
    fn a_socket_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (bound, _listener) = made(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        let error = made(&path).unwrap_err();
        let name = path.display();
        assert_eq!(
            error.desc,
            format!("Failed to bind socket to {name}: Address already in use")
        );
        assert!(error.hint.unwrap().contains("in use by another process"));
        drop(bound);
        assert!(!path.exists());
        let error = made(Path::new("/nonexistent/s")).unwrap_err();
        assert_eq!(
            error.desc,
            "Failed to bind socket to /nonexistent/s.lock: No such file or directory"
        );
    }

    #[test]
    fn inherited_descriptors_are_checked() {
        for number in ["x", "-1", "0", "99999", "1000000"] {
            let error = inherited_socket(number, true).unwrap_err();
            assert_eq!(
                error.desc,
                format!("File descriptor '{number}' is not a socket")
            );
        }
    }
}
