//! `--chardev` and `--monitor`: where QMP sessions come from.

use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::Path;

use assembly::{SetupError, bind_listener, strerror, tidy_up};
use listener::{Socket, inherited_socket};
use monitor::Monitor;
use qapi::options::{
    ChardevBackend, ChardevOptions, ChardevSocketAddress, MonitorOptions, SocketAccess,
};
use qapi::os_text;
use qapi::wire::Layout;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::terminal;

/// A character device that no monitor has taken yet.
#[derive(Debug)]
enum Source {
    /// Clients come; one may have come already.
    Listener {
        listener: StdUnixListener,
        first: Option<UnixStream>,
    },
    /// The one peer.
    Stream(UnixStream),
    /// Standard input and output.
    Stdio,
}

#[derive(Debug)]
struct Chardev {
    id: String,
    source: Option<Source>,
}

/// All character devices, and the monitors that wait for the end of the setup.
#[derive(Debug, Default)]
pub struct Chardevs {
    all: Vec<Chardev>,
    monitors: Vec<(String, Source, Layout)>,
    tasks: JoinSet<()>,
    /// Socket files; removed when this is dropped.
    bound: Vec<Socket>,
    stdio: bool,
}

impl Chardevs {
    /// Executes `--chardev`. With `wait=on` it returns when the first client has come.
    ///
    /// # Errors
    /// If the id is taken, or the socket cannot be had.
    pub async fn add(&mut self, options: ChardevOptions) -> Result<(), SetupError> {
        let ChardevOptions { id, backend } = options;
        if self.all.iter().any(|known| known.id == id) {
            return Err(SetupError::duplicate_object(&id));
        }
        let source = match backend {
            ChardevBackend::Stdio { signal } => self.stdio(signal)?,
            ChardevBackend::Socket {
                address,
                server: true,
                wait,
                access,
            } => self.listen(address, wait, access).await?,
            ChardevBackend::Socket {
                address,
                server: false,
                ..
            } => Source::Stream(connect(address).await?),
        };
        self.all.push(Chardev {
            id,
            source: Some(source),
        });
        Ok(())
    }

    /// Executes `--monitor`. It serves after [`Self::serve`].
    ///
    /// # Errors
    /// If there is no such character device, or another monitor has it.
    pub fn attach(&mut self, options: &MonitorOptions) -> Result<(), SetupError> {
        let id = &options.chardev;
        let chardev = self.all.iter_mut().find(|known| known.id == *id);
        let chardev =
            chardev.ok_or_else(|| SetupError::new(format!("chardev \"{id}\" not found")))?;
        let source = chardev.source.take();
        let source = source.ok_or_else(|| SetupError::new(format!("Device '{id}' is in use")))?;
        let layout = match options.pretty {
            Some(true) => Layout::Pretty,
            _ => Layout::Compact,
        };
        self.monitors.push((id.clone(), source, layout));
        Ok(())
    }

    /// Starts the monitors, as tasks.
    pub fn serve(&mut self, monitor: &Monitor) {
        for (id, source, layout) in self.monitors.drain(..) {
            self.tasks.spawn(serve(monitor.clone(), id, source, layout));
        }
    }

    /// Returns when all sessions have ended, after [`Monitor::close`]. Socket files are gone then.
    pub async fn ended(mut self) {
        let bound = std::mem::take(&mut self.bound);
        tidy_up("sockets are left behind", move || drop(bound)).await;
        while self.tasks.join_next().await.is_some() {}
    }

    fn stdio(&mut self, signal: bool) -> Result<Source, SetupError> {
        if std::mem::replace(&mut self.stdio, true) {
            return Err(SetupError::new(
                "cannot use stdio by multiple character devices",
            ));
        }
        if !signal {
            terminal::disable_signals()?;
        }
        Ok(Source::Stdio)
    }

    async fn listen(
        &mut self,
        address: ChardevSocketAddress,
        wait: bool,
        access: SocketAccess,
    ) -> Result<Source, SetupError> {
        let (listener, name) = match address {
            ChardevSocketAddress::Path(path) => {
                let bound = bind_listener(Path::new(&os_text::to_os(&path)), access).await?;
                let (bound, listener) = bound;
                self.bound.push(bound);
                (listener, path)
            }
            ChardevSocketAddress::Fd(number) => {
                let listener = StdUnixListener::from(inherited_socket(&number, true)?);
                (listener, format!("fd {number}"))
            }
        };
        let first = match wait {
            false => None,
            true => Some(first_client(&listener, &name).await?),
        };
        Ok(Source::Listener { listener, first })
    }
}

async fn first_client(listener: &StdUnixListener, name: &str) -> Result<UnixStream, SetupError> {
    let failed = |error| SetupError::new(format!("cannot wait for a client on {name}: {error}"));
    let listener = listener.try_clone().map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    tracing::info!("waiting for connection on: {name} (wait=off does not wait)");
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    Ok(listener.accept().await.map_err(failed)?.0)
}

async fn connect(address: ChardevSocketAddress) -> Result<UnixStream, SetupError> {
    match address {
        ChardevSocketAddress::Path(path) => {
            let connected = UnixStream::connect(os_text::to_os(&path)).await;
            connected.map_err(|error| {
                let error = strerror(&error);
                SetupError::new(format!("Failed to connect to '{path}': {error}"))
            })
        }
        ChardevSocketAddress::Fd(number) => {
            let stream = StdUnixStream::from(inherited_socket(&number, false)?);
            let stream = stream
                .set_nonblocking(true)
                .and_then(|()| UnixStream::from_std(stream));
            stream.map_err(|error| {
                let error = strerror(&error);
                SetupError::new(format!("File descriptor '{number}': {error}"))
            })
        }
    }
}

async fn serve(monitor: Monitor, id: String, source: Source, layout: Layout) {
    match source {
        Source::Stdio => monitor.serve_stdio(layout).await,
        Source::Stream(stream) => session(&monitor, id, stream, layout).await,
        Source::Listener { listener, first } => {
            let first = async {
                if let Some(stream) = first {
                    session(&monitor, format!("{id} (first client)"), stream, layout).await;
                }
            };
            let (served, ()) = tokio::join!(monitor.serve(listener, layout), first);
            if let Err(error) = served {
                tracing::error!("monitor on chardev '{id}' cannot serve: {error}");
            }
        }
    }
}

async fn session(monitor: &Monitor, name: String, stream: UnixStream, layout: Layout) {
    let (reader, writer) = stream.into_split();
    monitor.session(name, reader, writer, layout).await;
}
