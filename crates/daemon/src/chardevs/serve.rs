//! What comes through a character device, as sessions of a monitor.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use block::BoxFuture;
use monitor::{Connection, Descriptors, Door, Input, Monitor, Other};
use parking_lot::Mutex;
use qapi::options::ChardevAddress;
use qapi::wire::Layout;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::file::{FileReader, FileWriter, Silence};
use super::pty::Pty;
use super::ring::{Ring, RingWriter};
use super::socket::{self, Listening};

/// How long to wait after something that the system has refused.
const RETRY: Duration = Duration::from_secs(1);

/// How clients come.
#[derive(Debug)]
pub enum Way {
    /// They connect.
    Listening(Listening),
    /// We connect, again after `delay`, if there is one.
    Client {
        address: ChardevAddress,
        descriptors: Arc<Descriptors>,
        first: Option<Connection>,
        delay: Option<Duration>,
    },
    /// Somebody opens the terminal.
    Pty(Pty),
    /// There is one, and no other will come.
    Stdio(Stdio),
    /// Nobody is there, but it looks as if.
    File {
        reader: Option<FileReader>,
        writer: FileWriter,
    },
    /// Nobody is there.
    Ring(Arc<Ring>),
    /// Nobody is there.
    Null,
}

/// The right to standard input and output: one has it.
#[derive(Debug)]
pub struct Stdio(Arc<AtomicBool>);

impl Stdio {
    /// None: somebody else has it.
    pub fn take(taken: &Arc<AtomicBool>) -> Option<Self> {
        let is_taken = taken.swap(true, Ordering::Relaxed);
        (!is_taken).then(|| Self(Arc::clone(taken)))
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// What is done with all that comes.
#[derive(Clone, Debug)]
pub struct Dress {
    log: Option<FileWriter>,
    clients: Option<Arc<AtomicUsize>>,
}

impl Dress {
    /// Copies what is written to `log`, and counts who is there in `clients`.
    pub fn new(log: Option<FileWriter>, clients: Option<Arc<AtomicUsize>>) -> Self {
        Self { log, clients }
    }

    fn dress(&self, connection: Connection) -> Connection {
        let Connection {
            mut reader,
            mut writer,
        } = connection;
        if let Some(clients) = &self.clients {
            clients.fetch_add(1, Ordering::Relaxed);
            reader = Box::new(Counted {
                inner: reader,
                clients: Arc::clone(clients),
            });
        }
        if let Some(log) = &self.log {
            writer = Box::new(Copied {
                inner: writer,
                log: log.clone(),
            });
        }
        Connection { reader, writer }
    }
}

/// A character device, as a monitor needs it.
#[derive(Debug)]
pub struct Served {
    way: Way,
    dress: Dress,
    first: Option<Connection>,
}

impl Served {
    /// A way in.
    pub fn new(mut way: Way, dress: Dress) -> Self {
        // It is there, whether or not a monitor takes it.
        if let Way::Client { first, .. } = &mut way {
            *first = first.take().map(|connection| dress.dress(connection));
        }
        Self {
            way,
            dress,
            first: None,
        }
    }

    /// How clients come.
    pub fn way(&self) -> &Way {
        &self.way
    }

    /// The first one has come already.
    pub fn came(&mut self, first: Connection) {
        self.first = Some(self.dress.dress(first));
    }

    /// Serves all that come until the monitor closes.
    pub async fn serve(self, monitor: Monitor, id: String, layout: Layout) {
        let Self { way, dress, first } = self;
        match way {
            Way::Listening(listening) => {
                let door = Dressed {
                    listening,
                    first: Mutex::new(first),
                    dress,
                };
                monitor.serve_door(door, layout).await;
            }
            Way::Client {
                address,
                descriptors,
                first,
                delay,
            } => {
                let client = Client {
                    id,
                    address,
                    descriptors,
                    dress,
                };
                client.serve(&monitor, first, delay, layout).await;
            }
            Way::Pty(pty) => loop {
                let stream = tokio::select! {
                    () = monitor.closing() => return,
                    stream = pty.opened() => stream,
                };
                let stream = match stream {
                    Ok(stream) => stream,
                    Err(error) => {
                        tracing::warn!("chardev '{id}': {error}; trying again");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                };
                let connection = connection(Other(stream.clone()), stream);
                session(&monitor, &id, dress.dress(connection), layout).await;
            },
            Way::Stdio(_stdio) => {
                let connection = connection(tokio::io::stdin(), tokio::io::stdout());
                session(&monitor, "stdio", dress.dress(connection), layout).await;
            }
            Way::File { reader, writer } => {
                let last = writer.clone();
                let connection = match reader {
                    Some(reader) => connection(Other(reader), writer),
                    None => connection(Other(Silence), writer),
                };
                session(&monitor, &id, dress.dress(connection), layout).await;
                // The process may end right after this.
                let _ = tokio::task::spawn_blocking(move || last.finish()).await;
            }
            Way::Ring(ring) => {
                let connection = connection(Other(Silence), RingWriter(ring));
                session(&monitor, &id, dress.dress(connection), layout).await;
            }
            Way::Null => {
                let connection = connection(Other(Silence), tokio::io::sink());
                session(&monitor, &id, dress.dress(connection), layout).await;
            }
        }
    }
}

fn connection(
    reader: impl Input + 'static,
    writer: impl AsyncWrite + Send + Unpin + 'static,
) -> Connection {
    Connection {
        reader: Box::new(reader),
        writer: Box::new(writer),
    }
}

async fn session(monitor: &Monitor, name: &str, connection: Connection, layout: Layout) {
    let Connection { reader, writer } = connection;
    monitor
        .session(name.to_owned(), reader, writer, layout)
        .await;
}

/// We connect.
struct Client {
    id: String,
    address: ChardevAddress,
    descriptors: Arc<Descriptors>,
    dress: Dress,
}

impl Client {
    async fn serve(
        self,
        monitor: &Monitor,
        mut first: Option<Connection>,
        delay: Option<Duration>,
        layout: Layout,
    ) {
        let mut is_told = false;
        loop {
            let connected = match first.take() {
                Some(connection) => Ok(connection),
                None => tokio::select! {
                    () = monitor.closing() => return,
                    connected = socket::connect(&self.address, &self.descriptors) => {
                        connected.map(|connection| self.dress.dress(connection))
                    }
                },
            };
            match connected {
                Ok(connection) => {
                    is_told = false;
                    session(monitor, &self.id, connection, layout).await;
                }
                Err(error) if !std::mem::replace(&mut is_told, true) => {
                    tracing::warn!(
                        "Unable to connect character device {}: {}",
                        self.id,
                        error.desc
                    );
                }
                Err(_) => {}
            }
            let Some(delay) = delay else {
                return;
            };
            tokio::select! {
                () = monitor.closing() => return,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }
}

/// A door whose clients are dressed.
struct Dressed {
    listening: Listening,
    first: Mutex<Option<Connection>>,
    dress: Dress,
}

impl Door for Dressed {
    fn next(&self) -> BoxFuture<'_, io::Result<Connection>> {
        Box::pin(async {
            let first = self.first.lock().take();
            match first {
                Some(first) => Ok(first),
                None => Ok(self.dress.dress(self.listening.next().await?)),
            }
        })
    }
}

/// A client that counts as long as it is there.
struct Counted {
    inner: Box<dyn Input>,
    clients: Arc<AtomicUsize>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl Input for Counted {
    fn has_left(&self) -> bool {
        self.inner.has_left()
    }

    fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.inner.take_descriptors()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client of which a file has a copy.
struct Copied {
    inner: Box<dyn AsyncWrite + Send + Unpin>,
    log: FileWriter,
}

impl AsyncWrite for Copied {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, data);
        if let Poll::Ready(Ok(count)) = written {
            self.log.write(&data[..count]);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
