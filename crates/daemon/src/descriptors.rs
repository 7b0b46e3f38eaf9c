//! The descriptors that the daemon is started with, and how many it may have.

use block::strerror;
use rustix::event::EventfdFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// File descriptors that a daemon without any disk may come to need.
const DESCRIPTORS_MIN: u32 = 32;

/// Called once, before anything is opened: no program that the daemon starts inherits what it was
/// started with, and the limit of descriptors is the largest that it may have. Programs get the
/// former one: some of them use select(2).
pub fn take_over() {
    listener::take_over();
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
