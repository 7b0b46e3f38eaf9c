//! The types of `chardev-add`.

use std::time::Duration;

use crate::de::flat_union;
use crate::options::{FdAddress, InetAddress, UnixAddress};
use crate::{Object, QmpError, Value};
use serde::{Deserialize, Serialize};

/// A character device: what a monitor talks through. The arguments of `chardev-add`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ChardevOptions {
    /// Name of the character device.
    pub id: String,
    /// What it is.
    pub backend: ChardevBackend,
}

flat_union! {
    /// What a character device is.
    pub struct ChardevBackend { tag: "@type", base: ChardevBackendBase }

    /// Kinds of character device.
    pub enum ChardevKind;

    /// The options of a kind.
    pub enum ChardevVariant {
        /// Written to a file.
        File("file", Data<ChardevFile>),
        /// A socket: unix or TCP.
        Socket("socket", Data<ChardevSocket>),
        /// A pseudo terminal.
        Pty("pty", Data<ChardevPty>),
        /// Nothing comes, and what is written is lost.
        Null("null", Data<ChardevCommon>),
        /// Standard input and output.
        Stdio("stdio", Data<ChardevStdio>),
        /// The last bytes are kept in memory.
        Ringbuf("ringbuf", Data<ChardevRingbuf>),
        /// The former name of `ringbuf`.
        Memory("memory", Data<ChardevRingbuf>),
    }
}

/// Character devices have no common members beside `data`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChardevBackendBase {}

/// The options of a kind, wrapped as QAPI's older unions are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Data<T> {
    /// The options.
    pub data: T,
}

/// What every character device has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChardevCommon {
    /// A file that gets a copy of what is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logfile: Option<String>,
    /// Whether that file keeps what it has. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logappend: Option<bool>,
}

/// Options of `file`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChardevFile {
    /// See [`ChardevCommon`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logfile: Option<String>,
    /// See [`ChardevCommon`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logappend: Option<bool>,
    /// What is read. Default: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#in: Option<String>,
    /// What is written.
    pub out: String,
    /// Whether it keeps what it has. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append: Option<bool>,
}

/// Options of `pty`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChardevPty {
    /// See [`ChardevCommon`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logfile: Option<String>,
    /// See [`ChardevCommon`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logappend: Option<bool>,
    /// A symbolic link to the terminal, which is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Options of `stdio`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChardevStdio {
    /// See [`ChardevCommon`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logfile: Option<String>,
    /// See [`ChardevCommon`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logappend: Option<bool>,
    /// Whether control characters typed at a terminal raise signals. Default: on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<bool>,
}

/// Options of `ringbuf`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChardevRingbuf {
    /// See [`ChardevCommon`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logfile: Option<String>,
    /// See [`ChardevCommon`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logappend: Option<bool>,
    /// How many bytes are kept: a power of two. Default: 65536.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
}

/// Options of `socket`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChardevSocket {
    /// See [`ChardevCommon`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logfile: Option<String>,
    /// See [`ChardevCommon`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logappend: Option<bool>,
    /// Which.
    pub addr: ChardevAddress,
    /// Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_creds: Option<String>,
    /// Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_authz: Option<String>,
    /// Listen or connect. Default: listen, on the command line connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<bool>,
    /// Whether a server waits for the first client before anything else happens. Default: off, on the
    /// command line on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<bool>,
    /// Whether TCP sends at once. It always does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodelay: Option<bool>,
    /// Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub telnet: Option<bool>,
    /// Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tn3270: Option<bool>,
    /// Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub websocket: Option<bool>,
    /// After how many seconds a client connects again; 0: never, and the first time has to succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconnect: Option<i64>,
    /// The same in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconnect_ms: Option<i64>,
}

flat_union! {
    /// Where a socket is.
    pub struct ChardevAddress { tag: "@type", base: ChardevBackendBase }

    /// Kinds of socket.
    pub enum ChardevAddressKind;

    /// What belongs to a kind of socket.
    pub enum ChardevAddressVariant {
        /// TCP.
        Inet("inet", Data<InetAddress>),
        /// A path in the file system, or an abstract name.
        Unix("unix", Data<UnixAddress>),
        /// A descriptor that was passed in.
        Fd("fd", Data<FdAddress>),
    }
}

impl ChardevAddress {
    /// The same without nesting, as QOM tells it: QAPI's `SocketAddress`.
    pub fn flat(&self) -> Object {
        let (kind, data) = match &self.variant {
            ChardevAddressVariant::Inet(Data { data }) => ("inet", serde_json::to_value(data)),
            ChardevAddressVariant::Unix(Data { data }) => ("unix", serde_json::to_value(data)),
            ChardevAddressVariant::Fd(Data { data }) => ("fd", serde_json::to_value(data)),
        };
        let mut flat = match data {
            Ok(Value::Object(members)) => members,
            // It is a struct of texts and numbers.
            _ => Object::new(),
        };
        flat.insert("type".to_owned(), kind.into());
        flat
    }
}

/// The largest `ringbuf`, in bytes.
const RINGBUF_BYTES_MAX: u64 = 64 << 20;

impl ChardevBackend {
    /// Checks what does not depend on anything else.
    ///
    /// # Errors
    /// In QEMU's words.
    pub fn check(&self) -> Result<(), QmpError> {
        match &self.variant {
            ChardevVariant::Socket(socket) => socket.data.check(),
            ChardevVariant::Ringbuf(ring) | ChardevVariant::Memory(ring) => {
                ring.data.bytes().map(drop)
            }
            _ => Ok(()),
        }
    }

    /// The copy of what is written.
    pub fn common(&self) -> ChardevCommon {
        let (logfile, logappend) = match &self.variant {
            ChardevVariant::File(Data { data }) => (&data.logfile, data.logappend),
            ChardevVariant::Socket(Data { data }) => (&data.logfile, data.logappend),
            ChardevVariant::Pty(Data { data }) => (&data.logfile, data.logappend),
            ChardevVariant::Null(Data { data }) => (&data.logfile, data.logappend),
            ChardevVariant::Stdio(Data { data }) => (&data.logfile, data.logappend),
            ChardevVariant::Ringbuf(Data { data }) | ChardevVariant::Memory(Data { data }) => {
                (&data.logfile, data.logappend)
            }
        };
        ChardevCommon {
            logfile: logfile.clone(),
            logappend,
        }
    }
}

impl ChardevRingbuf {
    const BYTES_DEFAULT: i64 = 65536;

    /// How many bytes are kept.
    ///
    /// # Errors
    /// If that is no power of two, or too much.
    pub fn bytes(&self) -> Result<usize, QmpError> {
        let size = u64::try_from(self.size.unwrap_or(Self::BYTES_DEFAULT)).unwrap_or(0);
        if !size.is_power_of_two() {
            return Err(QmpError::generic(
                "size of ringbuf chardev must be power of two",
            ));
        }
        let size = (size <= RINGBUF_BYTES_MAX).then_some(size);
        let size = size.and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| {
            QmpError::generic(format!(
                "size of ringbuf chardev must be at most {RINGBUF_BYTES_MAX}"
            ))
        })
    }
}

impl ChardevSocket {
    /// Whether it listens.
    pub fn is_server(&self) -> bool {
        self.server.unwrap_or(true)
    }

    /// After what time a client connects again.
    pub fn reconnects_after(&self) -> Option<Duration> {
        let seconds = self.reconnect.map(|seconds| seconds.saturating_mul(1000));
        let milliseconds = self.reconnect_ms.or(seconds).unwrap_or(0);
        let milliseconds = u64::try_from(milliseconds).unwrap_or(0);
        (milliseconds > 0).then(|| Duration::from_millis(milliseconds))
    }

    fn check(&self) -> Result<(), QmpError> {
        let server = self.is_server();
        let text = if self.reconnect.is_some() && self.reconnect_ms.is_some() {
            "'reconnect' and 'reconnect-ms' are mutually exclusive"
        } else if server && self.reconnect.is_some_and(|seconds| seconds > 0) {
            "'reconnect' option is incompatible with socket in server listen mode"
        } else if !server && self.wait.is_some() {
            "'wait' option is incompatible with socket in client connect mode"
        } else if !server && self.websocket == Some(true) {
            "Websocket client is not implemented"
        } else if let Some(id) = &self.tls_creds {
            return Err(QmpError::generic(format!(
                "No TLS credentials with id '{id}'"
            )));
        } else if self.tls_authz.is_some() {
            "'tls_authz' option requires 'tls_creds' option"
        } else {
            return self.check_plain();
        };
        Err(QmpError::generic(text))
    }

    fn check_plain(&self) -> Result<(), QmpError> {
        for (name, is_on) in [
            ("telnet", self.telnet),
            ("tn3270", self.tn3270),
            ("websocket", self.websocket),
        ] {
            if is_on == Some(true) {
                return Err(QmpError::generic(format!(
                    "Parameter '{name}' is not supported: what comes through the socket is QMP alone"
                )));
            }
        }
        let listens = self.is_server();
        match &self.addr.variant {
            ChardevAddressVariant::Unix(Data { data: name }) => {
                if listens {
                    name.check_listens("path")?;
                }
                let is_made = listens && name.is_path();
                name.check_access(is_made, "'path' and 'server=on'")
            }
            ChardevAddressVariant::Inet(Data { data: address }) => address.check(listens),
            ChardevAddressVariant::Fd(_) => Ok(()),
        }
    }
}
