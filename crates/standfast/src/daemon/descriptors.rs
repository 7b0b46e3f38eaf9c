//! The descriptors that the daemon is started with, and how many it may have.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::OnceLock;

use rustix::event::EventfdFlags;
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::strerror;

/// Where descriptors begin that are not standard streams.
pub const FD_MIN: RawFd = 3;

/// File descriptors that a daemon without any disk may come to need.
const DESCRIPTORS_MIN: u32 = 32;

/// Looked at where there is no /proc to ask.
const FD_LOOK_MAX: RawFd = 1024;

/// What the daemon was started with, standard streams aside.
static INHERITED: OnceLock<Vec<RawFd>> = OnceLock::new();

/// Called once, before anything is opened: no program that the daemon starts inherits what it was
/// started with, and the limit of descriptors is the largest that it may have. Programs get the
/// former one: some of them use select(2).
pub fn take_over() {
    INHERITED.get_or_init(|| candidates().into_iter().filter(|fd| close(*fd)).collect());
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if setrlimit(Resource::Nofile, raised).is_ok() {
        vmm::set_program_descriptors(limit);
    }
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

/// Whether the daemon was started with this descriptor.
pub fn is_inherited(fd: RawFd) -> bool {
    INHERITED.get().is_some_and(|all| all.contains(&fd))
}

/// The control plane cannot be made without descriptors, and has no error for that.
///
/// # Errors
/// If there are too few.
pub fn check() -> Result<(), String> {
    let probe = |_| rustix::event::eventfd(0, EventfdFlags::CLOEXEC);
    let probes: rustix::io::Result<Vec<_>> = (0..DESCRIPTORS_MIN).map(probe).collect();
    let text = |errno: rustix::io::Errno| {
        format!(
            "cannot open {DESCRIPTORS_MIN} file descriptors: {}; raise the limit (ulimit -n, \
             LimitNOFILE=)",
            strerror(&errno.into())
        )
    };
    probes.map(drop).map_err(text)
}
