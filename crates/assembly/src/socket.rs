//! Unix sockets: from options to those we bind, and why there is none, in QEMU's words.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use block::strerror;
use listener::{InheritedError, Socket, SocketError, bind_socket};
use qapi::options::{SocketAccess, UnixAddress};
use qapi::os_text;

use crate::access::resolve;
use crate::blocking::beside;
use crate::setup_error::SetupError;

/// The longest path of a unix socket (`sun_path` without its final NUL), or abstract name (without its first).
const PATH_BYTES_MAX: usize = 107;

/// Binds `path` for those that `access` names, with a lock beside it: the file is removed with what is
/// returned. The file system and the user database may take their time: nobody else waits for them.
///
/// # Errors
/// If the path is in use, or cannot be bound; if there is no such user or group.
pub async fn bind(path: &Path, access: SocketAccess) -> Result<Socket, SetupError> {
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(too_long(&path.to_string_lossy(), PATH_BYTES_MAX + 1));
    }
    let path = path.to_owned();
    beside(move || {
        let bound = bind_socket(&path, resolve(&access)?);
        bound.map_err(|error| match &error {
            // Whatever file of it that was: the socket's name is the one that is known.
            SocketError::System { source, .. } => SetupError {
                // That there is no such directory is said.
                hint: (source.kind() != io::ErrorKind::NotFound).then(|| error.to_string()),
                ..bind_error(&path, source)
            },
            _ => error.into(),
        })
    })
    .await
}

fn too_long(path: &str, bytes_max: usize) -> SetupError {
    SetupError {
        desc: format!("UNIX socket path '{path}' is too long"),
        hint: Some(format!("Path must be less than {bytes_max} bytes")),
    }
}

/// Listens on an abstract name; `address` begins with a NUL ([`abstract_path`]). It is gone with its last
/// descriptor, and nothing is left.
///
/// # Errors
/// If it is in use.
pub fn bind_abstract(address: OsString, name: &str) -> Result<UnixListener, SetupError> {
    let bound = tokio::net::UnixListener::bind(address);
    let bound = bound.and_then(tokio::net::UnixListener::into_std);
    bound.map_err(|error| bind_error(Path::new(&os_text::to_os(name)), &error))
}

/// The abstract name that an address means, with the NUL that it begins with.
///
/// # Errors
/// If it is too long.
pub fn abstract_path(address: &UnixAddress) -> Result<Option<OsString>, SetupError> {
    if address.is_path() {
        return Ok(None);
    }
    let mut path = OsString::from("\0");
    path.push(os_text::to_os(&address.path));
    let bytes = path.len() - 1;
    if bytes > PATH_BYTES_MAX {
        return Err(too_long(&address.path, PATH_BYTES_MAX));
    }
    if address.tight == Some(false) {
        path.push("\0".repeat(PATH_BYTES_MAX - bytes));
    }
    Ok(Some(path))
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
            SocketError::NoPath
            | SocketError::Kind
            | SocketError::Claimed
            | SocketError::Inherited(_) => {
                return Self::new(error.to_string());
            }
        };
        Self { desc, hint }
    }
}

impl From<InheritedError> for SetupError {
    fn from(error: InheritedError) -> Self {
        Self::new(error.to_string())
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
        let long = format!("/{}", "x".repeat(107));
        assert_eq!(
            made(Path::new(&long)).unwrap_err().desc,
            format!("UNIX socket path '{long}' is too long")
        );
        let error = made(Path::new("/nonexistent/s")).unwrap_err();
        assert_eq!(
            error.desc,
            "Failed to bind socket to /nonexistent/s: No such file or directory"
        );
    }
}
