//! The users and groups of this machine: from names to numbers. May ask the network.

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::mem::MaybeUninit;

/// What an entry of the user or group database may take, in bytes: groups can have many members.
const ENTRY_BYTES_MAX: usize = 1 << 20;
const ENTRY_BYTES_MIN: usize = 1 << 10;

/// The number of a user.
///
/// # Errors
/// If the database does not answer; none: nobody has that name.
pub fn user_id(name: &CStr) -> io::Result<Option<u32>> {
    entry(|at, buffer, bytes, found| {
        // SAFETY: all pointers are to what `entry` owns, with `bytes` of room; `name` ends with a
        // zero.
        unsafe { libc::getpwnam_r(name.as_ptr(), at, buffer, bytes, found) }
    })
    .map(|entry| entry.map(|entry: libc::passwd| entry.pw_uid))
}

/// The number of a group.
///
/// # Errors
/// If the database does not answer; none: no group has that name.
pub fn group_id(name: &CStr) -> io::Result<Option<u32>> {
    entry(|at, buffer, bytes, found| {
        // SAFETY: as above.
        unsafe { libc::getgrnam_r(name.as_ptr(), at, buffer, bytes, found) }
    })
    .map(|entry| entry.map(|entry: libc::group| entry.gr_gid))
}

/// Calls one of the functions of getpwnam_r(3) with a buffer that is large enough. The pointers in
/// what is returned lead nowhere.
fn entry<T: Copy>(
    ask: impl Fn(*mut T, *mut c_char, usize, *mut *mut T) -> c_int,
) -> io::Result<Option<T>> {
    let mut bytes = ENTRY_BYTES_MIN;
    loop {
        let mut buffer: Vec<c_char> = vec![0; bytes];
        let mut place = MaybeUninit::<T>::uninit();
        let mut found = std::ptr::null_mut();
        match ask(
            place.as_mut_ptr(),
            buffer.as_mut_ptr(),
            bytes,
            &raw mut found,
        ) {
            // SAFETY: it was found, so `place` has been written.
            0 if !found.is_null() => return Ok(Some(unsafe { place.assume_init() })),
            // The manual names these as other words for "not found".
            0 | libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM => return Ok(None),
            libc::EINTR => {}
            libc::ERANGE if bytes < ENTRY_BYTES_MAX => bytes *= 2,
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up() {
        assert_eq!(user_id(c"root").unwrap(), Some(0));
        assert_eq!(group_id(c"root").unwrap(), Some(0));
        assert_eq!(user_id(c"no such user").unwrap(), None);
    }
}
