//! Ctrl-C: noted, so that the demo can clean up after itself.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP are noted instead of killing the process.
///
/// # Errors
/// If the system refuses.
pub fn listen() -> io::Result<()> {
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let note: extern "C" fn(libc::c_int) = note;
        // SAFETY: the structure is valid when zeroed: no flags, no signals blocked meanwhile. The
        // handler does one atomic store, which is async-signal-safe. No wait of the demo is long,
        // so system calls may go on (SA_RESTART).
        let failed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = note as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(number, &raw const action, std::ptr::null_mut())
        };
        if failed != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn note(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Whether one came.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
