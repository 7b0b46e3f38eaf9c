//! What programs are started with that the daemon has changed for itself.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::process::Command;

static DESCRIPTORS: OnceLock<Rlimit> = OnceLock::new();

/// Programs are started with this limit of descriptors; programs that use select(2) do not work
/// with the daemon's. The first call counts; without one they inherit what there is.
pub fn set_program_descriptors(limit: Rlimit) {
    let _: Result<(), Rlimit> = DESCRIPTORS.set(limit);
}

/// Lets a program begin with what the daemon was started with.
pub(crate) fn restore(program: &mut Command) {
    let Some(&limit) = DESCRIPTORS.get() else {
        return;
    };
    let restore = move || Ok(setrlimit(Resource::Nofile, limit)?);
    // SAFETY: what is called between fork and exec is one system call; no memory is allocated, no
    // lock taken.
    unsafe { program.pre_exec(restore) };
}
