//! Who may connect to a socket: from names to numbers.

use std::ffi::{CStr, CString};
use std::io;

use block::strerror;
use listener::{Access, group_id, user_id};
use qapi::options::SocketAccess;

use crate::setup_error::SetupError;

/// What `access` means on this machine. May ask the network for names.
///
/// # Errors
/// A name that nobody has, or a database that does not answer.
pub fn resolve(access: &SocketAccess) -> Result<Access, SetupError> {
    Ok(Access {
        mode: access.mode()?,
        owner: id("owner", "user", access.owner.as_deref(), user_id)?,
        group: id("group", "group", access.group.as_deref(), group_id)?,
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
