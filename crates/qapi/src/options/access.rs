//! Who may connect to a unix socket that is made here. Ours: QEMU leaves it to the umask.

use crate::QmpError;

/// The mode of a socket of which nothing else is said.
const MODE_DEFAULT: u32 = 0o600;
/// Permissions and nothing else.
const MODE_MAX: u32 = 0o777;

/// Mode, owner and group of a socket, as they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// The permissions: octal digits, up to 0777. Default: 0600. The umask takes nothing from them.
    pub mode: Option<String>,
    /// The owner: a name or a number. Default: the daemon's user.
    pub owner: Option<String>,
    /// The group: a name or a number. Default: what the directory gives.
    pub group: Option<String>,
}

impl SocketAccess {
    /// Whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The permissions.
    pub fn mode(&self) -> Result<u32, QmpError> {
        let Some(text) = &self.mode else {
            return Ok(MODE_DEFAULT);
        };
        let octal = !text.is_empty() && text.bytes().all(|c| matches!(c, b'0'..=b'7'));
        let mode = u32::from_str_radix(text, 8).ok();
        let mode = mode.filter(|mode| octal && *mode <= MODE_MAX);
        mode.ok_or_else(|| {
            QmpError::generic(format!(
                "Parameter 'mode' expects octal permissions up to 0777, such as 0660, not '{text}'"
            ))
        })
    }

    /// Checks what does not depend on the machine.
    pub fn check(&self) -> Result<(), QmpError> {
        self.mode()?;
        for (name, value) in [("owner", &self.owner), ("group", &self.group)] {
            if value.as_deref() == Some("") {
                return Err(QmpError::generic(format!(
                    "Parameter '{name}' expects a name or a number"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        let mode = |text: &str| {
            let mode = Some(text.to_owned());
            SocketAccess {
                mode,
                ..SocketAccess::default()
            }
            .mode()
        };
        assert_eq!(SocketAccess::default().mode(), Ok(0o600));
        for (text, expected) in [("0660", 0o660), ("666", 0o666), ("0", 0), ("000777", 0o777)] {
            assert_eq!(mode(text), Ok(expected));
        }
        for wrong in [
            "",
            "0o660",
            "+660",
            "-1",
            "680",
            "1777",
            "u=rw",
            "7777777777777",
        ] {
            assert_eq!(
                mode(wrong).unwrap_err().desc,
                format!(
                    "Parameter 'mode' expects octal permissions up to 0777, such as 0660, not '{wrong}'"
                )
            );
        }
    }
}
