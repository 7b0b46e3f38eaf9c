//! What a process in a container may not do.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// From its start `command`'s program has no io_uring: each of its system calls fails with `errno`, as under
/// the filters of container engines (EPERM), or as if the kernel had none (ENOSYS). Only that process and
/// its children are concerned.
pub fn forbid_io_uring(command: &mut Command, errno: i32) {
    let filter = filter(errno);
    // SAFETY: between fork and exec it makes two system calls, and uses no memory but the copied filter's.
    unsafe { command.pre_exec(move || install(filter)) };
}

/// The three system calls have numbers one after the other.
fn filter(errno: i32) -> [libc::sock_filter; 5] {
    /// `BPF_LD | BPF_W | BPF_ABS`.
    const LOAD: u16 = 0x20;
    /// `BPF_JMP | BPF_JGE | BPF_K`.
    const AT_LEAST: u16 = 0x35;
    /// `BPF_JMP | BPF_JGT | BPF_K`.
    const GREATER: u16 = 0x25;
    /// `BPF_RET | BPF_K`.
    const RETURN: u16 = 0x06;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let number = |call: libc::c_long| u32::try_from(call).unwrap_or(u32::MAX);
    [
        step(LOAD, 0, 0, 0),
        step(AT_LEAST, 0, 2, number(libc::SYS_io_uring_setup)),
        step(GREATER, 1, 0, number(libc::SYS_io_uring_register)),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn install(mut filter: [libc::sock_filter; 5]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: 5,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: both change what this process may do, and nothing else; the kernel copies the program.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ) != 0
    };
    if refused {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
