//! Addresses of sockets, as exports and chardevs name them.

use super::SocketAccess;
use crate::QmpError;
use serde::{Deserialize, Serialize};

/// A unix socket: a path in the file system, or an abstract name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UnixAddress {
    /// The path, which is made where somebody is to listen, or the abstract name.
    pub path: String,
    /// Whether it is an abstract name. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#abstract: Option<bool>,
    /// Whether an abstract name ends where its text does; off: zeroes follow, as many as there can be.
    /// Default: on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tight: Option<bool>,
    /// The permissions of a path that is made; see [`SocketAccess`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Its owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Its group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

impl UnixAddress {
    /// Whether there is a file of that name.
    pub fn is_path(&self) -> bool {
        self.r#abstract != Some(true)
    }

    /// Checks the path that somebody is to listen on.
    ///
    /// # Errors
    /// If it is empty; `parameter` is where it was said.
    pub fn check_listens(&self, parameter: &str) -> Result<(), QmpError> {
        if self.is_path() && self.path.is_empty() {
            return Err(QmpError::generic(format!(
                "Parameter '{parameter}' is empty: a socket needs a path"
            )));
        }
        Ok(())
    }

    /// Who may connect to a path that is made.
    pub fn access(&self) -> SocketAccess {
        SocketAccess {
            mode: self.mode.clone(),
            owner: self.owner.clone(),
            group: self.group.clone(),
        }
    }

    /// Checks who may connect; `is_made`: there will be a file for them.
    ///
    /// # Errors
    /// If that is no way to say it, or there is no file to say it of; `instead` says what would make one.
    pub fn check_access(&self, is_made: bool, instead: &str) -> Result<(), QmpError> {
        let access = self.access();
        access.check()?;
        if is_made || access.is_default() {
            return Ok(());
        }
        Err(QmpError::generic(format!(
            "'mode', 'owner' and 'group' are for a socket that is made: use {instead}"
        )))
    }
}

/// A TCP address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InetAddress {
    /// Name or number; empty: any address of this machine.
    pub host: String,
    /// The port, a number.
    pub port: String,
    /// Whether the host is a number. It may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numeric: Option<bool>,
    /// A server takes the first free port up to this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<u16>,
    /// Whether IPv4 may be used. Default: unless only `ipv6` is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<bool>,
    /// Whether IPv6 may be used. Default: unless only `ipv4` is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<bool>,
    /// Whether a client finds out that a silent peer is gone. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<bool>,
    /// Not supported: several paths at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mptcp: Option<bool>,
}

impl InetAddress {
    /// Checks what does not depend on the machine.
    ///
    /// # Errors
    /// If something is asked for that there is not.
    pub fn check(&self, listens: bool) -> Result<(), QmpError> {
        if listens && self.keep_alive == Some(true) {
            return Err(QmpError::generic(
                "keep-alive option is not supported for passive sockets",
            ));
        }
        match self.mptcp {
            Some(true) => Err(QmpError::generic("Parameter 'mptcp' is not supported")),
            _ => Ok(()),
        }
    }
}

/// A socket that was passed in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FdAddress {
    /// The number of the file descriptor, or the name that a client of a monitor has given it.
    pub str: String,
}

/// A virtual machine's socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VsockAddress {
    /// Which machine.
    pub cid: String,
    /// The number of the port.
    pub port: String,
}
