//! The listener: a thread of its own, and a bounded number of connections.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use listener::{Access, Socket, SocketError, bind_socket};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};

use crate::address::Address;
use crate::registry::Metrics;
use crate::respond::respond;

/// Connections at once. One more, and the oldest one ends.
const CONNECTIONS_MAX: usize = 16;

/// What the head of a request may have, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// How long a head may take, and a connection be idle.
const HEAD_LIMIT: Duration = Duration::from_secs(5);

/// After that a connection takes no further request...
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);

/// ...and after that its answer is cut off.
const LAST_ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How long to wait before accepting again after that has failed, e.g. for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Why metrics are not served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The unix socket.
    #[error("metrics: {0}")]
    Unix(#[from] SocketError),
    /// The port.
    #[error("metrics: cannot listen on {address}: {source}; choose another port, or port 0")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// What is needed beside it.
    #[error("metrics: the system refuses {what}: {source}")]
    System {
        /// What is refused.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Serves metrics. Dropping it ends that, and all connections.
#[derive(Debug)]
pub struct Server {
    port: Option<SocketAddr>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What is listened on.
enum Listener {
    Unix(Socket),
    Tcp(StdTcpListener),
}

impl Server {
    /// Serves `metrics` at `address`, on a thread of its own. A unix socket is for those whom `access` names;
    /// for a port that means nothing: every user of this machine can connect.
    ///
    /// # Errors
    /// If that cannot be listened on.
    pub fn start(address: &Address, access: Access, metrics: Metrics) -> Result<Self, ServerError> {
        let (listener, port) = match address {
            Address::Unix(path) => (Listener::Unix(bind_socket(path, access)?), None),
            Address::Tcp(loopback) => {
                let address = loopback.get();
                let refused = |source| ServerError::Tcp { address, source };
                let listener = StdTcpListener::bind(address).map_err(refused)?;
                listener.set_nonblocking(true).map_err(refused)?;
                let port = listener.local_addr().map_err(refused)?;
                (Listener::Tcp(listener), Some(port))
            }
        };
        let system = |what| move |source| ServerError::System { what, source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("an event loop"))?;
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let serve = async {
                        match listener {
                            Listener::Unix(socket) => serve_unix(socket, &metrics).await,
                            Listener::Tcp(listener) => serve_tcp(listener, &metrics).await,
                        }
                    };
                    tokio::select! {
                        _ = ended => {}
                        Err(error) = serve => tracing::warn!("metrics are no longer served: {error}"),
                    }
                });
            })
            .map_err(system("a thread"))?;
        Ok(Self {
            port,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// The port that it listens on; none: it is a unix socket.
    #[must_use]
    pub fn port(&self) -> Option<SocketAddr> {
        self.port
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It waits for nobody but the registry.
            let _ = thread.join();
        }
    }
}

/// The socket is kept for its files.
async fn serve_unix(socket: Socket, metrics: &Metrics) -> io::Result<()> {
    let listener = StdUnixListener::from(socket.as_fd().try_clone_to_owned()?);
    let listener = UnixListener::from_std(listener)?;
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.add(stream, metrics),
            Err(error) => connections.wait(&error).await,
        }
    }
}

async fn serve_tcp(listener: StdTcpListener, metrics: &Metrics) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.add(stream, metrics),
            Err(error) => connections.wait(&error).await,
        }
    }
}

/// The connections, oldest first.
#[derive(Debug, Default)]
struct Connections {
    tasks: JoinSet<()>,
    handles: VecDeque<AbortHandle>,
    accepts_badly: bool,
}

impl Connections {
    fn add<S>(&mut self, stream: S, metrics: &Metrics)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.accepts_badly = false;
        while self.tasks.try_join_next().is_some() {}
        self.handles.retain(|handle| !handle.is_finished());
        if self.handles.len() >= CONNECTIONS_MAX
            && let Some(oldest) = self.handles.pop_front()
        {
            oldest.abort();
        }
        let task = self.tasks.spawn(serve(stream, metrics.clone()));
        self.handles.push_back(task);
    }

    /// After a failure to accept.
    async fn wait(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.accepts_badly, true) {
            tracing::warn!("metrics: cannot accept a connection: {error}");
        }
        tokio::time::sleep(ACCEPT_RETRY).await;
    }
}

/// Serves one connection, however slow its client is, for a bounded time.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S, metrics: Metrics) {
    let service = service_fn(move |request| respond(metrics.clone(), request));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_BYTES_MAX);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    // How it ended is the client's business.
    let ended = tokio::time::timeout(CONNECTION_LIMIT, connection.as_mut()).await;
    if ended.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(LAST_ANSWER_LIMIT, connection).await;
    }
}
