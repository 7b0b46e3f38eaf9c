//! Who may connect to a socket: from names to numbers.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::mem::MaybeUninit;

use listener::Access;
use qapi::options::SocketAccess;

use super::setup_error::SetupError;
use super::strerror;

/// What an entry of the user or group database may take, in bytes: groups can have many members.
const ENTRY_BYTES_MAX: usize = 1 << 20;
const ENTRY_BYTES_MIN: usize = 1 << 10;

/// What `access` means on this machine. May ask the network for names.
///
/// # Errors
/// A name that nobody has, or a database that does not answer.
pub fn resolve(access: &SocketAccess) -> Result<Access, SetupError> {
    Ok(Access {
        mode: access.mode()?,
        owner: id("owner", "user", access.owner.as_deref(), user)?,
        group: id("group", "group", access.group.as_deref(), group)?,
    })
}

fn id(
    option: &str,
    kind: &str,
    value: Option<&str>,
    look_up: fn(&CStr) -> io::Result<Option<u32>>,
) -> Result<Option<u32>, SetupError> {
    let Some(value) = value else {
        return Ok(None);
    };
    // The largest one means "no change" to chown(2).
    if let Ok(number) = value.parse::<u32>()
        && number != u32::MAX
    {
        return Ok(Some(number));
    }
    let unknown = || {
        SetupError::new(format!(
            "Parameter '{option}': there is no {kind} '{value}' on this machine; use a name that \
             'getent' knows, or a number"
        ))
    };
    let name = CString::new(value).map_err(|_| unknown())?;
    match look_up(&name) {
        Ok(Some(number)) => Ok(Some(number)),
        Ok(None) => Err(unknown()),
        Err(error) => Err(SetupError::new(format!(
            "Parameter '{option}': cannot look {kind} '{value}' up: {}; use a number",
            strerror(&error)
        ))),
    }
}

fn user(name: &CStr) -> io::Result<Option<u32>> {
    entry(|at, buffer, bytes, found| {
        // SAFETY: all pointers are to what `entry` owns, with `bytes` of room; `name` ends with a
        // zero.
        unsafe { libc::getpwnam_r(name.as_ptr(), at, buffer, bytes, found) }
    })
    .map(|entry| entry.map(|entry: libc::passwd| entry.pw_uid))
}

fn group(name: &CStr) -> io::Result<Option<u32>> {
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

    fn of(owner: &str, group: &str) -> Result<Access, String> {
        let access = SocketAccess {
            mode: None,
            owner: Some(owner.to_owned()),
            group: Some(group.to_owned()),
        };
        resolve(&access).map_err(|error| error.desc)
    }

    #[test]
    fn names_and_numbers() {
        let access = Access {
            mode: 0o600,
            owner: Some(0),
            group: Some(0),
        };
        assert_eq!(of("root", "root"), Ok(access));
        assert_eq!(of("0", "0"), Ok(access));
        assert_eq!(
            of("root", "no such group"),
            Err(
                "Parameter 'group': there is no group 'no such group' on this machine; use a name \
                 that 'getent' knows, or a number"
                    .to_owned()
            )
        );
        assert!(
            of("4294967295", "root").is_err(),
            "chown would change nothing"
        );
        assert!(of("-1", "root").is_err());
    }
}
