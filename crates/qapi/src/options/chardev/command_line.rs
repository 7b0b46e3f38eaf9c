//! The syntax of `--chardev`: no nesting, no JSON, `server` is short for `server=on`, `nowait` for
//! `wait=off`. Every parameter may be given with every kind; what does not concern it is ignored.

use super::types::{
    ChardevAddress, ChardevAddressVariant, ChardevBackend, ChardevBackendBase, ChardevCommon,
    ChardevFile, ChardevOptions, ChardevPty, ChardevRingbuf, ChardevSocket, ChardevStdio,
    ChardevVariant, Data,
};
use crate::options::{FdAddress, InetAddress, UnixAddress};
use crate::{QmpError, Size, TEXT_BYTES_MAX, id};

/// Kinds of character device, for the help.
pub const CHARDEV_BACKENDS: [&str; 7] = [
    "pty", "memory", "file", "socket", "stdio", "ringbuf", "null",
];

/// How the value of a parameter is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// `on` or `off`.
    Bool,
    /// A number.
    Number,
    /// A number with an optional suffix.
    Size,
    /// Any text.
    Text,
}

impl ParameterKind {
    /// The name in the help.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool (on/off)",
            Self::Number => "num",
            Self::Size => "size",
            Self::Text => "str",
        }
    }
}

use ParameterKind::{Bool, Number, Size as Bytes, Text};

/// All parameters that are known, QEMU's and ours; `id` goes without saying.
pub const CHARDEV_PARAMETERS: &[(&str, ParameterKind)] = &[
    ("abstract", Bool),
    ("append", Bool),
    ("backend", Text),
    ("chardev", Text),
    ("clipboard", Bool),
    ("cols", Number),
    ("debug", Number),
    ("delay", Bool),
    ("fd", Text),
    ("group", Text),
    ("height", Number),
    ("host", Text),
    ("input-path", Text),
    ("ipv4", Bool),
    ("ipv6", Bool),
    ("localaddr", Text),
    ("localport", Text),
    ("logappend", Bool),
    ("logfile", Text),
    ("mode", Text),
    ("mouse", Bool),
    ("mux", Bool),
    ("name", Text),
    ("nodelay", Bool),
    ("owner", Text),
    ("path", Text),
    ("port", Text),
    ("reconnect", Number),
    ("reconnect-ms", Number),
    ("rows", Number),
    ("server", Bool),
    ("signal", Bool),
    ("size", Bytes),
    ("telnet", Bool),
    ("tight", Bool),
    ("tls-authz", Text),
    ("tls-creds", Text),
    ("tn3270", Bool),
    ("to", Number),
    ("wait", Bool),
    ("websocket", Bool),
    ("width", Number),
];

impl ChardevOptions {
    /// Parses the argument of `--chardev`. Beside it, what is to be said of how it is written.
    ///
    /// # Errors
    /// In QEMU's words.
    pub fn parse(text: &str) -> Result<(Self, Vec<String>), QmpError> {
        let (options, warnings) = parse(text)?;
        options.backend.check()?;
        Ok((options, warnings))
    }
}

fn parse(text: &str) -> Result<(ChardevOptions, Vec<String>), QmpError> {
    let parameters = Parameters::parse(text)?;
    let id = parameters
        .id
        .clone()
        .ok_or_else(|| QmpError::generic("chardev: no id specified"))?;
    let backend = parameters
        .text("backend")
        .ok_or_else(|| QmpError::generic(format!("chardev: \"{id}\" missing backend")))?;
    let variant = variant(&backend, &parameters)?;
    let base = ChardevBackendBase {};
    let backend = ChardevBackend { base, variant };
    Ok((ChardevOptions { id, backend }, parameters.warnings))
}

fn variant(backend: &str, parameters: &Parameters) -> Result<ChardevVariant, QmpError> {
    let ChardevCommon { logfile, logappend } = ChardevCommon {
        logfile: parameters.text("logfile"),
        logappend: parameters.bool("logappend"),
    };
    let ring = |logfile| Data {
        data: ChardevRingbuf {
            logfile,
            logappend,
            size: parameters.number("size"),
        },
    };
    Ok(match backend {
        "null" => ChardevVariant::Null(Data {
            data: ChardevCommon { logfile, logappend },
        }),
        "file" => ChardevVariant::File(Data {
            data: ChardevFile {
                logfile,
                logappend,
                r#in: parameters.text("input-path"),
                out: parameters
                    .text("path")
                    .ok_or_else(|| QmpError::generic("chardev: file: no filename given"))?,
                append: parameters.bool("append"),
            },
        }),
        "pty" => ChardevVariant::Pty(Data {
            data: ChardevPty {
                logfile,
                logappend,
                path: parameters.text("path"),
            },
        }),
        "stdio" => ChardevVariant::Stdio(Data {
            data: ChardevStdio {
                logfile,
                logappend,
                signal: parameters.bool("signal"),
            },
        }),
        "ringbuf" => ChardevVariant::Ringbuf(ring(logfile)),
        "memory" => ChardevVariant::Memory(ring(logfile)),
        "socket" => {
            let server = parameters.bool("server").unwrap_or(false);
            ChardevVariant::Socket(Data {
                data: ChardevSocket {
                    logfile,
                    logappend,
                    addr: address(parameters)?,
                    tls_creds: parameters.text("tls-creds"),
                    tls_authz: parameters.text("tls-authz"),
                    server: Some(server),
                    wait: parameters.bool("wait").or_else(|| server.then_some(true)),
                    nodelay: parameters.bool("nodelay"),
                    telnet: parameters.bool("telnet"),
                    tn3270: parameters.bool("tn3270"),
                    websocket: parameters.bool("websocket"),
                    reconnect: parameters.number("reconnect"),
                    reconnect_ms: parameters.number("reconnect-ms"),
                },
            })
        }
        name => {
            return Err(QmpError::generic(format!(
                "'{name}' is not a valid char driver name"
            )));
        }
    })
}

fn address(parameters: &Parameters) -> Result<ChardevAddress, QmpError> {
    let (path, host, fd) = (
        parameters.text("path"),
        parameters.text("host"),
        parameters.text("fd"),
    );
    let variant = match (path, host, fd) {
        (Some(path), None, None) => ChardevAddressVariant::Unix(Data {
            data: UnixAddress {
                path,
                r#abstract: Some(parameters.bool("abstract").unwrap_or(false)),
                tight: Some(parameters.bool("tight").unwrap_or(true)),
                mode: parameters.text("mode"),
                owner: parameters.text("owner"),
                group: parameters.text("group"),
            },
        }),
        (None, Some(host), None) => ChardevAddressVariant::Inet(Data {
            data: InetAddress {
                host,
                port: parameters
                    .text("port")
                    .ok_or_else(|| QmpError::generic("chardev: socket: no port given"))?,
                numeric: None,
                to: match parameters.number("to") {
                    None => None,
                    Some(to) => Some(u16::try_from(to).map_err(|_| {
                        QmpError::generic(format!("Parameter 'to' is no port: {to}"))
                    })?),
                },
                ipv4: parameters.bool("ipv4"),
                ipv6: parameters.bool("ipv6"),
                keep_alive: None,
                mptcp: None,
            },
        }),
        (None, None, fd) => {
            let text = fd.unwrap_or_default();
            if text.parse::<i32>().is_err() {
                return Err(QmpError::generic(format!(
                    "Unable to parse FD number {text}"
                )));
            }
            let ours = ["mode", "owner", "group"];
            if ours.iter().any(|name| parameters.text(name).is_some()) {
                return Err(QmpError::generic(
                    "'mode', 'owner' and 'group' are for a socket that is made: use 'path' and \
                     'server=on'",
                ));
            }
            ChardevAddressVariant::Fd(Data {
                data: FdAddress { str: text },
            })
        }
        _ => {
            return Err(QmpError::generic(
                "None or one of 'path', 'fd' or 'host' option required.",
            ));
        }
    };
    let base = ChardevBackendBase {};
    Ok(ChardevAddress { base, variant })
}

/// What is given, checked one by one: names are known, values are of their kind.
struct Parameters {
    id: Option<String>,
    items: Vec<(String, String)>,
    warnings: Vec<String>,
}

impl Parameters {
    fn parse(text: &str) -> Result<Self, QmpError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(QmpError::generic(format!(
                "Options of {} bytes are too long, at most {TEXT_BYTES_MAX} are accepted",
                text.len()
            )));
        }
        let mut items = Vec::new();
        let mut warnings = Vec::new();
        for (n, item) in split(text).into_iter().enumerate() {
            items.push(match item.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None if n == 0 => ("backend".to_owned(), item),
                None => {
                    let (name, value) = match item.strip_prefix("no") {
                        Some(name) => (name, "off"),
                        None => (item.as_str(), "on"),
                    };
                    warnings.push(format!(
                        "short-form boolean option '{item}' deprecated\nPlease use {name}={value} instead"
                    ));
                    (name.to_owned(), value.to_owned())
                }
            });
        }
        // Given more than once, the first counts, other than with all else.
        let id = items.iter().find(|(name, _)| name == "id");
        let id = id.map(|(_, id)| id.clone());
        if let Some(id) = &id {
            id::check_id(id)?;
        }
        for (name, value) in items.iter().filter(|(name, _)| name != "id") {
            let known = CHARDEV_PARAMETERS.iter().find(|(known, _)| known == name);
            let (_, kind) =
                known.ok_or_else(|| QmpError::generic(format!("Invalid parameter '{name}'")))?;
            kind.check(name, value)?;
        }
        Ok(Self {
            id,
            items,
            warnings,
        })
    }

    /// The last one counts.
    fn get(&self, name: &str) -> Option<&str> {
        let mut found = self.items.iter().rev();
        let (_, value) = found.find(|(known, _)| known == name)?;
        Some(value)
    }

    fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    fn bool(&self, name: &str) -> Option<bool> {
        self.get(name).and_then(bool_of)
    }

    /// Larger ones are as large as there can be.
    fn number(&self, name: &str) -> Option<i64> {
        let number = Size::parse(self.get(name)?)?.0;
        Some(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl ParameterKind {
    fn check(self, name: &str, value: &str) -> Result<(), QmpError> {
        let is_right = match self {
            Self::Text => true,
            Self::Bool => bool_of(value).is_some(),
            Self::Number => {
                value.bytes().all(|b| b.is_ascii_hexdigit() || b == b'x')
                    && Size::parse(value).is_some()
            }
            Self::Size => Size::parse(value).is_some(),
        };
        if is_right {
            return Ok(());
        }
        let expected = match self {
            Self::Bool => "'on' or 'off'",
            Self::Size => "a non-negative number below 2^64",
            Self::Number | Self::Text => "a number",
        };
        let error = QmpError::generic(format!("Parameter '{name}' expects {expected}"));
        Err(match self {
            Self::Size => error.with_hint(
                "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
                 and exabytes, respectively.",
            ),
            _ => error,
        })
    }
}

fn bool_of(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
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
