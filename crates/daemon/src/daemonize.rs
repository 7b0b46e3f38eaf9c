//! `--daemonize`: into the background, before there is any thread.

#![expect(unsafe_code, reason = "fork(2) has no safe wrapper")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

/// What new files are not to have: no writing by the group, nothing for all others.
const UMASK: Mode = Mode::from_raw_mode(0o027);

/// Who goes on after the fork.
#[derive(Debug)]
pub enum Process {
    /// Somebody who has nothing left to do but to end with this.
    Ends(ExitCode),
    /// The daemon.
    Daemon(Startup),
}

/// The startup of a daemon in the background, which whoever started it waits for. Dropped, it has failed.
#[derive(Debug)]
pub struct Startup {
    parent: File,
}

/// Forks twice: the daemon belongs to no session that could get a terminal. The first process returns when
/// the daemon is ready ([`Startup::ready`]) or has ended. Standard streams stay until then.
///
/// # Errors
/// Those of the system.
pub fn daemonize() -> io::Result<Process> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    if fork()? {
        drop(write);
        return Ok(Process::Ends(wait(read.into())));
    }
    drop(read);
    rustix::process::setsid()?;
    if fork()? {
        return Ok(Process::Ends(ExitCode::SUCCESS));
    }
    rustix::process::umask(UMASK);
    Ok(Process::Daemon(Startup {
        parent: write.into(),
    }))
}

/// True in the parent.
fn fork() -> io::Result<bool> {
    // SAFETY: called before the first thread is started, so the child has all that it needs: no lock is
    // held by anybody else.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(child != 0),
    }
}

/// The daemon says why it has failed on its own.
fn wait(mut daemon: File) -> ExitCode {
    let mut ready = [0];
    match daemon.read_exact(&mut ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

impl Startup {
    /// Everything is set up: lets whoever started the daemon go on, and lets go of what was his: working
    /// directory and standard streams.
    ///
    /// # Errors
    /// If there is no /dev/null.
    pub fn ready(mut self) -> io::Result<()> {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        rustix::process::chdir("/")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        // Whoever does not wait any more needs no word.
        let _ = self.parent.write_all(&[0]);
        Ok(())
    }
}
