//! Where metrics are served: to this machine.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket, by its path.
    Unix(PathBuf),
    /// A port of the loopback interface; 0: any that is free.
    Tcp(Loopback),
}

/// An address of the loopback interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loopback(SocketAddr);

impl Loopback {
    /// The address.
    #[must_use]
    pub fn get(self) -> SocketAddr {
        self.0
    }
}

/// Why metrics are not served there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Others could read them, because nobody is asked who he is.
    #[error(
        "metrics address '{0}' is not of the loopback interface, and whoever can reach it could read \
         them; use 127.0.0.1:PORT, [::1]:PORT or unix:PATH, and a proxy that knows who may read them"
    )]
    NotLoopback(SocketAddr),
    /// No address. Names are none, because looking them up may take for ever.
    #[error("'{0}' is not an address for metrics; use 127.0.0.1:PORT, [::1]:PORT or unix:PATH")]
    Syntax(String),
}

impl TryFrom<SocketAddr> for Loopback {
    type Error = AddressError;

    fn try_from(address: SocketAddr) -> Result<Self, AddressError> {
        // ::ffff:127.0.0.1 is 127.0.0.1.
        match address.ip().to_canonical().is_loopback() {
            true => Ok(Self(address)),
            false => Err(AddressError::NotLoopback(address)),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(AddressError::Syntax(text.to_owned())),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let address: SocketAddr = text
            .parse()
            .map_err(|_| AddressError::Syntax(text.to_owned()))?;
        Ok(Self::Tcp(address.try_into()?))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "{}", address.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine() {
        for good in [
            "127.0.0.1:9100",
            "127.8.9.1:0",
            "[::1]:9100",
            "unix:/run/m.sock",
            "unix:m",
        ] {
            let address: Address = good.parse().unwrap();
            assert_eq!(address.to_string(), good);
        }
        assert!("[::ffff:127.0.0.1]:1".parse::<Address>().is_ok());
        for open in [
            "0.0.0.0:9100",
            "[::]:9100",
            "192.168.1.7:9100",
            "[::ffff:10.0.0.1]:80",
        ] {
            let error = open.parse::<Address>().unwrap_err();
            assert!(matches!(error, AddressError::NotLoopback(_)), "{open}");
            assert!(
                error.to_string().contains(open) && error.to_string().contains("127.0.0.1:PORT")
            );
        }
        for bad in [
            "",
            "unix:",
            "localhost:9100",
            "127.0.0.1",
            ":9100",
            "127.0.0.1:99999",
            "/run/m",
        ] {
            let error = bad.parse::<Address>().unwrap_err();
            assert_eq!(error, AddressError::Syntax(bad.to_owned()));
        }
    }
}
