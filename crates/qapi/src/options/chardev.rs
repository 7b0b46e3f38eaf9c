//! Character devices: `--chardev`. The syntax is older than keyval: no nesting, no JSON, and
//! `server` is short for `server=on`, `nowait` for `wait=off`.

use super::SocketAccess;
use crate::{QmpError, TEXT_BYTES_MAX, id};

/// A character device: what a monitor talks through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChardevOptions {
    /// Name of the character device.
    pub id: String,
    /// What it is.
    pub backend: ChardevBackend,
}

/// Kinds of character device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChardevBackend {
    /// A unix socket.
    Socket {
        /// Which.
        address: ChardevSocketAddress,
        /// Listen (on) or connect (off, the default).
        server: bool,
        /// Whether a server waits for the first client before anything else happens. Default of
        /// a server: on.
        wait: bool,
        /// Who may connect to a server's path.
        access: SocketAccess,
    },
    /// Standard input and output.
    Stdio {
        /// Whether control characters typed at a terminal raise signals. Default: on.
        signal: bool,
    },
}

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChardevSocketAddress {
    /// A path in the file system.
    Path(String),
    /// The number of a file descriptor that was passed in.
    Fd(String),
}

/// Backends that QEMU has and we do not.
const FOREIGN: [&str; 17] = [
    "braille", "console", "file", "hub", "mux", "msmouse", "null", "parallel", "pipe", "pty",
    "ringbuf", "memory", "serial", "spicevmc", "udp", "vc", "wctablet",
];

impl ChardevOptions {
    /// Parses the argument of `--chardev`.
    pub fn parse(text: &str) -> Result<Self, QmpError> {
        let mut options = Options::parse(text)?;
        let id = options
            .take("id")
            .ok_or_else(|| QmpError::generic("chardev: no id specified"))?;
        id::check_id(&id)?;
        let backend = options
            .take("backend")
            .ok_or_else(|| QmpError::generic(format!("chardev: \"{id}\" missing backend")))?;
        let backend = match backend.as_str() {
            "socket" => socket(&mut options)?,
            "stdio" => ChardevBackend::Stdio {
                signal: options.take_bool("signal")?.unwrap_or(true),
            },
            name if FOREIGN.contains(&name) => {
                return Err(QmpError::generic(format!(
                    "chardev '{id}': backend '{name}' is not supported, use 'socket' or 'stdio'"
                )));
            }
            name => {
                return Err(QmpError::generic(format!(
                    "'{name}' is not a valid char driver name"
                )));
            }
        };
        match options.items.first() {
            Some((name, _)) => Err(QmpError::generic(format!("Invalid parameter '{name}'"))),
            None => Ok(ChardevOptions { id, backend }),
        }
    }
}

fn socket(options: &mut Options) -> Result<ChardevBackend, QmpError> {
    for name in [
        "host",
        "port",
        "ipv4",
        "ipv6",
        "tls-creds",
        "tls-authz",
        "websocket",
        "telnet",
    ] {
        if options.take(name).is_some() {
            return Err(QmpError::generic(format!(
                "Parameter '{name}' is not supported: a chardev socket is a unix socket, \
                 use 'path'"
            )));
        }
    }
    let address = match (options.take("path"), options.take("fd")) {
        (Some(_), Some(_)) => {
            return Err(QmpError::generic("'path' and 'fd' are mutually exclusive"));
        }
        (Some(path), None) => ChardevSocketAddress::Path(path),
        (None, Some(fd)) => ChardevSocketAddress::Fd(fd),
        (None, None) => return Err(QmpError::generic("Parameter 'path' is missing")),
    };
    let server = options.take_bool("server")?.unwrap_or(false);
    let wait = options.take_bool("wait")?;
    if wait.is_some() && !server {
        return Err(QmpError::generic(
            "'wait' option is incompatible with socket in client connect mode",
        ));
    }
    let access = SocketAccess {
        mode: options.take("mode"),
        owner: options.take("owner"),
        group: options.take("group"),
    };
    access.check()?;
    let made = server && matches!(address, ChardevSocketAddress::Path(_));
    if !made && !access.is_default() {
        return Err(QmpError::generic(
            "'mode', 'owner' and 'group' are for a socket that is made: use 'path' and 'server=on'",
        ));
    }
    Ok(ChardevBackend::Socket {
        address,
        server,
        wait: wait.unwrap_or(server),
        access,
    })
}

struct Options {
    items: Vec<(String, String)>,
}

impl Options {
    fn parse(text: &str) -> Result<Self, QmpError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(QmpError::generic(format!(
                "Options of {} bytes are too long, at most {TEXT_BYTES_MAX} are accepted",
                text.len()
            )));
        }
        let mut items = Vec::new();
        for (n, item) in split(text).into_iter().enumerate() {
            items.push(match item.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None if n == 0 => ("backend".to_owned(), item),
                None => match item.strip_prefix("no") {
                    Some(name) => (name.to_owned(), "off".to_owned()),
                    None => (item, "on".to_owned()),
                },
            });
        }
        Ok(Options { items })
    }

    /// Takes an option out; given more than once, the last counts.
    fn take(&mut self, name: &str) -> Option<String> {
        let value = self
            .items
            .iter()
            .rev()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.clone());
        self.items.retain(|(n, _)| n != name);
        value
    }

    fn take_bool(&mut self, name: &str) -> Result<Option<bool>, QmpError> {
        match self.take(name).as_deref() {
            None => Ok(None),
            Some("on" | "yes" | "true" | "y") => Ok(Some(true)),
            Some("off" | "no" | "false" | "n") => Ok(Some(false)),
            Some(_) => Err(QmpError::generic(format!(
                "Parameter '{name}' expects 'on' or 'off'"
            ))),
        }
    }
}

/// Splits at commas; two commas are one that does not split. A final comma ends the last item.
fn split(text: &str) -> Vec<String> {
    let mut items = Vec::new();
    let mut item = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != ',' {
            item.push(c);
        } else if chars.next_if_eq(&',').is_some() {
            item.push(',');
        } else {
            items.push(std::mem::take(&mut item));
        }
    }
    if !item.is_empty() {
        items.push(item);
    }
    items
}

#[cfg(test)]
mod tests;
