//! Who may connect to a socket: its mode, owner and group.

use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};

use crate::error::{SocketError, system};

/// The mode of a socket of which nothing else is said.
const MODE_DEFAULT: u32 = 0o600;

/// Who may connect: mode, owner and group of the socket's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The permissions, whatever the umask is; up to 0777.
    pub mode: u32,
    /// The user id of the owner; none: whoever makes it.
    pub owner: Option<u32>,
    /// The group id; none: the one that the directory gives.
    pub group: Option<u32>,
}

impl Default for Access {
    /// Only for the user that makes it.
    fn default() -> Self {
        Self {
            mode: MODE_DEFAULT,
            owner: None,
            group: None,
        }
    }
}

impl Access {
    /// Sets what differs from the default for the socket `path`, which this process has just bound
    /// with mode 0600, and which does not listen yet.
    ///
    /// # Errors
    /// What cannot be set, and why.
    pub(crate) fn grant(self, path: &Path) -> Result<(), SocketError> {
        if self == Self::default() {
            return Ok(());
        }
        // From here on by descriptor, so that all is done to one file, and never through a link.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(system(path, "open what was bound"))?;
        let stat = rustix::fs::fstat(&file).map_err(system(path, "stat"))?;
        let ours = FileType::from_raw_mode(stat.st_mode) == FileType::Socket
            && stat.st_uid == rustix::process::geteuid().as_raw();
        if !ours {
            return Err(SocketError::Replaced {
                path: path.to_owned(),
            });
        }
        // The owner first: once it is somebody else's, only root may change the mode, and root may
        // change both.
        if let Some(group) = self.group {
            let group = Some(Gid::from_raw(group));
            rustix::fs::chownat(&file, c"", None, group, AtFlags::EMPTY_PATH)
                .map_err(system(path, "set the group"))?;
        }
        // There is no fchmod(2) for such a descriptor.
        let by_fd = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mode = Mode::from_raw_mode(self.mode);
        rustix::fs::chmodat(CWD, by_fd, mode, AtFlags::empty())
            .map_err(system(path, "set the mode"))?;
        if let Some(owner) = self.owner {
            let owner = Some(Uid::from_raw(owner));
            rustix::fs::chownat(&file, c"", owner, None, AtFlags::EMPTY_PATH)
                .map_err(system(path, "set the owner"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::bind_socket;
    use std::os::unix::fs::MetadataExt;

    /// The umask of qemu-storage-daemon decides; here the option does, and a tight umask takes
    /// nothing from it.
    #[test]
    fn the_mode_is_what_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        for mode in [0o660, 0o600, 0o666, 0o777, 0o000] {
            let access = Access {
                mode,
                ..Access::default()
            };
            let socket = bind_socket(&path, access).unwrap();
            let made = std::fs::metadata(&path).unwrap();
            assert_eq!(made.mode() & 0o7777, mode);
            let lock = std::fs::metadata(dir.path().join("disk.sock.lock")).unwrap();
            assert_eq!(lock.mode() & 0o7777, 0o600);
            drop(socket);
        }
    }

    #[test]
    fn ones_own_user_and_group_can_be_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let own = std::fs::metadata(dir.path()).unwrap();
        let access = Access {
            mode: 0o660,
            owner: Some(own.uid()),
            group: Some(own.gid()),
        };
        let _socket = bind_socket(&path, access).unwrap();
        let made = std::fs::metadata(&path).unwrap();
        assert_eq!((made.uid(), made.gid()), (own.uid(), own.gid()));
    }

    #[test]
    fn what_somebody_else_has_put_there_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("disk.sock"), dir.path().join("other"));
        std::fs::write(&other, "precious").unwrap();
        let before = std::fs::metadata(&other).unwrap().mode();
        let access = Access {
            mode: 0o666,
            ..Access::default()
        };
        std::fs::hard_link(&other, &path).unwrap();
        let granted = access.grant(&path);
        assert!(matches!(granted, Err(SocketError::Replaced { .. })));
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(access.grant(&path).is_err());
        assert_eq!(std::fs::metadata(&other).unwrap().mode(), before);
    }
}
