//! The descriptors that a process is started with, and the sockets among them.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_acceptconn, socket_domain};

use crate::error::InheritedError;

/// Where descriptors begin that are not standard streams.
const FD_MIN: RawFd = 3;

/// Looked at where there is no /proc to ask.
const FD_LOOK_MAX: RawFd = 1024;

/// What the process was started with, standard streams aside.
static INHERITED: OnceLock<Vec<RawFd>> = OnceLock::new();

/// Called once, before anything is opened: no program that the process starts inherits what it was
/// started with.
pub fn take_over() {
    INHERITED.get_or_init(|| candidates().into_iter().filter(|fd| close(*fd)).collect());
}

fn candidates() -> Vec<RawFd> {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else {
        return (FD_MIN..FD_LOOK_MAX).collect();
    };
    let names = open.flatten().map(|entry| entry.file_name());
    let numbers = names.filter_map(|name| name.to_str()?.parse::<RawFd>().ok());
    numbers.filter(|fd| *fd >= FD_MIN).collect()
}

/// Lets the descriptor end with an exec; false: it does that already, or does not exist.
fn close(fd: RawFd) -> bool {
    // SAFETY: used for the next two calls only, and they fail if it is not open. All that the
    // process has opened itself is close-on-exec and left alone.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    match fcntl_getfd(fd) {
        Ok(flags) if !flags.contains(FdFlags::CLOEXEC) => {
            fcntl_setfd(fd, flags | FdFlags::CLOEXEC).is_ok()
        }
        _ => false,
    }
}

/// Whether the process was started with this descriptor.
fn is_inherited(fd: RawFd) -> bool {
    INHERITED.get().is_some_and(|all| all.contains(&fd))
}

/// A unix socket that the process was started with, `listening` or connected, by its number. Needs
/// [`take_over`].
///
/// # Errors
/// If it is not one.
pub fn inherited_socket(number: &str, listening: bool) -> Result<OwnedFd, InheritedError> {
    let not_found = || InheritedError::NotASocket(number.to_owned());
    let raw = number.parse::<RawFd>().ok().filter(|raw| *raw >= FD_MIN);
    let raw = raw.ok_or_else(not_found)?;
    if !is_inherited(raw) {
        return Err(not_found());
    }
    // SAFETY: the process was started with it, and nobody closes it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
    let fd = fcntl_dupfd_cloexec(borrowed, FD_MIN).map_err(|_| not_found())?;
    let unix = matches!(socket_domain(&fd), Ok(AddressFamily::UNIX));
    let accepts = socket_acceptconn(&fd).map_err(|_| not_found())?;
    match (unix, accepts == listening) {
        (true, true) => Ok(fd),
        (false, _) => Err(InheritedError::NotUnix(number.to_owned())),
        (true, false) if listening => Err(InheritedError::NotListening(number.to_owned())),
        (true, false) => Err(InheritedError::Listening(number.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inherited_descriptors_are_checked() {
        for number in ["x", "-1", "0", "99999", "1000000"] {
            let error = inherited_socket(number, true).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("File descriptor '{number}' is not a socket")
            );
        }
    }
}
