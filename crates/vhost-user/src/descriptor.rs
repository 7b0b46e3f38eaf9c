//! Descriptors that a client sends: what they are, and how to be rid of them.
//!
//! Nothing here asks whatever is behind one of them: a file system that does not answer would keep
//! this thread with it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the kernel calls an eventfd.
const EVENTFD: &str = "anon_inode:[eventfd]";

/// Threads that close something at the same time.
const CLOSERS_MAX: usize = 16;

static CLOSERS: AtomicUsize = AtomicUsize::new(0);

/// Why a descriptor is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAnEventFd {
    #[error("a descriptor that is no eventfd but '{0}'")]
    Kind(String),
    #[error("a descriptor whose kind /proc does not tell: {0}; mount /proc")]
    Unknown(String),
}

/// Takes an eventfd. Anything else is closed.
///
/// Files are always ready, and a write to one may not end; what is written to a pipe or a terminal
/// needs somebody who reads it.
pub(crate) fn eventfd(fd: OwnedFd) -> Result<OwnedFd, NotAnEventFd> {
    // The name of the open file, which costs no look at the file itself. A path begins with a slash.
    let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let refused = match name {
        Ok(name) if name == Path::new(EVENTFD) => return Ok(fd),
        Ok(name) => NotAnEventFd::Kind(name.display().to_string()),
        Err(error) => NotAnEventFd::Unknown(error.to_string()),
    };
    close(fd);
    Err(refused)
}

/// Closes a descriptor of unknown kind. To close a file asks its file system, so another thread
/// does it.
pub(crate) fn close(fd: OwnedFd) {
    let others = CLOSERS.fetch_add(1, Ordering::Relaxed);
    if others < CLOSERS_MAX {
        let thread = std::thread::Builder::new().name("close".to_owned());
        let spawned = thread.spawn(move || {
            drop(fd);
            CLOSERS.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_ok() {
            return;
        }
    }
    // Otherwise a client could keep any number of them. It waits for its own file system now.
    CLOSERS.fetch_sub(1, Ordering::Relaxed);
}

/// A descriptor that came with a message and that nobody has taken.
#[derive(Debug)]
pub(crate) struct Foreign(Option<OwnedFd>);

impl Foreign {
    pub fn new(fd: OwnedFd) -> Self {
        Self(Some(fd))
    }
}

impl From<Foreign> for OwnedFd {
    fn from(mut foreign: Foreign) -> Self {
        foreign
            .0
            .take()
            .expect("there until it is taken or dropped")
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(fd) = self.0.take() {
            close(fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd as make};

    #[test]
    fn only_eventfds() {
        for flags in [EventfdFlags::CLOEXEC, EventfdFlags::NONBLOCK] {
            assert!(eventfd(make(1, flags).unwrap()).is_ok());
        }
        let (reader, writer) = std::io::pipe().unwrap();
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        let memfd = rustix::fs::memfd_create(EVENTFD, rustix::fs::MemfdFlags::CLOEXEC);
        let terminal = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/ptmx");
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join(EVENTFD)).unwrap();
        let others: [OwnedFd; 7] = [
            reader.into(),
            writer.into(),
            stream.into(),
            epoll.unwrap(),
            memfd.unwrap(),
            terminal.unwrap().into(),
            file.into(),
        ];
        for fd in others {
            let refused = eventfd(fd).unwrap_err();
            assert!(matches!(refused, NotAnEventFd::Kind(_)), "{refused}");
        }
    }
}
