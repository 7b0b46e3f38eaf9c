//! Lets programs that sleep in `io_uring_enter` run under Valgrind, as an `LD_PRELOAD` library.
//!
//! Valgrind runs one thread at a time and lets the others on when one makes a system call that may
//! block. It does not know (3.19) that `io_uring_enter` is such a call, so the first thread to
//! wait for a completion stops the whole program. This library takes the place of `syscall` and makes
//! that wait with `ppoll`, which Valgrind does know, and calls `io_uring_enter` when it need not wait.
//! Since a ring with DEFER_TASKRUN need not wake those who poll it, rings are set up without; then the
//! kernel brings completions by itself, and nothing else is different for the program.
//!
//! It is for counting instructions; nothing that ships uses it.

use libc::{c_int, c_long, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// `IORING_ENTER_GETEVENTS`: wait for completions.
const GETEVENTS: c_long = 1;
/// `IORING_ENTER_EXT_ARG`: the fifth argument is [`Argument`].
const EXT_ARG: c_long = 8;

/// `IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_DEFER_TASKRUN`.
const LAZY: u32 = 1 << 8 | 1 << 9 | 1 << 13;

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct Argument {
    sigmask: u64,
    sigmask_bytes: u32,
    min_wait_us: u32,
    timeout: *const libc::timespec,
}

/// libc's `syscall`. It is variadic; on the targets we support that makes no difference for integers.
type Syscall =
    unsafe extern "C" fn(c_long, c_long, c_long, c_long, c_long, c_long, c_long) -> c_long;

static REAL: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

fn real() -> Syscall {
    let mut address = REAL.load(Ordering::Relaxed);
    if address.is_null() {
        // SAFETY: the name is a C string; the result is looked at before it is used.
        address = unsafe { libc::dlsym(libc::RTLD_NEXT, c"syscall".as_ptr()) };
        if address.is_null() {
            // SAFETY: it ends the process. Unwinding through a C caller would not be allowed.
            unsafe { libc::abort() }
        }
        REAL.store(address, Ordering::Relaxed);
    }
    // SAFETY: this is the address of libc's `syscall`, see `Syscall`.
    unsafe { std::mem::transmute::<*mut c_void, Syscall>(address) }
}

/// Takes the place of libc's `syscall`.
///
/// # Safety
/// As for the system call that is made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a1: c_long,
    a2: c_long,
    a3: c_long,
    a4: c_long,
    a5: c_long,
    a6: c_long,
) -> c_long {
    let real = real();
    if number == libc::SYS_io_uring_setup {
        // The second argument is a `struct io_uring_params`, whose third word are the flags.
        if let Ok(params @ 1..) = usize::try_from(a2) {
            // SAFETY: the caller passes the address of such a structure, as the integer that the
            // kernel takes.
            unsafe { *ptr::with_exposed_provenance_mut::<u32>(params).add(2) &= !LAZY };
        }
    }
    let waits = number == libc::SYS_io_uring_enter && a4 & GETEVENTS != 0 && a3 > 0;
    let (true, Ok(fd)) = (waits, c_int::try_from(a1)) else {
        // SAFETY: the caller's responsibility, passed on.
        return unsafe { real(number, a1, a2, a3, a4, a5, a6) };
    };
    // SAFETY: as the caller asked, but for the waiting.
    let submitted = unsafe { real(number, a1, a2, 0, a4, a5, a6) };
    if submitted < 0 {
        return submitted;
    }
    let argument = usize::try_from(a5).unwrap_or(0);
    let timeout = if a4 & EXT_ARG != 0 && argument != 0 {
        // SAFETY: with EXT_ARG the caller passes the address of a valid structure of this type, as
        // the integer that the kernel takes.
        unsafe { (*ptr::with_exposed_provenance::<Argument>(argument)).timeout }
    } else {
        ptr::null()
    };
    let mut ring = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one descriptor, a timeout that is null or the caller's, no signal mask.
    let ready = unsafe { libc::ppoll(&raw mut ring, 1, timeout, ptr::null()) };
    // SAFETY: reaps what is there; asks for nothing that was not asked of us.
    let reaped = unsafe { real(number, a1, 0, 0, a4, a5, a6) };
    if submitted > 0 {
        submitted
    } else if ready == 0 {
        // SAFETY: the address is that of this thread's errno.
        unsafe { *libc::__errno_location() = libc::ETIME };
        -1
    } else {
        reaped
    }
}
