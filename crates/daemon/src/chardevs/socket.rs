//! `socket`: unix and TCP, listening and connecting.

use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::Path;

use assembly::{SetupError, abstract_path, bind_abstract, bind_listener};
use block::{BoxFuture, strerror};
use listener::{Socket, inherited_socket};
use monitor::{Connection, Descriptors, Door};
use qapi::options::{ChardevAddress, ChardevAddressVariant, Data, InetAddress, UnixAddress};
use qapi::{Object, Value, os_text};
use rustix::net::{SocketAddrUnix, getsockname};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

/// Clients that may wait for their turn.
const BACKLOG: u32 = 1024;

/// The longest abstract name, without the zero it begins with.
const ABSTRACT_NAME_BYTES_MAX: usize = 107;

/// A socket that listens.
#[derive(Debug)]
pub enum Listening {
    /// With the file that is removed when this is dropped, if there is one.
    Unix(
        UnixListener,
        #[expect(dead_code, reason = "held for its drop")] Option<Socket>,
    ),
    /// TCP.
    Tcp(TcpListener),
}

impl Listening {
    /// Where it is: a `SocketAddress`. Nothing if that cannot be told.
    pub fn address(&self) -> Option<Value> {
        match self {
            Self::Unix(listener, _) => bound_address(listener),
            Self::Tcp(listener) => bound_address(listener),
        }
    }
}

fn bound_address(socket: &impl AsFd) -> Option<Value> {
    let bound = getsockname(socket).ok()?;
    if let Ok(inet) = SocketAddr::try_from(bound.clone()) {
        let family = if inet.is_ipv4() { "ipv4" } else { "ipv6" };
        return Some(Value::Object(Object::from_iter([
            ("type".to_owned(), "inet".into()),
            ("host".to_owned(), inet.ip().to_string().into()),
            ("port".to_owned(), inet.port().to_string().into()),
            (family.to_owned(), true.into()),
        ])));
    }
    let bound = SocketAddrUnix::try_from(bound).ok()?;
    let path = |bytes| os_text::from_os(OsStr::from_bytes(bytes)).into();
    let mut address = Object::from_iter([("type".to_owned(), "unix".into())]);
    if let Some(name) = bound.abstract_name() {
        // One that is not tight is as long as there can be, and ends in zeroes.
        let is_tight = name.len() < ABSTRACT_NAME_BYTES_MAX;
        let end = name.iter().position(|&byte| byte == 0);
        address.insert("path".to_owned(), path(&name[..end.unwrap_or(name.len())]));
        address.insert("abstract".to_owned(), true.into());
        address.insert("tight".to_owned(), is_tight.into());
    } else {
        address.insert("path".to_owned(), path(bound.path_bytes()?));
    }
    Some(Value::Object(address))
}

impl Door for Listening {
    fn next(&self) -> BoxFuture<'_, io::Result<Connection>> {
        match self {
            Self::Unix(listener, _) => listener.next(),
            Self::Tcp(listener) => listener.next(),
        }
    }
}

/// Binds, and says what QEMU calls that.
///
/// # Errors
/// In QEMU's words.
pub async fn listen(
    address: &ChardevAddress,
    descriptors: &Descriptors,
) -> Result<(Listening, String), SetupError> {
    match &address.variant {
        ChardevAddressVariant::Unix(Data { data }) => Ok((
            listen_unix(data).await?,
            format!("{},server=on", unix_name(data)),
        )),
        ChardevAddressVariant::Inet(Data { data }) => {
            let listener = listen_tcp(data).await?;
            let bound = listener.local_addr().map_err(port_error)?;
            warn_of_everybody(&bound);
            let name = format!("tcp:{}:{},server=on", bound.ip(), bound.port());
            Ok((Listening::Tcp(listener), name))
        }
        ChardevAddressVariant::Fd(Data { data }) => {
            let socket = match data.str.parse::<i32>() {
                Ok(_) => inherited_socket(&data.str, true)?,
                // Whatever it is: it fails when somebody is to come through it.
                Err(_) => descriptors.take(&data.str)?,
            };
            let listener = StdUnixListener::from(socket);
            let listener = listener
                .set_nonblocking(true)
                .and_then(|()| UnixListener::from_std(listener));
            let listener = listener.map_err(|error| fd_error(&data.str, &error))?;
            Ok((
                Listening::Unix(listener, None),
                format!("fd:{},server=on", data.str),
            ))
        }
    }
}

async fn listen_unix(name: &UnixAddress) -> Result<Listening, SetupError> {
    let failed = |error: io::Error| {
        let (path, error) = (&name.path, strerror(&error));
        SetupError::new(format!("Failed to bind socket to {path}: {error}"))
    };
    if let Some(path) = abstract_path(name)? {
        let listener = bind_abstract(path, &name.path)?;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        return Ok(Listening::Unix(listener, None));
    }
    let path = os_text::to_os(&name.path);
    let (bound, listener) = bind_listener(Path::new(&path), name.access()).await?;
    let listener = listener
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(listener));
    Ok(Listening::Unix(listener.map_err(failed)?, Some(bound)))
}

fn unix_name(name: &UnixAddress) -> String {
    let path = &name.path;
    match (name.r#abstract, name.tight) {
        (Some(true), Some(false)) => format!("unix:{path},abstract=on"),
        (Some(true), _) => format!("unix:{path},abstract=on,tight=on"),
        _ => format!("unix:{path}"),
    }
}

fn port_error(error: io::Error) -> SetupError {
    SetupError::new(format!(
        "Failed to find an available port: {}",
        strerror(&error)
    ))
}

fn fd_error(number: &str, error: &io::Error) -> SetupError {
    SetupError::new(format!("File descriptor '{number}': {}", strerror(error)))
}

/// A monitor asks nobody who he is.
fn warn_of_everybody(bound: &SocketAddr) {
    if !bound.ip().is_loopback() {
        tracing::warn!(
            "a chardev listens on {bound}: whoever reaches that controls the daemon, for a monitor has no \
             passwords; bind it to 127.0.0.1, or use a unix socket"
        );
    }
}

async fn listen_tcp(address: &InetAddress) -> Result<TcpListener, SetupError> {
    let first = resolve(address).await?;
    let port = first.iter().map(SocketAddr::port).next().unwrap_or(0);
    let last = address.to.unwrap_or(port).max(port);
    let mut failed = io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
    for port in port..=last {
        for address in &first {
            match bind_tcp(SocketAddr::new(address.ip(), port)) {
                Ok(listener) => return Ok(listener),
                Err(error) => failed = error,
            }
        }
    }
    Err(port_error(failed))
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// All that a name means, as far as it may be used; at least one.
async fn resolve(address: &InetAddress) -> Result<Vec<SocketAddr>, SetupError> {
    let InetAddress { host, port, .. } = address;
    let failed = |why: &str| {
        SetupError::new(format!(
            "address resolution failed for {host}:{port}: {why}"
        ))
    };
    let number = port.parse::<u16>();
    let number = number.map_err(|_| failed("Servname not supported for ai_socktype"))?;
    let (ipv4, ipv6) = match (address.ipv4, address.ipv6) {
        (None, None) => (true, true),
        (Some(v4), None) => (v4, !v4),
        (None, Some(v6)) => (!v6, v6),
        (Some(v4), Some(v6)) => (v4, v6),
    };
    let any = if ipv4 { "0.0.0.0" } else { "::" };
    let host = if host.is_empty() { any } else { host };
    let found = tokio::net::lookup_host((host, number))
        .await
        .map_err(|error| {
            let text = error.to_string();
            failed(text.rsplit_once(": ").map_or(&*text, |(_, why)| why))
        })?;
    let usable = found.filter(|found| match found {
        SocketAddr::V4(_) => ipv4,
        SocketAddr::V6(_) => ipv6,
    });
    let usable: Vec<_> = usable.collect();
    match usable.is_empty() {
        true => Err(failed("Address family for hostname not supported")),
        false => Ok(usable),
    }
}

/// What QEMU calls a client of that address.
pub fn client_name(address: &ChardevAddress) -> String {
    match &address.variant {
        ChardevAddressVariant::Unix(Data { data }) => unix_name(data),
        ChardevAddressVariant::Inet(Data { data }) => format!("tcp:{}:{}", data.host, data.port),
        ChardevAddressVariant::Fd(Data { data }) => format!("fd:{}", data.str),
    }
}

/// Connects.
///
/// # Errors
/// In QEMU's words.
pub async fn connect(
    address: &ChardevAddress,
    descriptors: &Descriptors,
) -> Result<Connection, SetupError> {
    let failed = |name: &str, error: &io::Error| {
        SetupError::new(format!(
            "Failed to connect to '{name}': {}",
            strerror(error)
        ))
    };
    match &address.variant {
        ChardevAddressVariant::Unix(Data { data }) => {
            let path = match abstract_path(data)? {
                Some(path) => path,
                None => os_text::to_os(&data.path),
            };
            let connected = UnixStream::connect(path).await;
            Ok(connected
                .map_err(|error| failed(&data.path, &error))?
                .into())
        }
        ChardevAddressVariant::Inet(Data { data }) => {
            let all = resolve(data).await?;
            let connected = TcpStream::connect(&*all).await;
            let name = format!("{}:{}", data.host, data.port);
            let connected = connected.map_err(|error| failed(&name, &error))?;
            if data.keep_alive == Some(true) {
                let kept = rustix::net::sockopt::set_socket_keepalive(&connected, true);
                kept.map_err(|errno| failed(&name, &errno.into()))?;
            }
            Ok(connected.into())
        }
        ChardevAddressVariant::Fd(Data { data }) => {
            let socket = match data.str.parse::<i32>() {
                Ok(_) => inherited_socket(&data.str, false)?,
                Err(_) => descriptors.take(&data.str)?,
            };
            let stream = StdUnixStream::from(socket);
            let stream = stream
                .set_nonblocking(true)
                .and_then(|()| UnixStream::from_std(stream));
            Ok(stream.map_err(|error| fd_error(&data.str, &error))?.into())
        }
    }
}
